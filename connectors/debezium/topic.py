"""One topic of one partition, read without a group from a remembered offset: a reader is killed, another goes on."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar, cast

import fastavro
from confluent_kafka import Consumer, KafkaException, Message
from confluent_kafka import TopicPartition as ClientPartition

from connectors.access import PLAIN_KAFKA, KafkaSecurity
from connectors.kafka import Refusals, client_config
from connectors.registry import BlockingRegistry
from schemas.errors import KafkaUnavailable
from schemas.wire import split

T = TypeVar("T")
_FETCH: Final = {"auto.offset.reset": "earliest", "enable.auto.commit": False, "group.id": "upwell-unused"}


class OwnTopic(Generic[T]):
    """A reader of a topic that upwell has made for itself; what is before the log start is skipped.

    `parse` makes of offset and decoded value what is read, or None of what does not matter.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        registry: BlockingRegistry,
        topic: str,
        offset: int,
        parse: Callable[[int, dict[str, Any]], T | None],
        *,
        security: KafkaSecurity = PLAIN_KAFKA,
    ) -> None:
        self._topic, self._registry, self._parse = topic, registry, parse
        self._schemas: dict[int, Any] = {}
        self._refusals = Refusals(bootstrap_servers)
        self._consumer = Consumer(
            client_config(bootstrap_servers, security, **_FETCH, error_cb=self._refusals)
        )
        self._consumer.assign([ClientPartition(topic, 0, offset)])

    def poll(self, seconds: float) -> Iterator[T]:
        """What arrives within `seconds`, at once when something does; no tombstones.

        Raises KafkaUnavailable, RegistryUnavailable, SettingsError if Kafka lets nobody in.
        """
        message = self._consumer.poll(seconds)
        self._refusals.check()
        while message is not None:
            body = self._body(message)
            found = self._parse(cast(int, message.offset()), self._decode(body)) if body else None
            if found is not None:
                yield found
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
