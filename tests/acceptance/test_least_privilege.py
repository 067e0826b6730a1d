"""With nothing but what `upwell doctor --sql` grants, everything runs: no superuser is needed after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from streams.grants import sink_roles
from tests.acceptance.plain import one
from tests.deployment import Deployment, until

pytestmark = pytest.mark.acceptance


@pytest.fixture
def granted(deployment: Deployment) -> Iterator[Deployment]:
    """The shop's tables, and both scripts run by the superuser; the deployment itself has only the logins."""
    name, superuser = deployment.name, dict(deployment.environment)
    with deployment.source() as source:
        source.execute("CREATE SCHEMA shop")
        source.execute("CREATE TABLE shop.content (id bigint PRIMARY KEY, title text, body text, tags text[], "
                       "locale text, published boolean, price numeric(10,2), updated_at timestamptz)")  # fmt: skip
        source.execute("CREATE TABLE shop.customers (id bigint PRIMARY KEY, full_name text, segment text, "
                       "interests text, notes text, marketing_consent boolean, email text, "
                       "updated_at timestamptz)")  # fmt: skip
        source.execute("CREATE TABLE shop.secret (id bigint PRIMARY KEY)")
        source.execute("INSERT INTO shop.content (id, title) VALUES (1, 'tea')")
        source.execute(deployment.upwell("doctor", "--sql", "source").stdout.encode())
        source.execute(deployment.upwell("doctor", "--sql", "source").stdout.encode())
    with deployment.sink() as sink:
        script = deployment.upwell("doctor", "--sql", "sink").stdout.encode()
        sink.execute(script)
        sink.execute(script)
    admin, worker = sink_roles(name)
    capture = f"upwell_{name}_capture"
    secrets = deployment.stack.home / "secrets" / f"{name}.properties"
    secrets.write_text(f"user={capture}\npassword=unused\n")
    deployment.environment.update(
        UPWELL_SOURCE_DSN=make_conninfo(deployment.source_dsn, user=capture),
        UPWELL_SINK_DSN=make_conninfo(deployment.sink_dsn, user=admin),
        UPWELL_CONNECT_SECRETS_FILE=str(secrets),
    )
    yield deployment
    deployment.environment.update(superuser)
    deployment.close()
    secrets.unlink()
    for variable, roles in (("UPWELL_SOURCE_DSN", [capture]), ("UPWELL_SINK_DSN", [admin, worker])):
        with psycopg.connect(deployment.stack.variables[variable], autocommit=True) as connection:
            for role in roles:
                connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def test_no_superuser_after_the_grants(granted: Deployment, tmp_path: Path) -> None:
    before = granted.upwell("doctor", "--no-model").stdout
    assert "FAIL" not in before
    assert granted.upwell("migrate", "source").stdout == "source: nothing to do\n"
    granted.upwell("migrate")
    granted.upwell("migrate")  # a session that has made no vector yet
    granted.upwell("connector", "apply", "--no-load")
    admin = granted.sink_dsn
    worker = sink_roles(granted.name)[1]
    granted.environment["UPWELL_SINK_DSN"] = make_conninfo(admin, user=worker)
    running = granted.start_worker(module="tests.fake_worker", arguments=())
    monitor = granted.start_worker("monitor", arguments=("monitor", "--port", "0"))
    granted.environment["UPWELL_SINK_DSN"] = admin
    try:
        granted.upwell("connector", "apply", "--wait", "60")
    except AssertionError as error:
        raise AssertionError(running.tail()) from error
    with psycopg.connect(admin) as sink:
        assert sink.execute("SELECT id, title FROM upwell.content").fetchall() == [(1, "tea")]
        fresh = "SELECT count(*) = 2 FROM upwell.freshness WHERE verdict = 'FRESH'"
        until(lambda: one(sink, fresh), 60, f"both FRESH: {monitor.tail()}")
    assert monitor.stop() == 0, monitor.tail()
    assert "warning" not in monitor.log.read_text(), monitor.tail()
    after = granted.upwell("doctor", "--no-model").stdout
    assert "FAIL" not in after
    _the_logins_may_nothing_more(granted, worker)
    assert running.stop() == 0


def _the_logins_may_nothing_more(granted: Deployment, worker: str) -> None:
    with psycopg.connect(granted.source_dsn, autocommit=True) as source:
        for query in ("SELECT * FROM shop.secret", "DELETE FROM shop.content", "CREATE TABLE upwell.mine ()",
                      "DELETE FROM upwell.deployment"):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                source.execute(query.encode())
    with psycopg.connect(make_conninfo(granted.sink_dsn, user=worker), autocommit=True) as sink:
        for query in (
            "DELETE FROM upwell.generation",
            "DROP TABLE upwell.pending",
            "CREATE TABLE public.mine ()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                sink.execute(query.encode())
    supers = (
        "SELECT 1 FROM pg_roles WHERE rolname = current_user AND (rolsuper OR rolcreaterole OR rolcreatedb)"
    )
    for dsn in (granted.source_dsn, granted.sink_dsn):
        with psycopg.connect(dsn) as connection:
            assert connection.execute(supers.encode()).fetchone() is None
    assert conninfo_to_dict(granted.sink_dsn)["user"] != "postgres"
