"""Whenever a dead letter is replayed, the sink ends as if its record could have been taken in at once."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from schemas.change import Change
from schemas.sink import IntakeView
from streams.intake.core import decide, keys_of
from streams.replay import replay_plan
from tests.property.test_decide import final, logs
from tests.unit.test_decide import Sink, bad, complete


def replay(sink: Sink, event: Change) -> None:
    """As the transaction of a replay: one event, no position, audit or dead letter."""
    records = {key: sink.records[key] for key in keys_of([event]) if key in sink.records}
    view = IntakeView(sink.fence, records)
    made = replay_plan(decide([event], view, complete))  # type: ignore[arg-type]
    assert not made.plan.positions
    assert not made.plan.ranges
    assert made.closed_by is not None
    if made.closed_by == "superseded":
        assert not made.plan.writes
    sink._carry_out(made.plan)


@given(st.data())
def test_a_replay_ends_as_if_nothing_had_been_wrong(data: st.DataObject) -> None:
    events = [each for each in data.draw(logs(kinds="cudtx")) if isinstance(each, Change)]
    if not events:
        return
    spoilt = data.draw(st.integers(0, len(events) - 1))
    after = data.draw(st.integers(spoilt + 1, len(events)))
    event = events[spoilt]
    key = data.draw(st.sampled_from([event.key, None]))
    letter = bad(key, offset=event.version.offset, partition=event.at.partition)
    whole, mended = Sink().one_by_one(events), Sink()
    mended.one_by_one([*events[:spoilt], replace(letter, at=event.at), *events[spoilt + 1 : after]])
    replay(mended, event)
    mended.one_by_one(events[after:])
    assert final(mended)[:3] == final(whole)[:3]
    replay(mended, event)
    assert final(mended)[:3] == final(whole)[:3], "a second time it changes nothing"
