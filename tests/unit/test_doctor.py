"""`upwell doctor`: what is judged good and bad, that a neighbour that is away hides no other, and how it is printed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner, Result

from connectors.debezium.connect import ConnectorStatus
from connectors.kafka import TopicFacts
from connectors.postgres.migrate import migrations
from schemas.errors import ModelUnavailable, SettingsError, SourceUnavailable
from schemas.sink import GenerationInfo
from schemas.spec import Chunking, CollectionSpec, fingerprint
from streams.cli.root import cli
from streams.doctor.core import NEIGHBOURS, State, Verdict, ask_all, fail, ok
from streams.doctor.database import judge_disk, judge_skew, judge_timeouts, judge_transactions
from streams.doctor.examine import judge_dimension, judge_name, judge_tokens, model_checks
from streams.doctor.known import Known
from streams.doctor.sink import (
    judge_connections,
    judge_generation,
    judge_migrations,
    judge_vacuum,
    judge_vector,
)
from streams.doctor.source import capture_user, judge_keep, judge_publication, judge_room, judge_slots
from streams.doctor.stream import (
    judge_broker,
    judge_connector,
    judge_plugins,
    judge_same,
    judge_topic_settings,
    judge_topics,
    judge_worker_settings,
)
from streams.settings import ConnectSettings, Settings
from tests.unit.test_cli_errors import SECRET, SPEC, closed_port, dsn

CONTENT: Final = CollectionSpec(table="shop.content", template="{{ title }}")
SETTINGS: Final = Settings(name="shop", collections={"content": CONTENT})
MODEL: Final = SETTINGS.model.name
TOPIC: Final = TopicFacts("id", 4)
KNOWN: Final = Known(1, "shop_1", {"shop_1.shop.content": TOPIC}, {"content": (MODEL, 384, 126)})
AWAY: Final = Known(away="the sink cannot be asked")


def slot(name: str = "upwell_shop_1", **changed: Any) -> dict[str, Any]:
    values = {"active": True, "wal_status": "reserved", "safe_bytes": None, "retained_bytes": 1024}
    return {"name": name, **values, **changed}


def generation(model: str = MODEL, template: str = CONTENT.template, state: str = "live") -> GenerationInfo:
    mark = fingerprint(model, template, Chunking(max_tokens=126))
    return GenerationInfo("content", 1, mark, model, 384, template, 126, 0, state)


def publication(**changed: Any) -> dict[str, Any]:
    return {"all_tables": False, "complete": True, **changed}


PUBLISHED: Final = {"shop.content", "upwell.heartbeat", "upwell.signal", "upwell.canary"}
TABLES: Final = ["shop.content"]
RUNNING: Final = ConnectorStatus("upwell-shop", "RUNNING", "RUNNING")
PLUGINS: Final = {
    "io.debezium.connector.postgresql.PostgresConnector": "3.7.0.Final",
    "io.apicurio.registry.utils.converter.AvroConverter": "2.6",
}
TRANSACTION: Final = {"pid": 7, "application": "psql", "role": "bob", "age_seconds": 90.0, "writes": True}
LONG: Final[dict[str, Any]] = {"sees_all": True, "role": "bob"}
NEWEST: Final = {number for number, _, _ in migrations()}

#: What is judged, and the states of the verdicts.
JUDGED: Final[dict[str, tuple[Verdict | Iterator[Verdict], list[str]]]] = {
    "skew small": (judge_skew(-4.9), ["ok"]),
    "skew large": (judge_skew(-5.1), ["warn"]),
    "no timeout": (judge_timeouts({}, "bob"), ["ok"]),
    "long timeout": (judge_timeouts({"statement_timeout": 3600.0}, "bob"), ["ok"]),
    "short timeout": (judge_timeouts({"statement_timeout": 5.0}, "bob"), ["warn"]),
    "idle timeout": (judge_timeouts({"idle_session_timeout": 3600.0}, "bob"), ["warn"]),
    "no transaction": (judge_transactions([], [], **LONG), ["ok"]),
    "long transaction": (judge_transactions([TRANSACTION], [], **LONG), ["warn"]),
    "prepared": (judge_transactions([], [{"gid": "x", "age_seconds": 90.0}], **LONG), ["warn"]),
    "unseen": (judge_transactions([], [], sees_all=False, role="bob"), ["skipped"]),
    "disk": (judge_disk(50, 100, 0), ["ok"]),
    "disk low": (judge_disk(9, 100, 0), ["warn"]),
    "disk less than kept": (judge_disk(50, 100, 60), ["warn"]),
    "disk full": (judge_disk(0, 100, 0), ["FAIL"]),
    "room": (judge_room(dict(slots=9, slots_used=8, senders=9, senders_used=8), has_slot=False), ["ok"] * 2),
    "no room": (judge_room(dict(slots=9, slots_used=9, senders=9, senders_used=8), has_slot=False), ["FAIL", "ok"]),
    "own room": (judge_room(dict(slots=9, slots_used=9, senders=9, senders_used=9), has_slot=True), ["ok"] * 2),
    "publication": (judge_publication("p", publication(), PUBLISHED, TABLES, captured=True), ["ok"]),
    "no publication": (judge_publication("p", None, set(), TABLES, captured=False), ["not yet"]),
    "publication gone": (judge_publication("p", None, set(), TABLES, captured=True), ["FAIL"]),
    "all tables": (judge_publication("p", publication(all_tables=True), set(), TABLES, captured=False), ["FAIL"]),
    "inserts only": (judge_publication("p", publication(complete=False), PUBLISHED, TABLES, captured=True), ["FAIL"]),
    "table missing": (judge_publication("p", publication(), PUBLISHED, ["a.b"], captured=True), ["not yet"]),
    "slot": (judge_slots([slot()], "upwell_shop_1"), ["ok"]),
    "no slot yet": (judge_slots([], None), ["not yet"]),
    "slot gone": (judge_slots([], "upwell_shop_1"), ["FAIL"]),
    "slot unknown": (judge_slots([], None, away="the sink is away"), ["skipped"]),
    "slot lost": (judge_slots([slot(wal_status="lost")], "upwell_shop_1"), ["FAIL"]),
    "slot nearly lost": (judge_slots([slot(wal_status="unreserved")], "upwell_shop_1"), ["FAIL"]),
    "slot unread": (judge_slots([slot(active=False)], "upwell_shop_1"), ["warn"]),
    "slot far behind": (judge_slots([slot(retained_bytes=2**31)], "upwell_shop_1"), ["warn"]),
    "old slot": (judge_slots([slot(), slot("upwell_shop_2")], "upwell_shop_2"), ["warn", "ok"]),
    "keep": (judge_keep({"keep_mb": 1000, "idle_seconds": 0}, []), ["ok"]),
    "keep all": (judge_keep({"keep_mb": -1, "idle_seconds": None}, []), ["warn"]),
    "idle": (judge_keep({"keep_mb": 1000, "idle_seconds": 60}, []), ["ok", "warn"]),
    "vector": (judge_vector(dict(installed="0.8.5", available="0.8.5"), may_create=False), ["ok"]),
    "vector old": (judge_vector(dict(installed="0.7.4", available="0.8.5"), may_create=True), ["FAIL"]),
    "vector 0.10": (judge_vector(dict(installed="0.10.0", available=None), may_create=True), ["ok"]),
    "vector not yet": (judge_vector(dict(installed=None, available="0.8.5"), may_create=True), ["not yet"]),
    "vector not allowed": (judge_vector(dict(installed=None, available="0.8.5"), may_create=False), ["FAIL"]),
    "no vector": (judge_vector(dict(installed=None, available=None), may_create=True), ["FAIL"]),
    "server's vector old": (judge_vector(dict(installed=None, available="0.7.0"), may_create=True), ["FAIL"]),
    "schema": (judge_migrations(NEWEST), ["ok"]),
    "schema newer": (judge_migrations({*NEWEST, 9999}), ["FAIL"]),
    "schema older": (judge_migrations(NEWEST - {max(NEWEST)}), ["FAIL"]),
    "generation": (judge_generation("content", [generation()], SETTINGS), ["ok"]),
    "filling": (
        judge_generation("content", [generation("path:/x"), generation(state="filling")], SETTINGS),
        ["ok"],
    ),
    "no generation": (judge_generation("content", [], SETTINGS), ["not yet"]),
    "other model": (judge_generation("content", [generation("path:/x")], SETTINGS), ["FAIL"]),
    "other template": (judge_generation("content", [generation(template="x")], SETTINGS), ["FAIL"]),
    "connections": (judge_connections(20, 2, 6), ["ok"]),
    "few connections": (judge_connections(19, 2, 6), ["warn"]),
    "vacuum": (judge_vacuum(dict(autovacuum=True, disabled=False, dead=10, live=1)), ["ok"]),
    "no vacuum": (judge_vacuum(dict(autovacuum=False, disabled=False, dead=0, live=0)), ["warn"]),
    "vacuum disabled": (judge_vacuum(dict(autovacuum=True, disabled=True, dead=0, live=0)), ["warn"]),
    "bloat": (judge_vacuum(dict(autovacuum=True, disabled=False, dead=200_000, live=1)), ["warn"]),
    "broker": (judge_broker({"min.insync.replicas": "1"}, 1), ["ok"]),
    "too few replicas": (judge_broker({"min.insync.replicas": "2"}, 1), ["FAIL", "ok"]),
    "topics": (judge_topics({"shop_1.shop.content": TOPIC}, SETTINGS, KNOWN), ["ok"]),
    "no topics": (judge_topics({}, SETTINGS, Known()), ["not yet"]),
    "topics unknown": (judge_topics({}, SETTINGS, AWAY), ["skipped"]),
    "topic gone": (judge_topics({}, SETTINGS, KNOWN), ["FAIL"]),
    "topic anew": (judge_topics({"shop_1.shop.content": TopicFacts("other", 4)}, SETTINGS, KNOWN), ["FAIL"]),
    "partitions": (judge_topics({"shop_1.shop.content": TopicFacts("id", 5)}, SETTINGS, KNOWN), ["FAIL"]),
    "topic not yet": (judge_topics({}, SETTINGS, Known(1, "shop_1")), ["not yet"]),
    "topic settings": (judge_topic_settings({"t": {"retention.ms": "3600000"}}, 1.0, 2**20), ["ok"]),
    "retention": (judge_topic_settings({"t": {"retention.ms": "3599999"}}, 1.0, 2**20), ["warn"]),
    "for ever": (judge_topic_settings({"t": {"retention.ms": "-1"}}, 1.0, 2**20), ["ok"]),
    "compacted": (judge_topic_settings({"t": {"cleanup.policy": "compact"}}, 1.0, 2**20), ["FAIL"]),
    "small messages": (judge_topic_settings({"t": {"max.message.bytes": "1000000"}}, 1.0, 2**20), ["FAIL"]),
    "plugins": (judge_plugins(PLUGINS, "apicurio"), ["ok", "ok"]),
    "no converter": (judge_plugins(PLUGINS, "confluent"), ["ok", "FAIL"]),
    "no plugin": (judge_plugins({}, "apicurio"), ["FAIL", "FAIL"]),
    "old plugin": (judge_plugins({**PLUGINS, next(iter(PLUGINS)): "2.7.1.Final"}, "apicurio"), ["warn", "ok"]),
    "provider": (judge_worker_settings({"tasks.max": ["Invalid value postgres"]}, "o", "/f"), ["ok", "ok"]),
    "no provider": (judge_worker_settings({"tasks.max": ["Invalid value ${file:/f:user}"]}, "o", "/f"), ["FAIL", "ok"]),
    "no overrides": (judge_worker_settings({"o": ["The override policy forbids it"]}, "o", "/f"), ["ok", "FAIL"]),
    "connector": (judge_connector(RUNNING, KNOWN), ["ok"]),
    "connector not yet": (judge_connector(ConnectorStatus("c", "ABSENT", "ABSENT"), Known()), ["not yet"]),
    "connector gone": (judge_connector(ConnectorStatus("c", "ABSENT", "ABSENT"), KNOWN), ["FAIL"]),
    "connector unknown": (judge_connector(ConnectorStatus("c", "ABSENT", "ABSENT"), AWAY), ["skipped"]),
    "connector failed": (judge_connector(ConnectorStatus("c", "RUNNING", "FAILED", "why"), KNOWN), ["FAIL"]),
    "connector paused": (judge_connector(ConnectorStatus("c", "PAUSED", "PAUSED"), KNOWN), ["FAIL"]),
    "same registry": (judge_same(1, {"type": "long"}, {"type": "long"}), ["ok"]),
    "other registry": (judge_same(1, {"type": "long"}, {"type": "int"}), ["FAIL"]),
    "name": (judge_name("shop", KNOWN), ["ok"]),
    "other name": (judge_name("mall", KNOWN), ["FAIL"]),
    "dimension": (judge_dimension(384, SETTINGS, KNOWN), ["ok"]),
    "other dimension": (judge_dimension(768, SETTINGS, KNOWN), ["FAIL"]),
    "dimension unknown": (judge_dimension(384, SETTINGS, AWAY), ["skipped"]),
    "tokens": (judge_tokens(126, SETTINGS), ["ok"]),
    "too many tokens": (
        judge_tokens(126, SETTINGS.model_copy(update={"collections": {
            "content": CONTENT.model_copy(update={"chunk": Chunking(max_tokens=127)})}})),
        ["FAIL"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", JUDGED)
def test_judgments(case: str) -> None:
    found, expected = JUDGED[case]
    verdicts = [found] if isinstance(found, Verdict) else list(found)
    assert [each.state.value for each in verdicts] == expected
    for each in verdicts:
        needs_step = each.state in {State.NOT_YET, State.WARN, State.FAIL}
        assert bool(each.next_step) == needs_step, each
        assert "\n" not in each.says + each.next_step


# Isolation


def refuse(_: object) -> Verdict:
    raise SettingsError("not allowed")


def test_a_question_that_fails_is_its_own_failure_only() -> None:
    questions: list[tuple[str, Callable[[int], Verdict]]] = [
        ("first", refuse),
        ("second", lambda it: ok(f"{it}")),
    ]
    found = ask_all("source", lambda: contextlib.nullcontext(7), "mend it", questions)
    assert [(each.name, each.state) for each in found] == [
        ("reachable", State.OK),
        ("first", State.FAIL),
        ("second", State.OK),
    ]


def test_the_checks_of_a_neighbour_that_is_away_are_skipped() -> None:
    def away() -> contextlib.AbstractContextManager[int]:
        raise SourceUnavailable("source database: refused")

    found = ask_all("source", away, "mend it", [("first", lambda it: ok("x")), ("second", refuse)])
    assert [(each.state, each.next_step) for each in found] == [
        (State.FAIL, "mend it"),
        (State.SKIPPED, ""),
        (State.SKIPPED, ""),
    ]
    assert "source" in found[1].says


def test_a_model_that_does_not_load_is_one_failure() -> None:
    def missing(settings: Settings) -> tuple[int, int]:
        raise ModelUnavailable("model x: no such folder")

    assert [c.state for c in model_checks(SETTINGS, KNOWN, load=True, loader=missing)] == [
        State.FAIL,
        State.SKIPPED,
        State.SKIPPED,
    ]
    there = model_checks(SETTINGS, KNOWN, load=True, loader=lambda _: (384, 254))
    assert {check.state for check in there} == {State.OK}
    assert {check.state for check in model_checks(SETTINGS, KNOWN, load=False)} == {State.SKIPPED}


def test_the_connectors_user_is_read_off_a_secrets_file_that_is_here(tmp_path: Path) -> None:
    file = tmp_path / "source.properties"

    def user() -> str | None:
        return capture_user(Settings(connect=ConnectSettings(secrets_file=str(file))))

    assert capture_user(Settings()) is None
    assert user() is None
    file.write_text("password=x\nuser = bob\n")
    assert user() == "bob"


# The command


@pytest.fixture
def upwell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command with every neighbour at a closed port."""
    for name in [name for name in os.environ if name.startswith("UPWELL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("streams.doctor.stream.KAFKA_SECONDS", 0.3)
    (tmp_path / "upwell.toml").write_text(SPEC)
    url = f"http://127.0.0.1:{closed_port()}"
    environment = {
        "UPWELL_SOURCE_DSN": dsn(),
        "UPWELL_SINK_DSN": dsn(),
        "UPWELL_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{closed_port()}",
        "UPWELL_CONNECT_URL": url,
        "UPWELL_REGISTRY_URL": url,
        **{
            f"UPWELL_{neighbour}_{name}": value
            for neighbour in ("CONNECT", "REGISTRY")
            for name, value in (("USERNAME", "somebody"), ("PASSWORD", SECRET))
        },
    }

    def run(*arguments: str) -> Result:
        line = ["--spec", str(tmp_path / "upwell.toml"), "doctor", *arguments]
        return CliRunner().invoke(cli, line, env=environment)

    return run


def test_everything_is_away_and_everything_is_said(upwell: Callable[..., Result]) -> None:
    done = upwell("--json", "--no-model")
    assert done.exit_code == 1
    assert SECRET not in done.output
    found = json.loads(done.stdout)
    assert list(dict.fromkeys(check["neighbour"] for check in found)) == list(NEIGHBOURS)
    failed = [(check["neighbour"], check["name"]) for check in found if check["state"] == "FAIL"]
    assert failed == [(name, "reachable") for name in ("source", "sink", "kafka", "connect", "registry")]
    assert all(check["next_step"] for check in found if check["state"] == "FAIL")
    assert any(check["name"] == "table shop.content" and check["state"] == "skipped" for check in found)


def test_one_line_for_each_check(upwell: Callable[..., Result]) -> None:
    checks = json.loads(upwell("--json", "--no-model").stdout)
    done = upwell("--no-model")
    lines = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    assert len(lines) == len(checks)
    assert [line for line in done.stdout.splitlines() if line in NEIGHBOURS] == list(NEIGHBOURS)
    assert f"{len(checks)} checks: 5 failed, 0 warnings" in done.stdout
    assert "FAIL     reachable: Kafka at 127.0.0.1:" in done.stdout
    assert "-> start it, or mend UPWELL_KAFKA_BOOTSTRAP_SERVERS" in done.stdout


def test_the_grants_are_printed_also_while_the_source_is_away(upwell: Callable[..., Result]) -> None:
    both = upwell("--sql")
    assert both.exit_code == 0
    assert both.stdout.count("-- SOURCE") == both.stdout.count("-- SINK") == 1
    assert "-- SINK" not in upwell("--sql", "source").stdout
    assert "-- SOURCE" not in upwell("--sql", "sink").stdout
    assert "upwell_upwell_capture" in both.stdout
    assert SECRET not in both.output


def test_bad_is_what_fails() -> None:
    from streams.doctor import Check, bad

    checks = [Check("source", state.value, state, "", "") for state in State]
    assert [check.state for check in bad(checks)] == [State.FAIL]
    assert fail("a", "b").of("c").name == "c"
