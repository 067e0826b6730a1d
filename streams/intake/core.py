"""Which change wins: the pure decision of an intake transaction (DESIGN 3, 4).

`decide` folds a batch, in arrival order, onto what the transaction read under its locks. Everything about order
is here and nowhere else: stores only carry out the plan, and guard it once more in SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import groupby

from schemas.change import Change, JsonValue, Operation, Outcome, TopicPartition, Undecodable, Version
from schemas.sink import Fence, IntakePlan, IntakeView, Lane, OffsetRange, RecordState, RecordWrite

Complete = Callable[[Change, Mapping[str, JsonValue] | None], Change | Undecodable]
#: Text and hash of a change by a generation's template; None if that template cannot render it.
Render = Callable[[str, Change], tuple[str, bytes] | None]

#: Bytes of one text hash within a record's.
HASH_BYTES = 32

#: Outcomes that get an audit row of their own; the others are audited as ranges of offsets with counts.
AUDITED_SINGLY = frozenset({Outcome.APPLIED, Outcome.DELETED, Outcome.DEAD_LETTER})

#: Outcomes of changes that were not known before.
ACCEPTED = frozenset(
    {Outcome.APPLIED, Outcome.UNCHANGED, Outcome.DELETED, Outcome.SUPERSEDED, Outcome.DEAD_LETTER}
)


def is_below(fence: Fence, lineage: int, fence_lsn: int | None) -> bool:
    """Whether a row of `lineage` at `fence_lsn` was removed by the truncate that set `fence` (H6-H8)."""
    if lineage != fence.lineage:
        return lineage < fence.lineage
    return fence_lsn is None or fence_lsn < fence.lsn


def is_replay(state: RecordState, change: Change) -> bool:
    """Whether the connector sends an event again (H3). Both numbers must be old: either alone loses data (H1, H4)."""
    stored, sent = (
        (state.sequence_last_commit, state.lsn),
        (
            change.origin.sequence_last_commit,
            change.origin.lsn,
        ),
    )
    if state.version.lineage != change.version.lineage or change.origin.snapshot:
        return False
    if stored[0] is None or stored[1] is None or sent[0] is None or sent[1] is None:
        return False
    return sent[0] <= stored[0] and sent[1] <= stored[1]


def is_overtaken_snapshot_row(state: RecordState, change: Change) -> bool:
    """A row of an incremental snapshot never overwrites what streaming said in the same lineage (H5)."""
    return change.origin.snapshot and state.streamed and state.version.lineage == change.version.lineage


def is_half_of_a_shift(state: RecordState, change: Change) -> bool:
    """A key change away from a row that the same transaction has just put there (H9): ask the source instead."""
    mine, stored = change.origin.transaction_id, state.transaction_id
    return change.moved_to and not state.deleted and mine is not None and mine == stored


def rejection(
    state: RecordState | None, fence: Fence | None, change: Change, repaired: bool
) -> Outcome | None:
    """Why a row event must not be applied, or None to accept it."""
    if state is not None and change.version <= state.version:
        return Outcome.DUPLICATE
    if fence is not None and is_below(fence, change.version.lineage, change.origin.fence_lsn):
        return Outcome.IGNORED
    if state is None:
        return None
    if is_replay(state, change):
        return Outcome.DUPLICATE
    if is_overtaken_snapshot_row(state, change) and not repaired:
        return Outcome.IGNORED
    return None


def next_state(state: RecordState | None, change: Change) -> RecordState:
    """The record after an accepted change. A snapshot row never clears the stored lsn, pair and transaction (H2).

    Without the transaction a replayed half of a shift would delete the row that its repair has brought (H3, H9).
    """
    origin, deleted = change.origin, change.operation is Operation.DELETE
    fresh = RecordState(
        version=change.version,
        deleted=deleted,
        text_hash=b"" if deleted else change.text_hash,
        streamed=not origin.snapshot,
        lsn=origin.lsn,
        sequence_last_commit=origin.sequence_last_commit,
        transaction_id=origin.transaction_id,
        fence_lsn=origin.fence_lsn,
        committed_at=origin.committed_at,
        row=None if deleted else change.row,
    )
    if not origin.snapshot or state is None or state.version.lineage != change.version.lineage:
        return fresh
    return replace(
        fresh,
        lsn=state.lsn,
        sequence_last_commit=state.sequence_last_commit,
        transaction_id=state.transaction_id,
        committed_at=state.committed_at,
    )


@dataclass(slots=True)
class _Folded:
    """One key while its events are folded: what is stored, what it has become, and which event made it so."""

    stored: RecordState | None
    state: RecordState | None
    last: Change | None = None
    committed_since: datetime | None = None
    changes: int = 0
    live: bool = False
    spoilt: list[Undecodable] = field(default_factory=list)

    def accept(self, change: Change) -> None:
        self.state = next_state(self.state, change)
        self.last = change
        if not change.origin.snapshot:
            self.unreflected(change.origin.committed_at)

    def unreflected(self, committed_at: datetime | None) -> None:
        """A streamed change that the sink shows only once this batch's write is searchable (H18)."""
        if committed_at is None:
            return
        self.live = True
        self.changes += 1
        if self.committed_since is None or committed_at < self.committed_since:
            self.committed_since = committed_at

    def write(self, key: str, templates: Mapping[int, str], render: Render) -> RecordWrite | None:
        if self.last is None or self.state is None:
            return None
        embeds: dict[int, str] = {}
        if not self.state.deleted:
            texts = {source: render(source, self.last) for source in sorted(set(templates.values()))}
            hashes = sorted(found[1] for found in texts.values() if found is not None)
            joined = b"".join(hashes)
            if joined != self.state.text_hash:
                self.state = replace(self.state, text_hash=joined)
            known = self._stored_hashes()
            embeds = {number: _embed(texts[source], known) for number, source in templates.items()}
        embed = next((each for each in ("pending", "remove", "keep") if each in embeds.values()), "remove")
        outcome = Outcome.DELETED if self.state.deleted else Outcome.APPLIED
        unchanged = embed == "keep"
        return RecordWrite(
            key=key,
            state=self.state,
            origin=self.last.origin,
            embed=embed,
            embed_otherwise={number: each for number, each in embeds.items() if each != embed},
            lane=Lane.LIVE if self.live else Lane.BACKFILL,
            committed_since=self.committed_since,
            changes=max(self.changes, 1),
            at=self.last.at,
            operation=self.last.operation.value,
            outcome=Outcome.UNCHANGED if unchanged else outcome,
        )

    def _stored_hashes(self) -> frozenset[bytes]:
        """Of the stored text, by each template that was fed when it was stored."""
        if self.stored is None or self.stored.deleted:
            return frozenset()
        joined = self.stored.text_hash
        return frozenset(joined[at : at + HASH_BYTES] for at in range(0, len(joined), HASH_BYTES))


def _committed_at(event: Change | Undecodable) -> datetime | None:
    """When a streamed change was committed, as far as it can be read."""
    if isinstance(event, Undecodable):
        return event.committed_at
    return None if event.origin.snapshot else event.origin.committed_at


def _embed(found: tuple[str, bytes] | None, known: frozenset[bytes]) -> str:
    """What becomes of a generation's vectors. What it cannot render is for its embedder to say, for it alone."""
    if found is None:
        return "pending"
    text, digest = found
    return "keep" if digest in known else "pending" if text.strip() else "remove"


class _Batch:
    """One run of `decide`: the folded keys, the fence, and the outcome of every consumed offset in order."""

    def __init__(self, view: IntakeView, complete: Complete, render: Render) -> None:
        self.view, self.complete, self.render = view, complete, render
        self.fence = view.fence
        self.keys: dict[str, _Folded] = {}
        self.outcomes: dict[tuple[TopicPartition, int], Outcome] = {}
        self.dead_letters: dict[tuple[TopicPartition, int], Undecodable] = {}
        self.wanted: set[str] = set()
        self.done: set[str] = set()
        self.fence_committed_at: datetime | None = None
        self.truncated: dict[str, Version] = {}
        self.fenced_at: set[tuple[TopicPartition, int]] = set()
        self.committed: dict[tuple[TopicPartition, int], datetime] = {}

    def take(self, event: Change | Undecodable) -> None:
        place = (event.at, event.version.offset)
        if place in self.outcomes:
            return  # delivered twice: it has its outcome
        committed_at = _committed_at(event)
        if committed_at is not None:
            self.committed[place] = committed_at
        if isinstance(event, Undecodable):
            self._spoilt(place, event)
        elif event.operation in (Operation.TOMBSTONE, Operation.MESSAGE):
            self.outcomes[place] = Outcome.IGNORED
        elif event.operation is Operation.TRUNCATE:
            self.outcomes[place] = self._truncate(event)
        elif event.key is not None:
            self._row(place, event.key, event)

    def _folded(self, key: str) -> _Folded:
        if key not in self.keys:
            stored = self.view.records.get(key)
            self.keys[key] = _Folded(stored, stored)
        return self.keys[key]

    def _spoilt(self, place: tuple[TopicPartition, int], event: Undecodable) -> None:
        stored = self.view.records.get(event.key) if event.key is not None else None
        if stored is not None and event.version <= stored.version:
            self.outcomes[place] = Outcome.DUPLICATE
            return
        self.outcomes[place] = Outcome.DEAD_LETTER
        self.dead_letters[place] = event
        if event.key is not None:
            self._folded(event.key).spoilt.append(event)

    def _row(self, place: tuple[TopicPartition, int], key: str, change: Change) -> None:
        folded = self._folded(key)
        # A re-read answers the version that it was asked for: what came since in this batch is newer (H5, H9).
        repaired = change.origin.snapshot and key in self.view.repairs and folded.last is None
        refused = rejection(folded.state, self.fence, change, repaired)
        if refused is not None:
            self.outcomes[place] = refused
            return
        if folded.state is not None and is_half_of_a_shift(folded.state, change):
            self.wanted.add(key)
            self.outcomes[place] = Outcome.IGNORED
            return
        if change.doubtful:
            self._doubt(place, key, folded, change)
            return
        whole = self._completed(change, folded)
        if isinstance(whole, Undecodable):
            self._spoilt(place, whole)
            return
        self._supersede(folded)
        folded.accept(whole)
        self.wanted.discard(key)
        self.outcomes[place] = Outcome.DELETED if change.operation is Operation.DELETE else Outcome.APPLIED
        if repaired:
            self.done.add(key)

    def _doubt(self, place: tuple[TopicPartition, int], key: str, folded: _Folded, change: Change) -> None:
        """The source is asked for the row. A key that is not there is noted as a marker of this version until then."""
        if folded.state is not None and not folded.state.deleted:
            self.outcomes[place] = Outcome.IGNORED
        else:
            self._supersede(folded)
            folded.accept(replace(change, operation=Operation.DELETE))
            self.outcomes[place] = Outcome.DELETED
        self.wanted.add(key)

    def _completed(self, change: Change, folded: _Folded) -> Change | Undecodable:
        """Unavailable values mean "unchanged": they come from the row as it stands now, in this batch too."""
        if not change.unavailable:
            return change
        return self.complete(change, folded.state.row if folded.state is not None else None)

    def _supersede(self, folded: _Folded) -> None:
        """A newer change of the key is in the batch: what it overtakes is neither applied nor a dead letter."""
        if folded.last is not None:
            self.outcomes[(folded.last.at, folded.last.version.offset)] = Outcome.SUPERSEDED
        for spoilt in folded.spoilt:
            folded.unreflected(spoilt.committed_at)
            place = (spoilt.at, spoilt.version.offset)
            self.outcomes[place] = Outcome.SUPERSEDED
            self.dead_letters.pop(place, None)
        folded.spoilt.clear()

    def _truncate(self, change: Change) -> Outcome:
        lsn = change.origin.fence_lsn
        if lsn is None:
            return Outcome.IGNORED
        fence = Fence(change.version.lineage, lsn)
        if self.fence is not None and (fence.lineage, fence.lsn) <= (self.fence.lineage, self.fence.lsn):
            return Outcome.DUPLICATE
        self.fence, self.fence_committed_at = fence, change.origin.committed_at
        self.fenced_at.add((change.at, change.version.offset))
        for key in {*self.keys, *self.view.records}:
            folded = self._folded(key)
            state, stored = folded.state, folded.stored
            if stored is not None and is_below(fence, stored.version.lineage, stored.fence_lsn):
                folded.stored = None  # its vectors go, also where a row of after the truncate came first
            if state is None or not is_below(fence, state.version.lineage, state.fence_lsn):
                continue
            if folded.last is not None:
                self.outcomes[(folded.last.at, folded.last.version.offset)] = Outcome.SUPERSEDED
                self.truncated[key] = folded.last.version
            # A dead letter has no lsn, it may be of after the truncate: it stays open.
            self.keys[key] = _Folded(None, None, spoilt=folded.spoilt)
            self.wanted.discard(key)
        return Outcome.DELETED

    def plan(self) -> IntakePlan:
        templates, render = self.view.templates, self.render
        if not templates:  # a store that knows one template only, which is the decoder's
            templates, render = {1: ""}, as_decoded
        writes = [
            write
            for key in sorted(self.keys)
            if (write := self.keys[key].write(key, templates, render)) is not None
        ]
        for write in writes:
            self.outcomes[(write.at, write.state.version.offset)] = write.outcome
        positions: dict[TopicPartition, int] = {}
        for at, offset in self.outcomes:
            positions[at] = max(positions.get(at, 0), offset + 1)
        counts: dict[Outcome, int] = {}
        for outcome in self.outcomes.values():
            counts[outcome] = counts.get(outcome, 0) + 1
        return IntakePlan(
            writes=writes,
            dead_letters=list(self.dead_letters.values()),
            ranges=list(_ranges(self.outcomes, self.fenced_at)),
            positions=positions,
            fence=self.fence if self.fence != self.view.fence else None,
            fence_committed_at=self.fence_committed_at,
            repairs_wanted=frozenset(self.wanted),
            repairs_done=frozenset(self.done),
            truncated=self.truncated,
            outcomes=counts,
            violations=self._violations(),
        )

    def _violations(self) -> int:
        """Changes from before the published watermark, which said that all of them were there (DESIGN 7)."""
        published = self.view.watermark
        if published is None:
            return 0
        return sum(
            self.outcomes[place] in ACCEPTED and committed_at <= published
            for place, committed_at in self.committed.items()
        )


def _ranges(
    outcomes: Mapping[tuple[TopicPartition, int], Outcome], fenced_at: Collection[tuple[TopicPartition, int]]
) -> Iterable[OffsetRange]:
    """Runs of one outcome within a partition, in offset order. A truncate has no key whose row could account for it."""

    def run_of(entry: tuple[tuple[TopicPartition, int], Outcome]) -> tuple[TopicPartition, Outcome] | None:
        place, outcome = entry
        return None if outcome in AUDITED_SINGLY and place not in fenced_at else (place[0], outcome)

    for run, entries in groupby(sorted(outcomes.items()), run_of):
        if run is not None:
            offsets = [offset for (_, offset), _ in entries]
            yield OffsetRange(run[0], offsets[0], offsets[-1], len(offsets), run[1])


def as_decoded(template: str, change: Change) -> tuple[str, bytes]:
    """The text that the decoder made, whatever the template."""
    return change.text, change.text_hash


def decide(
    events: Sequence[Change | Undecodable],
    view: IntakeView,
    complete: Complete,
    render: Render = as_decoded,
) -> IntakePlan:
    """Fold `events` (arrival order; within a partition offset order) onto `view`.

    Every event's offset gets exactly one outcome (promise 4). Raises UnresolvedPlaceholder when a value was not
    sent and is not stored, so that the collection waits instead of embedding a placeholder.
    """
    batch = _Batch(view, complete, render)
    for event in events:
        batch.take(event)
    return batch.plan()


def keys_of(events: Iterable[Change | Undecodable]) -> list[str]:
    """Distinct keys in the order in which their record rows are locked."""
    return sorted({event.key for event in events if event.key is not None})


def keys_with_rows(events: Iterable[Change | Undecodable]) -> frozenset[str]:
    """Keys whose stored row is needed, because a value of an event was not sent."""
    return frozenset(
        event.key
        for event in events
        if isinstance(event, Change) and event.key is not None and event.unavailable
    )


def has_truncate(events: Iterable[Change | Undecodable]) -> bool:
    """Whether the transaction must take the collection's lock exclusively."""
    return any(isinstance(event, Change) and event.operation is Operation.TRUNCATE for event in events)
