"""`upwell explain`: what the sink holds of one key, and what is left of a deleted one."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from connectors.postgres.explain import explain
from schemas.errors import SettingsError
from streams.cli.root import cli
from streams.remains import remains
from tests.contracts.sinks import PostgresSink
from tests.contracts.steps import AT, change, embed_all, take_in, undecodable, when

Ask = Callable[..., Result]

pytestmark = pytest.mark.parametrize("server", [16, 18], indirect=True)


@pytest.fixture
def ask(postgres: PostgresSink, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """The command, over this sink."""
    spec = tmp_path / "upwell.toml"
    spec.write_text('[collections.content]\ntable = "shop.content"\ntemplate = "{{ title }}"\n')
    monkeypatch.setenv("UPWELL_SINK_DSN", postgres.dsn)
    return lambda *words: CliRunner().invoke(cli, ["--spec", str(spec), "explain", *words])


async def test_a_live_key(postgres: PostgresSink, ask: Ask) -> None:
    await take_in(postgres.store, change(42, 5, "a lantern", since=when(9), lsn=77), upto=6)
    await embed_all(postgres.store)
    await take_in(postgres.store, change(42, 8, "a kettle", since=when(10), lsn=88), upto=9, expected=6)
    done = ask("content", "42", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["state"], answer["key"], answer["text"]) == ("live", "[42]", "a kettle")
    assert (answer["record"]["offset"], answer["record"]["lsn"]) == (8, 88)
    assert answer["record"]["committed_at"].startswith("2026-03-01T10:00")
    (generation,) = answer["generations"]
    assert [chunk["chunk_text"] for chunk in generation["chunks"]] == ["a lantern"]
    assert answer["pending"][0]["pending_since"].startswith("2026-03-01T10:00")
    assert [row["action"] for row in answer["audit"]] == ["applied", "embedded", "applied"]
    assert answer["remains"] == []
    printed = ask("content", "42")
    assert printed.exit_code == 0, printed.output
    for words in (
        "content [42], a row of shop.content: live",
        "a kettle",
        "lsn 88",
        "lane live, since 2026-03-01T10",
    ):
        assert words in printed.stdout


async def test_what_is_left_of_a_deleted_key(postgres: PostgresSink, ask: Ask) -> None:
    await take_in(postgres.store, change(42, 5, "a secret", since=when(9)), upto=6)
    await embed_all(postgres.store)
    await take_in(postgres.store, change(42, 8, None, since=when(10)), upto=9, expected=6)
    await take_in(postgres.store, letters=[undecodable(42, 9)], upto=10, expected=9)
    done = ask("content", "42", "--json")
    assert done.exit_code == 0, done.output
    assert "a secret" not in done.stdout
    answer = json.loads(done.stdout)
    assert (answer["state"], answer["text"]) == ("deleted", None)
    assert answer["deleted_at"]
    left = {row["place"]: row for row in answer["remains"]}
    assert {"record", "dead letter 1", "audit", f"Kafka, {AT.topic}/{AT.partition}"} <= set(left)
    assert left["dead letter 1"]["what"] == "the whole record as it came"
    assert left["audit"]["until"] > left[f"Kafka, {AT.topic}/{AT.partition}"]["until"] > answer["deleted_at"]
    assert {"file of upwell.record_content", "file of upwell.embedding_content_g1"} <= set(left)
    await postgres.rows("DELETE FROM upwell.position")  # as after a rebuild, when the old topics are deleted
    assert "Kafka" not in ask("content", "42", "--json").stdout
    printed = ask("content", "42").stdout
    assert "What is left of it" in printed
    assert "a secret" not in printed


async def test_a_vacuum_ends_what_is_in_the_files(postgres: PostgresSink) -> None:
    await take_in(postgres.store, change(1, 5, "x"))
    await embed_all(postgres.store)
    await take_in(postgres.store, change(1, 6, None))

    def files() -> list[str]:
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_stat_force_next_flush()")
            found = explain(connection, "content", ["1"])
        left = remains(found, timedelta(1), timedelta(2))
        return [each.place for each in left if each.place.startswith("file")]

    assert len(files()) == 2  # the file of what is set apart is empty
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("VACUUM upwell.record_content")
        connection.execute("VACUUM upwell.embedding_content_g1")
    assert files() == []


async def test_a_key_that_nobody_knows_is_exit_1(ask: Ask) -> None:
    done = ask("content", "7")
    assert done.exit_code == 1
    assert "content [7], a row of shop.content: unknown" in done.stdout
    assert json.loads(ask("content", "7", "--json").stdout)["state"] == "unknown"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing", "1"), "the sink has no collection 'nothing'"),
        (("content", "seven"), "key column id is bigint, 'seven' is none"),
        (("content", "1", "2"), "a key has the columns id: give a value of each in order, id=..., or a JSON"),
    ],
)
async def test_what_is_asked_wrongly_is_one_line(ask: Ask, words: tuple[str, ...], said: str) -> None:
    done = ask(*words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.output


async def test_keys_are_written_as_they_are_stored(postgres: PostgresSink) -> None:
    await postgres.rows("ALTER TABLE upwell.record_content ADD COLUMN code text, ADD COLUMN active boolean")
    await postgres.rows(
        "UPDATE upwell.collection SET key_columns = '{id,code,active}' WHERE name = 'content'"
    )
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        assert explain(connection, "content", ["7", '7 "x" ä', "true"]).key == '[7,"7 \\"x\\" ä",true]'
        assert explain(connection, "content", ['[7, "as it is", true]']).key == '[7,"as it is",true]'
        assert explain(connection, "content", ["code=a=1, b,active=f,id=7"]).key == '[7,"a=1, b",false]'
        assert explain(connection, "content", ["code=x", "id=7", "active=t"]).key == '[7,"x",true]'
        for words in (
            ["7"],
            ["id=7,code=x"],
            ["id=7,code=x,id=8,active=t"],
            ["x,id=7,code=x,active=t"],
            ["[7]"],
        ):
            with pytest.raises(SettingsError, match="columns id, code, active"):
                explain(connection, "content", words)
