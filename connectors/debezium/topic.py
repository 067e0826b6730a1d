"""One topic of one partition, read without a group from a remembered offset: who reads it may be killed, another goes on."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any, Final, cast

import fastavro
from confluent_kafka import Consumer, KafkaException, Message
from confluent_kafka import TopicPartition as ClientPartition

from connectors.access import PLAIN_KAFKA, KafkaSecurity
from connectors.kafka import Refusals, client_config
from connectors.registry import BlockingRegistry
from schemas.errors import KafkaUnavailable
from schemas.wire import split

_FETCH: Final = {"auto.offset.reset": "earliest", "enable.auto.commit": False, "group.id": "upwell-unused"}


class OwnTopic:
    """A reader of a topic that upwell has made for itself; what is before the log start is skipped."""

    def __init__(
        self,
        bootstrap_servers: str,
        registry: BlockingRegistry,
        topic: str,
        offset: int,
        security: KafkaSecurity = PLAIN_KAFKA,
    ) -> None:
        self._topic, self._registry = topic, registry
        self._schemas: dict[int, Any] = {}
        self._refusals = Refusals(bootstrap_servers)
        self._consumer = Consumer(
            client_config(bootstrap_servers, security, **_FETCH, error_cb=self._refusals)
        )
        self._consumer.assign([ClientPartition(topic, 0, offset)])

    def poll(self, seconds: float) -> Iterator[tuple[int, dict[str, Any]]]:
        """Offset and decoded value of what arrives within `seconds`, at once when something does; no tombstones.

        Raises KafkaUnavailable, RegistryUnavailable, SettingsError if Kafka lets nobody in.
        """
        message = self._consumer.poll(seconds)
        self._refusals.check()
        while message is not None:
            body = self._body(message)
            if body:
                yield cast(int, message.offset()), self._decode(body)
            message = self._consumer.poll(0)

    def _body(self, message: Message) -> bytes | None:
        error = message.error()
        if error is not None:
            raise KafkaUnavailable(f"{self._topic}: {error.str()}")
        return cast("bytes | None", message.value())

    def _decode(self, body: bytes) -> dict[str, Any]:
        if body[:1] == b"{":
            return cast("dict[str, Any]", json.loads(body))
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
