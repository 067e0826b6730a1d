"""The broker as an administrator sees it: topics with their identity, end offsets, log starts."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException, TopicCollection
from confluent_kafka import TopicPartition as ClientPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
)

from connectors.access import PLAIN_KAFKA, KafkaSecurity
from schemas.change import TopicPartition
from schemas.errors import KafkaUnavailable, SettingsError

T = TypeVar("T")

TIMEOUT_SECONDS: Final = 30.0
LEADER_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.05
_LOG: Final = logging.getLogger("upwell.kafka.client")

_NOT_NOW: Final = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._TRANSPORT,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.NOT_CONTROLLER,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.REQUEST_TIMED_OUT,
    }
)


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What makes a topic the one that was created: a topic deleted and made again has another id."""

    topic_id: str
    partitions: int


#: What the client only says in the background: each call would go on until its timeout, and then say just that.
_REFUSALS: Final = frozenset({KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED})
_UNTRUSTED: Final = "certificate"


class Refusals:
    """Hears a client's background errors, and keeps the one that says that it will never be let in."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._servers = bootstrap_servers
        self._heard = ""

    def __call__(self, error: KafkaError) -> None:
        untrusted = error.code() == KafkaError._SSL and _UNTRUSTED in error.str().lower()
        if error.code() in _REFUSALS or untrusted:
            self._heard = error.str()

    def check(self) -> None:
        """Raise SettingsError if such an error was heard."""
        if self._heard:
            raise SettingsError(f"Kafka at {self._servers} and upwell refuse each other: {self._heard}")


def client_config(
    bootstrap_servers: str, security: KafkaSecurity = PLAIN_KAFKA, **more: object
) -> dict[str, Any]:
    """Settings of every confluent-kafka client; the library's own log goes to the logger, not to stderr.

    Each call reports its own failure, and background errors would only repeat it: give a `Refusals` as `error_cb` to
    hear of those that do not.
    """
    common = {"bootstrap.servers": bootstrap_servers, "logger": _LOG, "error_cb": _ignore}
    return {**common, **security.librdkafka(), **more}


def _ignore(error: KafkaError) -> None:
    pass


class Kafka:
    """One cluster. Blocking."""

    def __init__(
        self,
        bootstrap_servers: str,
        security: KafkaSecurity = PLAIN_KAFKA,
        *,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._servers = bootstrap_servers
        self._timeout = timeout
        self._refusals = Refusals(bootstrap_servers)
        # Whoever polls for background errors is also given log lines, which would only repeat them.
        config = client_config(bootstrap_servers, security, error_cb=self._refusals, log_level=0)
        with self._errors():
            self._admin = AdminClient(config)

    def create(
        self,
        topics: Mapping[str, int],
        *,
        replication_factor: int,
        retention_hours: float,
        max_message_bytes: int,
    ) -> list[str]:
        """Create what does not exist (name -> partitions); returns the created names.

        Never compacted: a compacted topic forgets deletes, and its offset gaps stall consumers (DESIGN 4).
        """
        config = {
            "cleanup.policy": "delete",
            "retention.ms": str(int(retention_hours * 3_600_000)),
            "max.message.bytes": str(max_message_bytes),
        }
        new = [
            NewTopic(name, num_partitions=count, replication_factor=replication_factor, config=config)
            for name, count in topics.items()
        ]
        if not new:
            return []
        with self._errors():
            futures = self._admin.create_topics(new, request_timeout=self._timeout)
        return [name for name, future in futures.items() if self._created(future)]

    def take_messages_of(self, topics: Collection[str], size: int) -> list[str]:
        """Raise `max.message.bytes` of those that take smaller ones only; returns these."""
        small = [
            topic
            for topic, values in sorted(self.topic_settings(topics).items())
            if int(values.get("max.message.bytes", size)) < size
        ]
        resources = [
            ConfigResource(
                ConfigResource.Type.TOPIC,
                topic,
                incremental_configs=[
                    ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
                ],
            )
            for topic in small
        ]
        with self._errors():
            futures = self._admin.incremental_alter_configs(resources) if resources else {}
            for future in futures.values():
                self._result(future)
        return small

    def _created(self, future: Future[None]) -> bool:
        try:
            with self._errors():
                self._result(future)
        except TopicExists:
            return False
        return True

    def describe(self, names: Collection[str]) -> dict[str, TopicFacts]:
        """Identity of each topic that exists."""
        if not names:
            return {}
        with self._errors():
            futures = self._admin.describe_topics(TopicCollection(list(names)), request_timeout=self._timeout)
        found = {}
        for name, future in futures.items():
            try:
                with self._errors():
                    description = self._result(future)
            except TopicUnknown:
                continue
            found[name] = TopicFacts(str(description.topic_id), len(description.partitions))
        return found

    def names(self) -> list[str]:
        """All topics, sorted."""
        with self._errors():
            found = self._admin.list_topics(timeout=self._timeout).topics
        return sorted(found)

    def brokers(self) -> list[int]:
        """Ids of the brokers that the cluster has now."""
        with self._errors():
            return sorted(self._admin.list_topics(timeout=self._timeout).brokers)

    def topic_settings(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        """Settings in force of each topic that exists."""
        resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
        return self._settings(resources)

    def broker_settings(self, broker: int) -> dict[str, str]:
        """Settings in force of one broker; {} if it has left."""
        found = self._settings([ConfigResource(ConfigResource.Type.BROKER, str(broker))])
        return found.get(str(broker), {})

    def _settings(self, resources: list[ConfigResource]) -> dict[str, dict[str, str]]:
        if not resources:
            return {}
        with self._errors():
            futures = self._admin.describe_configs(resources, request_timeout=self._timeout)
        found = {}
        for resource, future in futures.items():
            try:
                with self._errors():
                    entries = future.result()
            except TopicUnknown:
                continue
            found[resource.name] = {
                name: entry.value for name, entry in entries.items() if entry.value is not None
            }
        return found

    def delete_topics(self, names: Collection[str]) -> None:
        """Delete topics with all that they hold; one that does not exist is fine."""
        if not names:
            return
        with self._errors():
            futures = self._admin.delete_topics(list(names), operation_timeout=self._timeout)
        for future in futures.values():
            with contextlib.suppress(TopicUnknown), self._errors():
                self._result(future)

    def groups(self) -> dict[str, str]:
        """State of each consumer group, by its id."""
        with self._errors():
            listed = self._admin.list_consumer_groups(request_timeout=self._timeout).result()
        return {group.group_id: group.state.name for group in listed.valid}

    def members(self, group: str) -> int:
        """How many share out its partitions; 0 while they do not agree on that."""
        with self._errors():
            future = self._admin.describe_consumer_groups([group], request_timeout=self._timeout)[group]
            found = self._result(future)
        return len(found.members) if found.state is ConsumerGroupState.STABLE else 0

    def delete_group(self, group: str) -> None:
        """Idempotent. Raises SettingsError while it has members."""
        with self._errors():
            future = self._admin.delete_consumer_groups([group], request_timeout=self._timeout)[group]
        try:
            future.result()
        except KafkaException as exception:
            if exception.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
                with self._errors():
                    raise

    def end_offsets(self, topics: Collection[str]) -> dict[TopicPartition, int]:
        """The offset that the next record of each partition will get."""
        return self._offsets(topics, OffsetSpec.latest())

    def log_starts(self, topics: Collection[str]) -> dict[TopicPartition, int]:
        """The least offset that each partition still holds."""
        return self._offsets(topics, OffsetSpec.earliest())

    def _offsets(self, topics: Collection[str], spec: OffsetSpec) -> dict[TopicPartition, int]:
        """A topic just created has no leader for a moment, so one refusal is no answer yet."""
        deadline = time.monotonic() + LEADER_SECONDS
        while True:
            try:
                return self._offsets_now(topics, spec)
            except KafkaUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _offsets_now(self, topics: Collection[str], spec: OffsetSpec) -> dict[TopicPartition, int]:
        asked = {
            ClientPartition(name, partition): spec
            for name, facts in self.describe(topics).items()
            for partition in range(facts.partitions)
        }
        if not asked:
            return {}
        with self._errors():
            futures = self._admin.list_offsets(asked, request_timeout=self._timeout)
            return {
                TopicPartition(at.topic, at.partition): int(self._result(f).offset)
                for at, f in futures.items()
            }

    def _result(self, future: Future[T]) -> T:
        """What a call brings; who is refused does not wait for its timeout."""
        while True:
            done, _ = wait([future], POLL_SECONDS)
            if done:
                return future.result()
            self._admin.poll(0)
            self._refusals.check()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Driver errors become ours here and nowhere else."""
        try:
            yield
        except KafkaException as exception:
            error = exception.args[0]
            if error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                raise TopicExists from exception
            if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise TopicUnknown from exception
            if error.retriable() or error.code() in _NOT_NOW:
                raise KafkaUnavailable(f"Kafka at {self._servers}: {error.str()}") from exception
            raise SettingsError(f"Kafka at {self._servers} refuses: {error.str()}") from exception


class TopicExists(Exception):
    """Not an error: what was wanted is there."""


class TopicUnknown(Exception):
    """Not an error: the topic is simply not there."""
