"""What alerts, dashboard and README say of metrics is what `streams/metrics.py` has; the monitor's series are valid."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from schemas.change import Outcome
from schemas.freshness import EVALUATION_SECONDS, State
from schemas.sink import Lane, WriteOutcome
from streams import metrics
from streams.freshness.exposition import exposition
from streams.freshness.live import live
from streams.freshness.measures import STAGES
from streams.freshness.monitor import Monitor
from streams.freshness.report import CHUNK_RESULTS
from streams.freshness.slo import BURN_WINDOWS
from streams.settings import Settings
from tests.unit.test_readme import README, anchors, readme

ROOT: Final = Path(__file__).parents[2]
PROMETHEUS: Final = ROOT / "infra" / "prometheus"
RULES: Final = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
DASHBOARD: Final = json.loads((ROOT / "infra" / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
#: What Prometheus adds to every series.
SCRAPED: Final = frozenset({"instance", "job"})
WINDOWS: Final = frozenset(BURN_WINDOWS)
#: Labels with few values, so that a matcher which can never match is found.
VALUES: Final = {
    "state": frozenset(State),
    "lane": frozenset(Lane),
    "sli": frozenset({"events", "time"}),
    "window": WINDOWS,
    "neighbour": frozenset({"source", "kafka", "connect", "registry", "sink"}),
    "outcome": frozenset(Outcome),
    "result": frozenset({*CHUNK_RESULTS, *WriteOutcome}),
}
BEGIN: Final = "<!-- metrics: kept equal to streams/metrics.py by tests/unit/test_metrics.py -->\n"
END: Final = "<!-- end of metrics -->"


# The names


@pytest.mark.parametrize("spec", metrics.ALL, ids=lambda spec: spec.name)
def test_a_metric_says_what_it_counts(spec: metrics.Spec) -> None:
    assert re.fullmatch(r"upwell_[a-z_]+[a-z]", spec.name)
    assert spec.help.endswith(".")
    assert "|" not in spec.help
    base = spec.name.removesuffix("_total")
    assert spec.name.endswith("_total") == (spec.kind == "counter")
    for unit, ending in (("seconds", "_seconds"), ("bytes", "_bytes"), ("ratio", "_ratio")):
        assert base.endswith(ending) == (spec.unit == unit), spec.name
    if spec.unit not in {"ratio", "times", "1"}:
        words = (
            ("seconds", "since the epoch")
            if spec.unit == "seconds"
            else ("1 ",)
            if spec.unit == "0 or 1"
            else (spec.unit,)
        )
        assert any(word in spec.help.lower() for word in words), "its help names the unit"
    assert set(spec.labels) <= {
        *("collection", "state", "lane", "sli", "window", "stage", "quantile", "neighbour", "slot"),
        *("outcome", "result", "version"),
    }


def test_names_are_unique() -> None:
    assert len({spec.name for spec in metrics.ALL}) == len(metrics.ALL) > 40
    assert metrics.BY_NAME.keys() >= {"upwell_propagation_delay_seconds_bucket", "upwell_outcomes_total"}


def test_only_one_file_names_metrics() -> None:
    for path in (ROOT / "streams").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found = {name for name in metrics.BY_NAME if f'"{name}"' in text} - {
            "upwell_pending"
        }  # also a channel
        assert not found or path.name == "metrics.py", path


def test_buckets_go_from_ten_milliseconds_to_an_hour() -> None:
    assert metrics.DELAY_BUCKETS[0] == 0.01
    assert metrics.DELAY_BUCKETS[-1] == 3600
    assert list(metrics.DELAY_BUCKETS) == sorted(metrics.DELAY_BUCKETS)
    assert list(metrics.ENCODE_BUCKETS) == sorted(metrics.ENCODE_BUCKETS)


# Alerts and dashboard


def labels_of(selector: Any) -> frozenset[str]:
    """The labels that a selector's series have."""
    spec = metrics.known(selector.name)
    assert spec is not None, f"no metric {selector.name}"
    bucket = {"le"} if selector.name.endswith("_bucket") else set()
    return frozenset(spec.labels) | bucket | SCRAPED


def check(expression: Any) -> frozenset[str]:
    """Raise unless every metric and label of an expression exists. Returns the labels that its result may have."""
    kind = type(expression).__name__
    if kind == "VectorSelector":
        return check_selector(expression)
    if kind == "AggregateExpr":
        kept = frozenset(expression.modifier.labels if expression.modifier is not None else ())
        assert kept <= check(expression.expr), kept
        return kept
    inner = INNER[kind](expression)
    found = frozenset[str]().union(*(check(each) for each in inner))
    matching = expression.modifier.matching if kind == "BinaryExpr" and expression.modifier else None
    if matching is not None:
        assert set(matching.labels) <= found, matching.labels
    is_quantile = kind == "Call" and expression.func.name == "histogram_quantile"
    return found - {"le"} if is_quantile else found


#: What else our queries are made of, and the parts of it.
INNER: Final[dict[str, Callable[[Any], Sequence[Any]]]] = {
    "MatrixSelector": lambda each: [each.vector_selector],
    "BinaryExpr": lambda each: [each.lhs, each.rhs],
    "Call": lambda each: each.args,
    "ParenExpr": lambda each: [each.expr],
    "UnaryExpr": lambda each: [each.expr],
    "NumberLiteral": lambda each: [],
}


def check_selector(selector: Any) -> frozenset[str]:
    found = labels_of(selector)
    for matcher in selector.matchers.matchers:
        assert matcher.name in found, f"{selector.name} has no label {matcher.name}"
        allowed = frozenset(STAGES) if matcher.name == "stage" else VALUES.get(matcher.name)
        for value in matcher.value.split("|") if allowed and "$" not in matcher.value else ():
            assert allowed is not None
            assert value in allowed, f"{selector.name}: {matcher.name} is never {value}"
    return found


def parsed(text: str) -> Any:
    """With Grafana's variables in the places of what they stand for."""
    return promql.parse(text.replace("$__rate_interval", "5m"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_uses_what_exists_and_says_what_to_do(rule: dict[str, Any]) -> None:
    labels = check(parsed(rule["expr"]))
    assert set(rule["labels"]) == {"severity"}
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    shown = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    assert shown <= labels
    page, anchor = rule["annotations"]["runbook"].split("#")
    assert page == "infra/RUNBOOK.md"
    assert anchor in anchors((ROOT / page).read_text(encoding="utf-8"))
    part = section(anchor)
    assert f"`{rule['alert']}`" in part, f"its part of the runbook, {anchor}, does not speak of it"


def section(anchor: str) -> str:
    """The text below a heading of the runbook."""
    pieces = re.split(r"^#+ (.+)$", (ROOT / "infra" / "RUNBOOK.md").read_text("utf-8"), flags=re.MULTILINE)
    return next(
        text
        for heading, text in zip(pieces[1::2], pieces[2::2], strict=True)
        if anchors(f"# {heading}") == {anchor}
    )


def test_every_alert_of_the_design_is_there() -> None:
    names = {rule["alert"] for rule in RULES}
    assert len(names) == len(RULES)
    assert names >= {
        *("UpwellMonitorAbsent", "UpwellUnknown", "UpwellStale", "UpwellGap", "UpwellWatermarkViolated"),
        *("UpwellSlotRunsOut", "UpwellDeadLetters", "UpwellConnectorDown", "UpwellCanaryMissing"),
        *("UpwellNoWorker", "UpwellWorkerMissing", "UpwellBlocked", "UpwellClockSkew"),
    }


@pytest.mark.parametrize(
    ("alert", "factor", "long", "short", "severity"),
    [
        ("UpwellBudgetBurnsVeryFast", "14.4", "1h", "5m", "page"),
        ("UpwellBudgetBurnsFast", "6", "6h", "30m", "page"),
        ("UpwellBudgetBurns", "1", "3d", "6h", "ticket"),
    ],
)
def test_burn_rates_are_those_of_the_design(
    alert: str, factor: str, long: str, short: str, severity: str
) -> None:
    (rule,) = [rule for rule in RULES if rule["alert"] == alert]
    halves = [f'upwell_burn_rate{{window="{window}"}} > {factor}' for window in (long, short)]
    assert rule["expr"] == " and ignoring(window) ".join(halves)
    assert rule["labels"]["severity"] == severity
    assert "for" not in rule, "the windows are the wait"


def panels() -> Iterator[dict[str, Any]]:
    return (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: f"{panel['id']} {panel['title']}")
def test_a_panel_uses_what_exists(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"
        labels = check(parsed(target["expr"]))
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, target["legendFormat"]


def test_the_dashboard_can_be_imported() -> None:
    assert DASHBOARD["id"] is None
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    metric, label = re.findall(r"\w+", variables["collection"]["query"]["query"])[1:]
    assert label in metrics.BY_NAME[metric].labels
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in DASHBOARD["panels"]]
    for x, y, w, h in places:
        assert x + w <= 24
        covered = [
            at for at in places if at[0] < x + w and x < at[0] + at[2] and at[1] < y + h and y < at[1] + at[3]
        ]
        assert covered == [(x, y, w, h)], "panels lie over each other"


def test_the_dashboard_shows_what_an_operator_asks() -> None:
    text = json.dumps([target["expr"] for panel in panels() for target in panel["targets"]])
    shown = {name for name in metrics.BY_NAME if re.search(rf"\b{name}\b", text)}
    hidden = {spec.name for spec in metrics.ALL if not spec.exposed & shown}
    assert hidden == {
        *("upwell_build_info", "upwell_evaluation_timestamp_seconds", "upwell_watermark_timestamp_seconds"),
        *("upwell_watermark_violations_total", "upwell_neighbour_age_seconds", "upwell_canary_cosine_ratio"),
        *("upwell_connector_state_seconds", "upwell_round_period_seconds", "upwell_worker_seen_seconds"),
        *("upwell_worker_problems", "upwell_worker_blocked", "upwell_worker_start_timestamp_seconds"),
    }


@pytest.mark.parametrize(
    "expression",
    [
        "upwell_stalenes_seconds > 1",
        'upwell_verdict{status="STALE"}',
        'upwell_verdict{state="LATE"}',
        "sum by (lane) (upwell_dead_letters)",
        "upwell_gap and on(collection) upwell_connector_up",
        "rate(upwell_propagation_delay_seconds[5m])",
    ],
)
def test_what_does_not_exist_is_found(expression: str) -> None:
    with pytest.raises(AssertionError):
        check(parsed(expression))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on PATH")
@pytest.mark.parametrize(
    "words", ["check rules alerts.yaml", "check config prometheus.yaml", "test rules alerts_test.yaml"]
)
def test_promtool_agrees(words: str) -> None:
    done = subprocess.run(
        ["promtool", *words.split()], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rule_tests_speak_of_every_alert_and_metric_that_exists() -> None:
    cases = yaml.safe_load((PROMETHEUS / "alerts_test.yaml").read_text(encoding="utf-8"))["tests"]
    for series in (each["series"] for case in cases for each in case.get("input_series", ())):
        check(parsed(series))
    fired = set(re.findall(r'alertname="(Upwell\w+)"', (PROMETHEUS / "alerts_test.yaml").read_text("utf-8")))
    assert fired == {rule["alert"] for rule in RULES} - {"UpwellIncompleteForLong"}, "that one takes a day"


# The monitor's series

SLO: Final = {
    "sli": 0.999,
    "objective": 0.99,
    "budget_remaining_ratio": 0.9,
    "burn_rates": {window: 0.1 for window in sorted(WINDOWS)},
    "time": {
        "sli": 0.9,
        "objective": 0.995,
        "budget_remaining_ratio": -1.5,
        "burn_rates": {"1h": 20.0, "5m": None},
    },
}
HEALTHY: Final[dict[str, Any]] = {
    "evaluated_at": "2026-01-02T03:04:05+00:00",
    "age_seconds": 0.4,
    "name": "shop",
    "lineage": 1,
    "round_seconds": 5.0,
    "collections": {
        "content": {
            "verdict": "FRESH",
            "reason": "every change up to 3 s ago is searchable",
            "watermark": "2026-01-02T03:04:02+00:00",
            "staleness_seconds": 3.0,
            "threshold_seconds": 30.0,
            "pending": {"live": 2, "backfill": 0},
            "oldest_pending_seconds": None,
            "dead_letters": 1,
            "load": {"state": "complete", "rows": 100, "searchable": 1.0},
            "eta_seconds": None,
            "behind": 7,
            "violations": 0,
            "slo": SLO,
        }
    },
    "neighbours": {
        name: {"ok": True, "error": "", "age_seconds": 0.0}
        for name in ("source", "kafka", "connect", "registry", "sink")
    },
    "connector": {
        "name": "upwell-shop-1",
        "connector": "RUNNING",
        "task": "RUNNING",
        "cause": "",
        "since_seconds": 60.0,
        "restarts": 2,
    },
    "slot": {"name": "s", "active": True, "wal_status": "reserved", "behind_bytes": 4096, "safe_bytes": None},
    "gap": "",
    "workers": [
        {"slot": "w-0", "host": "h", "pid": 1, "seen_seconds": 1.0, "problems": []},
        {"slot": "w-1", "host": "h", "pid": 2, "seen_seconds": 3600.0, "problems": ["no model"]},
    ],
    "blocked": [],
    "rounds": [
        {"number": 9, "age_seconds": 2.0, "step": "committed", "waits_for": "its event in Kafka"},
        {"number": 8, "age_seconds": 7.0, "step": "settled", "waits_for": "content to be taken in"},
        {"number": 7, "age_seconds": 12.0, "step": "done", "waits_for": ""},
    ],
    "canary": {"number": 8, "delay_seconds": 0.2, "age_seconds": 7.0, "cosine": 0.9999, "error": ""},
    "clock": {"source_ahead_seconds": -0.01},
}
DELAYS: Final = {"p50": 0.1, "p95": 0.2, "p99": 0.3, "max": 0.4, "mean": 0.1, "count": 9}
REPORT: Final = {
    "collections": {"content": {"delay_seconds": DELAYS, "stages": {"embed": DELAYS}, "slo": SLO}}
}


def series(of: dict[str, Any], report: dict[str, Any] | None = None) -> dict[tuple[str, ...], float]:
    """The samples by name and label values; valid, of metrics that are the monitor's, with labels as they are named."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(exposition(of, report).decode()):
        for sample in family.samples:
            spec = metrics.BY_NAME[sample.name]
            assert spec.of in {"monitor", "both"}
            assert tuple(sample.labels) == spec.labels or set(sample.labels) == set(spec.labels)
            place = (sample.name, *(sample.labels[label] for label in spec.labels))
            assert place not in found
            found[place] = sample.value
    return found


def changed(**parts: Any) -> dict[str, Any]:
    return {**copy.deepcopy(HEALTHY), **parts}


def test_a_healthy_deployment_has_every_series() -> None:
    found = series(HEALTHY, REPORT)
    assert found["upwell_verdict", "content", "FRESH"] == 1
    assert [found["upwell_verdict", "content", each] for each in ("STALE", "INCOMPLETE", "UNKNOWN")] == [
        0,
        0,
        0,
    ]
    assert found["upwell_watermark_timestamp_seconds", "content"] == 1767323042
    assert found["upwell_evaluation_timestamp_seconds",] == 1767323045
    assert found["upwell_staleness_seconds", "content"] == 3
    assert found["upwell_pending", "content", "live"] == 2
    assert found["upwell_consumer_lag", "content"] == 7
    assert found["upwell_watermark_violations_total", "content"] == 0
    assert found["upwell_error_budget_remaining_ratio", "content", "events"] == 0.9
    assert found["upwell_error_budget_remaining_ratio", "content", "time"] == -1.5
    assert found["upwell_burn_rate", "content", "time", "1h"] == 20
    assert found["upwell_report_delay_seconds", "content", "embed", "1"] == 0.4
    assert found["upwell_report_delay_seconds", "content", "total", "0.95"] == 0.2
    assert found["upwell_workers_alive",] == 1
    assert found["upwell_worker_problems", "w-1"] == 1
    assert found["upwell_round_age_seconds",] == 7
    assert found["upwell_connector_up",] == found["upwell_slot_active",] == found["upwell_canary_ok",] == 1
    assert found["upwell_gap",] == found["upwell_blocked", "content"] == 0
    names = {place[0] for place in found}
    missing = {spec.name for spec in metrics.ALL if spec.of != "worker"} - names
    assert missing == {"upwell_oldest_pending_seconds", "upwell_eta_seconds", "upwell_slot_safe_bytes"}, (
        "null above"
    )
    assert ("upwell_burn_rate", "content", "time", "5m") not in found, "null"


@pytest.mark.parametrize(
    "known", [{}, {"age_seconds": None, "evaluated_at": None, "collections": {}, "workers": []}]
)
def test_before_the_first_evaluation_nothing_is_claimed(known: dict[str, Any]) -> None:
    assert [place[0] for place in series(known)] == ["upwell_build_info"]


def test_a_monitor_that_has_not_looked_yet_is_exposed() -> None:
    """The monitor's own object, not ours."""
    found = series(live(Monitor(Settings())))
    assert {place[0] for place in found} <= {
        *("upwell_build_info", "upwell_round_period_seconds"),
        *("upwell_neighbour_up", "upwell_neighbour_age_seconds"),
    }
    assert found["upwell_round_period_seconds",] == 5


def test_an_evaluation_that_read_no_workers_does_not_say_that_there_are_none() -> None:
    found = series({"age_seconds": 1.0, "collections": {}})
    assert {place[0] for place in found} == {"upwell_build_info", "upwell_evaluation_age_seconds"}


def test_an_old_evaluation_says_unknown_and_nothing_that_may_have_changed() -> None:
    found = series(changed(age_seconds=EVALUATION_SECONDS + 0.1), REPORT)
    assert found["upwell_verdict", "content", "UNKNOWN"] == 1
    assert found["upwell_verdict", "content", "FRESH"] == 0
    assert found["upwell_evaluation_age_seconds",] > EVALUATION_SECONDS
    of_content = {place[0] for place in found if place[1:2] == ("content",)}
    assert of_content == {
        *("upwell_verdict", "upwell_watermark_timestamp_seconds", "upwell_staleness_seconds"),
        *("upwell_threshold_seconds", "upwell_report_delay_seconds"),
    }
    assert not {
        place for place in found if place[0].startswith(("upwell_worker", "upwell_canary", "upwell_source"))
    }
    assert found["upwell_neighbour_up", "sink"] == 1, "neighbours are asked by themselves"
    at_the_limit = series(changed(age_seconds=EVALUATION_SECONDS))
    assert at_the_limit["upwell_verdict", "content", "FRESH"] == 1


def test_what_is_behind_a_neighbour_that_is_away_is_not_known() -> None:
    away = {"ok": False, "error": "no", "age_seconds": 40.0}
    found = series(changed(neighbours={**HEALTHY["neighbours"], "connect": away, "source": away}))
    assert found["upwell_neighbour_up", "connect"] == found["upwell_neighbour_up", "source"] == 0
    assert found["upwell_neighbour_age_seconds", "connect"] == 40
    assert not {place for place in found if place[0].startswith(("upwell_connector", "upwell_slot"))}


@pytest.mark.parametrize("task", ["FAILED", "UNASSIGNED", "PAUSED"])
def test_a_connector_that_does_not_run_is_down(task: str) -> None:
    found = series(changed(connector={**HEALTHY["connector"], "task": task}))
    assert found["upwell_connector_up",] == 0


def test_what_is_wrong_shows() -> None:
    collection = {
        **HEALTHY["collections"]["content"],
        "slo": None,
        "load": {"state": "loading", "searchable": 0.25},
    }
    found = series(
        changed(
            gap="slot s is gone",
            blocked=[{"collection": "content", "slot": "", "reason": "column gone", "since": None}],
            canary={"number": 8, "error": "cosine 0.2", "cosine": 0.2},
            workers=[],
            collections={"content": collection},
        ),
        REPORT,
    )
    assert found["upwell_gap",] == found["upwell_blocked", "content"] == 1
    assert found["upwell_canary_ok",] == found["upwell_workers_alive",] == 0
    assert found["upwell_load_complete", "content"] == 0
    assert found["upwell_load_searchable_ratio", "content"] == 0.25
    assert found["upwell_sli_ratio", "content", "events"] == 0.999, (
        "the report has what the live object has not"
    )


def test_no_text_of_an_error_becomes_a_label() -> None:
    known = changed(
        gap="secret-1",
        blocked=[{"collection": "content", "slot": "", "reason": "secret-2", "since": None}],
        neighbours={"sink": {"ok": False, "error": "secret-3", "age_seconds": 1.0}},
        connector={**HEALTHY["connector"], "cause": "secret-4"},
        workers=[{"slot": "w", "host": "secret-5", "pid": 1, "seen_seconds": 1.0, "problems": ["secret-6"]}],
    )
    known["collections"]["content"]["reason"] = "secret-7"
    assert b"secret" not in exposition(known, REPORT)


# README


def metrics_table() -> str:
    return "\n".join(metrics.readme_table()) + "\n"


def with_metrics_table(text: str) -> str:
    """The README with its table written anew."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + metrics_table() + END + rest.partition(END)[2]


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    assert readme().count(BEGIN) == readme().count(END) == 1
    assert readme() == with_metrics_table(readme()), (
        "run .venv/bin/python -m tests.unit.test_metrics: it writes the table anew"
    )


if __name__ == "__main__":
    README.write_text(with_metrics_table(readme()), encoding="utf-8")
