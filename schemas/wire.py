"""Confluent's wire format: a zero byte, the schema id in four bytes, the Avro body."""

from __future__ import annotations

from schemas.errors import BadMagicByte


def split(message: bytes) -> tuple[int, bytes]:
    """Return the schema id and the Avro body. Raises BadMagicByte."""
    if len(message) < 5 or message[0] != 0:
        raise BadMagicByte(
            "the message does not begin with a zero byte and a schema id: check the converter's id handler"
        )
    return int.from_bytes(message[1:5], "big"), message[5:]


def join(schema_id: int, body: bytes) -> bytes:
    """The inverse of `split`."""
    return b"\0" + schema_id.to_bytes(4, "big") + body
