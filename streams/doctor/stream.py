"""What carries the changes: Kafka, Connect and the schema registry."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from connectors.debezium.config import CONNECTOR_CLASS, FIXED, converters
from connectors.debezium.connect import Connect, ConnectorStatus
from connectors.debezium.naming import Naming
from connectors.kafka import Kafka, TopicFacts
from connectors.registry import BlockingRegistry
from schemas.errors import ConnectUnavailable, LineageMismatch, RegistryUnavailable, SettingsError
from streams import neighbours
from streams.capture import check_topics, secrets_file
from streams.doctor.core import Check, Questions, Verdict, ask_all, fail, line_of, not_yet, ok, skipped, warn
from streams.doctor.known import Known
from streams.settings import Settings

T = TypeVar("T")

KAFKA_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = (3.0, 15.0)
REGISTRY_SECONDS: Final = 5.0
REBUILD: Final = "run `upwell connector rebuild`"


def kafka(settings: Settings) -> Kafka:
    return neighbours.kafka(settings, timeout=KAFKA_SECONDS)


def connect(settings: Settings) -> Connect:
    return neighbours.connect(settings, timeout=CONNECT_SECONDS)


def registry(settings: Settings, url: str = "") -> BlockingRegistry:
    return neighbours.blocking_registry(settings, url, timeout_seconds=REGISTRY_SECONDS)


# Kafka


@dataclass(frozen=True, slots=True)
class Cluster:
    """The broker and what it said first."""

    kafka: Kafka
    brokers: Sequence[int]


@contextlib.contextmanager
def _reach(make: Callable[[], T]) -> Iterator[T]:
    yield make()


def _reaching(make: Callable[[], T]) -> Callable[[], AbstractContextManager[T]]:
    return lambda: _reach(make)


def kafka_checks(settings: Settings, known: Known) -> list[Check]:
    """Checks of the broker, in order."""

    def reach() -> Cluster:
        found = kafka(settings)
        return Cluster(found, found.brokers())

    questions: Questions[Cluster] = [
        ("brokers", partial(_brokers, settings=settings)),
        ("broker settings", partial(_broker_settings, settings=settings)),
        ("topics", partial(_topics, settings=settings, known=known)),
        ("topic settings", partial(_topic_settings, settings=settings, known=known)),
    ]
    mend = "start it, or mend UPWELL_KAFKA_BOOTSTRAP_SERVERS"
    return ask_all("kafka", _reaching(reach), mend, questions)


def _brokers(cluster: Cluster, settings: Settings) -> Verdict:
    count, wanted = len(cluster.brokers), settings.kafka.replication_factor
    if count < wanted:
        return fail(
            f"{count}, and UPWELL_KAFKA_REPLICATION_FACTOR is {wanted}",
            "start more of them, or lower the setting",
        )
    if wanted == 1 and count > 2:
        return warn(
            f"{count}, and each topic on one of them only", "set UPWELL_KAFKA_REPLICATION_FACTOR to 3"
        )
    return ok(f"{count}, each topic on {wanted}")


def _broker_settings(cluster: Cluster, settings: Settings) -> Iterator[Verdict]:
    if not cluster.brokers:
        yield skipped("no broker is known")
        return
    yield from judge_broker(
        cluster.kafka.broker_settings(cluster.brokers[0]), settings.kafka.replication_factor
    )


def judge_broker(found: Mapping[str, str], replication_factor: int) -> Iterator[Verdict]:
    least = int(found.get("min.insync.replicas", "1"))
    if least > replication_factor:
        yield fail(
            f"min.insync.replicas is {least}, above UPWELL_KAFKA_REPLICATION_FACTOR {replication_factor}: "
            "nothing could be written",
            "raise the setting before `upwell connector apply` makes the topics",
        )
    made = found.get("auto.create.topics.enable", "false")
    limit = found.get("message.max.bytes", "?")
    yield ok(
        f"auto.create.topics.enable {made} (not needed), message.max.bytes {limit} (topics set their own)"
    )


def _topics(cluster: Cluster, settings: Settings, known: Known) -> Verdict:
    return judge_topics(cluster.kafka.describe(list(known.topics)), settings, known)


def judge_topics(found: Mapping[str, TopicFacts], settings: Settings, known: Known) -> Verdict:
    """Whether each is the one that was made, by its id."""
    if known.away:
        return skipped(known.away)
    if known.lineage is None:
        return not_yet("none is made", "upwell connector apply")
    try:
        check_topics(known.topics, {topic: found.get(topic) for topic in known.topics})
    except LineageMismatch as error:
        return fail(str(error), REBUILD)
    naming = Naming(settings.name, known.lineage)
    missing = sorted({naming.topic(s.table) for s in settings.collections.values()} - set(known.topics))
    if missing:
        return not_yet(f"{missing[0]} is not made", "upwell connector apply")
    return ok(f"{len(found)} topics {known.topic_prefix}.*, each the one that was made")


def _topic_settings(cluster: Cluster, settings: Settings, known: Known) -> Iterator[Verdict]:
    if known.lineage is None:
        yield skipped(known.away or "there are no topics yet")
        return
    naming = Naming(settings.name, known.lineage)
    wanted = [naming.topic(spec.table) for spec in settings.collections.values()]
    found = cluster.kafka.topic_settings([topic for topic in wanted if topic in known.topics])
    yield from judge_topic_settings(found, settings.kafka.retention_hours, settings.kafka.max_message_bytes)


def judge_topic_settings(
    found: Mapping[str, Mapping[str, str]], hours: float, message_bytes: int
) -> Iterator[Verdict]:
    """Only what an administrator changed afterwards differs."""
    fine = True
    for topic, values in sorted(found.items()):
        for verdict in _judge_topic(topic, values, hours, message_bytes):
            fine = False
            yield verdict
    if fine:
        yield ok(f"retention {hours:g} h, messages up to {message_bytes / 1024**2:g} MiB, nothing compacted")


def _judge_topic(
    topic: str, values: Mapping[str, str], hours: float, message_bytes: int
) -> Iterator[Verdict]:
    if "compact" in values.get("cleanup.policy", "delete"):
        yield fail(f"{topic} is compacted: it forgets deletes", "set its cleanup.policy to delete")
    limit = int(values.get("max.message.bytes", message_bytes))
    if limit < message_bytes:
        yield fail(
            f"{topic} takes messages of {limit} bytes, the connector sends up to {message_bytes}",
            "run `upwell connector apply`",
        )
    kept = int(values.get("retention.ms", "-1"))
    if 0 <= kept < int(hours * 3_600_000):
        yield warn(
            f"{topic} keeps changes for {kept / 3_600_000:g} h, UPWELL_KAFKA_RETENTION_HOURS is {hours:g}",
            f"set its retention.ms to {int(hours * 3_600_000)}, or lower the setting",
        )


# Connect


def connect_checks(settings: Settings, known: Known) -> list[Check]:
    """Checks of Kafka Connect and of the connector, in order."""

    def reach() -> Connect:
        found = connect(settings)
        found.version()
        return found

    questions: Questions[Connect] = [
        ("plugins", partial(_plugins, settings=settings)),
        ("worker settings", partial(_worker_settings, settings=settings)),
        ("connector", partial(_connector, settings=settings, known=known)),
    ]
    return ask_all("connect", _reaching(reach), "start it, or mend UPWELL_CONNECT_URL", questions)


def _plugins(found: Connect, settings: Settings) -> Iterator[Verdict]:
    yield from judge_plugins(found.plugins(), settings.connect.converter)


def judge_plugins(plugins: Mapping[str, str], converter: str) -> Iterator[Verdict]:
    """`plugins`: version by class."""
    debezium = plugins.get(CONNECTOR_CLASS)
    if debezium is None:
        yield fail(
            "Debezium's Postgres connector is not there", "put it on Connect's plugin.path, start it again"
        ).of("Debezium")
    elif debezium.split(".")[0].isdecimal() and int(debezium.split(".")[0]) < 3:
        yield warn(debezium, "upgrade it: upwell is tested with 3.7").of("Debezium")
    else:
        yield ok(debezium).of("Debezium")
    wanted = converters(converter, "")["value.converter"]
    if wanted in plugins:
        yield ok(wanted).of("converter")
    else:
        other = "or set UPWELL_CONNECT_CONVERTER to the one that is there"
        yield fail(f"{wanted} is not there", f"put it on Connect's plugin.path, {other}").of("converter")


def _worker_settings(found: Connect, settings: Settings) -> Iterator[Verdict]:
    """Seen by what Connect makes of a config that is only validated: it shows a reference that it cannot resolve."""
    file = secrets_file(settings)
    override = next(key for key in FIXED if key.startswith("producer.override."))
    config = {
        "connector.class": CONNECTOR_CLASS,
        "name": Naming(settings.name, 1).connector,
        "tasks.max": f"${{file:{file}:user}}",
        override: FIXED[override],
    }
    try:
        problems = found.problems(config)
    except (ConnectUnavailable, SettingsError) as error:
        if not settings.connect.secrets_file and not file.exists():
            yield skipped("`upwell connector apply` has not written the file of user and password yet")
        else:
            step = f"let {file} be on Connect's machine, and readable for Connect"
            yield fail(f"user and password of the source cannot be read: {line_of(error)}", step)
        return
    yield from judge_worker_settings(problems, override, str(file))


def judge_worker_settings(
    problems: Mapping[str, Sequence[str]], override: str, file: str
) -> Iterator[Verdict]:
    """`problems` by setting; `tasks.max` was given as a reference to the user's name."""
    if any("${file:" in each for each in problems.get("tasks.max", ())):
        yield fail(
            f"Connect does not read user and password from {file}",
            "in Connect's worker properties: config.providers=file, config.providers.file.class=org.apache.kafka."
            "common.config.provider.FileConfigProvider, and no allowed.paths that leave the file out; "
            "in the file: user=... and password=...",
        ).of("file provider")
    else:
        yield ok(f"reads user and password from {file}").of("file provider")
    if problems.get(override):
        yield fail(
            problems[override][0],
            "in Connect's worker properties: connector.client.config.override.policy=All",
        ).of("producer overrides")
    else:
        yield ok("allowed").of("producer overrides")


def _connector(found: Connect, settings: Settings, known: Known) -> Verdict:
    return judge_connector(found.status(Naming(settings.name, 1).connector), known)


def judge_connector(status: ConnectorStatus, known: Known) -> Verdict:
    name = status.name
    if status.connector == "ABSENT":
        if known.lineage is not None:
            return fail(f"{name} is gone: nothing is captured", "run `upwell connector apply`")
        return (
            skipped(known.away) if known.away else not_yet(f"{name} is not there", "upwell connector apply")
        )
    if status.failed:
        return fail(f"{name} FAILED: {status.cause}", "mend the cause, then run `upwell connector restart`")
    if not status.running:
        return fail(f"{name} is {status.connector}, its task {status.task}", "run `upwell connector apply`")
    return ok(f"{name} RUNNING")


# Registry


def registry_checks(settings: Settings, known: Known) -> list[Check]:
    """Checks of the schema registry, in order: what Connect writes there must be what workers read."""

    def reach() -> BlockingRegistry:
        found = registry(settings)
        found.answers()
        return found

    questions: Questions[BlockingRegistry] = [
        ("converter_url", partial(_converter_url, settings=settings)),
        ("same registry", partial(_same, settings=settings, known=known)),
    ]
    mend = "start it, or mend UPWELL_REGISTRY_URL: it ends with the path of the Confluent API"
    return ask_all("registry", _reaching(reach), mend, questions)


def _converter_url(_: BlockingRegistry, settings: Settings) -> Verdict:
    path = "/subjects" if settings.connect.converter == "confluent" else "/system/info"
    try:
        registry(settings, settings.registry.converter_url).json(path)
    except RegistryUnavailable as error:
        return warn(
            f"does not answer from here: {error}",
            "mend UPWELL_REGISTRY_CONVERTER_URL, if Connect cannot reach it either",
        )
    return ok("answers from here")


def _same(found: BlockingRegistry, settings: Settings, known: Known) -> Verdict:
    subjects = found.subjects()
    if not subjects:
        return skipped("no schema is registered yet")
    ours = [name for name in subjects if known.topic_prefix and name.startswith(f"{known.topic_prefix}.")]
    schema_id = found.newest_id((ours or subjects)[0])
    path = (
        f"/schemas/ids/{schema_id}"
        if settings.connect.converter == "confluent"
        else f"/ids/contentIds/{schema_id}"
    )
    try:
        other = registry(settings, settings.registry.converter_url).json(path)
    except RegistryUnavailable as error:
        return warn(
            f"converter_url does not give schema {schema_id}: {error}",
            "let UPWELL_REGISTRY_URL and UPWELL_REGISTRY_CONVERTER_URL name the same registry",
        )
    theirs = json.loads(other["schema"]) if settings.connect.converter == "confluent" else other
    return judge_same(schema_id, json.loads(found.schema(schema_id)), theirs)


def judge_same(schema_id: int, ours: Any, theirs: Any) -> Verdict:
    if ours != theirs:
        return fail(
            f"schema {schema_id} is another one under converter_url: workers would decode by the wrong schema",
            "let UPWELL_REGISTRY_URL and UPWELL_REGISTRY_CONVERTER_URL name the same registry",
        )
    return ok(f"both give the same schema {schema_id}")
