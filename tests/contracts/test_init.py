"""`upwell init`: a first spec from a real catalog, and that what it says can be migrated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from connectors.postgres.migrate import migrate_sink
from connectors.postgres.source import connect_source, inspect_tables
from streams.cli.root import cli
from streams.migration import ModelFacts, layout
from streams.settings import load
from tests.contracts.conftest import NUMBERS
from tests.contracts.server import Server

TABLES = """
CREATE SCHEMA crm;
CREATE TYPE crm.mood AS ENUM ('good', 'bad');
CREATE DOMAIN crm.percent AS numeric(5, 2);
CREATE TABLE crm.notes (
    tenant text, code text, title varchar(80), body text, labels text[], mood crm.mood, moods crm.mood[],
    share crm.percent, details jsonb, score int, weight double precision, contact_email text, phone_number text,
    seen_at timestamptz,
    upper_title text GENERATED ALWAYS AS (upper(title)) STORED, "Mixed" int, PRIMARY KEY (code, tenant));
CREATE TABLE crm.worker (id int PRIMARY KEY, about text);
ALTER TABLE crm.worker REPLICA IDENTITY FULL;
CREATE TABLE crm.numbers (id int PRIMARY KEY, one int, two int);
CREATE TABLE crm.keyless (one text);
CREATE TABLE crm.silent (id int PRIMARY KEY, one text);
ALTER TABLE crm.silent REPLICA IDENTITY NOTHING;
CREATE TABLE crm."Loud" (id int PRIMARY KEY, one text);
"""

Init = Callable[..., Result]


@pytest.fixture
def source(server: Server) -> Iterator[str]:
    with server.source(f"crm{next(NUMBERS)}", TABLES) as dsn:
        yield dsn


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return tmp_path / "upwell.toml"


@pytest.fixture
def init(source: str, spec: Path) -> Init:
    return lambda *words: CliRunner().invoke(cli, ["--spec", str(spec), "init", "--from-dsn", source, *words])


@pytest.mark.parametrize("server", [16, 18], indirect=True)
def test_every_table_is_sorted_out_and_can_be_migrated(
    init: Init, spec: Path, source: str, empty_dsn: str
) -> None:
    done = init()
    assert done.exit_code == 0, done.output
    assert "with 2 collections" in done.stdout
    text = spec.read_text()
    assert "# crm.numbers has no column with text to embed." in text
    assert "keyless" not in text
    assert "postgres" not in text
    settings = load(spec, environment={})
    notes = settings.collections["notes"]
    assert notes.template.split() == [
        "{{",
        "title",
        "}}",
        "{{",
        "body",
        "}}",
        "{{",
        "labels",
        "}}",
    ]
    assert notes.metadata == ("mood", "moods", "share", "details", "weight", "seen_at")
    assert notes.exclude == ("contact_email", "phone_number")
    assert "# Left out: score, upper_title, Mixed" in text
    assert '# A piece of details: {{ details.piece | default("") }}' in text
    assert (
        "# Left out: crm.silent has REPLICA IDENTITY NOTHING: published so, its own UPDATEs would fail."
        in text
    )
    assert "# Left out: crm.Loud: only names of lower-case letters, digits and _ can be captured." in text
    said = "before that, the table's owner runs: ALTER TABLE crm.notes REPLICA IDENTITY FULL;"
    assert done.stdout.splitlines()[1:] == [said]
    assert "ALTER TABLE crm.notes REPLICA IDENTITY FULL" in text
    assert "ALTER TABLE crm.worker" not in text
    assert settings.collections["crm_worker"].table == "crm.worker"
    with connect_source(source) as connection:
        found = inspect_tables(connection, ["crm.notes"])["crm.notes"]
    assert [column.name for column in found.key] == ["code", "tenant"]
    with psycopg.connect(empty_dsn, autocommit=True) as sink:
        migrate_sink(sink, [layout("notes", notes, found, ModelFacts("package:fake", 4, 126))])
        assert _types(sink) == {
            "code": "text",
            "tenant": "text",
            "mood": "text",
            "moods": "text[]",
            "details": "jsonb",
            "share": "numeric(5,2)",
            "weight": "double precision",
            "seen_at": "timestamp with time zone",
        }


def _types(sink: psycopg.Connection[Any]) -> dict[str, str]:
    query = (
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = 'upwell.record_notes'::regclass AND attnum > 0 AND left(attname, 1) <> '_'"
    )
    return dict(sink.execute(query).fetchall())


def test_one_table_and_a_spec_that_is_there(init: Init, spec: Path) -> None:
    assert init("--table", "crm.worker").exit_code == 0
    assert list(load(spec, environment={}).collections) == ["crm_worker"]
    again = init("--table", "crm.notes")
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    assert init("--table", "crm.notes", "--force").exit_code == 0
    assert list(load(spec, environment={}).collections) == ["notes"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("crm.nothing", "the source has no table crm.nothing"),
        ("crm.keyless", "crm.keyless has no primary key"),
    ],
)
def test_what_cannot_be_captured_is_one_line_and_nothing_is_written(
    init: Init, spec: Path, table: str, said: str
) -> None:
    done = init("--table", table)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert not spec.exists()
