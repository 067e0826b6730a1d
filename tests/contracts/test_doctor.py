"""`upwell doctor` on real servers: before migrate, with rights missing, with a slot held back. It writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from connectors.postgres.doctor import look_at_sink, look_at_source
from connectors.postgres.source_schema import migrate_source
from infra.stack.postgres import PostgresServer
from schemas.errors import UpwellError
from schemas.spec import Chunking, CollectionSpec
from streams.doctor.core import Check
from streams.doctor.known import Known, known_of
from streams.doctor.sink import sink_checks
from streams.doctor.source import source_checks
from streams.grants import grants
from streams.settings import Settings, SinkSettings, SourceSettings
from tests.contracts.conftest import NUMBERS
from tests.contracts.server import Server
from tests.contracts.sinks import MODEL

TABLES = """
CREATE SCHEMA shop;
CREATE TABLE shop.content (id bigint PRIMARY KEY, title text);
ALTER TABLE shop.content REPLICA IDENTITY FULL;
CREATE TABLE shop.short (id bigint PRIMARY KEY, title text);
CREATE TABLE shop.keyless (id bigint, title text);
"""


def spec(table: str, template: str = "{{ title }}") -> CollectionSpec:
    return CollectionSpec(table=table, template=template, chunk=Chunking(max_tokens=126))


def settings(source: str = "", sink: str = "", **collections: CollectionSpec) -> Settings:
    found = collections or {"content": spec("shop.content")}
    return Settings(
        name="shop", source=SourceSettings(dsn=source), sink=SinkSettings(dsn=sink), collections=found
    )


@pytest.fixture
def source(server: Server) -> Iterator[str]:
    with server.source(f"doctor{next(NUMBERS)}", TABLES) as dsn:
        yield dsn


@pytest.fixture
def role(server: Server) -> str:
    """A role that may log in, and no more."""
    name = f"plain{next(NUMBERS)}"
    with server.connect("postgres") as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN".encode())
    return name


def named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def states(checks: list[Check], *but: str) -> dict[str, str]:
    """Name and state of all that is not ok. Limit and disk depend on the machine."""
    left_out = {"limit of WAL kept", "disk", *but}
    return {c.name: c.state.value for c in checks if c.state != "ok" and c.name not in left_out}


@pytest.mark.parametrize("server", [16, 18], indirect=True)
def test_a_source_before_and_after_migrate(source: str) -> None:
    before = source_checks(settings(source), Known())
    assert states(before) == {"schema upwell": "not yet", "publication": "not yet", "slot": "not yet"}
    with psycopg.connect(source, autocommit=True) as connection:
        migrate_source(connection, "shop", ["shop.content"])
    assert states(source_checks(settings(source), Known())) == {"slot": "not yet"}


def test_every_table_is_judged_by_itself(source: str) -> None:
    found = named(
        source_checks(
            settings(
                source,
                keyless=spec("shop.keyless"),
                short=spec("shop.short"),
                none=spec("shop.none"),
                odd=spec("shop.content", "{{ body }}"),
            ),
            Known(),
        )
    )
    assert found["table shop.keyless"].state == "FAIL"
    assert "primary key" in found["table shop.keyless"].says
    assert "REPLICA IDENTITY FULL" in found["table shop.short"].says
    assert "has no table shop.none" in found["table shop.none"].says
    assert "has no column 'body'" in found["table shop.content"].says
    assert found["publication"].state == "not yet"


def test_a_user_who_may_nothing(server: Server, source: str, role: str) -> None:
    dsn = make_conninfo(source, user=role)
    found = named(source_checks(settings(dsn), Known()))
    assert found["replication right"].state == "FAIL"
    assert f"ALTER ROLE {role} REPLICATION" in found["replication right"].next_step
    assert found["table shop.content"].next_step == f"GRANT USAGE ON SCHEMA shop TO {role}"
    assert found["schema upwell"].state == "not yet"
    assert "upwell migrate source --print" in found["schema upwell"].next_step
    assert "upwell migrate source --print" in found["publication"].next_step
    assert found["transactions"].state == "skipped"
    with psycopg.connect(source, autocommit=True) as owner:
        owner.execute(f"GRANT USAGE ON SCHEMA shop TO {role}".encode())
        found = named(source_checks(settings(dsn), Known()))
        assert found["table shop.content"].next_step == f"GRANT SELECT ON shop.content TO {role}"
        owner.execute(f"GRANT SELECT ON shop.content TO {role}; ALTER ROLE {role} REPLICATION".encode())
        migrate_source(owner, "shop", ["shop.content"])
        found = named(source_checks(settings(dsn), Known()))
        assert found["table shop.content"].state == found["replication right"].state == "ok"
        assert found["schema upwell"].state == "FAIL"
        assert "heartbeat INSERT" in found["schema upwell"].says


def test_what_holds_a_slot_back(source: str) -> None:
    """Real ones, and the clock of a check that calls everything long."""
    from streams.doctor import database

    with psycopg.connect(source) as open_one, look_at_source(source) as db:
        open_one.execute("INSERT INTO shop.content VALUES (1, 'x')")
        pid = open_one.info.backend_pid
        (row,) = db.rows("long_transactions", {"older_seconds": 0.0})
        assert (row["pid"], row["writes"]) == (pid, True)
        (found,) = database.judge_transactions([row], [], sees_all=True, role="x")
        assert f"pg_terminate_backend({pid})" in found.next_step
        assert db.rows("long_transactions", {"older_seconds": 60.0}) == []


def test_slots_of_this_deployment_only(source: str) -> None:
    with psycopg.connect(source, autocommit=True) as connection:
        for name in ("upwell_shop_1", "upwell_shop_1_1"):
            connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
        found = [c for c in source_checks(settings(source), Known(2, "shop_2")) if "slot" in c.name]
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()"
        )
    slots = [(check.state.value, check.says.split()[0]) for check in found if check.name == "slot"]
    assert slots == [("FAIL", "upwell_shop_2"), ("warn", "upwell_shop_1")]


def test_a_source_without_logical_wal(tmp_path: Path) -> None:
    with PostgresServer(tmp_path, wal_level="replica") as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(TABLES)
        found = named(source_checks(settings(server.dsn()), Known()))
    assert found["wal_level"].state == "FAIL"
    assert "restart the server" in found["wal_level"].next_step
    assert found["table shop.content"].state == "ok"


# The sink


@pytest.mark.parametrize("server", [16, 18], indirect=True)
def test_a_sink_before_and_after_migrate(empty_dsn: str, dsn: str) -> None:
    assert states(sink_checks(settings(sink=empty_dsn))) == {
        "pgvector": "not yet",
        "schema upwell": "not yet",
        "rights": "skipped",
        "generation of content": "skipped",
        "index of content": "skipped",
        "audit partitions": "skipped",
        "vacuum of pending": "skipped",
    }
    assert known_of(settings(sink=empty_dsn)) == Known()
    found = named(sink_checks(settings(sink=dsn)))
    assert states(list(found.values())) == {"generation of content": "FAIL"}
    assert MODEL in found["generation of content"].says
    assert known_of(settings(sink=dsn)).models["content"][0] == MODEL


def test_a_sink_that_is_another_version(dsn: str, connection: psycopg.Connection[Any]) -> None:
    connection.execute("INSERT INTO upwell.migration (number, name) VALUES (9999, 'later')")
    check = named(sink_checks(settings(sink=dsn)))["schema upwell"]
    assert (check.state.value, check.next_step) == ("FAIL", "upgrade upwell")
    connection.execute("DELETE FROM upwell.migration")
    check = named(sink_checks(settings(sink=dsn)))["schema upwell"]
    assert (check.state.value, check.next_step) == ("FAIL", "run `upwell migrate sink`")


def test_a_sink_user_who_may_nothing(server: Server, empty_dsn: str, dsn: str, role: str) -> None:
    found = named(sink_checks(settings(sink=make_conninfo(empty_dsn, user=role))))
    for name in ("pgvector", "schema upwell"):
        assert found[name].state == "FAIL", name
        assert "upwell doctor --sql" in found[name].next_step
    found = named(sink_checks(settings(sink=make_conninfo(dsn, user=role))))
    assert found["rights"].state == "FAIL"
    with server.connect("postgres") as connection:
        connection.execute(f"GRANT upwell_worker TO {role}".encode())
    found = named(sink_checks(settings(sink=make_conninfo(dsn, user=role))))
    assert found["rights"].state == "ok"
    assert "enough for a worker" in found["rights"].says
    assert found["schema upwell"].state == "ok"


def test_a_server_without_pgvector(server18: Server, empty_dsn: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(empty_dsn)["dbname"]
    with server18.connect("postgres") as connection:
        connection.execute(f"ALTER DATABASE {name} SET extension_control_path = '/nonexistent'".encode())
    check = named(sink_checks(settings(sink=empty_dsn)))["pgvector"]
    assert (check.state.value, check.says) == ("FAIL", "the server has no pgvector")


@pytest.mark.parametrize("server", [16, 18], indirect=True)
def test_nothing_can_be_written_while_looking(source: str, dsn: str) -> None:
    for look, address in ((look_at_source, source), (look_at_sink, dsn)):
        with look(address) as db, pytest.raises(UpwellError, match="read-only"), db.asking():
            db.connection.execute("CREATE TABLE public.written ()")


# Grants


@pytest.mark.parametrize("server", [16, 18], indirect=True)
@pytest.mark.parametrize("reachable", [True, False])
def test_the_grants_run_twice_and_satisfy_the_doctor(server: Server, source: str, reachable: bool) -> None:
    """Made with and without a look at the source; both are the administrator's only work."""
    name = f"g{next(NUMBERS)}"
    asked = settings(source).model_copy(update={"name": name})
    gone = asked.model_copy(update={"source": SourceSettings(dsn=make_conninfo(source, host="/nonexistent"))})
    with psycopg.connect(source, autocommit=True) as administrator:
        for _ in range(2):
            administrator.execute(grants(asked if reachable else gone, "source").encode())
    role = f"upwell_{name}_capture"
    limited = asked.model_copy(update={"source": SourceSettings(dsn=make_conninfo(source, user=role))})
    assert states(source_checks(limited, Known())) == {"slot": "not yet", "transactions": "skipped"}
    with psycopg.connect(make_conninfo(source, user=role), autocommit=True) as connection:
        assert migrate_source(connection, name, ["shop.content"]) == []
