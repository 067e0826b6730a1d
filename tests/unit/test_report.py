"""The report of a small deployment worked out by hand, its JSON keys, and what it looks like without a terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.readings import CollectionReading, PendingReading, Readings, SketchReading, WorkerReading
from streams.cli.report import render
from streams.cli.table import duration, one_line
from streams.freshness.report import as_json, build_report
from streams.freshness.sketches import freeze, new_sketch

AT = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)


def sketch(stage: str, *delays: float, collection: str = "content") -> SketchReading:
    made = new_sketch()
    for delay in delays:
        made.add(delay)
    return SketchReading(collection, stage, freeze(made))


READINGS = Readings(
    at=AT,
    since=AT - timedelta(hours=1),
    collections=[
        CollectionReading("content", "complete", {"rows": 300}),
        CollectionReading("customers", "loading", {"rows": 1000, "ends": {}}),
    ],
    pending=[
        PendingReading("content", "live", 2, AT - timedelta(seconds=3)),
        PendingReading("content", "backfill", 1, None),
        PendingReading("customers", "backfill", 250, None),
    ],
    dead_letters={"content": 1},
    counters={
        ("content", "outcome_applied"): 4,
        ("content", "outcome_unchanged"): 3,
        ("content", "outcome_superseded"): 2,
        ("content", "outcome_dead_letter"): 1,
        ("content", "chunks_encoded"): 5,
        ("content", "chunks_kept"): 12,
        ("content", "chunks_copied"): 3,
        ("content", "clock_negative"): 1,
        ("customers", "backfilled"): 750,
        ("customers", "chunks_encoded"): 750,
    },
    sketches=[
        # Two minutes, the second written by two workers.
        sketch("total", 0.1, 0.3),
        sketch("total", 0.2),
        sketch("total", 1.0),
        sketch("capture", 0.04, 0.06),
        sketch("queue", 0.1),
        sketch("wait", 0.2),
        sketch("embed", 0.5),
        sketch("write", 0.05, 0.05),
    ],
    workers=[WorkerReading("w1", "box", 42, AT - timedelta(hours=2), AT - timedelta(seconds=0.5))],
)


def test_a_report_worked_out_by_hand() -> None:
    report = build_report(READINGS)
    content, customers = report.collections["content"], report.collections["customers"]
    assert report.window_seconds == 3600
    assert content.pending == {"live": 2, "backfill": 1}
    assert content.oldest_pending_seconds == 3.0
    assert (content.dead_letters, content.clock_negative) == (1, 1)
    assert (content.delay.count, content.delay.max) == (4, 1.0)
    assert content.delay.mean == pytest.approx(0.4)
    assert content.delay.p50 == pytest.approx(0.2, rel=0.01)
    assert content.delay.p95 == pytest.approx(0.3, rel=0.01)  # the lower of its two neighbours
    assert (content.taken_in, content.outcomes["applied"], content.outcomes["deleted"]) == (10, 4, 0)
    assert content.chunks_saved == pytest.approx(0.75)
    assert customers.pending == {"live": 0, "backfill": 250}
    assert customers.oldest_pending_seconds is None
    assert (customers.load.state, customers.load.rows, customers.load.searchable) == ("loading", 1000, 0.75)
    assert (customers.delay.count, customers.delay.p50, customers.backfilled) == (0, None, 750)
    assert customers.chunks_saved == 0


def test_shares_are_of_the_seconds_of_all_stages() -> None:
    stages = build_report(READINGS).collections["content"].stages
    assert list(stages) == ["capture", "queue", "wait", "embed", "write"]
    shares = [stage.share for stage in stages.values()]
    assert shares == pytest.approx([0.1, 0.1, 0.2, 0.5, 0.1])
    assert [stage.approximate for stage in stages.values()] == [True, True, False, False, False]
    assert {s.share for s in build_report(READINGS).collections["customers"].stages.values()} == {None}


def test_an_unfinished_scan_has_no_progress_and_clocks_never_make_an_age_negative() -> None:
    ahead = [PendingReading("customers", "live", 1, AT + timedelta(seconds=5))]
    loading = [CollectionReading("customers", "loading", {"signal": "load-1", "from": 7})]
    report = build_report(replace(READINGS, collections=loading, pending=ahead))
    customers = report.collections["customers"]
    assert (customers.load.rows, customers.load.searchable) == (None, None)
    assert customers.oldest_pending_seconds == 0.0


SUMMARY = ["p50", "p95", "p99", "max", "mean", "count"]


def test_json_keys_are_stable() -> None:
    """A machine reads these: adding is fine, renaming and removing is not."""
    told: dict[str, Any] = json.loads(json.dumps(as_json(build_report(READINGS)), allow_nan=False))
    assert list(told) == ["evaluated_at", "window_seconds", "collections", "workers"]
    assert told["evaluated_at"] == "2026-03-01T12:00:30+00:00"
    assert told["workers"] == [{"slot": "w1", "host": "box", "pid": 42, "seen_seconds": 0.5, "problems": []}]
    content = told["collections"]["content"]
    assert list(content) == [
        "pending",
        "oldest_pending_seconds",
        "dead_letters",
        "delay_seconds",
        "stages",
        "outcomes",
        "chunks",
        "load_state",
        "load",
        "backfilled",
        "clock_negative",
    ]
    assert content["pending"] == {"live": 2, "backfill": 1}
    assert list(content["delay_seconds"]) == SUMMARY
    assert list(content["stages"]) == ["capture", "queue", "wait", "embed", "write"]
    assert list(content["stages"]["embed"]) == [*SUMMARY, "share", "approximate"]
    assert list(content["outcomes"]) == [
        "applied",
        "unchanged",
        "superseded",
        "duplicate",
        "deleted",
        "ignored",
        "dead_letter",
    ]
    assert content["chunks"] == {"encoded": 5, "kept": 12, "copied": 3}
    assert content["load_state"] == "complete"
    assert told["collections"]["customers"]["load"] == {"rows": 1000, "searchable": 0.75}


def test_without_a_terminal_it_is_plain_text_of_a_hundred_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    render(build_report(READINGS))
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert max(map(len, lines)) <= 100
    assert lines[0] == "The last 1 h 0 min until 2026-03-01 12:00:30 UTC"
    for row in (
        "content total 4",
        "embed 1",
        "50.0 %",
        "capture ~ 2",
        "customers loading: 75.0 % of 1000 rows 0 250 - 0",
        "content complete 2 1 3.0 s 1",
        "content 4 3 2 0 1 5 12 3 75.0 %",
        "Worker w1 on box (pid 42) was seen 0.5 s ago.",
    ):
        assert row in " ".join(text.split()), row


def test_a_narrow_terminal_cuts_no_digit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    many = {**READINGS.counters, ("content", "chunks_encoded"): 1_234_567_890}
    render(build_report(replace(READINGS, counters=many)))
    text = capsys.readouterr().out
    assert "1234567890" in text
    assert "…" not in text


def test_an_empty_sink_can_be_rendered(capsys: pytest.CaptureFixture[str]) -> None:
    render(build_report(Readings(AT, AT - timedelta(minutes=5))))
    assert "No worker has ever run." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (60, "1 min 0 s"),
        (200.5, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(value: float | None, text: str) -> None:
    assert duration(value) == text


def test_excerpts_hold_no_control_characters() -> None:
    assert one_line("a\n  b\x1b[31mc", 20) == "a b\N{REPLACEMENT CHARACTER}[31mc"
    assert one_line("word " * 10, 12) == "word word w…"
