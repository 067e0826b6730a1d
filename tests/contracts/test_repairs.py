"""Keys in doubt (H9): what is looked for at the source, and what follows in the sink. Both are real databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from connectors.postgres.repairs import Repairs
from connectors.postgres.source import connect_source, look_for
from schemas.sink import IntakeRequest
from streams.repairs import Repairing
from tests.contracts.conftest import NUMBERS
from tests.contracts.server import Server
from tests.contracts.sinks import PostgresSink
from tests.contracts.steps import change, embed_all, take_in, undecodable

pytestmark = pytest.mark.parametrize("server", [16, 18], indirect=True)

LOADED = "UPDATE upwell.collection SET load_state = 'loading', load_detail = '{\"ends\": {}}'"


@pytest.fixture
def source(server: Server) -> Iterator[psycopg.Connection[Any]]:
    """A source with content 1, and the signal table."""
    name = f"source{next(NUMBERS)}"
    with psycopg.connect(server.create(name), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA shop; CREATE SCHEMA upwell")
        connection.execute("CREATE TABLE shop.content (id bigint PRIMARY KEY, title text)")
        connection.execute("CREATE TABLE upwell.signal (id text PRIMARY KEY, type text, data text)")
        connection.execute("INSERT INTO shop.content VALUES (1, 'one')")
        yield connection
    server.drop(name)


@pytest.fixture
async def doubtful(postgres: PostgresSink) -> PostgresSink:
    """Records 1 and 2 with vectors, both in doubt; the source has 1 only."""
    await postgres.rows(LOADED)
    await take_in(postgres.store, change(1, 5, "one"), change(2, 6, "two", published=True))
    await embed_all(postgres.store)
    await take_in(postgres.store, repairs_wanted=frozenset({"[1]", "[2]"}))
    return postgres


def step(sink: PostgresSink, source: psycopg.Connection[Any]) -> None:
    async def due() -> bool:
        return True

    Repairing(source.info.dsn + f" dbname={source.info.dbname}", sink.dsn, due).step()


def signals(source: psycopg.Connection[Any]) -> list[Any]:
    return [json.loads(row[0]) for row in source.execute("SELECT data FROM upwell.signal").fetchall()]


async def left(sink: PostgresSink) -> list[tuple[str, bool]]:
    return [(row[0], row[1]) for row in await sink.rows("SELECT key, asked FROM upwell.repair ORDER BY key")]


async def asked_for(sink: PostgresSink) -> frozenset[str]:
    """Keys of which intake would take a re-read's row."""
    seen: list[frozenset[str]] = []

    def decide(view: Any) -> Any:
        seen.append(view.repairs)
        raise LookupError

    with pytest.raises(LookupError):
        await sink.store.intake(IntakeRequest("content", {}, ["[1]", "[2]"]), decide)
    (found,) = seen
    return found


async def test_what_the_source_does_not_have_becomes_a_marker(
    doubtful: PostgresSink, source: psycopg.Connection[Any]
) -> None:
    await take_in(doubtful.store, letters=[undecodable(2, 4)], upto=5)
    step(doubtful, source)
    assert await doubtful.alive() == ["[1]"]
    assert await doubtful.chunks("[2]") == []
    assert await doubtful.rows(
        "SELECT _row, published, _offset FROM upwell.record_content WHERE _deleted"
    ) == [(None, None, 6)]
    assert ("deleted", "[2]") in await doubtful.actions()
    assert await doubtful.dead_letters() == []
    assert await left(doubtful) == [("[1]", True)]


async def test_what_the_source_has_is_read_again_through_the_connector(
    doubtful: PostgresSink, source: psycopg.Connection[Any]
) -> None:
    step(doubtful, source)
    (signal,) = signals(source)
    assert signal["data-collections"] == ["shop.content"]
    assert signal["additional-conditions"][0]["filter"] == "(\"id\" = '1')"
    assert await asked_for(doubtful) == {"[1]"}
    assert await doubtful.chunks("[1]") == ["one"]
    step(doubtful, source)
    assert len(signals(source)) == 1  # not again at once
    await doubtful.rows("UPDATE upwell.repair SET looked_at = now() - interval '1 minute'")
    step(doubtful, source)
    assert len(signals(source)) == 2  # the signal may be lost


async def test_a_row_of_a_load_is_no_answer_to_what_nobody_asked(doubtful: PostgresSink) -> None:
    assert await asked_for(doubtful) == frozenset()


async def test_a_record_that_moves_on_after_the_look_is_left_alone(doubtful: PostgresSink) -> None:
    """H9."""
    with Repairs.alone(doubtful.dsn) as repairs:
        assert repairs is not None
        looked_for = repairs.wanted("content")
        await take_in(doubtful.store, change(2, 7, "two again"))
        assert repairs.remove("content", looked_for) == ["[1]"]
    assert await doubtful.alive() == ["[2]"]


async def test_a_record_that_moved_on_is_left_alone(
    doubtful: PostgresSink, source: psycopg.Connection[Any]
) -> None:
    await take_in(doubtful.store, change(2, 7, "two again"))
    await take_in(doubtful.store, change(1, 8, None))
    step(doubtful, source)
    assert await doubtful.alive() == ["[2]"]
    assert await left(doubtful) == []
    assert signals(source) == []


async def test_a_transaction_that_is_not_visible_yet_is_waited_for(
    doubtful: PostgresSink, source: psycopg.Connection[Any]
) -> None:
    """H5, H9. Its events are sent once its commit is in the log: with a synchronous standby seconds before."""
    with psycopg.connect(source.info.dsn, dbname=source.info.dbname) as writer:
        (xid,) = writer.execute(
            "INSERT INTO shop.content VALUES (2, 'two') RETURNING xmin::text"
        ).fetchone() or [0]
        await doubtful.rows(
            "UPDATE upwell.record_content SET _transaction_id = %s WHERE _key = '[2]'", int(xid)
        )
        step(doubtful, source)
        assert await doubtful.alive() == ["[1]", "[2]"]
        assert ("[2]", False) in await left(doubtful)
        writer.commit()
    step(doubtful, source)
    assert await doubtful.alive() == ["[1]", "[2]"]
    assert await left(doubtful) == [("[1]", True), ("[2]", True)]


@pytest.mark.parametrize("other", ["content", "customers"])
async def test_no_signal_while_a_table_is_being_loaded(
    doubtful: PostgresSink, source: psycopg.Connection[Any], other: str
) -> None:
    """Debezium would end the load under the re-read's id."""
    await doubtful.rows(
        "UPDATE upwell.collection SET load_state = 'loading', load_detail = '{}' WHERE name = %s", other
    )
    step(doubtful, source)
    assert signals(source) == []
    assert await doubtful.alive() == ["[1]"]
    assert await left(doubtful) == [("[1]", False)]


async def test_one_process_at_a_time(doubtful: PostgresSink, source: psycopg.Connection[Any]) -> None:
    with Repairs.alone(doubtful.dsn) as first, Repairs.alone(doubtful.dsn) as second:
        assert first is not None
        assert second is None
        step(doubtful, source)
    assert await left(doubtful) == [("[1]", False), ("[2]", False)]


def test_keys_of_any_type_are_looked_for(source: psycopg.Connection[Any]) -> None:
    source.execute(
        "CREATE TABLE shop.odd (a text, b uuid, c date, d numeric, e boolean, PRIMARY KEY (a, b, c, d, e))"
    )
    one = ("50% of 'x'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "2026-02-03", "1.50", True)
    source.execute("INSERT INTO shop.odd VALUES (%s, %s, %s, %s, %s)", one)
    key = dict(zip("abcde", one, strict=True))
    with connect_source(f"{source.info.dsn} dbname={source.info.dbname}") as connection:
        asked = [key, {**key, "a": "50% of x"}]
        assert look_for(connection, "shop.odd", asked, [None, 3]) == [True, False]
        assert look_for(connection, "shop.odd", [], []) == []


def test_a_transaction_of_a_later_epoch_than_any_is_visible(source: psycopg.Connection[Any]) -> None:
    """A restored source has not come so far: nobody waits for a number that was never given there."""
    (newest,) = source.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone() or [
        0
    ]
    with connect_source(f"{source.info.dsn} dbname={source.info.dbname}") as connection:
        found = look_for(connection, "shop.content", [{"id": 1}] * 2, [newest + 1000, newest - 1])
    assert found == [True, True]
