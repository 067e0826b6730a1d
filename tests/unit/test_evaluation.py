"""From what was seen to watermarks and verdicts; and what a probe makes of its neighbour."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from connectors.debezium.canary import CanaryEvent
from connectors.postgres.freshness import BlockedSeen, CanaryFound, CollectionSeen, SinkSeen, WorkerSeen
from schemas.change import TopicPartition
from schemas.errors import SourceUnavailable
from schemas.freshness import State
from streams.freshness.evaluation import Evaluator, load_progress
from streams.freshness.probes import CanaryProbe, Probe, Sights
from streams.freshness.rounds import Ends
from streams.freshness.summaries import Summary
from streams.freshness.verdict import Neighbour
from streams.settings import Settings, load
from tests.deployment import until

AT = datetime(2026, 1, 1, tzinfo=UTC)
TOPIC = "upwell_1.shop.content"
WELL = {name: Neighbour() for name in ("source", "kafka", "connect", "registry", "sink")}
SEEN = CollectionSeen("content", "complete", {}, 1, 1, None, 0, None, 0, None, 0, None, None)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    spec = tmp_path / "upwell.toml"
    spec.write_text('[collections.content]\ntable = "shop.content"\ntemplate = "{{ title }}"\n')
    return load(spec, environment={})


@pytest.fixture
def evaluator(settings: Settings) -> Evaluator:
    """One round is done but for the sink; the source's clock was read just now."""
    made = Evaluator(settings, Sights(source_clock=(AT, time.monotonic())))
    made.follow(1)
    rounds = made.sights.rounds
    rounds.begin(5, AT, time.monotonic())
    rounds.seen(5, 100)
    rounds.stored(101)
    ends = Ends(
        {TopicPartition(TOPIC, 0): 3, TopicPartition("upwell_1.upwell.canary", 0): 5},
        {TopicPartition(TOPIC, 0): 0},
    )
    made.sights.ends = rounds.unread()[0].ends = ends
    return made


def sink(*collections: CollectionSeen, position: int = 3, workers: Sequence[WorkerSeen] = ()) -> SinkSeen:
    found = collections or (SEEN,)
    return SinkSeen(AT, 1, {each.name: each for each in found}, {TOPIC: {0: position}}, workers)


WORKER = WorkerSeen("w1", "host", 7, 1.0, True)
FOUND = CanaryFound(5, 1.0)


def test_a_finished_round_is_a_watermark(evaluator: Evaluator) -> None:
    naming = evaluator.sights.naming
    assert naming is not None
    assert not evaluator.prove(naming, sink(position=2), FOUND)
    proven = evaluator.prove(naming, sink(), FOUND)
    assert [(each.collection, each.generation, each.round) for each in proven] == [("content", 1, 5)]
    assert proven[0].watermark == AT - timedelta(seconds=1)
    assert evaluator.measured == {"content"}
    assert not evaluator.sights.rounds.waiting


@pytest.mark.parametrize("state", ["incomplete", "loading"])
def test_h37_nothing_is_proven_while_a_table_is_loaded(evaluator: Evaluator, state: str) -> None:
    naming = evaluator.sights.naming
    assert naming is not None
    assert not evaluator.prove(naming, sink(replace(SEEN, load_state=state)), FOUND)
    assert not evaluator.measured


def test_another_lineage_begins_with_nothing(evaluator: Evaluator) -> None:
    evaluator.measured.add("content")
    sights = evaluator.sights
    sights.gap, sights.missing, sights.canary_read = "lost", "canary 3", (9, 9)
    naming = evaluator.follow(2)
    assert naming is not None
    assert naming.lineage == 2
    assert [sights.gap, sights.missing, sights.canary_read, sights.ends] == ["", "", None, None]
    assert not sights.rounds.waiting
    assert not evaluator.measured
    assert sights.topics == ("upwell_2.shop.content", "upwell_2.upwell.canary")
    assert evaluator.follow(2) is naming


def judged(evaluator: Evaluator, seen: SinkSeen, canary: CanaryFound = FOUND, **watermarks: datetime) -> Any:
    return evaluator.judge(seen, canary, WELL, watermarks, Summary())["content"]


def test_fresh_and_stale_by_the_sources_clock(evaluator: Evaluator) -> None:
    fresh = judged(evaluator, sink(workers=[WORKER]), content=AT - timedelta(seconds=20))
    assert fresh.verdict.state is State.FRESH
    evaluator.measured.add("content")
    seen = sink(replace(SEEN, blocked=[BlockedSeen("w1", "no column", AT)]), position=1, workers=[WORKER])
    stale = judged(evaluator, seen, content=AT - timedelta(seconds=31))
    assert stale.verdict.state is State.STALE
    assert "BLOCKED: no column; 2 changes wait in Kafka" in stale.verdict.reason
    dead = judged(
        evaluator, sink(workers=[replace(WORKER, holds_slot=False)]), content=AT - timedelta(hours=1)
    )
    assert "no worker runs" in dead.verdict.reason


def test_it_is_known_when_a_load_became_complete(evaluator: Evaluator) -> None:
    assert judged(evaluator, sink()).standing.loaded_seconds is None
    loading = judged(evaluator, sink(replace(SEEN, load_state="loading")))
    assert loading.standing.loaded_seconds == pytest.approx(0.0, abs=0.01)
    assert judged(evaluator, sink()).verdict.state is State.INCOMPLETE


def test_a_missing_canary_and_what_another_monitor_has_found_are_gaps(evaluator: Evaluator) -> None:
    evaluator.sights.missing = "canary 4 is missing"
    assert judged(evaluator, sink(), content=AT).verdict.reason.startswith("GAP, changes are lost: canary 4")
    evaluator.sights.missing = ""
    remembered = replace(sink(), gaps=["canary 3 is missing"])
    assert "canary 3" in judged(evaluator, remembered, content=AT).verdict.reason


def test_a_collection_that_the_sink_does_not_have_is_not_judged(evaluator: Evaluator) -> None:
    assert evaluator.judge(replace(sink(), collections={}), FOUND, WELL, {}, Summary()) == {}


def test_progress_of_a_load_in_words() -> None:
    asked = replace(SEEN, load_state="incomplete")
    assert load_progress(asked, 1, 0, None).startswith("first load: its table is not asked for yet")
    reading = replace(SEEN, load_state="loading")
    assert (
        load_progress(reading, 1, 40, None)
        == "first load: its table is being read, 40 rows wait to be searchable"
    )
    read = replace(reading, load_detail={"rows": 200})
    assert load_progress(read, 2, 50, 10.0) == "rebuild: 75% of 200 rows are searchable, about 10 s to go"
    assert load_progress(replace(reading, load_detail={"rows": 0}), 1, 0, None).startswith(
        "first load: 100% of 0"
    )


# -- probes


class Topic:
    """A canary topic that has these events."""

    def __init__(self, *events: CanaryEvent) -> None:
        self.events = list(events)

    def poll(self, seconds: float) -> Iterator[CanaryEvent]:
        events, self.events = self.events, []
        yield from events


@pytest.fixture
def canary(settings: Settings) -> tuple[CanaryProbe, Sights, Topic]:
    sights = Sights()
    Evaluator(settings, sights).follow(1)
    probe, topic = CanaryProbe(settings, sights), Topic()
    probe._topic, probe._naming = topic, sights.naming  # type: ignore[assignment]
    return probe, sights, topic


def test_a_number_that_is_missing_is_a_lost_change(canary: tuple[CanaryProbe, Sights, Topic]) -> None:
    """H27."""
    probe, sights, topic = canary
    topic.events = [
        CanaryEvent(0, 7, 10),
        CanaryEvent(1, 8, 20),
        CanaryEvent(2, 8, 20),
        CanaryEvent(3, 7, 10),
    ]
    probe.look()
    assert (sights.missing, sights.canary_read) == ("", (4, 8)), "the connector may send again"
    topic.events = [CanaryEvent(4, 9, 30), CanaryEvent(5, 11, 50)]
    probe.look()
    assert sights.missing == "canary 10 is missing in upwell_1.upwell.canary before offset 5"


def test_what_another_monitor_has_read_counts(canary: tuple[CanaryProbe, Sights, Topic]) -> None:
    probe, sights, topic = canary
    sights.canary_read = (4, 8)
    topic.events = [CanaryEvent(4, 10, 30)]
    probe.look()
    assert "canary 9 is missing" in sights.missing


def test_what_the_topic_does_not_hold_any_more_is_not_missing(
    canary: tuple[CanaryProbe, Sights, Topic],
) -> None:
    """A monitor that was away for longer than the retention: whether there was one is not known."""
    probe, sights, topic = canary
    sights.canary_read = (4, 8)
    topic.events = [CanaryEvent(9, 14, 30), CanaryEvent(10, 15, 40)]
    probe.look()
    assert (sights.missing, sights.canary_read) == ("", (11, 15))


def test_an_event_moves_its_round(canary: tuple[CanaryProbe, Sights, Topic]) -> None:
    probe, sights, topic = canary
    sights.rounds.begin(7, AT, 0.0)
    topic.events = [CanaryEvent(0, 7, None)]
    probe.look()
    assert sights.rounds.waiting[0].event_lsn is None, "a snapshot row has no place in the log"
    topic.events = [CanaryEvent(1, 7, 10)]
    probe.look()
    assert sights.rounds.waiting[0].event_lsn == 10


def test_a_probe_outlives_whatever_happens_and_begins_anew() -> None:
    answers: list[Any] = [None, SourceUnavailable("refused"), ZeroDivisionError("1/0"), None]
    asked, resets = threading.Event(), []

    def look() -> None:
        if not answers:
            asked.set()
            return
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    probe = Probe("source", look, 0.01, lambda: resets.append(1))
    probe.start()
    assert asked.wait(5)
    probe.stop()
    probe.join(5)
    assert len(resets) == 3, "after each error, and at the end"
    assert probe.neighbour(time.monotonic()).error == ""


def test_silence_counts_from_when_an_answer_was_due() -> None:
    probe = Probe("source", lambda: None, 1.0)
    now = time.monotonic()
    assert probe.neighbour(now + 0.5).silent_seconds == 0.0
    assert probe.neighbour(now + 12.0).silent_seconds == pytest.approx(11.0, abs=0.5)


def test_an_error_is_told_once_it_lasts() -> None:
    def look() -> None:
        raise SourceUnavailable("source database: refused")

    probe = Probe("source", look, 0.01)
    probe.start()
    until(lambda: probe.neighbour(time.monotonic()).error, 5, "the error")
    probe.stop()
    later = probe.neighbour(time.monotonic() + 11.0)
    assert not later.reached
    assert later.error == "source database: refused"
