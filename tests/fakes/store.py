"""The sink in memory: the same promises as `connectors.postgres.store`, held to them by `tests/contracts`.

One lock stands for every transaction, so what Postgres guards against between transactions cannot happen here; what a
single transaction must do is all here. The clock is injected; `refuse` makes the next call fail, before or after it
has been committed.
"""

from __future__ import annotations

import asyncio
import math
import random
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, Final

from schemas.change import TopicPartition, Undecodable, Version
from schemas.errors import Conflict, DeploymentChanged, MigrationNeeded, PositionConflict
from schemas.freshness import SlowChange
from schemas.sink import (
    LATE_SHARE,
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

Place = tuple[str, datetime, str]
FED: Final = ("filling", "live", "retired")
PendingKey = tuple[str, int, str]


@dataclass
class Pending:
    """One row of `upwell.pending`."""

    version: Version
    lane: Lane
    deadline: datetime
    pending_since: datetime | None
    changes: int
    taken_in_at: datetime
    available_at: datetime
    next_since: datetime | None = None
    next_changes: int = 0
    token: str | None = None
    slot: str | None = None
    lease_until: datetime | None = None
    attempts: int = 0
    last_error: str | None = None

    def fold(self) -> None:
        """What came after a claim that wrote nothing waits together with what was claimed."""
        self.pending_since = least(self.pending_since, self.next_since)
        self.changes += self.next_changes
        self.next_since, self.next_changes = None, 0

    def free(self) -> None:
        """No lease."""
        self.token = self.slot = self.lease_until = None


@dataclass
class Letter:
    """One row of `upwell.dead_letter`; `generation` is None for those of intake."""

    collection: str
    stage: str
    version: Version
    key: str | None
    error_class: str
    committed_at: datetime | None
    generation: int | None = None
    letter: Undecodable | None = None
    closed_by: str | None = None


@dataclass(frozen=True)
class StoredChunk:
    """One row of `upwell.embedding_C_gN`."""

    hash: bytes
    text: str
    vector: tuple[float, ...]


@dataclass
class FakeStore:
    """Implements `WorkerStore` of streams/ports.py. Its state may be looked at and changed by tests."""

    generation_infos: list[GenerationInfo]
    thresholds: dict[str, float] = field(default_factory=dict)
    lineage: int = 0
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    stored_positions: dict[TopicPartition, int] = field(default_factory=dict)
    records: dict[str, dict[str, RecordState]] = field(default_factory=dict)
    fences: dict[str, Fence] = field(default_factory=dict)
    pending: dict[PendingKey, Pending] = field(default_factory=dict)
    embeddings: dict[tuple[str, int], dict[str, dict[int, StoredChunk]]] = field(default_factory=dict)
    dead_letters: list[Letter] = field(default_factory=list)
    audit: list[dict[str, Any]] = field(default_factory=list)
    repairs: dict[tuple[str, str], tuple[Version, bool]] = field(default_factory=dict)
    watermarks: dict[str, datetime] = field(default_factory=dict)
    violations: dict[str, int] = field(default_factory=dict)
    counters: dict[Place, int] = field(default_factory=dict)
    slow: dict[tuple[str, datetime], Sequence[SlowChange]] = field(default_factory=dict)
    judged: dict[tuple[str, datetime], tuple[int, int]] = field(default_factory=dict)
    sketches: dict[Place, Mapping[str, object]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    blocked: dict[str, str] = field(default_factory=dict)
    closed: bool = False
    _refusals: list[tuple[Exception, bool]] = field(default_factory=list)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def refuse(self, error: Exception, *, after_commit: bool = False) -> None:
        """The next transaction raises `error`; `after_commit`: its work is done all the same, the answer is lost."""
        self._refusals.append((error, after_commit))

    def signal_repairs(self) -> None:
        """All wanted re-reads have been asked for at the source."""
        self.repairs = {key: (version, True) for key, (version, _) in self.repairs.items()}

    def _refusal(self, *, after_commit: bool) -> None:
        if self._refusals and self._refusals[0][1] is after_commit:
            raise self._refusals.pop(0)[0]

    def _generations(self, collection: str, *states: str) -> list[int]:
        found = [each for each in self.generation_infos if each.collection == collection]
        if not found:
            raise MigrationNeeded(f"collection {collection} is not in the sink: run `upwell migrate`")
        return [each.number for each in found if not states or each.state in states]

    # -- intake

    async def positions(self, topics: Collection[str]) -> Mapping[TopicPartition, int]:
        self._refusal(after_commit=False)
        return {at: offset for at, offset in self.stored_positions.items() if at.topic in topics}

    async def intake(
        self, request: IntakeRequest, decide: Callable[[IntakeView], IntakePlan]
    ) -> tuple[IntakePlan, datetime]:
        async with self._lock:
            self._refusal(after_commit=False)
            self._generations(request.collection)
            if request.lineage < self.lineage:
                raise DeploymentChanged(f"lineage {self.lineage} has begun")
            self._check_positions(request)
            plan = decide(self._view(request))
            self._check_versions(request.collection, plan)
            now = self.clock()
            self._apply(request.collection, plan, now)
            self._refusal(after_commit=True)
            return plan, now

    def _check_positions(self, request: IntakeRequest) -> None:
        for at, expected in request.positions.items():
            if self.stored_positions.get(at) != expected:
                raise PositionConflict(
                    f"{at}: the sink is at {self.stored_positions.get(at)}, not {expected}"
                )

    def _view(self, request: IntakeRequest) -> IntakeView:
        stored = self.records.get(request.collection, {})
        found = {
            key: stored[key] if key in request.with_rows else replace(stored[key], row=None)
            for key in request.keys
            if key in stored
        }
        repairs = frozenset(
            key
            for key, state in found.items()
            if self.repairs.get((request.collection, key)) == (state.version, True)
        )
        templates = {
            each.number: each.template
            for each in self.generation_infos
            if each.collection == request.collection and each.state != "dropped"
        }
        published = self.watermarks.get(request.collection)
        return IntakeView(self.fences.get(request.collection), found, repairs, templates, published)

    def _check_versions(self, collection: str, plan: IntakePlan) -> None:
        stored = self.records.get(collection, {})
        for write in plan.writes:
            old = stored.get(write.key)
            gone = old is not None and plan.fence is not None and is_below(plan.fence, old)
            if old is not None and not gone and old.version >= write.state.version:
                raise Conflict(f"{collection}: a record has a newer version than was read")

    def _apply(self, collection: str, plan: IntakePlan, now: datetime) -> None:
        if plan.fence is not None:
            self._truncate(collection, plan.fence)
            self._audit(collection, "truncated", None, lsn=plan.fence.lsn)
        records = self.records.setdefault(collection, {})
        for write in plan.writes:
            records[write.key] = write.state
            self._follow(collection, write, now)
        for key, version in plan.truncated.items():
            self._close_dead_letters(collection, key, version, [])
        for letter in plan.dead_letters:
            self._bury(collection, letter)
        for each in plan.ranges:
            self._audit(
                collection, each.outcome.value, None, first=each.first, last=each.last, count=each.count
            )
        self.violations[collection] = self.violations.get(collection, 0) + plan.violations
        self.stored_positions.update(plan.positions)
        for key in plan.repairs_done:
            self.repairs.pop((collection, key), None)
        for key in plan.repairs_wanted:
            if key in records:
                self.repairs[collection, key] = (records[key].version, False)

    def _follow(self, collection: str, write: RecordWrite, now: datetime) -> None:
        """What a stored record entails: vectors, pending rows, dead letters, audit."""
        fed = self._generations(collection, *FED)
        for number in fed:
            if write.embed_in(number) == "remove":
                self._remove(collection, write.key, number)
            elif write.embed_in(number) == "pending":
                self._make_pending(collection, number, write, now)
        kept = [number for number in fed if write.embed_in(number) == "keep"]
        self._close_dead_letters(collection, write.key, write.state.version, kept)
        if write.outcome.value != "unchanged":
            self._audit(collection, write.outcome.value, write.key, version=write.state.version)

    def _truncate(self, collection: str, fence: Fence) -> None:
        self.fences[collection] = fence
        records = self.records.setdefault(collection, {})
        for key in [key for key, state in records.items() if is_below(fence, state)]:
            del records[key]
            for number in self._generations(collection, *FED):
                self._remove(collection, key, number)
            for letter in self.dead_letters:
                if letter.stage == "embed" and (letter.collection, letter.key) == (collection, key):
                    letter.closed_by = letter.closed_by or "superseded"

    def _remove(self, collection: str, key: str, number: int) -> None:
        self.pending.pop((collection, number, key), None)
        self.embeddings.get((collection, number), {}).pop(key, None)

    def _make_pending(self, collection: str, number: int, write: RecordWrite, now: datetime) -> None:
        """Only the live generation has a live lane."""
        changes = write.changes if write.committed_since is not None else 0
        lane = write.lane if number in self._generations(collection, "live") else Lane.BACKFILL
        row = self.pending.get((collection, number, write.key))
        deadline = self._deadline(collection, write.committed_since or now)
        if row is None:
            self.pending[collection, number, write.key] = Pending(
                write.state.version, lane, deadline, write.committed_since, changes, now, now
            )
            return
        if row.lane is lane:
            row.deadline = min(row.deadline, deadline)
        elif lane is Lane.LIVE:
            row.deadline = deadline
        row.version, row.available_at, row.attempts, row.last_error = write.state.version, now, 0, None
        row.lane = Lane.LIVE if Lane.LIVE in (row.lane, lane) else Lane.BACKFILL
        if row.token is None:
            row.pending_since = least(row.pending_since, write.committed_since)
            row.changes += changes
        else:
            row.next_since = least(row.next_since, write.committed_since)
            row.next_changes += changes

    def _deadline(self, collection: str, since: datetime) -> datetime:
        return since + timedelta(seconds=self.thresholds.get(collection, 30.0))

    def _close_dead_letters(self, collection: str, key: str, version: Version, kept: Collection[int]) -> None:
        """One of the embed stage stays open while the text is still what its generation could not embed."""
        for letter in self.dead_letters:
            mine = (letter.collection, letter.key) == (collection, key) and letter.closed_by is None
            if mine and letter.generation not in kept and letter.version < version:
                letter.closed_by, letter.letter = "superseded", None

    def _bury(self, collection: str, letter: Undecodable) -> None:
        self.dead_letters.append(
            Letter(
                collection,
                "intake",
                letter.version,
                letter.key,
                letter.error_class,
                letter.committed_at,
                letter=letter,
            )
        )
        self._audit(collection, "dead_letter", letter.key, version=letter.version)

    def _audit(self, collection: str, action: str, key: str | None, **detail: Any) -> None:
        self.audit.append({"collection": collection, "action": action, "key": key, **detail})

    # -- embed

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
        async with self._lock:
            self._refusal(after_commit=False)
            now = self.clock()
            timely, late = self._claimable(generations, Lane.LIVE, now)
            backfill = [*chain(*reversed(self._claimable(generations, Lane.BACKFILL, now)))]
            backfill = [] if live_only else backfill
            reserved = math.floor(limit * backfill_share + random.random())
            live = min(len(timely) + len(late), limit - min(len(backfill), reserved, limit))
            reserved = math.floor(live * LATE_SHARE + random.random())
            of_late = min(live, max(live - len(timely), min(len(late), reserved)))
            chosen = [*timely[: live - of_late], *late[:of_late], *backfill[: limit - live]]
            claims = [self._claim(key, slot, now, lease_seconds) for key in chosen]
            return [claim for claim in claims if claim is not None]

    def _claimable(
        self, generations: Collection[tuple[str, int]], lane: Lane, now: datetime
    ) -> tuple[list[PendingKey], list[PendingKey]]:
        """Earliest deadline first: those that can still be in time, and those that are late."""
        free = sorted(
            (row.deadline, key)
            for key, row in self.pending.items()
            if row.lane is lane
            and key[:2] in generations
            and row.available_at <= now
            and (row.token is None or (row.lease_until is not None and row.lease_until < now))
        )
        return [key for at, key in free if at > now], [key for at, key in free if at <= now]

    def _claim(self, at: PendingKey, slot: str, now: datetime, lease_seconds: float) -> Claim | None:
        collection, generation, key = at
        state = self.records.get(collection, {}).get(key)
        if state is None or state.deleted:
            del self.pending[at]
            return None
        row = self.pending[at]
        row.fold()
        row.attempts += row.token is not None
        row.token, row.slot = str(uuid.uuid4()), slot
        row.lease_until = now + timedelta(seconds=lease_seconds)
        return Claim(
            collection,
            generation,
            key,
            row.version,
            row.token,
            row.lane,
            state.row or {},
            row.attempts,
            row.pending_since,
            row.taken_in_at,
            now,
            row.changes,
        )

    async def known_hashes(
        self, collection: str, generation: int, hashes: Collection[bytes]
    ) -> frozenset[bytes]:
        return frozenset(self._vectors(collection, generation)) & frozenset(hashes)

    async def own_hashes(
        self, collection: str, generation: int, keys: Collection[str]
    ) -> Mapping[str, frozenset[bytes]]:
        stored = self.embeddings.get((collection, generation), {})
        return {key: frozenset(c.hash for c in stored[key].values()) for key in keys if stored.get(key)}

    def _vectors(self, collection: str, generation: int) -> dict[bytes, tuple[float, ...]]:
        stored = self.embeddings.get((collection, generation), {})
        return {chunk.hash: chunk.vector for chunks in stored.values() for chunk in chunks.values()}

    async def write(self, writes: Sequence[EmbedWrite]) -> tuple[Sequence[WriteOutcome], datetime]:
        async with self._lock:
            self._refusal(after_commit=False)
            claim = writes[0].claim
            vectors = self._vectors(claim.collection, claim.generation)
            if writes[0].copy_from is not None:
                vectors = self._vectors(claim.collection, writes[0].copy_from) | vectors
            outcomes = [self._write(write, vectors) for write in writes]
            self._refusal(after_commit=True)
            return outcomes, self.clock()

    def _held(self, claim: Claim) -> Pending | None:
        """The pending row, if the lease holds and the record lives."""
        row = self.pending.get((claim.collection, claim.generation, claim.key))
        state = self.records.get(claim.collection, {}).get(claim.key)
        alive = state is not None and not state.deleted
        return row if row is not None and alive and row.token == claim.token else None

    def _write(self, write: EmbedWrite, vectors: Mapping[bytes, tuple[float, ...]]) -> WriteOutcome:
        claim, row = write.claim, self._held(write.claim)
        if row is None:
            return WriteOutcome.DISCARDED
        if any(chunk.vector is None and chunk.hash not in vectors for chunk in write.chunks):
            row.fold()
            row.free()
            row.available_at = self.clock()
            return WriteOutcome.VANISHED
        self.embeddings.setdefault((claim.collection, claim.generation), {})[claim.key] = {
            chunk.number: StoredChunk(
                chunk.hash,
                chunk.text,
                vectors[chunk.hash] if chunk.vector is None else tuple(map(float, chunk.vector)),
            )
            for chunk in write.chunks
        }
        self._audit(claim.collection, "embedded", claim.key, version=claim.version, chunks=len(write.chunks))
        if row.version == claim.version:
            del self.pending[claim.collection, claim.generation, claim.key]
            return WriteOutcome.WRITTEN
        row.deadline = self._deadline(claim.collection, row.next_since or self.clock())
        row.pending_since, row.changes = row.next_since, row.next_changes
        row.next_since, row.next_changes = None, 0
        row.free()
        return WriteOutcome.MOVED_ON

    async def fail(self, claim: Claim, error: Exception, retry_seconds: float | None) -> None:
        async with self._lock:
            self._refusal(after_commit=False)
            row = self._held(claim)
            if row is None:
                return
            row.fold()
            if retry_seconds is None and row.version == claim.version:
                del self.pending[claim.collection, claim.generation, claim.key]
                self.dead_letters.append(
                    Letter(
                        claim.collection,
                        "embed",
                        claim.version,
                        claim.key,
                        type(error).__name__,
                        row.pending_since,
                        claim.generation,
                    )
                )
                self._audit(claim.collection, "dead_letter", claim.key, version=claim.version)
                return
            row.free()
            row.attempts += retry_seconds is not None
            row.last_error = str(error)
            row.available_at = self.clock() + timedelta(seconds=retry_seconds or 0.0)

    async def give_back(self, claims: Sequence[Claim]) -> None:
        async with self._lock:
            self._refusal(after_commit=False)
            for claim in claims:
                row = self.pending.get((claim.collection, claim.generation, claim.key))
                if row is not None and row.token == claim.token:
                    row.fold()
                    row.free()

    async def release(self, slot: str, *, died: bool = False) -> int:
        async with self._lock:
            self._refusal(after_commit=False)
            held = [row for row in self.pending.values() if row.slot == slot and row.token is not None]
            for row in held:
                row.fold()
                row.free()
                row.attempts += died
            return len(held)

    async def generations(self) -> Sequence[GenerationInfo]:
        return [each for each in self.generation_infos if each.state != "dropped"]

    def serves_at(self, url: str) -> None:
        self.url = url

    async def set_problems(self, problems: Sequence[str]) -> None:
        self._refusal(after_commit=False)
        self.problems = list(problems)

    async def set_blocked(self, collection: str, reason: str) -> None:
        self._refusal(after_commit=False)
        self.blocked[collection] = reason

    async def clear_blocked(self, collection: str) -> None:
        self._refusal(after_commit=False)
        self.blocked.pop(collection, None)

    async def flush_measures(
        self,
        counters: Mapping[Place, int],
        sketches: Mapping[Place, Mapping[str, object]],
        judged: Mapping[tuple[str, datetime], tuple[int, int]],
        slow: Mapping[tuple[str, datetime], Sequence[SlowChange]] | None = None,
    ) -> None:
        self._refusal(after_commit=False)
        for place, number in counters.items():
            self.counters[place] = self.counters.get(place, 0) + number
        self.sketches.update(sketches)
        self.slow.update(slow or {})
        for minute, (good, bad) in judged.items():
            before = self.judged.get(minute, (0, 0))
            self.judged[minute] = (before[0] + good, before[1] + bad)

    async def close(self) -> None:
        self.closed = True


def least(*times: datetime | None) -> datetime | None:
    """As SQL's `least`: null only if all are."""
    return min((time for time in times if time is not None), default=None)


def is_below(fence: Fence, state: RecordState) -> bool:
    """Whether a truncate removed the record."""
    if state.version.lineage != fence.lineage:
        return state.version.lineage < fence.lineage
    return state.fence_lsn is None or state.fence_lsn < fence.lsn


def open_letters(letters: Iterable[Letter]) -> list[Letter]:
    """Those that are neither superseded, replayed nor waived."""
    return [letter for letter in letters if letter.closed_by is None]
