"""Each row of the design's table, and that the sentence names the broken part and what to do (DESIGN 7)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from schemas.freshness import State
from streams.freshness.supervision import Restarts
from streams.freshness.verdict import Canary, Connector, Neighbour, Pipeline, Standing, judge

NAMES = ("source", "kafka", "connect", "registry", "sink")
WELL = Pipeline({name: Neighbour() for name in NAMES}, Connector("RUNNING", 500.0), Canary(), workers=2)
FRESH = Standing("content", 30.0, staleness_seconds=8.0)
LATE = replace(FRESH, staleness_seconds=45.0)
AWAY = Neighbour(12.0, "connection refused")


def away(name: str) -> Pipeline:
    return replace(WELL, neighbours={**WELL.neighbours, name: AWAY})


def test_an_idle_source_with_a_healthy_pipeline() -> None:
    verdict = judge(FRESH, WELL)
    assert (verdict.state, verdict.reason) == (State.FRESH, "every change up to 8 s ago is searchable")


def test_the_threshold_itself_is_still_fresh() -> None:
    assert judge(replace(FRESH, staleness_seconds=30.0), WELL).state is State.FRESH
    assert judge(replace(FRESH, staleness_seconds=30.01), WELL).state is State.STALE


@pytest.mark.parametrize("name", ["source", "sink"])
def test_source_or_sink_that_is_not_reached(name: str) -> None:
    verdict = judge(FRESH, away(name))
    assert verdict.state is State.UNKNOWN
    assert f"cannot reach the {name} for 12 s: connection refused" in verdict.reason
    assert f"UPWELL_{name.upper()}_DSN" in verdict.reason
    hung = replace(WELL, neighbours={**WELL.neighbours, name: Neighbour(12.0)})
    assert "does not answer" in judge(FRESH, hung).reason
    hiccup = replace(WELL, neighbours={**WELL.neighbours, name: Neighbour(3.0, "refused")})
    assert judge(FRESH, hiccup).state is State.FRESH


@pytest.mark.parametrize("name", ["kafka", "connect", "registry"])
def test_others_that_are_not_reached_make_nothing_stale_by_themselves(name: str) -> None:
    assert judge(FRESH, away(name)).state is State.FRESH


def test_a_violation_is_unknown_for_a_while() -> None:
    assert judge(replace(FRESH, violated_seconds=10.0), WELL).state is State.UNKNOWN
    assert judge(replace(FRESH, violated_seconds=301.0), WELL).state is State.FRESH


@pytest.mark.parametrize("load_state", ["complete", "incomplete", "loading"])
def test_a_gap_whatever_the_lag_says(load_state: str) -> None:
    """H23, H26, H27, H28."""
    for standing, pipeline in (
        (FRESH, replace(WELL, gap="slot s is gone")),
        (replace(FRESH, lost="t/0 begins at 6"), WELL),
    ):
        verdict = judge(replace(standing, load_state=load_state), pipeline)
        assert verdict.state is State.STALE
        assert verdict.reason.startswith("GAP, changes are lost: ")
        assert "upwell connector rebuild" in verdict.reason


def test_a_first_load_is_incomplete_whatever_the_lag_says() -> None:
    """H37."""
    loading = replace(LATE, load_state="loading", progress="first load: 40% of 1000 rows are searchable")
    verdict = judge(loading, WELL)
    assert (verdict.state, verdict.reason) == (State.INCOMPLETE, loading.progress)
    assert judge(loading, away("sink")).state is State.UNKNOWN
    idle = judge(loading, replace(WELL, workers=0))
    assert idle.state is State.INCOMPLETE
    assert idle.reason == f"{loading.progress}; no worker runs; run `upwell worker`; see RUNBOOK: workers"
    assert "task 0 FAILED" in judge(loading, replace(WELL, connector=Connector("FAILED", 9.0))).reason


def test_a_monitor_that_has_just_started_does_not_know_yet() -> None:
    starting = replace(WELL, up_seconds=4.0)
    for staleness in (None, 5000.0):
        new = replace(FRESH, staleness_seconds=staleness, measured=False)
        assert judge(new, starting).state is State.UNKNOWN
        assert judge(new, replace(WELL, up_seconds=46.0)).state is State.STALE
    assert judge(replace(LATE, measured=True), starting).state is State.STALE


def test_a_table_that_has_just_been_loaded_is_not_held_against_the_slo() -> None:
    """The first round since is under way; UNKNOWN would be a bad minute after every load."""
    loaded = replace(FRESH, staleness_seconds=None, measured=False, loaded_seconds=3.0)
    assert judge(loaded, WELL).state is State.INCOMPLETE
    assert judge(replace(loaded, loaded_seconds=46.0), WELL).state is State.STALE
    assert judge(replace(LATE, loaded_seconds=3.0), WELL).state is State.STALE


def stale(standing: Standing = LATE, **pipeline: Any) -> str:
    verdict = judge(standing, replace(WELL, **pipeline))
    assert verdict.state is State.STALE
    assert verdict.reason.startswith("45 s behind the source: ")
    return verdict.reason.removeprefix("45 s behind the source: ")


def test_what_is_nearest_to_the_source_is_named() -> None:
    """Each of these alone, and before all that come after it."""
    reasons = [
        (
            "neighbours",
            away("connect").neighbours,
            "Kafka Connect does not answer for 12 s: connection refused",
        ),
        (
            "connector",
            Connector("FAILED", 92.0, "password authentication failed"),
            "Connect task 0 FAILED 92 s ago: password authentication failed; see RUNBOOK: connector",
        ),
        (
            "connector",
            Connector("PAUSED", 92.0),
            "the connector is PAUSED for 92 s; run `upwell connector apply`",
        ),
        ("neighbours", away("kafka").neighbours, "Kafka does not answer for 12 s: connection refused"),
        ("canary", Canary(missing_seconds=40.0), "replication stands still though the connector runs"),
        ("canary", Canary(unsettled_seconds=40.0), "the connector has not stored its position for 40 s"),
        ("workers", 0, "no worker runs; 7 changes wait in Kafka; run `upwell worker`"),
        ("problems", ["its model is gone"], "7 changes wait in Kafka and 2 workers run"),
    ]
    behind = replace(LATE, behind=7)
    for at, (name, value, said) in enumerate(reasons):
        changed: dict[str, Any] = {name: value}
        assert stale(behind, **changed).startswith(said)
        for later_name, later_value, _ in reasons[at + 1 :]:
            if later_name != name:
                assert stale(behind, **changed, **{later_name: later_value}).startswith(said)


def test_what_is_wrong_in_a_collection_is_named() -> None:
    blocked = replace(LATE, blocked="the template's column title is gone", behind=3)
    assert stale(blocked).startswith("BLOCKED: the template's column title is gone; 3 changes wait in Kafka")
    assert stale(problems=["its model is gone"]).startswith("a worker cannot embed: its model is gone")
    letters = replace(LATE, dead_letters=2, oldest_dead_letter_seconds=45.0)
    assert stale(letters).startswith(
        "2 dead letters, the oldest of a change 45 s ago; run `upwell dead-letters list"
    )
    undated = replace(LATE, dead_letters=1)
    assert stale(undated).startswith("1 dead letters; run")
    pending = replace(LATE, pending=9, oldest_pending_seconds=44.0)
    assert stale(pending).startswith("9 texts wait to be embedded, the oldest for 44 s, and 2 workers run")
    assert stale(canary=Canary(error="cosine of 0.1")).startswith(
        "the canary is not found as it should be: cosine"
    )
    assert stale(canary=Canary(unsearchable_seconds=40.0)).startswith(
        "embedding stands still: a canary that was"
    )
    away_registry = replace(WELL, neighbours=away("registry").neighbours)
    assert "registry does not answer" in judge(replace(LATE, behind=3), away_registry).reason
    assert stale() == "no round has completed; see RUNBOOK: rounds"


def test_what_is_not_old_enough_is_no_reason() -> None:
    young = replace(
        LATE, dead_letters=1, oldest_dead_letter_seconds=5.0, pending=3, oldest_pending_seconds=2.0
    )
    patience = Canary(missing_seconds=14.0, unsettled_seconds=14.0, unsearchable_seconds=14.0)
    assert stale(young, canary=patience) == "no round has completed; see RUNBOOK: rounds"


def test_long_times_are_read_at_a_glance() -> None:
    verdict = judge(replace(LATE, staleness_seconds=86_412.0), WELL)
    assert verdict.reason.startswith("24 h behind the source")
    assert judge(replace(LATE, staleness_seconds=900.0), WELL).reason.startswith("15 min behind")


def test_every_sentence_that_is_not_fresh_says_what_to_do() -> None:
    for pipeline in (away("source"), away("sink"), replace(WELL, gap="g"), replace(WELL, workers=0)):
        assert re.search(r"see RUNBOOK: \w+", judge(LATE, pipeline).reason)


# -- restarts of the connector


def test_a_failed_connector_is_restarted_with_backoff() -> None:
    restarts = Restarts(5.0)
    assert restarts.see("RUNNING", 0.0) == 0.0
    assert not restarts.due(100.0)
    restarts.see("FAILED", 100.0)
    due = [
        second for second in range(100, 200) if restarts.see("FAILED", second) >= 0 and restarts.due(second)
    ]
    assert due == [105, 115, 135, 175]
    assert restarts.count == 4


def test_a_connector_that_ran_for_a_while_is_restarted_soon_again() -> None:
    restarts = Restarts(5.0)
    for second in range(100):
        restarts.see("FAILED", second)
        restarts.due(second)
    for second in range(100, 170):
        assert restarts.see("RUNNING", second) == second - 100
    restarts.see("FAILED", 170)
    assert not restarts.due(174)
    assert restarts.due(175)


def test_nobody_restarts_what_the_settings_leave_alone() -> None:
    restarts = Restarts(0.0)
    restarts.see("FAILED", 0.0)
    assert not restarts.due(1000.0)
