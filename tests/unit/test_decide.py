"""Which change wins, history by history (reference/histories.md). What the store does with a plan is its contract."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from schemas.change import Change, JsonValue, Operation, Origin, Outcome, TopicPartition, Undecodable, Version
from schemas.sink import Fence, IntakePlan, IntakeView, Lane, RecordState
from schemas.template import Template, text_hash
from streams.intake.core import decide, has_truncate, is_below, keys_of, keys_with_rows

START = datetime(2026, 1, 2, 10, tzinfo=UTC)
C, U, D, R, T = Operation.CREATE, Operation.UPDATE, Operation.DELETE, Operation.READ, Operation.TRUNCATE


def at(partition: int) -> TopicPartition:
    return TopicPartition("src1.public.content", partition)


def hour(number: float) -> datetime:
    """The source's clock, `number` hours after START."""
    return START + timedelta(hours=number)


def event(
    operation: Operation,
    key: str | None,
    text: str = "",
    *,
    offset: int,
    lsn: int | None = None,
    last: int | None = None,
    tx: int | None = None,
    hours: float = 0,
    partition: int = 0,
    lineage: int = 1,
    moved: bool = False,
    unavailable: frozenset[str] = frozenset(),
) -> Change:
    """A change as the decoder makes it. A snapshot row has `lsn` as `sequence[1]` only, and no commit time."""
    snapshot, deleted = operation is R, operation in (D, T, Operation.TOMBSTONE)
    origin = Origin(
        lsn=None if snapshot else lsn,
        sequence_last_commit=last,
        sequence_lsn=lsn,
        transaction_id=tx,
        committed_at=None if snapshot else hour(hours),
        snapshot=snapshot,
    )
    return Change(
        operation=operation,
        at=at(partition),
        version=Version(lineage, offset),
        key=key,
        origin=origin,
        row=None if deleted else {} if unavailable else {"text": text},
        text="" if unavailable else text,
        text_hash=b"" if deleted or unavailable else hashlib.sha256(text.encode()).digest(),
        moved_to=moved,
        unavailable=unavailable,
    )


def bad(key: str | None, *, offset: int, partition: int = 0, hours: float | None = 0) -> Undecodable:
    """A record that cannot be decoded."""
    committed_at = None if hours is None else hour(hours)
    return Undecodable(
        at(partition), Version(1, offset), key, b"k", b"v", (), "DecodeError", "odd", committed_at
    )


def complete(change: Change, row: dict[str, JsonValue] | None) -> Change | Undecodable:
    """As Decoder.complete: an unavailable text is that of the stored row."""
    assert row is not None, "the stored row was not read"
    text = str(row["text"])
    digest = hashlib.sha256(text.encode()).digest()
    return replace(change, row=row, text=text, text_hash=digest, unavailable=frozenset())


def audited(plan: IntakePlan) -> int:
    """How many offsets the audit accounts for (promise 4)."""
    singly = sum(write.outcome in (Outcome.APPLIED, Outcome.DELETED) for write in plan.writes)
    return sum(each.count for each in plan.ranges) + singly + len(plan.dead_letters)


@dataclass
class Sink:
    """The records of a sink, and nothing else of it: what a plan leaves behind."""

    fence: Fence | None = None
    records: dict[str, RecordState] = field(default_factory=dict)
    repairs: dict[str, Version] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    dead: list[Undecodable] = field(default_factory=list)
    plans: list[IntakePlan] = field(default_factory=list)

    def take(self, *events: Change | Undecodable) -> IntakePlan:
        """One batch, one transaction."""
        keys = keys_of(events)
        records = {key: self.records[key] for key in keys if key in self.records}
        view = IntakeView(self.fence, records, self.wanted & self.asked & set(keys))
        plan = decide(events, view, complete)  # type: ignore[arg-type]
        assert audited(plan) == len({(each.at, each.version.offset) for each in events})
        self._carry_out(plan)
        return plan

    def _carry_out(self, plan: IntakePlan) -> None:
        self.plans.append(plan)
        if plan.fence is not None:
            self.fence = plan.fence
            for key, state in list(self.records.items()):
                if is_below(plan.fence, state.version.lineage, state.fence_lsn):
                    del self.records[key]
        for write in plan.writes:
            assert key_is_older(self.records.get(write.key), write.state)
            self.records[write.key] = write.state
            self._close(write.key, write.state.version)
        for key, version in plan.truncated.items():
            self._close(key, version)
        self.dead += plan.dead_letters
        for key in plan.repairs_done:
            self.repairs.pop(key, None)
        self.asked -= plan.repairs_wanted
        for key in plan.repairs_wanted:
            if key in self.records:
                self.repairs[key] = self.records[key].version

    def _close(self, key: str, version: Version) -> None:
        self.dead = [one for one in self.dead if one.key != key or one.version > version]

    def ask(self) -> Sink:
        """The source is asked for every key in doubt."""
        self.asked = set(self.repairs)
        return self

    def one_by_one(self, events: Sequence[Change | Undecodable]) -> Sink:
        """Each event in a batch of its own."""
        for each in events:
            self.take(each)
        return self

    @property
    def wanted(self) -> frozenset[str]:
        """Keys whose re-read still answers the version that it was asked for."""
        stored = {key: state.version for key, state in self.records.items()}
        return frozenset(key for key, version in self.repairs.items() if stored.get(key) == version)

    @property
    def live(self) -> dict[str, object]:
        """Text by key of what is not a marker."""
        return {
            key: (state.row or {}).get("text") for key, state in self.records.items() if not state.deleted
        }


def key_is_older(stored: RecordState | None, written: RecordState) -> bool:
    """What the upsert's guard asks."""
    return stored is None or stored.version < written.version


def both_ways(*events: Change | Undecodable, sink: Sink | None = None) -> Sink:
    """The events in one batch, having checked that one by one they leave the same."""
    whole, single = replace_sink(sink), replace_sink(sink).one_by_one(events)
    whole.take(*events)
    assert whole.records == single.records
    assert whole.fence == single.fence
    assert whole.wanted == single.wanted
    assert set(whole.dead) == set(single.dead)
    return whole


def replace_sink(sink: Sink | None) -> Sink:
    if sink is None:
        return Sink()
    return Sink(sink.fence, dict(sink.records), dict(sink.repairs), set(sink.asked), list(sink.dead))


def outcomes(plan: IntakePlan) -> dict[str, int]:
    return {outcome.value: number for outcome, number in plan.outcomes.items()}


# --- which change wins -------------------------------------------------------------------------------------------


def test_h1_a_lower_lsn_that_was_committed_later_wins() -> None:
    sink = both_ways(
        event(U, "k", "one", offset=0, lsn=20, last=10, tx=1),
        event(D, "k", offset=1, lsn=40, last=10, tx=1),
        event(C, "k", "two", offset=2, lsn=30, last=50, tx=2),
    )
    assert sink.live == {"k": "two"}


def test_h2_the_first_change_after_a_snapshot_may_carry_its_very_sequence() -> None:
    sink = both_ways(
        event(R, "k", "old", offset=0, lsn=100, last=90),
        event(U, "k", "new", offset=1, lsn=100, last=90),
    )
    assert sink.live == {"k": "new"}


def test_h2_a_snapshot_row_never_clears_the_stored_pair() -> None:
    streamed = event(C, "k", "one", offset=0, lsn=100, last=90, tx=7)
    asked = Sink().one_by_one([streamed])
    asked.repairs["k"] = Version(1, 0)
    asked.ask()
    sink = both_ways(event(R, "k", "one", offset=1), sink=asked)
    state = sink.records["k"]
    assert (state.version, state.streamed) == (Version(1, 1), False)
    assert (state.lsn, state.sequence_last_commit, state.transaction_id) == (100, 90, 7)
    assert state.committed_at == streamed.origin.committed_at
    assert sink.take(replace(streamed, version=Version(1, 2))).outcomes == {Outcome.DUPLICATE: 1}


def test_h3_the_connector_sends_again() -> None:
    first = event(C, "k", "one", offset=0, lsn=20, last=10)
    second = event(U, "k", "two", offset=1, lsn=30, last=25)
    again = [replace(first, version=Version(1, 2)), replace(second, version=Version(1, 3))]
    sink = both_ways(first, second, *again)
    assert sink.live == {"k": "two"}
    assert sink.records["k"].version == Version(1, 1)
    assert outcomes(sink.plans[-1]) == {"superseded": 1, "applied": 1, "duplicate": 2}


def test_h3_a_replay_of_older_changes_of_a_deleted_key_does_not_revive_it() -> None:
    first, gone = (
        event(C, "k", "one", offset=0, lsn=20, last=10),
        event(D, "k", offset=1, lsn=30, last=25),
    )
    sink = both_ways(first, gone, replace(first, version=Version(1, 2)))
    assert sink.live == {}
    assert sink.records["k"].deleted


def test_a_marker_holds_nothing_of_the_row() -> None:
    sink = both_ways(
        event(C, "k", "one", offset=0, lsn=20, last=10), event(D, "k", offset=1, lsn=30, last=25)
    )
    state = sink.records["k"]
    assert (state.deleted, state.row, state.text_hash) == (True, None, b"")
    assert (state.version, state.lsn, state.sequence_last_commit) == (Version(1, 1), 30, 25)


def test_h4_a_new_event_seeded_with_an_old_commit_is_no_replay() -> None:
    sink = both_ways(
        event(C, "k", "one", offset=0, lsn=120, last=100),
        event(U, "k", "two", offset=1, lsn=130, last=60),
    )
    assert sink.live == {"k": "two"}


def test_h5_a_snapshot_row_never_overwrites_what_was_streamed() -> None:
    sink = both_ways(
        event(U, "k", "new", offset=0, lsn=100, last=90),
        event(R, "k", "old", offset=1, lsn=110, last=105),
    )
    assert sink.live == {"k": "new"}
    assert sink.records["k"].streamed


def test_h5_nor_a_marker() -> None:
    sink = both_ways(
        event(D, "k", offset=0, lsn=100, last=90), event(R, "k", "old", offset=1, lsn=110, last=105)
    )
    assert sink.live == {}


def test_h5_but_that_of_another_lineage() -> None:
    before = event(U, "k", "old", offset=7, lsn=900, last=890)
    sink = both_ways(before, event(R, "k", "new", offset=0, lsn=5, lineage=2))
    assert sink.live == {"k": "new"}
    assert sink.records["k"].lsn is None


def test_h5_a_re_read_that_a_change_in_the_same_batch_has_overtaken() -> None:
    asked = Sink().one_by_one([event(C, "k", "one", offset=0, lsn=20, last=10)])
    asked.repairs["k"] = Version(1, 0)
    asked.ask()
    sink = both_ways(
        event(U, "k", "two", offset=1, lsn=30, last=25), event(R, "k", "one", offset=2), sink=asked
    )
    assert sink.live == {"k": "two"}


def test_h6_older_rows_of_other_partitions_after_a_truncate() -> None:
    sink = both_ways(
        event(C, "before", "x", offset=0, partition=1, lsn=100),
        event(T, None, offset=0, lsn=150),
        event(C, "late", "x", offset=1, partition=2, lsn=120),
        event(C, "new", "y", offset=2, partition=3, lsn=170),
    )
    assert sink.live == {"new": "y"}
    assert sink.fence == Fence(1, 150)


def test_h6_newer_rows_of_other_partitions_before_a_truncate_stay() -> None:
    sink = both_ways(
        event(C, "early", "x", offset=0, partition=1, lsn=170), event(T, None, offset=0, lsn=150)
    )
    assert sink.live == {"early": "x"}


def test_h8_snapshot_rows_are_fenced_by_their_sequence() -> None:
    sink = both_ways(
        event(R, "before", "x", offset=0, partition=1, lsn=100),
        event(R, "nothing", "x", offset=1, partition=1),
        event(T, None, offset=0, lsn=150),
        event(R, "late", "x", offset=2, partition=1, lsn=120),
        event(R, "after", "y", offset=3, partition=1, lsn=180),
    )
    assert sink.live == {"after": "y"}


def test_h9_shift_in_one_statement_keeps_the_rows_and_asks_for_them() -> None:
    stored = [event(R, str(key), f"row {key}", offset=key, partition=key) for key in (1, 2, 3)]
    shift = [
        event(D, "1", offset=10, partition=1, lsn=101, last=90, tx=7, moved=True),
        event(C, "2", "row 1", offset=11, partition=2, lsn=102, last=90, tx=7),
        event(D, "2", offset=12, partition=2, lsn=103, last=90, tx=7, moved=True),
        event(C, "3", "row 2", offset=13, partition=3, lsn=104, last=90, tx=7),
        event(D, "3", offset=14, partition=3, lsn=105, last=90, tx=7, moved=True),
        event(C, "4", "row 3", offset=15, partition=0, lsn=106, last=90, tx=7),
    ]
    sink = both_ways(*shift, sink=Sink().one_by_one(stored))
    assert sink.live == {"2": "row 1", "3": "row 2", "4": "row 3"}
    assert sink.plans[-1].repairs_wanted == {"2", "3"}
    assert sink.repairs == {"2": Version(1, 11), "3": Version(1, 13)}
    assert outcomes(sink.plans[-1]) == {"deleted": 1, "applied": 3, "ignored": 2}


def test_h9_insert_and_move_in_one_transaction_asks_for_the_old_key() -> None:
    sink = both_ways(
        event(C, "k", "one", offset=0, lsn=101, tx=7),
        event(D, "k", offset=1, lsn=102, tx=7, moved=True),
        event(C, "m", "one", offset=0, partition=1, lsn=103, tx=7),
    )
    assert sink.repairs == {"k": Version(1, 0)}
    assert sink.live == {"k": "one", "m": "one"}


def test_h9_a_move_by_another_transaction_deletes() -> None:
    sink = both_ways(
        event(C, "k", "one", offset=0, lsn=90, tx=6), event(D, "k", offset=1, lsn=102, tx=7, moved=True)
    )
    assert sink.live == {}
    assert not sink.repairs


def test_h9_a_plain_delete_by_the_same_transaction_deletes() -> None:
    sink = both_ways(event(C, "k", "one", offset=0, lsn=90, tx=7), event(D, "k", offset=1, lsn=102, tx=7))
    assert sink.live == {}


def test_h9_a_change_after_the_shift_needs_no_re_read() -> None:
    sink = both_ways(
        event(C, "2", "row 1", offset=0, lsn=102, tx=7),
        event(D, "2", offset=1, lsn=103, tx=7, moved=True),
        event(U, "2", "later", offset=2, lsn=110, last=109, tx=8),
    )
    assert sink.plans[-1].repairs_wanted == frozenset()
    assert sink.live == {"2": "later"}


def test_h9_the_re_read_is_accepted_once_and_done() -> None:
    sink = Sink().one_by_one(
        [
            event(C, "2", "row 1", offset=0, lsn=102, tx=7),
            event(D, "2", offset=1, lsn=103, tx=7, moved=True),
        ]
    )
    assert not sink.take(event(R, "2", "row 1, of a load", offset=2)).writes
    plan = sink.ask().take(event(R, "2", "row 1, read again", offset=3))
    assert plan.repairs_done == {"2"}
    assert sink.live == {"2": "row 1, read again"}


def test_h9_a_replayed_shift_does_not_delete_what_the_re_read_brought() -> None:
    """H3 after H9: the ignored delete's lsn is above the stored one, so only the transaction gives it away."""
    halves = [
        event(C, "2", "row 1", offset=0, lsn=102, last=90, tx=7),
        event(D, "2", offset=1, lsn=103, last=90, tx=7, moved=True),
    ]
    sink = Sink().one_by_one(halves).ask().one_by_one([event(R, "2", "row 1", offset=2)])
    assert not sink.repairs
    again = [replace(each, version=Version(1, 3 + number)) for number, each in enumerate(halves)]
    sink = both_ways(*again, sink=sink)
    assert sink.live == {"2": "row 1"}
    assert "2" in sink.repairs


def test_a_doubtful_change_of_a_live_key_leaves_it_and_asks() -> None:
    sink = both_ways(
        event(C, "k", "one", offset=0, lsn=90), replace(event(U, "k", offset=1, lsn=100), doubtful=True)
    )
    assert sink.live == {"k": "one"}
    assert sink.repairs == {"k": Version(1, 0)}
    sink.ask().take(event(R, "k", "as it is now", offset=2))
    assert sink.live == {"k": "as it is now"}
    assert not sink.repairs


def test_a_doubtful_change_of_an_unknown_key_is_a_marker_until_it_is_read() -> None:
    sink = both_ways(replace(event(C, "k", offset=1, lsn=100), doubtful=True))
    assert sink.live == {}
    assert sink.repairs == {"k": Version(1, 1)}
    sink.ask().take(event(R, "k", "as it is now", offset=2))
    assert sink.live == {"k": "as it is now"}


def test_a_change_after_a_doubtful_one_needs_no_re_read() -> None:
    doubtful = replace(event(U, "k", offset=1, lsn=100), doubtful=True)
    sink = both_ways(event(C, "k", "one", offset=0, lsn=90), doubtful, event(D, "k", offset=2, lsn=110))
    assert sink.live == {}
    assert sink.plans[-1].repairs_wanted == frozenset()


def test_h10_h11_another_lineage_wins_whatever_its_offsets_and_lsns() -> None:
    sink = both_ways(
        event(U, "k", "new", offset=0, lsn=5, lineage=2, partition=5),
        event(U, "k", "old", offset=900, lsn=9000, lineage=1, partition=1),
    )
    assert sink.live == {"k": "new"}


def test_h10_lower_positions_of_a_restored_source_are_no_replays() -> None:
    """In the lineage that a rebuild begins the restored source sends what is below all that is stored."""
    sink = both_ways(
        event(U, "k", "old", offset=900, lsn=9000, last=8990),
        event(U, "k", "new", offset=0, lsn=5, last=4, lineage=2),
    )
    assert sink.live == {"k": "new"}


def test_h16_there_and_back_while_claimed_is_a_change() -> None:
    sink = Sink().one_by_one([event(C, "k", "A", offset=0, lsn=10)])
    plans = [
        sink.take(event(U, "k", "B", offset=1, lsn=20)),
        sink.take(event(U, "k", "A", offset=2, lsn=30)),
    ]
    assert [plan.writes[0].embed for plan in plans] == ["pending", "pending"]


def test_h18_collapsed_changes_are_pending_since_the_first() -> None:
    plan = Sink().take(
        event(U, "k", "one", offset=0, lsn=10, hours=0), event(U, "k", "two", offset=1, lsn=20, hours=1)
    )
    (write,) = plan.writes
    assert (write.committed_since, write.changes, write.lane) == (hour(0), 2, Lane.LIVE)


def test_h18_a_dead_letter_that_is_overtaken_counts_too() -> None:
    plan = Sink().take(bad("k", offset=0, hours=0), event(U, "k", "two", offset=1, lsn=20, hours=1))
    (write,) = plan.writes
    assert (write.committed_since, write.changes) == (hour(0), 2)


def test_h18_a_snapshot_row_has_no_delay() -> None:
    (write,) = Sink().take(event(R, "k", "one", offset=0)).writes
    assert (write.committed_since, write.changes, write.lane) == (None, 1, Lane.BACKFILL)


def test_h18_a_snapshot_row_never_counts_as_late() -> None:
    """H18, H37: whatever time it carries is not that of a commit."""
    row = event(R, "k", "one", offset=0)
    (write,) = Sink().take(replace(row, origin=replace(row.origin, committed_at=hour(-9)))).writes
    assert (write.committed_since, write.lane) == (None, Lane.BACKFILL)


def test_h18_a_snapshot_row_and_a_change_are_one_live_change() -> None:
    (write,) = (
        Sink().take(event(R, "k", "one", offset=0), event(U, "k", "two", offset=1, hours=2, lsn=9)).writes
    )
    assert (write.committed_since, write.changes, write.lane) == (hour(2), 1, Lane.LIVE)


# --- truncate ----------------------------------------------------------------------------------------------------


def test_the_offset_of_a_truncate_is_audited_as_any() -> None:
    """It has no key whose row could account for it (promise 4)."""
    plan = Sink().take(
        event(C, "k", "x", offset=0, lsn=100),
        event(T, None, offset=1, lsn=150),
        event(C, "k", "y", offset=2, lsn=160),
        event(T, None, offset=3, lsn=150),
    )
    assert [(each.first, each.last, each.outcome) for each in plan.ranges] == [
        (0, 0, Outcome.SUPERSEDED),
        (1, 1, Outcome.DELETED),
        (3, 3, Outcome.DUPLICATE),
    ]


def test_truncate_then_insert_in_one_transaction() -> None:
    sink = Sink().one_by_one([event(C, "k", "x", offset=0, lsn=90), event(C, "m", "x", offset=1, lsn=91)])
    sink = both_ways(
        event(T, None, offset=2, lsn=101, tx=7), event(C, "k", "x", offset=3, lsn=102, tx=7), sink=sink
    )
    assert sink.live == {"k": "x"}
    (write,) = sink.plans[-1].writes
    assert (write.embed, write.outcome) == ("pending", Outcome.APPLIED)


def test_a_row_of_after_a_truncate_that_comes_before_it_is_embedded_anew() -> None:
    """The truncate takes the vectors of what was stored with it: "the text has not changed" would leave none."""
    sink = Sink().one_by_one([event(C, "k", "x", offset=0, lsn=90)])
    sink = both_ways(
        event(C, "k", "x", offset=1, lsn=102, tx=7), event(T, None, offset=2, lsn=101, tx=7), sink=sink
    )
    assert sink.live == {"k": "x"}
    (write,) = sink.plans[-1].writes
    assert (write.embed, write.outcome) == ("pending", Outcome.APPLIED)


def test_insert_then_truncate_in_one_transaction() -> None:
    sink = both_ways(
        event(C, "k", "x", offset=0, lsn=101, tx=7),
        event(T, None, offset=1, lsn=102, tx=7),
        event(C, "m", "y", offset=2, lsn=103, tx=7),
    )
    assert sink.live == {"m": "y"}
    assert outcomes(sink.plans[-1]) == {"superseded": 1, "deleted": 1, "applied": 1}


def test_a_truncate_sent_again_is_a_duplicate() -> None:
    cut = event(T, None, offset=0, lsn=150)
    sink = both_ways(cut, event(C, "k", "x", offset=1, lsn=160), replace(cut, version=Version(1, 2)))
    assert sink.live == {"k": "x"}
    assert sink.plans[-1].outcomes[Outcome.DUPLICATE] == 1


def test_a_truncate_of_a_newer_lineage_removes_all_of_older_ones() -> None:
    sink = both_ways(
        event(C, "k", "x", offset=0, lsn=900), event(T, None, offset=0, partition=1, lsn=5, lineage=2)
    )
    assert sink.live == {}


def test_two_truncates_in_a_batch_leave_the_later_fence() -> None:
    plan = Sink().take(event(T, None, offset=0, lsn=150, hours=1), event(T, None, offset=1, lsn=170, hours=2))
    assert (plan.fence, plan.fence_committed_at) == (Fence(1, 170), hour(2))


def test_a_dead_letter_before_a_truncate_stays_open() -> None:
    """It has no lsn: it may be an insert of after the truncate, in another partition."""
    sink = Sink().one_by_one([event(C, "k", "x", offset=0, partition=1, lsn=90)])
    sink = both_ways(bad("k", offset=1, partition=1), event(T, None, offset=0, lsn=150), sink=sink)
    assert sink.live == {}
    assert [letter.key for letter in sink.dead] == ["k"]


def test_a_truncate_takes_the_lock_alone() -> None:
    """H7."""
    cut, row = event(T, None, offset=0, lsn=150), event(C, "k", "x", offset=1, lsn=160)
    assert has_truncate([row, cut])
    assert not has_truncate([row, bad("k", offset=2)])


# --- dead letters, duplicates, unavailable values ----------------------------------------------------------------


def test_tombstones_are_ignored() -> None:
    sink = both_ways(
        event(D, "k", offset=0, lsn=10), event(Operation.TOMBSTONE, "k", offset=1), bad(None, offset=2)
    )
    assert outcomes(sink.plans[-1]) == {"deleted": 1, "ignored": 1, "dead_letter": 1}
    assert sink.records["k"].deleted


def test_a_dead_letter_is_superseded_by_a_newer_change_in_the_batch() -> None:
    sink = both_ways(bad("k", offset=0), event(U, "k", "mended", offset=1, lsn=10))
    assert sink.dead == []
    assert outcomes(sink.plans[-1]) == {"superseded": 1, "applied": 1}


def test_a_dead_letter_after_the_newest_change_stays() -> None:
    sink = both_ways(event(U, "k", "good", offset=0, lsn=10), bad("k", offset=1))
    assert len(sink.dead) == 1
    assert sink.live == {"k": "good"}


def test_a_dead_letter_of_an_older_version_is_a_duplicate() -> None:
    sink = Sink().one_by_one([event(U, "k", "good", offset=5, lsn=10)])
    assert outcomes(sink.take(bad("k", offset=4))) == {"duplicate": 1}


def test_an_offset_delivered_twice_has_one_outcome() -> None:
    first, second = event(C, "k", "one", offset=0, lsn=10), event(U, "k", "two", offset=1, lsn=20)
    cut = event(T, None, offset=0, partition=1, lsn=5)
    plan = Sink().take(cut, first, second, first, second, cut)
    assert outcomes(plan) == {"deleted": 1, "superseded": 1, "applied": 1}
    assert plan.positions == {at(0): 2, at(1): 1}


def test_an_older_offset_after_a_newer_one_changes_nothing() -> None:
    sink = Sink().one_by_one([event(U, "k", "new", offset=5, lsn=10, last=9)])
    plan = sink.take(event(U, "k", "old", offset=4, lsn=99, last=98))
    assert outcomes(plan) == {"duplicate": 1}
    assert not plan.writes


def test_an_unavailable_value_is_that_of_a_row_earlier_in_the_batch() -> None:
    hole = event(U, "k", offset=1, lsn=20, last=15, unavailable=frozenset({"text"}))
    sink = both_ways(event(C, "k", "long", offset=0, lsn=10), hole)
    assert sink.live == {"k": "long"}
    assert keys_with_rows([hole, event(C, "m", "x", offset=2)]) == {"k"}
    (write,) = sink.one_by_one([replace(hole, version=Version(1, 2), origin=Origin(lsn=30))]).plans[-1].writes
    assert (write.embed, write.outcome) == ("keep", Outcome.UNCHANGED)


def test_a_row_that_cannot_be_completed_is_a_dead_letter() -> None:
    hole = event(U, "k", offset=1, lsn=20, unavailable=frozenset({"text"}))
    letter = bad("k", offset=1)
    plan = decide([hole], IntakeView(None, {}), lambda change, row: letter)
    assert (outcomes(plan), plan.dead_letters) == ({"dead_letter": 1}, [letter])


# --- what is to be embedded, and the accounts --------------------------------------------------------------------


def test_empty_text_removes_and_unchanged_text_keeps() -> None:
    sink = Sink().one_by_one([event(C, "k", "one", offset=0, lsn=10)])
    embeds = []
    for offset, text in enumerate(["one", "  ", "", "one"], start=1):
        embeds += [write.embed for write in sink.take(event(U, "k", text, offset=offset)).writes]
    assert embeds == ["keep", "remove", "remove", "pending"]


def test_delete_and_insert_of_the_same_text_in_one_batch_keeps_the_vectors() -> None:
    sink = Sink().one_by_one([event(C, "k", "one", offset=0, lsn=10)])
    plan = sink.take(event(D, "k", offset=1, lsn=20), event(C, "k", "one", offset=2, lsn=30))
    assert [write.embed for write in plan.writes] == ["keep"]
    assert outcomes(plan) == {"superseded": 1, "unchanged": 1}


def test_every_offset_has_one_outcome_and_positions_follow() -> None:
    sink = Sink().one_by_one([event(C, "same", "x", offset=0, lsn=1)])
    plan = sink.take(
        event(U, "same", "x", offset=1, lsn=10),
        event(U, "same", "x", offset=2, lsn=11, last=10),
        event(C, "new", "y", offset=7, partition=1, lsn=12),
        event(Operation.TOMBSTONE, "gone", offset=8, partition=1),
        event(Operation.MESSAGE, None, offset=9, partition=1),
        event(D, "gone", offset=12, partition=1, lsn=13),
        bad(None, offset=3),
    )
    assert outcomes(plan) == {
        "superseded": 1, "unchanged": 1, "applied": 1, "ignored": 2, "deleted": 1, "dead_letter": 1,
    }  # fmt: skip
    assert plan.positions == {at(0): 4, at(1): 13}
    ranges = [
        (each.at.partition, each.first, each.last, each.count, each.outcome.value) for each in plan.ranges
    ]
    assert ranges == [(0, 1, 1, 1, "superseded"), (0, 2, 2, 1, "unchanged"), (1, 8, 9, 2, "ignored")]
    assert [write.key for write in plan.writes] == ["gone", "new", "same"]


def test_keys_are_locked_in_order_and_once() -> None:
    keys = keys_of([event(C, key, "x", offset=0) for key in ("b", "a", "b")] + [event(T, None, offset=1)])
    assert keys == ["a", "b"]


# -- several templates


def test_h19_a_hash_by_another_template_says_nothing_of_this_ones_text() -> None:
    """Stored when only A was fed: B's text of the stored row is not known, so a change of it is none to skip."""
    row = {"title": "milk", "body": "tea"}
    stored = RecordState(Version(1, 1), False, text_hash("tea", "{{ title }}"), True)
    changed = Change(Operation.UPDATE, TopicPartition("t", 0), Version(1, 2), "[1]", Origin(), row, "milk")

    def render(template: str, change: Change) -> tuple[str, bytes]:
        text = Template(template).render(change.row or {})
        return text, text_hash(text, template)

    view = IntakeView(None, {"[1]": stored}, templates={2: "{{ body }}"})
    (write,) = decide([changed], view, lambda change, row: change, render).writes
    assert write.embed_in(2) == "pending"
    assert write.state.text_hash == text_hash("tea", "{{ body }}")


def test_a_template_that_cannot_render_a_row_is_its_own_generations_trouble() -> None:
    changed = Change(
        Operation.UPDATE, TopicPartition("t", 0), Version(1, 2), "[1]", Origin(), {"title": "tea"}, "tea"
    )
    view = IntakeView(None, {}, templates={1: "{{ title }}", 2: "{{ nothing }}"})
    found = {"{{ title }}": ("tea", text_hash("tea", "{{ title }}")), "{{ nothing }}": None}
    (write,) = decide([changed], view, lambda change, row: change, lambda template, _: found[template]).writes
    assert (write.embed_in(1), write.embed_in(2)) == ("pending", "pending")
    assert write.state.text_hash == text_hash("tea", "{{ title }}")
