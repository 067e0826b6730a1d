"""The canary's topic: which numbers the connector has written, and where in the write-ahead log they were.

One partition, read without a group from a remembered place, so that a number that is missing is a lost change whoever
reads on (DESIGN 6).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import fastavro
from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as ClientPartition

from connectors.access import PLAIN_KAFKA, KafkaSecurity
from connectors.kafka import Refusals, client_config
from connectors.registry import BlockingRegistry
from schemas.errors import KafkaUnavailable
from schemas.wire import split

_FETCH: Final = {
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
    "group.id": "upwell-unused",
    "fetch.wait.max.ms": 1000,
}


@dataclass(frozen=True, slots=True)
class CanaryEvent:
    """One event of the canary's row. `lsn`: its place in the write-ahead log in bytes, None for a snapshot row."""

    offset: int
    number: int
    lsn: int | None


class CanaryTopic:
    """A reader of one canary topic, from `offset` on; what is not there any more is skipped."""

    def __init__(
        self,
        bootstrap_servers: str,
        registry: BlockingRegistry,
        topic: str,
        offset: int,
        *,
        security: KafkaSecurity = PLAIN_KAFKA,
    ) -> None:
        self._registry = registry
        self._schemas: dict[int, Any] = {}
        self._refusals = Refusals(bootstrap_servers)
        self._consumer = Consumer(
            client_config(bootstrap_servers, security, **_FETCH, error_cb=self._refusals)
        )
        self._consumer.assign([ClientPartition(topic, 0, offset)])

    def poll(self, seconds: float) -> Iterator[CanaryEvent]:
        """What arrives within `seconds`. Raises KafkaUnavailable, RegistryUnavailable, SettingsError."""
        message = self._consumer.poll(seconds)
        self._refusals.check()
        while message is not None:
            found = self._read(message)
            if found is not None:
                yield found
            message = self._consumer.poll(0)

    def _read(self, message: Message) -> CanaryEvent | None:
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                return None
            raise KafkaUnavailable(f"the canary's topic: {error.str()}")
        body = message.value()
        if not body:
            return None  # the tombstone of a row that somebody has deleted
        record = self._decode(body)
        nonce = str((record.get("after") or {}).get("nonce") or "")
        lsn = (record.get("source") or {}).get("lsn")
        if not nonce.isdecimal():
            return None
        return CanaryEvent(cast(int, message.offset()), int(nonce), None if lsn is None else int(lsn))

    def _decode(self, body: bytes) -> dict[str, Any]:
        schema_id, avro = split(body)
        if schema_id not in self._schemas:
            schema = json.loads(self._registry.schema(schema_id))
            self._schemas[schema_id] = fastavro.parse_schema(schema)
        return cast(
            "dict[str, Any]", fastavro.schemaless_reader(io.BytesIO(avro), self._schemas[schema_id], None)
        )

    def close(self) -> None:
        try:
            self._consumer.close()
        except KafkaException:
            return
