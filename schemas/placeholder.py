"""Debezium's unavailable-value placeholder: what stands where an unchanged TOASTed value was not in the log.

It is a random string per deployment, so a value that holds it can only come from Debezium. It must never
reach a stored row, a log or a vector.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

from schemas.change import JsonValue


class Placeholder:
    """Recognises the placeholder in decoded Avro values, in all forms that Debezium gives it."""

    __slots__ = ("_encoded", "_forms", "_quoted", "_text")

    def __init__(self, text: str) -> None:
        """Raises ValueError for an empty placeholder: it would be found everywhere."""
        if not text:
            raise ValueError("the placeholder must not be empty")
        self._text = text
        self._encoded = text.encode()
        self._quoted = json.dumps(text)
        digest = hashlib.md5(self._encoded, usedforsecurity=False).digest()
        name_based = str(uuid.UUID(bytes=digest, version=3))  # Debezium's stand-in in arrays of uuid
        as_numbers = [byte - 256 if byte > 127 else byte for byte in self._encoded]
        self._forms: tuple[Any, ...] = (
            text,
            self._encoded,
            self._quoted,
            as_numbers,
            [name_based],
            {text: text},
        )

    def is_in_bytes(self, body: bytes) -> bool:
        """Quick: whether an Avro body may hold it as text or bytes."""
        return self._encoded in body

    def stands_for(self, value: Any) -> bool:
        """Whether a decoded column is the placeholder, or a list, map or JSON text that has it as an item."""
        if isinstance(value, str) and value[:1] in {"[", "{", '"'} and self._text in value:
            value = _loaded(value)
        if any(type(value) is type(form) and value == form for form in self._forms):
            return True
        if isinstance(value, Mapping):
            return any(self.stands_for(item) for item in value.values())
        return isinstance(value, list) and any(self.stands_for(item) for item in value if item is not None)

    def is_within(self, value: JsonValue) -> bool:
        """Whether any text in a converted value, or in a rendered document, contains it."""
        if isinstance(value, str):
            return self._text in value or (value.startswith("\\x") and self._encoded.hex() in value)
        if isinstance(value, Mapping):
            return any(self.is_within(key) or self.is_within(item) for key, item in value.items())
        return isinstance(value, list) and any(self.is_within(item) for item in value)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
