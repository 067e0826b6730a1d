"""Source and sink compared, and what is repaired in the sink: both are real databases (ADR 0013)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import psycopg
import pytest

from connectors.postgres.comparison import SinkRows, SourceRows, compared
from connectors.postgres.layout import CollectionLayout, Column
from connectors.postgres.mending import REASON, Documents, Mending, standing, workers
from connectors.postgres.migrate import migrate_sink
from connectors.postgres.source import inspect_tables
from schemas.change import Version
from schemas.errors import SettingsError
from schemas.reconcile import Difference, Kind, Stored
from schemas.sink import IntakeRequest
from streams.reconcile.core import candidates, differing, kind_of
from tests.contracts.conftest import NUMBERS
from tests.contracts.server import Server
from tests.contracts.sinks import PostgresSink, generation, layout
from tests.contracts.steps import change, embed_all, take_in, undecodable

pytestmark = pytest.mark.parametrize("server", [16, 18], indirect=True)

METADATA: Final = [column.name for column in layout().metadata]
TABLE: Final = """
CREATE SCHEMA shop;
CREATE TABLE shop.content (id bigint PRIMARY KEY, title text, published boolean, price numeric(10,2), tags text[],
                           updated_at timestamptz, extra jsonb);
INSERT INTO shop.content VALUES (1, 'one', true, 1.5, '{a,"b c"}', '2026-01-01 10:00+02', '{"n": 1.50}'),
                                (2, '', NULL, NULL, '{}', 'infinity', NULL), (3, NULL, false, 0, NULL, NULL, '{}');
"""
ROWS: Final[dict[int, dict[str, Any]]] = {
    1: {
        "published": True,
        "price": "1.50",
        "tags": ["a", "b c"],
        "updated_at": "2026-01-01T08:00:00+00:00",
        "extra": {"n": 1.5},
    },
    2: {"published": None, "price": None, "tags": [], "updated_at": "infinity", "extra": None},
    3: {"published": False, "price": "0.00", "tags": None, "updated_at": None, "extra": {}},
}
TITLES: Final = {1: "one", 2: "", 3: None}
NEEDED: Final = [*METADATA, "extra"]


@pytest.fixture
def source(server: Server) -> Iterator[psycopg.Connection[Any]]:
    """Content 1 to 3, as a session that prints otherwise than ours."""
    name = f"source{next(NUMBERS)}"
    with server.source(name, TABLE) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'; SET extra_float_digits = -3"
        )
        yield connection


@pytest.fixture
async def filled(postgres: PostgresSink) -> PostgresSink:
    """The same three, at offsets 1 to 3."""
    for key, row in ROWS.items():
        await take_in(postgres.store, change(key, key, TITLES[key] or "", title=TITLES[key], **row))
    return postgres


def sides(
    source: psycopg.Connection[Any], sink: psycopg.Connection[Any], needed: Sequence[str] = tuple(NEEDED)
) -> tuple[SourceRows, SinkRows]:
    what = compared(source, inspect_tables(source, ["shop.content"], server=False)["shop.content"], needed)
    assert what.left_out == {}
    return SourceRows(source, what), SinkRows(sink, "content", what, METADATA)


def found(source: SourceRows, sink: SinkRows) -> dict[str, str | None]:
    """Keys that differ, with their kinds."""
    ranges = differing(sink.checksums(), source.checksums())
    keys = list(candidates(sink.rows(ranges), source.rows(ranges)))
    stored = sink.read(keys)
    seen = source.read({key: stored[key].transaction_id for key in keys})
    return {key: kind_of(stored[key], seen[key]) for key in keys}


async def test_equal_rows_are_equal_whatever_the_sessions_say(
    filled: PostgresSink, source: psycopg.Connection[Any], connection: psycopg.Connection[Any]
) -> None:
    theirs, ours = sides(source, connection)
    assert sum(each.rows for each in theirs.checksums().values()) == 3
    assert found(theirs, ours) == {}
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        source.execute("DELETE FROM shop.content")


DAMAGES: Final = {
    "DELETE FROM upwell.record_content WHERE _key = '[1]'": {"[1]": "missing"},
    "UPDATE upwell.record_content SET _deleted = true, _row = NULL WHERE _key = '[2]'": {"[2]": "missing"},
    "INSERT INTO upwell.record_content (_key, _row, _text_hash, _lineage, _offset, _deleted, _streamed, _taken_in_at, "
    "id) VALUES ('[9]', '{\"id\": 9}', '', 1, 9, false, true, now(), 9)": {"[9]": "extra"},
    "UPDATE upwell.record_content SET _row = _row || '{\"title\": \"\"}' WHERE _key = '[3]'": {
        "[3]": "stale"
    },
    "UPDATE upwell.record_content SET _row = _row - 'extra' WHERE _key = '[1]'": {"[1]": "stale"},
    "UPDATE upwell.record_content SET price = 2 WHERE _key = '[1]'": {"[1]": "stale"},
    "UPDATE upwell.record_content SET id = 2 WHERE _key = '[1]'": {"[1]": "stale"},
}


async def test_each_damage_is_found(
    filled: PostgresSink, source: psycopg.Connection[Any], connection: psycopg.Connection[Any]
) -> None:
    theirs, ours = sides(source, connection)
    for damage, expected in DAMAGES.items():
        with connection.transaction(force_rollback=True):
            connection.execute(damage.encode())
            assert found(theirs, ours) == expected, damage


def test_a_key_of_any_characters_and_several_columns(
    server: Server, source: psycopg.Connection[Any], connection: psycopg.Connection[Any]
) -> None:
    odd = [("it's", 'a "quoted" \\ one'), ("ä,b", "🦊"), ("a", "b,c"), ("a,b", "c"), ("", "[1]")]
    source.execute("CREATE TABLE shop.odd (a text, b text, PRIMARY KEY (b, a))")
    key = (Column("b", "text"), Column("a", "text"))
    migrate_sink(connection, [CollectionLayout("odd", "shop.odd", key, (), generation("odd"), 30.0)])
    for number, (a, b) in enumerate(odd):
        source.execute("INSERT INTO shop.odd VALUES (%s, %s)", (a, b))
        connection.execute(
            "INSERT INTO upwell.record_odd (_key, _row, _text_hash, _lineage, _offset, _deleted, _streamed, "
            "_taken_in_at, a, b) VALUES (%s, %s, '', 1, %s, false, true, now(), %s, %s)",
            (
                json.dumps([b, a], ensure_ascii=False, separators=(",", ":")),
                json.dumps({"a": a, "b": b}),
                number,
                a,
                b,
            ),
        )
    what = compared(source, inspect_tables(source, ["shop.odd"], server=False)["shop.odd"], [])
    theirs, ours = SourceRows(source, what), SinkRows(connection, "odd", what, [])
    assert found(theirs, ours) == {}
    connection.execute("DELETE FROM upwell.record_odd")
    missing = found(theirs, ours)
    assert set(missing.values()) == {Kind.MISSING}
    assert sorted(json.loads(each) for each in missing) == sorted([b, a] for a, b in odd)


def test_types_that_may_print_otherwise_are_left_out_and_said(
    source: psycopg.Connection[Any], server: Server
) -> None:
    source.execute(
        "CREATE TYPE shop.mood AS ENUM ('good'); CREATE DOMAIN shop.cents AS bigint; CREATE TYPE shop.pair AS (a int);"
        "CREATE TABLE shop.odd (id int PRIMARY KEY, p point, r int4range, v varbit(8), f real[], t shop.pair, "
        "m shop.mood, ms shop.mood[], c shop.cents, made int GENERATED ALWAYS AS (id + 1) STORED, j json, k json)"
    )
    source.execute(
        """INSERT INTO shop.odd (id, j, k) VALUES (1, '{"a": "\\u0000"}', '{"a": "\\ud83e\\udd8a \\u00e9"}')"""
    )
    table = inspect_tables(source, ["shop.odd"], server=False)["shop.odd"]
    what = compared(source, table, [*table.types, "gone"])
    assert sorted(what.left_out) == ["f", "gone", "j", "made", "p", "r", "t", "v"]
    assert [each.name for each in what.columns] == ["c", "id", "k", "m", "ms"]
    assert sum(each.rows for each in SourceRows(source, what).checksums().values()) == 1


def test_a_key_that_cannot_be_named_is_refused(source: psycopg.Connection[Any], server: Server) -> None:
    source.execute("CREATE TABLE shop.odd (id interval PRIMARY KEY)")
    with pytest.raises(SettingsError, match="its key has type interval"):
        compared(source, inspect_tables(source, ["shop.odd"], server=False)["shop.odd"], [])


async def test_a_commit_that_is_not_visible_yet_is_said(
    filled: PostgresSink, source: psycopg.Connection[Any], connection: psycopg.Connection[Any], server: Server
) -> None:
    with psycopg.connect(f"{source.info.dsn} dbname={source.info.dbname}") as writer:
        row = writer.execute(
            "DELETE FROM shop.content WHERE id = 1 RETURNING pg_current_xact_id()::text::bigint"
        )
        (xid,) = row.fetchone() or [0]
        theirs, _ = sides(source, connection)
        seen = theirs.read({"[1]": xid, "[2]": None, "[3]": 3})
        assert [seen[key].visible for key in ("[1]", "[2]", "[3]")] == [False, True, True]
        assert seen["[1]"].digest is not None
        writer.commit()
    seen = theirs.read({"[1]": xid})
    assert seen["[1]"].visible
    assert seen["[1]"].digest is None


def difference(kind: Kind, key: int, offset: int | None) -> Difference:
    stored = Stored() if offset is None else Stored(Version(1, offset))
    return Difference(kind, f"[{key}]", stored)


async def test_a_ghost_goes_only_in_the_version_that_was_proven(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    await take_in(postgres.store, *(change(key, key, f"text {key}") for key in (1, 2, 3)))
    await embed_all(postgres.store)
    await take_in(postgres.store, change(2, 7, "two again"))
    await take_in(postgres.store, letters=[undecodable(3, 8)], upto=9)
    ghosts = [difference(Kind.EXTRA, key, key) for key in (1, 2, 3)]
    assert Mending(connection, "content", 1).remove_ghosts(ghosts) == 1
    assert await postgres.alive() == ["[2]", "[3]"]
    assert await postgres.chunks("[1]") == []
    assert await postgres.rows("SELECT detail ->> 'reason' FROM upwell.audit WHERE action = 'deleted'") == [
        (REASON,)
    ]


async def test_what_is_asked_for_is_let_in_for_the_stored_version(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    """A record, a marker, and a key that the sink has never had; not one that has moved on."""
    await take_in(postgres.store, change(1, 1, "one"), change(2, 2, None), change(4, 4, "four"))
    mending = Mending(connection, "content", 1)
    asked = [difference(Kind.STALE, 1, 1), difference(Kind.MISSING, 2, 2), difference(Kind.MISSING, 3, None)]
    mending.ask([*asked, difference(Kind.STALE, 4, 3)])
    seen: list[frozenset[str]] = []

    def decide(view: Any) -> Any:
        seen.append(view.repairs)
        raise LookupError

    with pytest.raises(LookupError):
        await postgres.store.intake(IntakeRequest("content", {}, ["[1]", "[2]", "[3]", "[4]"]), decide)
    assert seen == [{"[1]", "[2]"}]
    assert not await postgres.store.repairs_due()  # the workers' own service leaves them alone for now
    mending.forget(asked)
    assert await postgres.rows("SELECT key FROM upwell.repair") == [("[4]",)]


async def test_vectors_that_are_wrong_are_made_again(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    await take_in(postgres.store, *(change(key, key, f"text {key}") for key in (1, 2, 3, 4)))
    await embed_all(postgres.store)
    await postgres.remove_chunks("[1]")
    await take_in(postgres.store, change(3, 7, "text 3", embed="keep"))
    documents, mending = Documents(connection, "content", 1), Mending(connection, "content", 1)
    assert [each.key for each in documents.without_vector()] == ["[1]"]
    (read,) = documents.read(["[2]"])
    assert (read.version, read.texts, len(read.vectors)) == (Version(1, 2), ["text 2"], 1)
    wrong = [difference(Kind.WRONG_VECTOR, key, key) for key in (1, 2, 3)]
    assert mending.embed_again(wrong) == 2
    assert await postgres.chunks("[2]") == []
    assert await postgres.chunks("[3]") == ["text 3"]
    assert list(documents.without_vector()) == []  # they are pending
    row = await postgres.pending("[2]")
    assert row is not None
    assert (row.lane, row.pending_since) == ("backfill", None)
    await embed_all(postgres.store)
    assert await postgres.chunks("[2]") == ["text 2"]


async def test_vectors_without_a_record_are_found_and_go(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    await take_in(postgres.store, change(1, 1, "one"), change(2, 2, "two"))
    await embed_all(postgres.store)
    connection.execute("DELETE FROM upwell.record_content WHERE _key = '[1]'")
    documents, mending = Documents(connection, "content", 1), Mending(connection, "content", 1)
    assert list(documents.orphans()) == ["[1]"]
    mending.remove_orphans(["[1]", "[2]"])
    assert list(documents.orphans()) == []
    assert await postgres.chunks("[2]") == ["two"]
    assert documents.sample(5) == ["[2]"]


def test_where_a_collection_stands(connection: psycopg.Connection[Any], server: Server) -> None:
    found = standing(connection, "content")
    assert found is not None
    assert (found.load_state, found.table, found.lineage) == ("incomplete", "shop.content", None)
    assert standing(connection, "nothing") is None
    assert workers(connection) == 0
