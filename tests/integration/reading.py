"""Everything that is in a topic, decoded with the writer's schema."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fastavro
from confluent_kafka import Consumer, Message
from confluent_kafka import TopicPartition as ClientPartition

from connectors.kafka import Kafka
from connectors.registry import BlockingRegistry


@dataclass(frozen=True)
class Record:
    """One record; `headers` as text."""

    partition: int
    offset: int
    key: Any
    value: Any
    headers: dict[str, str]

    @property
    def operation(self) -> str:
        return "tombstone" if self.value is None else str(self.value["op"])

    @property
    def source(self) -> dict[str, Any]:
        return dict(self.value["source"])


class Reading:
    """Reads whole topics; `Registry` and `Kafka` are the product's own."""

    def __init__(self, bootstrap_servers: str, registry_url: str) -> None:
        self._servers = bootstrap_servers
        self._kafka = Kafka(bootstrap_servers)
        self._registry = BlockingRegistry(registry_url)

    def ends(self, name: str) -> int:
        """End offsets of all partitions, added up."""
        return sum(self._kafka.end_offsets([name]).values())

    def topic(self, name: str) -> list[Record]:
        """All records, by partition and offset."""
        starts, ends = self._kafka.log_starts([name]), self._kafka.end_offsets([name])
        consumer = Consumer(
            {"bootstrap.servers": self._servers, "group.id": "reading", "enable.auto.commit": False}
        )
        consumer.assign([ClientPartition(name, at.partition, start) for at, start in starts.items()])
        messages: list[Message] = []
        while len(messages) < sum(end - starts[at] for at, end in ends.items()):
            message = consumer.poll(10)
            assert message is not None, f"{name} ends too early"
            messages.append(message)
        consumer.close()
        return sorted(
            (self._record(m) for m in messages), key=lambda record: (record.partition, record.offset)
        )

    def _record(self, message: Message) -> Record:
        headers: Sequence[tuple[str, bytes]] = message.headers() or []
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        found = {name: value.decode() for name, value in headers}
        return Record(partition, offset, self._decoded(message.key()), self._decoded(message.value()), found)

    def _decoded(self, body: Any) -> Any:
        if body is None:
            return None
        assert body[:1] == b"\0"
        schema = json.loads(self._registry.schema(int.from_bytes(body[1:5], "big")))
        return fastavro.schemaless_reader(io.BytesIO(body[5:]), fastavro.parse_schema(schema), None)
