"""Rounds and the watermark: which moment of the source is known to be searchable (DESIGN 7). Pure.

A round proves that everything committed up to its beginning is searchable:

    1. committed  a numbered canary row is committed at the source; the source's clock was read just before
    2. in Kafka   its event was read from its topic, with its place in the write-ahead log
    3. settled    Connect has stored a commit position past it. Connect stores positions only of what Kafka has
                  confirmed without a gap, so all that was committed before is in Kafka (H30). A row carries the commit
                  before its own, so it takes the next one, of the heartbeat at the latest (H31)
    4. ends read  the end offsets of every topic, read after that
    5. taken in   the sink's positions are past those of a collection, and the canary itself is found by a search

Rounds overlap, and one that does not finish moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from schemas.change import TopicPartition

#: A commit's time is taken a moment before it has its place in the write-ahead log.
GUARD: Final = timedelta(seconds=1)
#: The clock's resolution: "just below" a moment.
TICK: Final = timedelta(microseconds=1)
#: Rounds that are waited for at once; beyond it every second one is given up, so that the oldest still finishes.
LIMIT: Final = 64


@dataclass(frozen=True, slots=True)
class Ends:
    """What Kafka held of every topic once a round had settled: end offsets and log starts."""

    ends: Mapping[TopicPartition, int]
    starts: Mapping[TopicPartition, int]


@dataclass(slots=True)
class Round:
    """One round. `at`: the source's clock before the canary's commit; `begun`: seconds of the monitor's own clock.

    `event_lsn`: the canary's place in the write-ahead log, in bytes. `done`: collections that it has completed for.
    """

    number: int
    at: datetime
    begun: float
    event_lsn: int | None = None
    settled: bool = False
    ends: Ends | None = None
    done: set[str] = field(default_factory=set)

    @property
    def step(self) -> str:
        """How far it is, in the words of this module's docstring."""
        if self.ends is not None:
            return "ends read"
        return "settled" if self.settled else "in Kafka" if self.event_lsn is not None else "committed"


@dataclass(frozen=True, slots=True)
class OpenLetter:
    """An open dead letter without a readable commit time. `topic` is "" for one of the embed stage."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Reflected:
    """What one snapshot of the sink says of a collection (H34). Times are the source's.

    `topics`: partitions by number of its topic. `unreflected`: the oldest commit that is not searchable though it was
    taken in (pending texts of the live generation, dead letters, keys in doubt), None if there is none.
    """

    topic: str
    positions: Mapping[int, int]
    unreflected: datetime | None = None
    letters: Sequence[OpenLetter] = ()


class Rounds:
    """Those of one lineage that are waited for, oldest first. Not thread-safe."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self.waiting: list[Round] = []

    def begin(self, number: int, at: datetime, now: float) -> None:
        """A canary was committed. A number that is not above the last is of a source that went back: all begin anew."""
        if self.waiting and number <= self.waiting[-1].number:
            self.waiting.clear()
        self.waiting.append(Round(number, at, now))
        if len(self.waiting) > self._limit:
            self.waiting[:] = [each for at, each in enumerate(self.waiting) if at % 2 == 0]

    def seen(self, number: int, lsn: int) -> None:
        """A canary's event was read. Whatever number came before it is in the stream before it."""
        for each in self.waiting:
            if each.number <= number and each.event_lsn is None:
                each.event_lsn = lsn

    def stored(self, lsn_commit: int) -> None:
        """The connector's stored commit position, in bytes."""
        for each in self.waiting:
            if each.event_lsn is not None and each.event_lsn < lsn_commit:
                each.settled = True

    def unread(self) -> list[Round]:
        """Settled, but the end offsets after it are not read yet."""
        return [each for each in self.waiting if each.settled and each.ends is None]

    def complete(self, collection: str, reflected: Reflected, canary: int) -> tuple[Round, datetime] | None:
        """The newest round that is done for a collection and moves its watermark, with the watermark it proves.

        `canary`: the number that a search of the sink has found, read no later than `reflected`.
        """
        proven: tuple[Round, datetime] | None = None
        for each in self.waiting:
            if each.ends is None or each.number > canary or not _taken_in(each.ends, reflected):
                continue
            each.done.add(collection)
            if not _held(each.ends, reflected):
                proven = (each, watermark(each.at, reflected.unreflected))
        return proven

    def forget(self, collections: Iterable[str]) -> None:
        """Rounds up to the newest that is done for each of these: what they prove is proven."""
        names = set(collections)
        newest = max((at for at, each in enumerate(self.waiting) if names <= each.done), default=-1)
        del self.waiting[: newest + 1]


def watermark(begun: datetime, unreflected: datetime | None) -> datetime:
    """What a finished round proves: everything before the oldest commit that is not searchable."""
    proven = begun - GUARD
    return proven if unreflected is None else min(proven, unreflected - TICK)


def behind(ends: Ends, reflected: Reflected) -> int:
    """Records of a topic that are not taken in. Without a position a partition begins at its log start (H36)."""
    return sum(
        max(0, end - reflected.positions.get(at.partition, ends.starts.get(at, 0)))
        for at, end in ends.ends.items()
        if at.topic == reflected.topic
    )


def lost(ends: Ends, reflected: Reflected) -> str:
    """Which partition's records were removed before they were taken in (H23), "" if none."""
    for at, start in sorted(ends.starts.items()):
        position = reflected.positions.get(at.partition)
        if at.topic == reflected.topic and position is not None and position < start:
            return f"{at.topic}/{at.partition} begins at {start}, taken in up to {position}"
    return ""


def _taken_in(ends: Ends, reflected: Reflected) -> bool:
    partitions = [at for at in ends.ends if at.topic == reflected.topic]
    return bool(partitions) and not behind(ends, reflected)


def _held(ends: Ends, reflected: Reflected) -> bool:
    """Whether a dead letter without a commit time may be older than the round (H35)."""
    return any(
        not letter.topic or letter.offset < ends.ends.get(TopicPartition(letter.topic, letter.partition), 0)
        for letter in reflected.letters
    )
