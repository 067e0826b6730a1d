"""Debezium's own account of an incremental snapshot, read from the notifications topic.

The topic has one partition and is read without a group from a remembered offset, so whoever follows a scan
may be killed and another takes over.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import fastavro
from confluent_kafka import Consumer, KafkaException, Message
from confluent_kafka import TopicPartition as ClientPartition

from connectors.access import PLAIN_HTTP, PLAIN_KAFKA, HttpAccess, KafkaSecurity
from connectors.kafka import Refusals, client_config
from connectors.registry import BlockingRegistry
from schemas.errors import KafkaUnavailable

#: A scan that ended with one of these has read the whole table; any other status is a failure (H24).
SCANNED: Final = frozenset({"SUCCEEDED", "EMPTY"})
_AGGREGATE: Final = "Incremental Snapshot"
_FETCH: Final = {"auto.offset.reset": "earliest", "enable.auto.commit": False, "group.id": "upwell-unused"}


@dataclass(frozen=True, slots=True)
class Notification:
    """One notification about an incremental snapshot. `signal` is the id of the signal that asked for it.

    `table` is empty where the notification is about no single one; `status` and `scanned_rows` are given when a
    table's scan has ended (`kind` TABLE_SCAN_COMPLETED), `chunk`, `chunks` and `total_rows` while it is IN_PROGRESS.
    """

    offset: int
    signal: str
    kind: str
    table: str = ""
    status: str = ""
    scanned_rows: int | None = None
    chunk: int | None = None
    chunks: int | None = None
    total_rows: int | None = None

    @property
    def ended(self) -> bool:
        return self.kind == "TABLE_SCAN_COMPLETED"

    @property
    def succeeded(self) -> bool:
        return self.ended and self.status in SCANNED


def parse(offset: int, record: dict[str, Any]) -> Notification | None:
    """The notification, or None if it is about something else than an incremental snapshot."""
    if record.get("aggregate_type") != _AGGREGATE:
        return None
    more: dict[str, str] = record.get("additional_data") or {}
    return Notification(
        offset=offset,
        signal=str(record.get("id") or ""),
        kind=str(record.get("type") or ""),
        table=more.get("scanned_collection") or more.get("current_collection_in_progress") or "",
        status=more.get("status") or "",
        scanned_rows=_number(more.get("total_rows_scanned")),
        chunk=_number(more.get("chunk_index")),
        chunks=_number(more.get("total_chunks")),
        total_rows=_number(more.get("total_rows")),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


class Notifications:
    """A reader of one notifications topic."""

    def __init__(
        self,
        bootstrap_servers: str,
        registry_url: str,
        topic: str,
        offset: int,
        *,
        security: KafkaSecurity = PLAIN_KAFKA,
        access: HttpAccess = PLAIN_HTTP,
    ) -> None:
        self._registry = BlockingRegistry(registry_url, access)
        self._schemas: dict[int, Any] = {}
        self._refusals = Refusals(bootstrap_servers)
        self._consumer = Consumer(
            client_config(bootstrap_servers, security, **_FETCH, error_cb=self._refusals)
        )
        self._consumer.assign([ClientPartition(topic, 0, offset)])

    def poll(self, seconds: float) -> Iterator[Notification]:
        """What arrives within `seconds`, at once when something does. Raises SettingsError if Kafka lets nobody in."""
        message = self._consumer.poll(seconds)
        self._refusals.check()
        while message is not None:
            found = self._read(message)
            if found is not None:
                yield found
            message = self._consumer.poll(0)

    def _read(self, message: Message) -> Notification | None:
        error = message.error()
        if error is not None:
            raise KafkaUnavailable(f"notifications: {error.str()}")
        body = message.value()
        if not body:
            return None
        return parse(cast(int, message.offset()), self._decode(body))

    def _decode(self, body: bytes) -> dict[str, Any]:
        if body[:1] == b"{":
            return cast("dict[str, Any]", json.loads(body))
        schema_id = int.from_bytes(body[1:5], "big")
        if schema_id not in self._schemas:
            schema = json.loads(self._registry.schema(schema_id))
            self._schemas[schema_id] = fastavro.parse_schema(schema)
        return cast(
            "dict[str, Any]", fastavro.schemaless_reader(io.BytesIO(body[5:]), self._schemas[schema_id], None)
        )

    def close(self) -> None:
        try:
            self._consumer.close()
        except KafkaException:
            return
