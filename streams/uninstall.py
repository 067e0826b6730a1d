"""`upwell uninstall`: what upwell made is found by its names, said, and dropped in this order:

    1. connector: stopped, its stored offsets deleted, deleted     else it would make its slot again
    2. slots of all lineages, publication, schema upwell           (source; only its rows where others live in it)
    3. topics, consumer group, the file of user and password       (kafka)
    4. schema upwell                                               (sink; last, for it knows whose it is)

Each step looks first, so what was interrupted goes on when it is run again.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from connectors.debezium.connect import Connect
from connectors.debezium.naming import Naming
from connectors.kafka import Kafka
from connectors.postgres.capture_state import connect_sink
from connectors.postgres.source import connect_source
from connectors.postgres.uninstall import SinkParts, SourceParts
from schemas.errors import ConnectUnavailable, KafkaUnavailable, Retry, SettingsError
from streams import neighbours
from streams.capture import secrets_file
from streams.settings import Settings

T = TypeVar("T")

Progress = Callable[[str], None]

PARTS: Final = ("source", "kafka", "sink")
#: A worker says every five seconds that it lives.
SILENT_SECONDS: Final = 10.0
STOP_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.2
#: What no part of upwell drops.
STAYS: Final = (
    "roles upwell_owner, upwell_worker, upwell_reader and the logins, which other deployments may use",
    "the extension vector, and REPLICA IDENTITY of your tables",
    "the schemas in the registry: they are small, and under the topics' names",
)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that goes. `drop` may be repeated."""

    words: str
    drop: Callable[[], None]


@dataclass(slots=True)
class Plan:
    """What is there. `away`: neighbours that do not answer, and what of them therefore stays."""

    items: list[Item] = field(default_factory=list)
    away: list[str] = field(default_factory=list)

    def run(self, progress: Progress) -> None:
        """Drop all, in order; a line for each."""
        for item in self.items:
            item.drop()
            progress(f"dropped: {item.words}")


def kafka(settings: Settings) -> Kafka:
    return neighbours.kafka(settings, timeout=10.0)


def connect(settings: Settings) -> Connect:
    return neighbours.connect(settings)


@contextlib.contextmanager
def planned(
    settings: Settings, parts: Collection[str], progress: Progress, *, force: bool = False
) -> Iterator[Plan]:
    """Look for what is there of `parts`; the connections stay open while the plan is used.

    Raises SettingsError while workers live or the sink is another deployment's, and a neighbour's own error unless
    `force`: then what it has stays.
    """
    plan = Plan()
    with contextlib.ExitStack() as open_until_done:
        sink = _reached(plan, force, lambda: open_until_done.enter_context(_sink(settings)))
        if sink is not None:
            _refuse(sink, settings, parts, progress)
        connector = _reached(plan, force, lambda: _connector(settings))
        if connector:
            if "kafka" not in parts:
                raise SettingsError(
                    f"{connector[0].words} is there and would go on: add --kafka, or leave the limits out"
                )
            plan.items += connector
        if "source" in parts:
            plan.items += (
                _reached(plan, force, lambda: _source_items(open_until_done.enter_context(_source(settings))))
                or []
            )
        if "kafka" in parts:
            plan.items += _reached(plan, force, lambda: _kafka_items(settings)) or []
            plan.items += _secrets(settings)
        if "sink" in parts and sink is not None:
            plan.items += _sink_items(sink)
        yield plan


def _reached(plan: Plan, force: bool, look: Callable[[], T]) -> T | None:
    try:
        return look()
    except Retry as error:
        if not force:
            raise
        plan.away.append(str(error))
        return None


@contextlib.contextmanager
def _sink(settings: Settings) -> Iterator[SinkParts]:
    with connect_sink(settings.sink.dsn) as connection:
        yield SinkParts(connection)


@contextlib.contextmanager
def _source(settings: Settings) -> Iterator[SourceParts]:
    with connect_source(settings.source.dsn) as connection:
        yield SourceParts(connection, settings.name)


def _refuse(sink: SinkParts, settings: Settings, parts: Collection[str], progress: Progress) -> None:
    """Raise SettingsError for what must not be dropped now."""
    prefix = sink.topic_prefix()
    if prefix is not None and not re.fullmatch(rf"{settings.name}_\d+", prefix):
        raise SettingsError(f"the sink belongs to topics {prefix}.*, not to deployment {settings.name}")
    if "sink" in parts and "source" not in parts and sink.is_source():
        raise SettingsError("source and sink are one database: give --source, too, or leave the limits out")
    live = _live(sink, progress)
    if live:
        raise SettingsError(f"workers live: {'; '.join(live)}: stop them first")


def _live(sink: SinkParts, progress: Progress) -> list[str]:
    """Workers that live. One that has just stopped is silent in a moment."""
    deadline = time.monotonic() + SILENT_SECONDS + 2
    while True:
        live = sink.live_workers(SILENT_SECONDS)
        if not live or sink.live_workers(0.0) or time.monotonic() > deadline:
            return live
        progress(f"{live[0]} was seen lately: looking whether it has stopped")
        while sink.live_workers(SILENT_SECONDS) and time.monotonic() <= deadline:
            time.sleep(POLL_SECONDS)


def _connector(settings: Settings) -> list[Item]:
    name, found = Naming(settings.name, 1).connector, connect(settings)
    if found.config(name) is None:
        return []
    return [Item(f"connector {name} with its stored offsets", partial(_drop_connector, found, name))]


def _drop_connector(found: Connect, name: str) -> None:
    """Offsets can be deleted only while the connector is there and its task is not."""
    if found.config(name) is None:
        return
    found.stop(name)
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        try:
            found.delete_offsets(name)
            break
        except (SettingsError, ConnectUnavailable):  # its task has not ended yet
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
    found.delete(name)


def _source_items(source: SourceParts) -> list[Item]:
    items = [Item(f"slot {slot} at the source", partial(source.drop_slot, slot)) for slot in source.slots()]
    publication, others = source.publication(), source.others()
    if publication is not None:
        items.append(Item(f"publication {publication} at the source", source.drop_publication))
    if others:
        if source.known():
            words = (
                f"this deployment's rows in schema upwell at the source, where {', '.join(others)} also live"
            )
            items.append(Item(words, source.forget))
    elif others is not None:
        items.append(Item("schema upwell at the source: heartbeats and signals", source.drop_schema))
    return items


def _kafka_items(settings: Settings) -> list[Item]:
    found, items = kafka(settings), []
    pattern = re.compile(rf"(__debezium-heartbeat\.{settings.name}_\d+|{settings.name}_\d+\..+)")
    topics = [name for name in found.names() if pattern.fullmatch(name)]
    if topics:
        words = f"{len(topics)} topics: {', '.join(topics)}"
        items.append(Item(words, partial(found.delete_topics, topics)))
    if settings.group_id in found.groups():
        seconds = settings.worker.session_timeout_seconds + 10
        items.append(
            Item(
                f"consumer group {settings.group_id}", partial(_drop_group, found, settings.group_id, seconds)
            )
        )
    return items


def _drop_group(found: Kafka, group: str, seconds: float) -> None:
    """A worker that was killed is a member until its session times out."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found.delete_group(group)
            return
        except (SettingsError, KafkaUnavailable):
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


def _secrets(settings: Settings) -> list[Item]:
    """The file that `connector apply` wrote; one that was given is not ours."""
    path = secrets_file(settings)
    if settings.connect.secrets_file or not path.exists():
        return []
    return [Item(f"file {path}", partial(path.unlink, missing_ok=True))]


def _sink_items(sink: SinkParts) -> list[Item]:
    if not sink.there():
        return []
    counts = ", ".join(f"{count} {label}" for label, count in sink.counts().items())
    views = sink.dependents()
    also = f"; and your views that use it: {', '.join(views)}" if views else ""
    return [Item(f"schema upwell in the sink: {counts}{also}", sink.drop_schema)]
