"""However a log is cut into batches, and whatever of it comes twice, a key never goes back and ends the same."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.change import Change, Operation, Outcome, Undecodable, Version
from tests.unit.test_decide import C, D, R, Sink, T, U, at, audited, bad, event

PARTITIONS = 3
KEYS = tuple("abcd")
Event = Change | Undecodable


def partition_of(key: str) -> int:
    return KEYS.index(key) % PARTITIONS


@st.composite
def logs(draw: st.DrawFn, kinds: str = "cudrtx+b") -> list[Event]:
    """One connector's emission, in order: lsn grows, `sequence[0]` is the last commit's."""
    offsets, lsn, last, tx = [0] * PARTITIONS, 100, 50, 1
    events: list[Event] = []
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=24)):
        key = draw(st.sampled_from(KEYS))
        partition = 0 if kind == "t" else partition_of(key)
        text, hours = draw(st.sampled_from(["", "one", "two"])), draw(st.integers(0, 5))
        lsn += 1
        offset, offsets[partition] = offsets[partition], offsets[partition] + 1
        if kind == "b":
            events.append(bad(key, hours=hours, offset=offset, partition=partition))
            continue
        operation = {"c": C, "u": U, "d": D, "r": R, "t": T, "x": Operation.TOMBSTONE, "+": D}[kind]
        name = None if kind == "t" else key
        events.append(
            event(
                operation,
                name,
                text,
                lsn=lsn,
                last=last,
                tx=tx,
                hours=hours,
                moved=kind == "+",
                offset=offset,
                partition=partition,
            )
        )
        if draw(st.booleans()):
            last, tx = lsn, tx + 1
    return events


@st.composite
def cuts(draw: st.DrawFn, events: list[Event]) -> list[list[Event]]:
    """The events in batches, in order."""
    batches: list[list[Event]] = [[]]
    for each in events:
        if draw(st.booleans()):
            batches.append([])
        batches[-1].append(each)
    return [batch for batch in batches if batch]


def final(sink: Sink) -> tuple[object, ...]:
    """What must not depend on how the log was cut."""
    return sink.records, sink.fence, sink.wanted, set(sink.dead)


@given(st.data())
def test_batches_do_not_matter(data: st.DataObject) -> None:
    events = data.draw(logs())
    first, second = Sink(), Sink()
    for batch in data.draw(cuts(events)):
        first.take(*batch)
    second.one_by_one(events)
    assert final(first) == final(second)


@given(st.data())
def test_each_offset_has_exactly_one_outcome(data: st.DataObject) -> None:
    events = data.draw(logs())
    sink = Sink()
    for batch in data.draw(cuts(events)):
        plan = sink.take(*batch)
        places = {(each.at, each.version.offset) for each in batch}
        ranged = {
            (each.at, offset)
            for each in plan.ranges
            for offset in range(each.first, each.last + 1)
            if (each.at, offset) in places
        }
        assert sum(plan.outcomes.values()) == len(places) == len(batch)
        assert len(ranged) == sum(each.count for each in plan.ranges)
        assert audited(plan) == len(places)
        assert len(plan.dead_letters) == plan.outcomes.get(Outcome.DEAD_LETTER, 0)
        assert plan.positions == {where: 1 + max(o for a, o in places if a == where) for where, _ in places}
        assert len({write.key for write in plan.writes}) == len(plan.writes)


@given(st.data())
def test_taking_in_a_prefix_again_changes_nothing(data: st.DataObject) -> None:
    """The same offsets: a crash after the sink's commit, another owner, a restored position."""
    events = data.draw(logs(kinds="cudrtx+"))
    upto = data.draw(st.integers(0, len(events)))
    sink = Sink().one_by_one(events)
    before = final(sink)
    for batch in data.draw(cuts(events[:upto])):
        plan = sink.take(*batch)
        assert not plan.writes
        assert plan.fence is None
    assert final(sink) == before


@given(st.data())
@settings(max_examples=200)
def test_a_connector_replay_never_makes_a_key_go_back(data: st.DataObject) -> None:
    """The same events at higher offsets with identical positions, cut anywhere (H3)."""
    events = data.draw(logs(kinds="cudtx"))
    begin = data.draw(st.integers(0, len(events)))
    offsets = {at(partition): 0 for partition in range(PARTITIONS)}
    for each in events:
        offsets[each.at] = each.version.offset + 1
    again: list[Event] = []
    for each in events[begin:]:
        again.append(replace(each, version=Version(1, offsets[each.at])))
        offsets[each.at] += 1
    sink = Sink().one_by_one(events)
    before = final(sink)
    for batch in data.draw(cuts(again)):
        plan = sink.take(*batch)
        assert final(sink) == before
        assert plan.outcomes.keys() <= {Outcome.DUPLICATE, Outcome.IGNORED}


@given(st.data())
def test_a_replayed_key_change_asks_again_and_deletes_nothing(data: st.DataObject) -> None:
    events = data.draw(logs(kinds="cud+"))
    begin = data.draw(st.integers(0, len(events)))
    offsets = {at(partition): len(events) for partition in range(PARTITIONS)}
    sink = Sink().one_by_one(events)
    live = sink.live
    for number, each in enumerate(events[begin:]):
        sink.take(replace(each, version=Version(1, offsets[each.at] + number)))
    assert sink.live == live
