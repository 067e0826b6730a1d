"""Bad input against real databases, through the command line: one line, the exit code, and nothing is left behind.

tests/BAD_INPUT.md lists all of it, with the tests of each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from connectors.postgres.migrate import migrate_sink
from infra.stack.postgres import PostgresServer
from schemas.errors import SettingsError
from streams.cli.root import cli
from tests.contracts.conftest import NUMBERS
from tests.contracts.server import Server
from tests.contracts.sinks import layout
from tests.unit.test_cli_errors import SECRET, the_line

TABLES: Final = """
CREATE SCHEMA shop;
CREATE TYPE shop.pair AS (a int, b text);
CREATE TABLE shop.content (id bigint PRIMARY KEY, title text, other text GENERATED ALWAYS AS (title) STORED,
                           pair shop.pair, spans interval[]);
ALTER TABLE shop.content REPLICA IDENTITY FULL;
CREATE TABLE shop.keyless (id bigint, title text);
"""
SPEC: Final = '[collections.content]\ntable = "shop.content"\ntemplate = "{{ title }}"\n'

Run = Callable[..., Result]


@pytest.fixture
def source(server: Server) -> Iterator[str]:
    with server.source(f"bad{next(NUMBERS)}", TABLES) as dsn:
        yield dsn


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "upwell.toml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def upwell(spec: Path, source: str, empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command line with source and sink, and nothing of the caller's own settings."""
    for name in [name for name in os.environ if name.startswith("UPWELL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UPWELL_SOURCE_DSN", source)
    monkeypatch.setenv("UPWELL_SINK_DSN", empty_dsn)

    def run(line: str, **environment: str) -> Result:
        return CliRunner().invoke(cli, ["--spec", str(spec), *line.split()], env=environment)

    return run


def has_schema(dsn: str) -> bool:
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT to_regnamespace('upwell') IS NOT NULL").fetchone() == (True,)


@pytest.mark.parametrize(
    "change",
    [
        ("shop.content", "shop.contents", "the source has no table shop.contents"),
        ("shop.content", "shop.keyless", "shop.keyless has no primary key"),
        ("{{ title }}", "{{ titel }}", "shop.content has no column 'titel', which collection content names"),
        ("{{ title }}", "{{ other }}", "shop.content.other is a generated column"),
        ("{{ title }}", "{{ pair }}", "shop.content.pair is a composite type"),
        (
            "template",
            "metadata = ['spans']\ntemplate",
            "shop.content.spans is interval[], which Debezium does not",
        ),
        ("template", "metadata = ['titel']\ntemplate", "shop.content has no column 'titel'"),
        ("template", "exclude = ['titel']\ntemplate", "exclude of collection content names"),
        ("template", "exclude = ['id']\ntemplate", "'id' is in the primary key"),
    ],
)
@pytest.mark.parametrize("command", ["migrate", "migrate source", "migrate sink", "connector apply"])
def test_a_spec_that_does_not_fit_the_source(
    upwell: Run, spec: Path, empty_dsn: str, change: tuple[str, str, str], command: str
) -> None:
    old, new, said = change
    spec.write_text(SPEC.replace(old, new))
    if command == "connector apply":
        with psycopg.connect(empty_dsn, autocommit=True) as connection:
            migrate_sink(connection, [layout()])
    assert said in the_line(upwell(command), 2)
    assert not has_schema(os.environ["UPWELL_SOURCE_DSN"])
    assert has_schema(empty_dsn) == (command == "connector apply")


@pytest.mark.parametrize(
    ("variable", "command", "place"),
    [
        ("UPWELL_SOURCE_DSN", "migrate", "source"),
        ("UPWELL_SOURCE_DSN", "connector apply", "source"),
        ("UPWELL_SINK_DSN", "report", "sink"),
        ("UPWELL_SINK_DSN", "worker", "sink"),
        ("UPWELL_SINK_DSN", "uninstall --yes", "sink"),
    ],
)
def test_a_login_that_is_refused(upwell: Run, source: str, variable: str, command: str, place: str) -> None:
    """It will not help to try again: the line names the setting, and never the password."""
    refused = make_conninfo(source, user="nobody_of_this_name", password=SECRET)
    line = the_line(upwell(command, **{variable: refused}), 2)
    assert line.startswith(f"{place} database refuses the login: ")
    assert variable in line


def test_no_such_database(upwell: Run, source: str) -> None:
    line = the_line(upwell("report", UPWELL_SINK_DSN=make_conninfo(source, dbname="ghost")), 2)
    assert 'database "ghost" does not exist' in line


def test_a_source_without_logical_wal(upwell: Run, tmp_path: Path) -> None:
    with PostgresServer(tmp_path / "replica", wal_level="replica") as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(TABLES)
        line = the_line(upwell("migrate source", UPWELL_SOURCE_DSN=server.dsn()), 2)
        assert not has_schema(server.dsn())
    assert line == "the source has wal_level replica: set it to logical and restart the server"


# The sink


@pytest.fixture
def empty(empty_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        yield connection


def test_a_server_without_pgvector(server18: Server, empty_dsn: str) -> None:
    """Really none: the server looks for extensions in another place."""
    name = conninfo_to_dict(empty_dsn)["dbname"]
    with server18.connect("postgres") as connection:
        connection.execute(f"ALTER DATABASE {name} SET extension_control_path = '/nonexistent'".encode())
    said = r"^the sink has no pgvector: install it on the server"
    with psycopg.connect(empty_dsn, autocommit=True) as sink, pytest.raises(SettingsError, match=said):
        migrate_sink(sink, [layout()])
    assert not has_schema(empty_dsn)


def test_an_old_pgvector(empty: psycopg.Connection[Any], empty_dsn: str) -> None:
    empty.execute("CREATE EXTENSION vector")
    empty.execute("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    with pytest.raises(
        SettingsError, match=r"pgvector 0\.7\.4.*0\.8 or newer.*ALTER EXTENSION vector UPDATE"
    ):
        migrate_sink(empty, [layout()])
    assert not has_schema(empty_dsn)


@pytest.mark.parametrize("server", [16], indirect=True)
def test_a_sink_that_is_too_old(
    empty: psycopg.Connection[Any], empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 is the oldest server at hand: the limit is raised, the server stays."""
    monkeypatch.setattr("connectors.postgres.migrate.LEAST_SERVER", 170_000)
    with pytest.raises(SettingsError, match=r"^the sink is Postgres 16; upwell needs 15 or newer"):
        migrate_sink(empty, [layout()])
    assert not has_schema(empty_dsn)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("path:/nonexistent", "neither modules.json nor config.json in /nonexistent"),
        ("package:no_such_package", "no Python package no_such_package is installed"),
        ("package:json", "package json has no MODEL_DIR"),
    ],
)
def test_a_model_that_is_not_there(upwell: Run, empty_dsn: str, model: str, said: str) -> None:
    assert said in the_line(upwell("migrate sink", UPWELL_MODEL_NAME=model), 2)
    assert not has_schema(empty_dsn)


def test_what_comes_before_migrate_is_told_what_to_run(upwell: Run, empty_dsn: str) -> None:
    for command in ("worker", "connector apply", "monitor --port 0"):
        assert "run `upwell migrate` first" in the_line(upwell(command), 2), command
    assert not has_schema(empty_dsn)


def test_a_worker_before_connector_apply(upwell: Run, dsn: str) -> None:
    line = the_line(upwell("worker", UPWELL_SINK_DSN=dsn), 2)
    assert line == "nothing is captured yet: run `upwell connector apply` first"


def test_a_second_migrate_of_the_source(upwell: Run, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is another deployment's, or hangs: the second waits a moment, and leaves nothing."""
    monkeypatch.setattr("connectors.postgres.source_schema.LOCK_SECONDS", 0.3)
    with psycopg.connect(source, autocommit=True) as first:
        first.execute("SELECT pg_advisory_lock(hashtext('upwell.migrate_source'))")
        line = the_line(upwell("migrate source"), 2)
        assert line == "another `upwell migrate source` is running: wait for it and run it again"
        assert not has_schema(source)
        first.execute("SELECT pg_advisory_unlock_all()")
    assert upwell("migrate source").exit_code == 0
