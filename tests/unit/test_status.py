"""`upwell status`: each thing that is wrong is said, with a next step, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from connectors.debezium.connect import ConnectorStatus
from schemas.forecast import QueuedCollection, QueueReading
from schemas.freshness import Freshness, State, Verdict
from schemas.readings import BlockedReading, CollectionReading, PendingReading, Readings, WorkerReading
from streams.cli import status as command
from streams.cli.root import cli
from streams.freshness.forecast import Forecast, forecast_of
from streams.freshness.report import build_report
from streams.settings import Settings, load
from streams.status import Facts, Slot, findings

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SPEC = '[collections.content]\ntable = "shop.content"\ntemplate = "{{ title }}"\n'
RUNNING = ConnectorStatus("upwell-shop", "RUNNING", "RUNNING")
SLOT = Slot("upwell_shop_1", True, "reserved", 4096)


def readings(**changed: Any) -> Readings:
    """All is well: loaded, nothing pending, a worker seen two seconds ago."""
    values: dict[str, Any] = {
        "at": AT,
        "since": AT - timedelta(minutes=5),
        "collections": [CollectionReading("content", "complete", {})],
        "pending": [],
        "dead_letters": {},
        "counters": {},
        "sketches": [],
        "workers": [WorkerReading("w-0", "vm", 42, AT - timedelta(hours=1), AT - timedelta(seconds=2))],
    }
    return Readings(**{**values, **changed})


def facts(errors: Mapping[str, str] | None = None, found: Readings | None = None, **changed: Any) -> Facts:
    values: dict[str, Any] = {"lineage": 1, "connector": RUNNING, "slot": SLOT, "ahead": {"content": 3}}
    return Facts(build_report(found or readings()), **{**values, **changed}, errors=errors or {})


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "upwell.toml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def settings(spec: Path) -> Settings:
    return load(spec, environment={})


def test_searches_without_an_index_are_said(settings: Settings) -> None:
    (found,) = findings(facts(unindexed=["content"]), settings)
    assert found.problem == "content: it has no HNSW index, every search reads the whole table"
    assert found.next_step == "run `upwell maintain content`"


def test_nothing_is_wrong(settings: Settings) -> None:
    assert findings(facts(), settings) == []


WAITING = [PendingReading("content", "live", 4, AT - timedelta(seconds=90))]
WRONG: Mapping[str, tuple[Facts, str]] = {
    "sink database: connection refused": (
        replace(facts({"sink": "sink database: connection refused"}), report=None, lineage=None),
        "UPWELL_SINK_DSN",
    ),
    "source database: gone": (facts({"source": "source database: gone"}, slot=None), "Debezium tries again"),
    "no Connect": (facts({"connect": "no Connect"}, connector=None), "start Kafka Connect"),
    "no registry": (facts({"registry": "no registry"}), "UPWELL_REGISTRY_URL"),
    "no broker": (facts({"kafka": "no broker"}, ahead=None), "workers wait"),
    "nothing is captured yet": (facts(lineage=None, connector=None, slot=None), "upwell connector apply"),
    "connector upwell-shop FAILED: wrong password": (
        facts(connector=ConnectorStatus("upwell-shop", "RUNNING", "FAILED", "wrong password")),
        "upwell connector restart",
    ),
    "connector upwell-shop: ABSENT": (
        facts(connector=ConnectorStatus("upwell-shop", "ABSENT", "ABSENT")),
        "upwell connector apply",
    ),
    "connector upwell-shop: task UNASSIGNED": (
        facts(connector=ConnectorStatus("upwell-shop", "RUNNING", "UNASSIGNED")),
        "upwell connector apply",
    ),
    "connector upwell-shop runs with other settings than ours: skipped.operations, table.include.list": (
        facts(other_settings=["skipped.operations", "table.include.list"]),
        "upwell connector apply",
    ),
    "changes are lost: slot upwell_shop_1 is gone": (
        replace(facts(slot=None), gap="slot upwell_shop_1 is gone"),
        "upwell connector rebuild",
    ),
    "slot upwell_shop_1 holds back 2.5 GiB of write-ahead log": (
        facts(slot=replace(SLOT, behind_bytes=5 * 2**29)),
        "open for long",
    ),
    "no worker runs": (
        facts(found=readings(workers=[WorkerReading("w-0", "vm", 42, AT, AT - timedelta(seconds=30))])),
        "make up",
    ),
    "content: its table is not loaded": (
        facts(found=readings(collections=[CollectionReading("content", "incomplete", {})])),
        "upwell connector apply",
    ),
    "content: a change waits for 90 s, the threshold is 30 s": (
        facts(found=readings(pending=WAITING)),
        "log",
    ),
    "content is blocked for 92 s: column 'title' is gone": (
        facts(
            blocked=[
                BlockedReading("content", "w-0", "column 'title' is gone", 92.4),
                BlockedReading("gone", "w-0", "of a collection that the spec no longer has", 5),
            ]
        ),
        "goes on by itself",
    ),
    "content: 2 dead letters": (
        facts(found=readings(dead_letters={"content": 2})),
        "upwell dead-letters list content",
    ),
}


@pytest.mark.parametrize("problem", WRONG)
def test_what_is_wrong_is_said_alone_and_with_a_next_step(settings: Settings, problem: str) -> None:
    seen, step = WRONG[problem]
    (found,) = findings(seen, settings)
    assert found.problem == problem
    assert step in found.next_step


def test_what_only_the_monitor_sees_is_wrong_too(settings: Settings) -> None:
    """Nothing is down, and nothing arrives: said unless something else explains it."""
    reason = (
        "53 s behind the source: replication stands still though the connector runs; see RUNBOOK: replication"
    )
    stale = [Freshness("content", Verdict(State.STALE, reason), AT, 53.0, 30.0, AT)]
    (found,) = findings(facts(found=readings(freshness=stale)), settings)
    assert found.problem == f"content is STALE: {reason.partition('; see')[0]}"
    assert found.next_step == "see RUNBOOK: replication"
    (other,) = findings(facts({"kafka": "no broker"}, readings(freshness=stale), ahead=None), settings)
    assert other.problem == "no broker"


def foretold(**changed: Any) -> Mapping[str, Forecast]:
    values: dict[str, Any] = {"name": "content", "threshold_seconds": 30.0, **changed}
    return forecast_of(QueueReading([QueuedCollection(**values)], 0, 2, 10.0), backfill_share=0.25)


def test_a_threshold_that_will_be_missed_soon_is_wrong(settings: Settings) -> None:
    (found,) = findings(facts(forecasts=foretold(arrivals_per_second=30)), settings)
    assert found.problem == (
        "content will miss its 30 s threshold in 90 s: 30.0 texts a second arrive in all, 20.0 can be embedded"
    )
    assert found.next_step == "run 1 more worker, a core each"
    for fine in ({"arrivals_per_second": 14}, {"arrivals_per_second": 20.5}):
        assert findings(facts(forecasts=foretold(**fine)), settings) == []


def test_what_is_late_is_said_once_with_what_will_become_of_it(settings: Settings) -> None:
    late = facts(found=readings(pending=WAITING), forecasts=foretold(late=4, arrivals_per_second=30))
    (found,) = findings(late, settings)
    assert found.problem == "content: a change waits for 90 s, the threshold is 30 s"
    assert "run 1 more worker" in found.next_step
    assert "workers' log" in found.next_step
    assert len(findings(replace(late, forecasts=foretold(arrivals_per_second=30)), settings)) == 1


def ask(spec: Path, monkeypatch: pytest.MonkeyPatch, seen: Facts, *words: str) -> Result:
    monkeypatch.setattr(command, "look", lambda settings: seen)
    monkeypatch.setenv("UPWELL_HOME", str(spec.parent))
    return CliRunner().invoke(cli, ["--spec", str(spec), "status", *words])


def test_one_screen(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = ask(spec, monkeypatch, facts(found=readings(pending=WAITING, dead_letters={"content": 1})))
    assert done.exit_code == 1
    assert done.stdout.count("WRONG") == 2
    for words in (
        "slot upwell_shop_1: read, 0.0 MiB behind",
        "worker w-0 on vm, pid 42: lives",
        "1 min 30 s",
    ):
        assert words in done.stdout
    fine = ask(spec, monkeypatch, facts())
    assert (fine.exit_code, fine.stdout.count("WRONG")) == (0, 0)
    assert fine.stdout.rstrip().endswith("Nothing is wrong.")


def test_for_a_machine(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = facts({"registry": "no registry"}, forecasts=foretold(backfill=100))
    done = ask(spec, monkeypatch, seen, "--json")
    answer = json.loads(done.stdout)
    assert done.exit_code == 1
    assert [each["problem"] for each in answer["wrong"]] == ["no registry"]
    assert (answer["slot"]["behind_bytes"], answer["ahead"], answer["eta_seconds"]) == (
        4096,
        {"content": 3},
        {"content": 5.0},
    )


def test_a_stopped_local_stack_is_said(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (spec.parent / "stack.env").write_text("")
    done = ask(spec, monkeypatch, facts({"kafka": "no broker"}, ahead=None))
    assert "kafka STOPPED" in done.stdout
    assert "`upwell up` starts what is stopped" in done.stdout.replace("\n", " ")
