"""A source, a connector and a log that misbehave as the real ones do; the real decisions; and what must hold.

At rest the sink shows what the source has, and no key more. Before that no key goes back in time or comes back
after an accepted delete. The model source and connector share no code with the pipeline.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from schemas.change import Change, Operation, Origin, TopicPartition, Undecodable, Version
from schemas.errors import PositionConflict, UnusableVector
from schemas.sink import (
    Claim,
    EmbedWrite,
    Fence,
    GenerationInfo,
    IntakePlan,
    IntakeRequest,
    IntakeView,
    Lane,
    RecordState,
    RecordWrite,
    WriteOutcome,
)
from schemas.template import Template
from streams.embed.core import Cut, cut, embed_write, to_encode
from streams.embed.stage import Embedder, EmbedLimits, Recipe
from streams.freshness.measures import Measures
from streams.intake.core import decide, has_truncate, is_below, keys_of, keys_with_rows

T = TypeVar("T")
START: Final = datetime(2026, 1, 2, tzinfo=UTC)
COLLECTION: Final = "content"
PARTITIONS: Final = 3
KEYS: Final = 5
CHUNK_KEYS: Final = 2
#: Of the store: what a backup of the sink has.
STORED: Final = ("fence", "records", "repairs", "position", "pending", "embedding", "dead", "embed_dead")
TEXTS: Final = ("", "tea", "tea milk", "milk", "milk tea sugar")


def drive(call: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """Run what never really waits."""
    try:
        call.send(None)  # type: ignore[union-attr]
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("the fake store waited")


class Crash(Exception):
    """The process dies here."""


# --- a sink in memory --------------------------------------------------------------------------------------------


@dataclass
class Pending:
    """A row of `pending`."""

    version: Version
    lane: Lane
    since: datetime | None
    changes: int
    taken_in_at: datetime
    next_since: datetime | None = None
    next_changes: int = 0
    token: str | None = None
    slot: str = ""
    lease_until: datetime = START
    available_at: datetime = START
    claimed_at: datetime = START
    attempts: int = 0


@dataclass
class MemoryStore:
    """IntakeStore and EmbedStore of one collection with one generation. `crash` dies before or after a commit."""

    now: datetime = START
    fence: Fence | None = None
    records: dict[str, RecordState] = field(default_factory=dict)
    repairs: dict[str, tuple[Version, bool]] = field(default_factory=dict)
    position: dict[TopicPartition, int] = field(default_factory=dict)
    pending: dict[str, Pending] = field(default_factory=dict)
    embedding: dict[str, list[tuple[bytes, str, Sequence[float]]]] = field(default_factory=dict)
    dead: dict[tuple[TopicPartition, int], Undecodable] = field(default_factory=dict)
    embed_dead: dict[str, str] = field(default_factory=dict)
    plans: list[IntakePlan] = field(default_factory=list)
    crash: str = ""
    tokens: int = 0

    def _clock(self) -> datetime:
        self.now += timedelta(milliseconds=10)
        return self.now

    def _die(self, when: str) -> None:
        if self.crash == when:
            self.crash = ""
            raise Crash(when)

    async def positions(self, topics: Collection[str]) -> Mapping[TopicPartition, int]:
        return {at: offset for at, offset in self.position.items() if at.topic in topics}

    async def intake(
        self, request: IntakeRequest, decide: Callable[[IntakeView], IntakePlan]
    ) -> tuple[IntakePlan, datetime]:
        for at, expected in request.positions.items():
            if self.position.get(at) != expected:
                raise PositionConflict(f"{at.partition}: {self.position.get(at)}, not {expected}")
        records = {
            key: state if key in request.with_rows else replace(state, row=None)
            for key in request.keys
            if (state := self.records.get(key)) is not None
        }
        repairs = {
            key
            for key, (version, asked) in self.repairs.items()
            if key in records and asked and records[key].version == version
        }
        plan = decide(IntakeView(self.fence, records, frozenset(repairs)))
        assert plan.fence is None or request.exclusive
        self._die("before commit")
        self._carry_out(plan)
        self._die("after commit")
        return plan, self._clock()

    def _carry_out(self, plan: IntakePlan) -> None:
        self.plans.append(plan)
        if plan.fence is not None:
            self._remove_below(plan.fence)
        for write in plan.writes:
            self._upsert(write)
        self.dead.update({(one.at, one.version.offset): one for one in plan.dead_letters})
        self.position.update(plan.positions)
        for key in plan.repairs_done:
            self.repairs.pop(key, None)
        for key in plan.repairs_wanted:
            if key in self.records:
                self.repairs[key] = (self.records[key].version, False)

    def _remove_below(self, fence: Fence) -> None:
        self.fence = fence
        for key, state in list(self.records.items()):
            if is_below(fence, state.version.lineage, state.fence_lsn):
                self._forget(key)
                del self.records[key]

    def _upsert(self, write: RecordWrite) -> None:
        stored = self.records.get(write.key)
        assert stored is None or stored.version < write.state.version, "the upsert's guard"
        self.records[write.key] = write.state
        if write.embed == "remove":
            self._forget(write.key)
        elif write.embed == "pending":
            self._wait(write.key, write.state.version, write.lane, write.committed_since, write.changes)
        for place, letter in list(self.dead.items()):
            if letter.key == write.key and letter.version < write.state.version:
                del self.dead[place]

    def _forget(self, key: str) -> None:
        self.pending.pop(key, None)
        self.embedding.pop(key, None)
        self.embed_dead.pop(key, None)

    def _wait(self, key: str, version: Version, lane: Lane, since: datetime | None, changes: int) -> None:
        row = self.pending.get(key)
        self.embed_dead.pop(key, None)
        if row is None:
            self.pending[key] = Pending(version, lane, since, changes, self._clock())
            return
        row.version, row.attempts, row.available_at = version, 0, self.now
        row.lane = Lane.LIVE if Lane.LIVE in (row.lane, lane) else Lane.BACKFILL
        if row.token is None:
            row.since, row.changes = least(row.since, since), row.changes + changes
        else:
            row.next_since, row.next_changes = least(row.next_since, since), row.next_changes + changes

    def absent(self, key: str, version: Version) -> None:
        """The source does not have it: what is still in that version becomes a marker."""
        if self.records[key].version == version:
            self.records[key] = replace(self.records[key], deleted=True, row=None, text_hash=b"")
            self._forget(key)
        self.repairs.pop(key)

    async def claim(
        self,
        generations: Collection[tuple[str, int]],
        slot: str,
        limit: int,
        backfill_share: float,
        lease_seconds: float,
        *,
        live_only: bool = False,
    ) -> Sequence[Claim]:
        now, claims = self._clock(), []
        free = [
            (row.lane is not Lane.LIVE, row.since or START, key)
            for key, row in self.pending.items()
            if row.available_at <= now and (row.token is None or row.lease_until < now)
            if row.lane is Lane.LIVE or not live_only
        ]
        for _, _, key in sorted(free)[:limit]:
            row = self.pending[key]
            self.tokens += 1
            row.attempts += row.token is not None
            row.token, row.slot, row.claimed_at = f"t{self.tokens}", slot, now
            row.lease_until = now + timedelta(seconds=lease_seconds)
            self._fold(row)
            stored = self.records[key].row or {}
            claims.append(
                Claim(COLLECTION, 1, key, row.version, row.token, row.lane, stored, row.attempts, row.since,
                      row.taken_in_at, now, row.changes)
            )  # fmt: skip
        return claims

    @staticmethod
    def _fold(row: Pending) -> None:
        row.since, row.next_since = least(row.since, row.next_since), None
        row.changes, row.next_changes = row.changes + row.next_changes, 0

    async def known_hashes(
        self, collection: str, generation: int, hashes: Collection[bytes]
    ) -> frozenset[bytes]:
        return frozenset(self._vectors()) & frozenset(hashes)

    def _vectors(self) -> dict[bytes, Sequence[float]]:
        return {digest: vector for chunks in self.embedding.values() for digest, _, vector in chunks}

    async def own_hashes(
        self, collection: str, generation: int, keys: Collection[str]
    ) -> Mapping[str, frozenset[bytes]]:
        return {key: frozenset(digest for digest, _, _ in self.embedding.get(key, ())) for key in keys}

    async def write(self, writes: Sequence[EmbedWrite]) -> tuple[Sequence[WriteOutcome], datetime]:
        self._die("before commit")
        outcomes = [self._write(write) for write in writes]
        self._die("after commit")
        return outcomes, self._clock()

    def _write(self, write: EmbedWrite) -> WriteOutcome:
        claim = write.claim
        row, record, stored = self.pending.get(claim.key), self.records.get(claim.key), self._vectors()
        if row is None or row.token != claim.token or record is None or record.deleted:
            return WriteOutcome.DISCARDED
        if any(chunk.vector is None and chunk.hash not in stored for chunk in write.chunks):
            self._fold(row)
            row.token = None
            return WriteOutcome.VANISHED
        self.embedding[claim.key] = [
            (chunk.hash, chunk.text, stored[chunk.hash] if chunk.vector is None else chunk.vector)
            for chunk in write.chunks
        ]
        if row.version == claim.version:
            del self.pending[claim.key]
            return WriteOutcome.WRITTEN
        row.token, row.since, row.next_since = None, row.next_since, None
        row.changes, row.next_changes = row.next_changes, 0
        return WriteOutcome.MOVED_ON

    async def fail(self, claim: Claim, error: Exception, retry_seconds: float | None) -> None:
        row = self.pending.get(claim.key)
        if row is None or row.token != claim.token:
            return
        row.token = None
        if retry_seconds is None and row.version == claim.version:
            self.embed_dead[claim.key] = type(error).__name__
            del self.pending[claim.key]
            return
        self._fold(row)
        row.attempts += 1
        row.available_at = self.now + timedelta(seconds=retry_seconds or 0)

    async def give_back(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            row = self.pending.get(claim.key)
            if row is not None and row.token == claim.token:
                row.token = None
                self._fold(row)

    async def release(self, slot: str, *, died: bool = False) -> int:
        mine = [row for row in self.pending.values() if row.token is not None and row.slot == slot]
        for row in mine:
            row.token = None
            row.attempts += died
            self._fold(row)
        return len(mine)

    async def generations(self) -> Sequence[GenerationInfo]:
        return [GenerationInfo(COLLECTION, 1, "", "fake", 2, "{{ text }}", 9, 0, "live")]


def least(one: datetime | None, other: datetime | None) -> datetime | None:
    return min((each for each in (one, other) if each is not None), default=None)


class WordChunker:
    """A chunk for each word."""

    def chunks(self, document: str) -> Sequence[str]:
        return document.split()


class FakeEncoder:
    """A vector that says which text it is of; counts what it encodes."""

    name, dimension, max_tokens, tokenizer_json = "fake", 2, 9, "{}"

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.encoded += texts
        return np.array([vector_of(text) for text in texts], dtype=np.float32)


def vector_of(text: str) -> tuple[float, float]:
    angle = int.from_bytes(hashlib.sha256(text.encode()).digest()[:2], "big") / 65536
    return float(np.float32(np.cos(angle))), float(np.float32(np.sin(angle)))


# --- a source and its log ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowEvent:
    """One change in the WAL. A `low` or `high` watermark is one of the signal table's (`key` is the scan's)."""

    kind: str
    key: int
    lsn: int
    text: str = ""
    moved: bool = False


@dataclass(frozen=True)
class Commit:
    """A committed transaction, the rows that the table has after it, and whether its lsns go back (H1)."""

    tx: int
    lsn: int
    at: datetime
    events: tuple[RowEvent, ...]
    table: Mapping[int, str]
    inverted: bool = False


class Source:
    """A table, and the WAL in commit order."""

    def __init__(self, rows: Mapping[int, str]) -> None:
        self.table = dict(rows)
        self.first = dict(rows)
        self.commits: list[Commit] = []
        self.wal = 100
        self.tx = 1

    def lsn(self) -> int:
        self.wal += 10
        return self.wal

    def next_tx(self) -> int:
        self.tx += 1
        return self.tx

    def commit(self, tx: int, events: Sequence[RowEvent], *, inverted: bool = False) -> None:
        at = START + timedelta(seconds=len(self.commits))
        self.commits.append(Commit(tx, self.lsn(), at, tuple(events), dict(self.table), inverted))

    def event(self, kind: str, key: int, text: str = "", moved: bool = False) -> RowEvent:
        return RowEvent(kind, key, self.lsn(), text, moved)

    def apply(self, change: tuple[Any, ...]) -> list[RowEvent]:
        """One statement. What cannot be done to the rows there are does nothing."""
        kind, key, other, text = change
        table = self.table
        if kind == "put":
            existed = key in table
            table[key] = text
            return [self.event("u" if existed else "c", key, text)]
        if kind == "delete" and key in table:
            del table[key]
            return [self.event("d", key)]
        if kind == "move" and key in table and other not in table:
            table[other] = table.pop(key)
            return [self.event("d", key, moved=True), self.event("c", other, table[other])]
        if kind == "shift" and key in table:
            return self._shift(key)
        if kind == "truncate":
            table.clear()
            return [self.event("t", -1)]
        return []

    def _shift(self, key: int) -> list[RowEvent]:
        """`UPDATE t SET id = id + 1` over a run of keys, in ascending order (H9)."""
        run = [key]
        while run[-1] + 1 in self.table:
            run.append(run[-1] + 1)
        if run[-1] + 1 >= KEYS:
            return []
        texts = [self.table.pop(each) for each in run]
        events = []
        for old, text in zip(run, texts, strict=True):
            self.table[old + 1] = text
            events += [self.event("d", old, moved=True), self.event("c", old + 1, text)]
        return events

    def visible(self, commits: int) -> Mapping[int, str]:
        """The rows that a SELECT sees when the first `commits` transactions are visible."""
        return self.commits[commits - 1].table if commits else self.first


@dataclass
class Scan:
    """A chunk of an incremental snapshot: rows read, waiting for the high watermark."""

    number: int
    keys: tuple[int, ...]
    rows: dict[int, str]
    seen: int
    open: bool = False


@dataclass(frozen=True)
class Sent:
    """A record in the log: what upwell decodes, and where in the source's history it stands."""

    change: Change | Undecodable
    history: tuple[int, int]


def row_of(sent: Sent) -> Mapping[str, Any] | None:
    return sent.change.row if isinstance(sent.change, Change) else None


def change_of(
    operation: Operation, key: int | None, origin: Origin, text: str = "", *, moved: bool = False
) -> Change:
    """As the decoder makes it, still without its place in the log."""
    row = {"text": text} if operation in (Operation.CREATE, Operation.UPDATE, Operation.READ) else None
    return Change(
        operation=operation,
        at=TopicPartition("", 0),
        version=Version(0, 0),
        key=None if key is None else f"[{key}]",
        origin=origin,
        row=row,
        text=text if row else "",
        text_hash=hashlib.sha256(text.encode()).digest() if row else b"",
        moved_to=moved,
    )


class Connector:
    """Debezium: emits commits in order, scans tables between watermarks, and after a crash sends again."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.lineage = 1
        self.logs: dict[int, list[list[Sent]]] = {1: [[] for _ in range(PARTITIONS)]}
        self.commit, self.event = 0, 0
        self.slot = 0
        self.seeds: dict[int, int] = {}
        self.seed: int | None = None
        self.scan: Scan | None = None
        self.scans = 0
        self.chunks: list[tuple[int, ...]] = []
        self.scanned: list[tuple[int, ...]] = []
        self.seen = 0
        self.hideable = 0

    @property
    def log(self) -> list[list[Sent]]:
        """Partitions of the newest lineage."""
        return self.logs[self.lineage]

    @property
    def topic(self) -> str:
        return f"src{self.lineage}.public.content"

    def rebuild(self) -> None:
        """A new slot and new topics: what was not sent by now is never sent."""
        self.lineage += 1
        self.logs[self.lineage] = [[] for _ in range(PARTITIONS)]
        self.slot = self.commit = len(self.source.commits)
        self.event, self.seed, self.scan, self.chunks, self.scanned = 0, None, None, [], []

    def poison(self, partition: int, key: int | None) -> None:
        """Bytes that are no change, from whoever may write to the topic."""
        log, text = self.log[partition], None if key is None else f"[{key}]"
        version = Version(self.lineage, len(log))
        at = TopicPartition(self.topic, partition)
        log.append(Sent(Undecodable(at, version, text, b"k", b"v", (), "BadMagicByte", "odd", None), (-1, 0)))

    @property
    def idle(self) -> bool:
        return self.commit == len(self.source.commits)

    @property
    def scanning(self) -> bool:
        return self.scan is not None or bool(self.chunks)

    def start(self, chunks: Sequence[tuple[int, ...]], hideable: int) -> None:
        """Begin a scan. Commits from `hideable` on may be in the WAL and not be visible yet (H5)."""
        self.chunks, self.scanned, self.hideable = list(chunks), [], hideable

    def read_chunk(self, hidden: int) -> None:
        """Low watermark, SELECT, in the order of DDD-3: what is committed after the SELECT falls into the window."""
        keys = self.chunks.pop(0)
        commits = len(self.source.commits)
        seen = max(self.seen, self.hideable, commits - hidden)
        while seen < commits and any(
            event.kind == "t" for each in self.source.commits[seen:] for event in each.events
        ):
            seen += 1
        self.seen = seen
        table = self.source.visible(seen)
        self.scans += 1
        self.scan = Scan(self.scans, keys, {key: table[key] for key in keys if key in table}, seen)
        self.source.commit(0, [RowEvent("low", self.scans, self.source.lsn())])

    def close_chunk(self) -> None:
        assert self.scan is not None
        self.source.commit(0, [RowEvent("high", self.scan.number, self.source.lsn())])

    def emit(self, number: int) -> None:
        for _ in range(number):
            if self.idle:
                return
            commit = self.source.commits[self.commit]
            self._one(commit, self.event, commit.events[self.event])
            self.event += 1
            if self.event == len(commit.events):
                self.commit, self.event, self.seed = self.commit + 1, 0, None

    def _last(self) -> int:
        """`sequence[0]`: the last commit before, or an older one after some crashes (H4); the same when sent again."""
        if self.commit not in self.seeds:
            before = self.source.commits[self.commit - 1].lsn if self.commit else 90
            self.seeds[self.commit] = before if self.seed is None else self.seed
        return self.seeds[self.commit]

    def _one(self, commit: Commit, number: int, event: RowEvent) -> None:
        last, scan = self._last(), self.scan
        if event.kind in ("low", "high"):
            if scan is not None and scan.number == event.key:
                scan.open = True
                if event.kind == "high":
                    self._flush(scan, last, event.lsn)
            return
        if scan is not None and scan.open:
            scan.rows.pop(event.key, None)
        origin = Origin(event.lsn, last, event.lsn, commit.tx, commit.at, False)
        operation = Operation(event.kind)
        history = (self.commit, number)
        key = None if event.kind == "t" else event.key
        self._send(change_of(operation, key, origin, event.text, moved=event.moved), history)
        if event.kind == "d":
            self._send(change_of(Operation.TOMBSTONE, key, Origin()), history)

    def _flush(self, scan: Scan, last: int, lsn: int) -> None:
        for key, text in scan.rows.items():
            origin = Origin(None, last, lsn, None, None, True)
            self._send(change_of(Operation.READ, key, origin, text), (scan.seen - 1, 1000))
        self.scanned.append(scan.keys)
        self.scan = None

    def _send(self, change: Change, history: tuple[int, int]) -> None:
        """To the partition of the key; a truncate has none and goes to the first."""
        partition = 0 if change.key is None else int(change.key[1:-1]) % PARTITIONS
        log = self.log[partition]
        at = TopicPartition(self.topic, partition)
        log.append(Sent(replace(change, at=at, version=Version(self.lineage, len(log))), history))

    def crash(self, back: int, old: int) -> None:
        """Die and go on at the slot's commit. A slot ahead of the stored offset seeds `sequence[0]` anew (H4)."""
        whole = self.commit
        self.slot = self.commit = max(self.slot, whole - back)
        interrupted = self.event > 0
        self.event = 0
        if self.commit == whole and not interrupted and not self._next_inverted():
            self.seed = max(90, self.source.commits[max(0, whole - old)].lsn) if whole else None
            if self.seed is not None and whole and self.seed > self.source.commits[whole - 1].lsn:
                self.seed = None
        if self.scanning:
            again = [] if self.scan is None else [self.scan.keys]
            self.chunks, self.scanned = [*self.scanned, *again, *self.chunks], []
            self.scan = None

    def _next_inverted(self) -> bool:
        """H1 and H4 at once: a row written before the last one's, seeded with an old commit, looks like a replay."""
        coming = self.source.commits[self.commit :]
        return bool(coming) and coming[0].inverted


# --- the machine -------------------------------------------------------------------------------------------------

CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, KEYS - 1), st.just(0), st.sampled_from(TEXTS)),
        st.tuples(st.just("put"), st.integers(0, KEYS - 1), st.just(0), st.sampled_from(TEXTS)),
        st.tuples(st.just("delete"), st.integers(0, KEYS - 1), st.just(0), st.just("")),
        st.tuples(st.just("move"), st.integers(0, KEYS - 1), st.integers(0, KEYS - 1), st.just("")),
        st.tuples(st.just("shift"), st.integers(0, KEYS - 2), st.just(0), st.just("")),
        st.tuples(st.just("truncate"), st.just(0), st.just(0), st.just("")),
    ),
    min_size=1,
    max_size=4,
)


class Simulation(RuleBasedStateMachine):
    """One collection from commit to vector, with everything that may happen in between."""

    @initialize(rows=st.dictionaries(st.integers(0, KEYS - 1), st.sampled_from(TEXTS), max_size=KEYS))
    def begin(self, rows: dict[int, str]) -> None:
        self.source = Source(rows)
        self.connector = Connector(self.source)
        self.store = MemoryStore()
        self.positions: dict[TopicPartition, int] = {}
        self.encoder = FakeEncoder()
        self.claimed: list[list[tuple[Cut, EmbedWrite | None]]] = [[], []]
        self.seen: dict[int, tuple[int, int]] = {}
        self.excused: set[int] = set()
        self.loaded = self.spoilt = self.loading = self.unswept = False
        self.backup: dict[str, Any] | None = None

    # the source

    @rule(changes=CHANGES)
    def transaction(self, changes: list[tuple[Any, ...]]) -> None:
        tx, events = self.source.next_tx(), []
        for change in changes:
            events += self.source.apply(change)
        if events:
            self.spoilt |= self.connector.scanning and any(event.kind == "t" for event in events)
            self.source.commit(tx, events)

    @rule(key=st.integers(0, KEYS - 1), text=st.sampled_from(TEXTS))
    def interleaved(self, key: int, text: str) -> None:
        """H1: T2's insert of a key is in the WAL before T1's delete of it, and committed after."""
        if key not in self.source.table:
            return
        first, second = self.source.next_tx(), self.source.next_tx()
        update = self.source.event("u", key, "tea")
        insert = self.source.event("c", key, text)
        delete = self.source.event("d", key)
        del self.source.table[key]
        self.source.commit(first, [update, delete])
        self.source.table[key] = text
        self.source.commit(second, [insert], inverted=True)
        self.excused.add(key)  # sent again, the delete is accepted once more, and then the insert

    # the connector

    @rule(number=st.integers(1, 12))
    def emit(self, number: int) -> None:
        self.connector.emit(number)

    @rule(back=st.integers(0, 4), old=st.integers(1, 4))
    def crash_connector(self, back: int, old: int) -> None:
        self.connector.crash(back, old)

    @rule()
    def rebuild(self) -> None:
        """The connector's place is lost (H10, H11, H28): the next lineage, whose load ends with a sweep."""
        self.connector.rebuild()
        self.positions, self.backup = {}, None
        self.loading, self.loaded, self.spoilt, self.unswept = False, False, False, True

    @rule(partition=st.integers(0, PARTITIONS - 1), keyed=st.booleans())
    def poison(self, partition: int, keyed: bool) -> None:
        self.connector.poison(partition, partition if keyed else None)

    @precondition(lambda self: not self.connector.scanning and not self.loading)
    @rule()
    def start_load(self) -> None:
        self.loading, self.spoilt = True, False
        # A new slot begins once all that was in the log before it is visible.
        hideable = self.connector.slot if self.connector.lineage > 1 else 0
        self.connector.start(
            [tuple(range(low, min(low + CHUNK_KEYS, KEYS))) for low in range(0, KEYS, CHUNK_KEYS)], hideable
        )

    @precondition(lambda self: self.connector.chunks and self.connector.scan is None)
    @rule(hidden=st.integers(0, 2))
    def read_chunk(self, hidden: int) -> None:
        self.connector.read_chunk(hidden)

    @precondition(lambda self: self.connector.scan is not None)
    @rule()
    def close_chunk(self) -> None:
        self.connector.close_chunk()

    @precondition(lambda self: self.loading and not self.connector.scanning)
    @rule()
    def end_load(self) -> None:
        self.loading, self.loaded = False, True

    @rule(hidden=st.integers(0, 2))
    def look_for_repairs(self, hidden: int) -> None:
        """A SELECT that sees the key's transaction, and not yet the last few others."""
        found, visible = [], 0
        for key, (version, _) in sorted(self.store.repairs.items()):
            state = self.store.records.get(key)
            if state is None or state.deleted or state.version != version:
                del self.store.repairs[key]
                continue
            mine = next(n for n, each in enumerate(self.source.commits, 1) if each.tx == state.transaction_id)
            seen, visible = max(len(self.source.commits) - hidden, mine), max(visible, mine)
            if int(key[1:-1]) in self.source.visible(seen):
                found.append(key)
            else:
                self.store.absent(key, version)
        if found and not self.loading and not self.connector.scanning:
            self.store.repairs.update({key: (self.store.repairs[key][0], True) for key in found})
            self.connector.start([tuple(int(key[1:-1]) for key in found)], visible)

    # intake

    def behind(self) -> bool:
        return any(self.position(number) < len(log) for number, log in enumerate(self.connector.log))

    def position(self, partition: int) -> int:
        return self.store.position.get(TopicPartition(self.connector.topic, partition), 0)

    def batch(
        self, partitions: Sequence[int], positions: Mapping[TopicPartition, int]
    ) -> list[Change | Undecodable]:
        """Messages as they arrive: in order within a partition, the partitions in any."""
        at = [positions.get(TopicPartition(self.connector.topic, number), 0) for number in range(PARTITIONS)]
        batch = []
        for partition in partitions:
            if at[partition] < len(self.connector.log[partition]):
                batch.append(self.connector.log[partition][at[partition]].change)
                at[partition] += 1
        return batch

    def intake(
        self, batch: Sequence[Change | Undecodable], positions: Mapping[TopicPartition, int]
    ) -> IntakePlan:
        request = IntakeRequest(
            COLLECTION,
            {event.at: positions.get(event.at) for event in batch},
            keys_of(batch),
            has_truncate(batch),
            keys_with_rows(batch),
        )
        plan, _ = drive(
            self.store.intake(request, lambda view: decide(batch, view, lambda change, row: change))
        )
        assert sum(plan.outcomes.values()) == len(batch)
        return plan

    @rule(
        partitions=st.lists(st.integers(0, PARTITIONS - 1), min_size=1, max_size=12),
        crash=st.sampled_from(["", "", "", "before commit", "after commit"]),
    )
    def take_in(self, partitions: list[int], crash: str) -> None:
        batch = self.batch(partitions, self.positions)
        if not batch:
            return
        self.store.crash = crash
        try:
            self.positions.update(self.intake(batch, self.positions).positions)
        except Crash:
            self.positions = dict(self.store.position)
        self.check_history()

    @rule(
        partitions=st.lists(st.integers(0, PARTITIONS - 1), min_size=1, max_size=6), behind=st.integers(1, 5)
    )
    def old_owner(self, partitions: list[int], behind: int) -> None:
        """After a slow rebalance: somebody whose positions are not the sink's any more writes nothing (H21)."""
        stale = {at: max(0, offset - behind) for at, offset in self.positions.items()}
        batch = [
            event
            for event in self.batch(partitions, stale)
            if stale.get(event.at) != self.positions.get(event.at)
        ]
        if batch:
            with pytest.raises(PositionConflict):
                self.intake(batch, stale)

    @rule()
    def replay_from_earliest(self) -> None:
        """Somebody forgets the positions: all that the log has comes again, and changes nothing."""
        self.store.position, self.positions, self.backup = {}, {}, None

    @rule()
    def back_up(self) -> None:
        kept = {name: copy.deepcopy(getattr(self.store, name)) for name in STORED}
        self.backup = {**kept, "seen": dict(self.seen), "unswept": self.spoilt or self.unswept}

    @precondition(lambda self: self.backup is not None)
    @rule()
    def restore_sink(self) -> None:
        """H21: an older copy of the sink comes back under a running worker, which ends and starts at its positions."""
        assert self.backup is not None
        for name in STORED:
            setattr(self.store, name, copy.deepcopy(self.backup[name]))
        self.seen, self.unswept = dict(self.backup["seen"]), self.unswept or self.backup["unswept"]
        moved = {at for at, offset in self.positions.items() if self.store.position.get(at) != offset}
        batch = [each for each in self.batch([0, 1, 2], self.positions) if each.at in moved]
        if batch:
            with pytest.raises(PositionConflict):
                self.intake(batch, self.positions)
        self.positions = dict(self.store.position)

    def check_history(self) -> None:
        """No key ever goes back (promise 2), nor comes back after an accepted delete or truncate (promise 3)."""
        fence = -1 if self.store.fence is None else self.commit_of(self.store.fence.lsn)
        for key in range(KEYS):
            state = self.store.records.get(f"[{key}]")
            before = self.seen.get(key, (-2, 0))
            if state is None:
                self.seen[key] = max(before, (fence, 0)) if fence >= 0 else before
                continue
            sent = self.connector.logs[state.version.lineage][key % PARTITIONS][state.version.offset]
            assert row_of(sent) == state.row or state.deleted, "not a state of the source"
            # It keeps the version of the last event, and what comes next may be of before the SELECT.
            re_read_as_gone = state.deleted and row_of(sent) is not None
            if not (key in self.excused or self.spoilt or re_read_as_gone):
                assert sent.history >= before, f"key {key} went back from {before} to {sent.history}"
            self.seen[key] = before if re_read_as_gone else sent.history

    def commit_of(self, lsn: int) -> int:
        return next(number for number, each in enumerate(self.source.commits) if each.lsn > lsn)

    # embedding

    @rule(who=st.integers(0, 1), limit=st.integers(1, 3), late=st.booleans())
    def claim(self, who: int, limit: int, late: bool) -> None:
        """Claim, cut and look for known vectors; encode and write are another rule, so anything may come between."""
        if late:
            self.store.now += timedelta(seconds=200)
        claims = drive(self.store.claim([(COLLECTION, 1)], f"slot-{who}", limit, 0.25, 100))
        for each in claims:
            one = cut(each, str(each.row["text"]).split())
            known = drive(self.store.known_hashes(COLLECTION, 1, one.hashes))
            missing = to_encode([one], known)
            vectors = (
                dict(zip(missing, self.encoder.encode(list(missing.values())), strict=True))
                if missing
                else {}
            )
            self.claimed[who].append((one, embed_write(one, vectors)))

    @rule(who=st.integers(0, 1), crash=st.sampled_from(["", "", "", "before commit", "after commit"]))
    def write(self, who: int, crash: str) -> None:
        writes = [write for _, write in self.claimed[who] if write is not None]
        self.claimed[who] = []
        if not writes:
            return
        self.store.crash = crash
        try:
            drive(self.store.write(writes))
        except Crash:
            drive(self.store.release(f"slot-{who}"))

    @rule(who=st.integers(0, 1), retry=st.sampled_from([0.0, 30.0, None]))
    def model_fails(self, who: int, retry: float | None) -> None:
        """On each of what is claimed: to be tried again, or given up."""
        for one, _ in self.claimed[who]:
            drive(self.store.fail(one.claim, UnusableVector("NaN"), retry))
        self.claimed[who] = []

    @rule(minutes=st.integers(-60, 60))
    def clock_jumps(self, minutes: int) -> None:
        self.store.now += timedelta(minutes=minutes)

    @rule(who=st.integers(0, 1))
    def embedder_dies(self, who: int) -> None:
        """Between claim and write; only the lease's end, or its slot's restart, frees the rows."""
        self.claimed[who] = []

    @invariant()
    def vectors_are_of_the_record_or_it_is_pending(self) -> None:
        if not hasattr(self, "store"):
            return
        store = self.store
        assert store.pending.keys() | store.embedding.keys() <= {
            k for k, s in store.records.items() if not s.deleted
        }
        for key, state in store.records.items():
            if not state.deleted and key not in store.pending and key not in store.embed_dead:
                words = str((state.row or {})["text"]).split()
                assert [text for _, text, _ in store.embedding.get(key, [])] == words, key

    # at rest

    @rule()
    def settle(self) -> None:
        self.drain()
        if self.loading:
            self.end_load()
        while self.store.repairs:
            self.look_for_repairs(0)
            self.drain()
        if not self.loaded or self.spoilt or self.unswept:
            self.load_again(sweep=self.spoilt or self.unswept)
            self.unswept = False
        self.embed_all()
        self.compare()

    def drain(self) -> None:
        """Everything that is under way arrives."""
        while self.connector.scanning or not self.connector.idle:
            self.connector.emit(10_000)
            if self.connector.scan is not None:
                self.connector.close_chunk()
            elif self.connector.chunks:
                self.connector.read_chunk(0)
        while self.behind():
            self.take_in([0, 1, 2] * 4, "")

    def load_again(self, *, sweep: bool) -> None:
        """A first load, or the one that follows a truncate during a load: with a sweep of what it did not find."""
        before = {key: state.version for key, state in self.store.records.items()}
        ends = [len(log) for log in self.connector.log]
        self.start_load()
        self.drain()
        self.end_load()
        found = {
            sent.change.key
            for end, log in zip(ends, self.connector.log, strict=True)
            for sent in log[end:]
            if isinstance(sent.change, Change) and sent.change.operation is Operation.READ
        }
        for key, version in before.items() if sweep else ():
            state = self.store.records[key]
            if state.version == version and key not in found and not state.deleted:
                self.store.repairs.setdefault(key, (version, False))
                self.store.absent(key, version)

    def embed_all(self) -> None:
        """The real embedder, after both slots have come back, and what was given up is replayed."""
        for key in list(self.store.embed_dead):
            self.store._wait(key, self.store.records[key].version, Lane.BACKFILL, None, 0)
        self.store.now = max([self.store.now, *(row.available_at for row in self.store.pending.values())])
        self.claimed = [[], []]
        for who in range(2):
            drive(self.store.release(f"slot-{who}"))
        recipe = Recipe(Template("{{ text }}"), WordChunker(), self.encoder, 1000)
        fatal: list[BaseException] = []
        with ThreadPoolExecutor(1) as executor, ThreadPoolExecutor(1) as cutter:
            embedder = Embedder(
                self.store, {(COLLECTION, 1): recipe}, Measures(),
                slot="slot-0", limits=EmbedLimits(1, 0.25, 100, 60, 3), executor=executor, cutter=cutter,
            )  # fmt: skip

            async def until_nothing_waits() -> None:
                running = asyncio.create_task(embedder.run(fatal.append))
                while self.store.pending and not running.done():  # noqa: ASYNC110
                    await asyncio.sleep(0)
                embedder.stop()
                await running

            async def in_time() -> None:
                await asyncio.wait_for(until_nothing_waits(), 20)

            asyncio.run(in_time())
        assert not fatal

    def compare(self) -> None:
        """What the sink shows is what the source has: keys, texts, chunks and vectors."""
        live = {
            key: (state.row or {})["text"] for key, state in self.store.records.items() if not state.deleted
        }
        assert live == {f"[{key}]": text for key, text in self.source.table.items()}
        shown = {
            key: [text for _, text, _ in chunks] for key, chunks in self.store.embedding.items() if chunks
        }
        assert shown == {f"[{key}]": text.split() for key, text in self.source.table.items() if text}
        for chunks in self.store.embedding.values():
            for digest, text, vector in chunks:
                assert digest == hashlib.sha256(text.encode()).digest()
                assert tuple(float(each) for each in vector) == vector_of(text)
        assert not self.store.pending
        assert not self.store.repairs
        for letter in self.store.dead.values():
            newer = self.store.records.get(letter.key or "")
            assert newer is None or newer.version < letter.version, "mended at the source (H38)"

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.settle()


TestSimulation = Simulation.TestCase
TestSimulation.settings = settings(
    max_examples=500,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
