"""The report of a small deployment worked out by hand, its JSON keys, and what it looks like without a terminal."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from schemas.freshness import Bucket, Freshness, SlowChange, State, Verdict
from schemas.readings import (
    CollectionReading,
    MonitorReading,
    PendingReading,
    Readings,
    SketchReading,
    WorkerReading,
)
from schemas.spec import Slo
from streams.cli.report_text import render
from streams.cli.table import duration, one_line
from streams.freshness.report import as_json, build_report
from streams.freshness.report_html import as_html
from streams.freshness.sketches import freeze, new_sketch
from streams.freshness.slow import why

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


def slow(seconds: float, key: str = "[42]", collection: str = "content", **stages: float) -> SlowChange:
    return SlowChange(collection, key, seconds, AT - timedelta(seconds=seconds), AT, stages)


EVALUATED_SLO = {
    "threshold_seconds": 20.0,
    "objective": 0.9,
    "window_days": 7,
    "sli": 0.95,
    "budget_remaining_ratio": 0.5,
    "burn_rates": {"5m": 0.0, "30m": 0.1, "1h": 2.5, "6h": 0.1, "3d": 0.1},
    "good": 95,
    "bad": 5,
    "overdue": 0,
    "alerts": ["events:page_1h"],
    "time": {
        "objective": 0.99,
        "sli": 1.0,
        "budget_remaining_ratio": 1.0,
        "burn_rates": {"5m": 0.0, "30m": 0.0, "1h": 0.0, "6h": 0.0, "3d": 0.0},
        "bad_minutes": 0,
        "minutes": 60,
    },
}
FRESHNESS = Freshness(
    collection="content",
    verdict=Verdict(State.FRESH, "rounds complete"),
    watermark=AT - timedelta(seconds=6),
    staleness_seconds=6.0,
    threshold_seconds=20.0,
    evaluated_at=AT - timedelta(seconds=0.5),
    slo=EVALUATED_SLO,
)
EVALUATED = replace(
    READINGS,
    freshness=[FRESHNESS],
    slow=[
        slow(12.5, wait=12.0, embed=0.25),
        slow(3, '["<script>alert(1)</script>"]', capture=2.5, queue=0.5),
    ],
    buckets={
        "content": [
            Bucket(AT.replace(second=0) - timedelta(minutes=at), fresh=1, staleness_max_seconds=6.0)
            for at in range(50, 0, -1)
            if at not in (20, 21, 22)
        ]
    },
    monitors=[MonitorReading("box-8095", "box", 7, AT - timedelta(seconds=1))],
)
SCHEMA: dict[str, Any] = json.loads(
    (resources.files("streams.freshness") / "report.schema.json").read_text(encoding="utf-8")
)


def through_json(readings: Readings, slos: dict[str, Slo] | None = None) -> dict[str, Any]:
    told = as_json(build_report(readings, slos))
    found: dict[str, Any] = json.loads(json.dumps(told, allow_nan=False))
    return found


def closed(schema: Any) -> Any:
    """The schema with no key allowed that it does not name: each key of a report has to be documented."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(each) for name, each in schema.items()}
    return {**made, "additionalProperties": False} if isinstance(schema.get("properties"), dict) else made


@pytest.mark.parametrize(
    "readings",
    [
        READINGS,
        EVALUATED,
        Readings(AT, AT - timedelta(minutes=5)),
        replace(EVALUATED, freshness=[replace(FRESHNESS, slo={})]),
        replace(
            EVALUATED,
            freshness=[
                Freshness("content", Verdict(State.UNKNOWN, "nobody"), None, None, None, None),
                Freshness("customers", Verdict(State.INCOMPLETE, "loading"), None, None, 30.0, AT),
            ],
            slow=[slow(0.0)],
            sketches=[],
            counters={},
        ),
    ],
)
def test_every_report_is_what_the_schema_says(readings: Readings) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(closed(SCHEMA), format_checker=Draft202012Validator.FORMAT_CHECKER).validate(
        through_json(readings)
    )


def test_the_schema_describes_each_key_and_refuses_what_is_missing() -> None:
    def keys(schema: Any, path: str) -> list[str]:
        if not isinstance(schema, dict):
            return []
        found = [path] if not schema.get("description") and path else []
        for name, each in schema.get("properties", {}).items():
            found += keys(each, f"{path}.{name}")
        for inner in ("items", "additionalProperties"):
            if "properties" in (schema.get(inner) or {}):
                found += keys(schema[inner], f"{path}.{inner}")
        return found

    assert keys(SCHEMA, "") == []
    told = through_json(EVALUATED)
    del told["collections"]["content"]["slo"]["burn_rates"]["1h"]
    assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(told)]


def test_the_shape_of_an_slo_does_not_depend_on_a_monitor() -> None:
    never = through_json(READINGS, {"content": Slo(threshold_seconds=45, objective=0.95)})
    told = through_json(EVALUATED)

    def shape(value: Any) -> Any:
        return {key: shape(each) for key, each in value.items()} if isinstance(value, dict) else None

    slo = never["collections"]["content"]["slo"]
    assert shape(slo) == shape(told["collections"]["content"]["slo"])
    assert (slo["threshold_seconds"], slo["objective"], slo["window_days"]) == (45, 0.95, 30)
    assert (slo["sli"], slo["burn_rates"]["1h"], slo["time"]["sli"]) == (None, None, None)
    assert told["collections"]["content"]["slo"] == EVALUATED_SLO
    assert never["collections"]["content"]["verdict"] == "UNKNOWN"
    assert never["collections"]["content"]["watermark"] is None


def test_the_verdict_is_the_monitors_and_pending_has_an_eta() -> None:
    content = through_json(EVALUATED)["collections"]["content"]
    assert (content["verdict"], content["reason"]) == ("FRESH", "rounds complete")
    assert (content["watermark"], content["staleness_seconds"]) == ("2026-03-01T12:00:24+00:00", 6.0)
    assert content["eta_seconds"] == pytest.approx(3 * 3600 / 4)
    assert content["saved"] == {
        "unchanged": 3,
        "superseded": 2,
        "chunks_kept": 12,
        "chunks_copied": 3,
        "changes_ratio": 0.5,
        "chunks_ratio": 0.75,
    }


def test_the_ten_worst_of_all_collections() -> None:
    many = [slow(number, f"[{number}]", name) for number in range(8) for name in ("content", "customers")]
    told = through_json(replace(READINGS, slow=many))
    assert [each["seconds"] for each in told["worst"]] == [7, 7, 6, 6, 5, 5, 4, 4, 3, 3]
    assert [each["key"] for each in told["collections"]["content"]["worst"]][:2] == ["[7]", "[6]"]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (
            {"capture_and_queue": 0.5, "wait": 12.3, "embed": 0.1},
            "12.3 s of 13 s in `pending`: the encoders were busy",
        ),
        ({"capture_and_queue": 4.0, "wait": 1.0}, "4 s of 13 s until it was taken in"),
        ({"capture": 5.0, "queue": 1.0}, "on the way from its commit to Kafka"),
        ({"queue": 1.0}, "in Kafka until a worker took it in"),
        ({"embed": 1.0}, "with the model"),
        ({"write": 1.0}, "being written"),
        ({}, "how long each stage took is not known"),
        ({"wait": 0.0}, "how long each stage took is not known"),
    ],
)
def test_why_names_the_stage_that_took_most(stages: dict[str, float], said: str) -> None:
    assert said in why(13, stages)
    assert why(13, stages).endswith(".")


def test_html_needs_no_network_and_no_script_and_escapes_what_rows_say() -> None:
    hostile = replace(FRESHNESS, verdict=Verdict(State.STALE, "<script>alert(2)</script> & <b>so</b>"))
    page = as_html(build_report(replace(EVALUATED, freshness=[hostile])))
    assert "<script" not in page.lower()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;script&gt;alert(2)&lt;/script&gt; &amp; &lt;b&gt;" in page
    assert set(re.findall(r"https?://[^\"\s<]*", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|\son\w+=|<(img|link|iframe)\b", page)
    assert "@media print" in page
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 10
    assert "STALE" in page


def test_html_without_keys_has_none() -> None:
    report = build_report(replace(EVALUATED, slow=[slow(12.5, '["secret-key"]', wait=12.0)]))
    assert "secret-key" in as_html(report)
    page = as_html(report, keys=False)
    assert "secret-key" not in page
    assert "12 s of 12.5 s in `pending`" in page


@pytest.mark.parametrize("readings", [READINGS, Readings(AT, AT - timedelta(minutes=5))])
def test_html_of_what_was_never_evaluated(readings: Readings) -> None:
    page = as_html(build_report(readings))
    assert "No monitor runs" in page
    assert not re.search(r"\b(None|nan|inf)\b", page)


def test_text_says_the_verdict_in_full_and_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    render(build_report(EVALUATED))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    text = " ".join(printed.split())
    for row in (
        "content FRESH 6.0 s 20.0 s 95.00 % 90.00 % 50.0 % 2.5x 100.0 %",
        "customers UNKNOWN - 30.0 s - 99.00 % - - -",
        "content is FRESH: rounds complete",
        "customers is UNKNOWN: no monitor has evaluated it yet; run `upwell monitor`",
        "content: 5 of 10 changes (50.0 %) needed no embedding: 3 left the text as it was, 2 had a newer one",
        "content: 15 of 20 chunks (75.0 %) did not go through the model: 12 vectors were kept, 3 copied",
        "12.5 s content [42], committed 2026-03-01 12:00:17 UTC",
        "12 s of 12.5 s in `pending`: the encoders were busy",
        "Evaluated at 2026-03-01 12:00:29 UTC.",
        "Monitor box-8095 on box (pid 7) was seen 1.0 s ago.",
    ):
        assert row in text, row


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
    assert list(told) == [
        "evaluated_at",
        "window_seconds",
        "collections",
        "workers",
        "monitors",
        "worst",
    ]
    assert told["evaluated_at"] == "2026-03-01T12:00:30+00:00"
    assert told["workers"] == [{"slot": "w1", "host": "box", "pid": 42, "seen_seconds": 0.5, "problems": []}]
    content = told["collections"]["content"]
    assert list(content) == [
        "verdict",
        "reason",
        "evaluated_at",
        "watermark",
        "staleness_seconds",
        "pending",
        "oldest_pending_seconds",
        "eta_seconds",
        "dead_letters",
        "delay_seconds",
        "stages",
        "slo",
        "saved",
        "worst",
        "outcomes",
        "chunks",
        "load_state",
        "load",
        "backfilled",
        "clock_negative",
        "forecast",
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
        "customers loading: 75.0 % of 1000 rows 0 250 - 20 min 0 s 0",
        "content complete 2 1 3.0 s 45 min 0 s 1",
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
