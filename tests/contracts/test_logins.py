"""A refused login is told from a server that does not answer, by its SQLSTATE; no message holds a password."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from connectors.postgres.capture_state import connect_sink
from connectors.postgres.login import refusal
from connectors.postgres.source import connect_source
from schemas.errors import Retry, SinkRefused, SinkUnavailable, SourceRefused, SourceUnavailable
from streams.intake.retry import persist
from tests.contracts.server import Server
from tests.deployment import until
from tests.unit.test_cli_errors import SECRET, dsn

pytestmark = pytest.mark.parametrize("server", [16, 18], indirect=True)


@pytest.fixture
def locked(server: Server) -> str:
    """DSN of a role that needs a password, with a wrong one."""
    hba = server.directory / "data" / "pg_hba.conf"
    line = "local all locked scram-sha-256\n"
    with server.connect("postgres") as connection:
        if line not in hba.read_text():
            hba.write_text(line + hba.read_text())
            connection.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
            connection.execute("CREATE ROLE closed NOLOGIN")
            connection.execute("SELECT pg_reload_conf()")
    refused = make_conninfo(server.dsn("postgres"), user="locked", password=SECRET)
    until(lambda: refusal(refused), 10, "the server has read its rules")
    return refused


def test_the_sqlstate_of_each_refusal(server: Server, locked: str) -> None:
    assert refusal(locked) == "28P01"
    assert refusal(make_conninfo(server.dsn("postgres"), user="ghost")) == "28000"
    assert refusal(make_conninfo(server.dsn("postgres"), user="closed")) == "28000"
    assert refusal(server.dsn("ghost")) == "3D000"
    assert refusal(server.dsn("postgres", options="-c role=ghost")) == "22023"
    assert refusal(server.dsn("postgres")) is None
    assert refusal(make_conninfo(locked, password="right")) is None
    assert refusal(dsn()) is None


def test_refused_is_exit_2_with_the_settings_name(locked: str) -> None:
    with pytest.raises(SourceRefused, match=r"source database refuses.*UPWELL_SOURCE_DSN") as source:
        connect_source(locked).__enter__()
    with pytest.raises(SinkRefused, match=r"sink database refuses.*UPWELL_SINK_DSN") as sink:
        connect_sink(locked).__enter__()
    for caught in (source.value, sink.value):
        assert caught.exit_code == 2
        assert "\n" not in str(caught)
        assert SECRET not in str(caught)
    with pytest.raises(SourceRefused):  # libpq itself gives up where no password is given
        connect_source(make_conninfo(locked, password="")).__enter__()


def test_away_and_full_are_exit_3(server: Server, locked: str) -> None:
    with pytest.raises(SourceUnavailable) as away:
        connect_source(dsn()).__enter__()
    assert (type(away.value), away.value.exit_code) == (SourceUnavailable, 3)
    with server.connect("postgres") as connection:
        connection.execute("ALTER ROLE locked CONNECTION LIMIT 0")
        full = make_conninfo(locked, password="right")
        with pytest.raises(SinkUnavailable) as caught:
            connect_sink(full).__enter__()
        connection.execute("ALTER ROLE locked CONNECTION LIMIT -1")
    assert (type(caught.value), caught.value.exit_code) == (SinkUnavailable, 3)
    psycopg.connect(full).close()


async def test_a_running_worker_tries_again(locked: str) -> None:
    """The password is changed just now: what runs waits, as for a server that is away."""
    tries = []

    async def attempt() -> int:
        tries.append(1)
        if len(tries) < 3:
            connect_sink(locked).__enter__()
        return 7

    assert issubclass(SinkRefused, Retry)
    assert await persist(attempt, should_stop=lambda: False, deadline_seconds=30, where="x") == 7
