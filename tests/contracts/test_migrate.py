"""The sink's schema: made once, brought in line, refused when newer; roles and their least privilege."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import sql

from connectors.postgres.layout import Column
from connectors.postgres.migrate import check_schema, migrate_sink, migrations
from connectors.postgres.store import PostgresStore
from schemas.errors import GenerationMismatch, MigrationNeeded, SettingsError, SlotTaken, UpwellError
from schemas.names import VIEW_COLUMNS
from tests.contracts.server import Server
from tests.contracts.sinks import COLUMNS, layout
from tests.contracts.steps import change, claim, document, embed_all, take_in, when
from tests.deployment import until

Connection = psycopg.Connection[Any]


@pytest.fixture
def empty(empty_dsn: str) -> Iterator[Connection]:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize("server", [16, 18], indirect=True)
def test_migrate_twice_does_nothing_the_second_time(empty: Connection) -> None:
    assert migrate_sink(empty, [layout()])
    assert migrate_sink(empty, [layout()]) == []
    check_schema(empty)


def test_a_worker_before_migrate_is_told_what_to_run(empty: Connection) -> None:
    with pytest.raises(MigrationNeeded, match="upwell migrate"):
        check_schema(empty)


async def test_a_store_before_migrate_is_told_what_to_run(empty_dsn: str) -> None:
    with pytest.raises(MigrationNeeded, match="upwell migrate"):
        await PostgresStore.open(empty_dsn, writer="w")


def test_a_newer_schema_is_refused(connection: Connection) -> None:
    newest = max(number for number, _, _ in migrations())
    connection.execute("INSERT INTO upwell.migration (number, name) VALUES (%s, 'later')", (newest + 1,))
    with pytest.raises(MigrationNeeded):
        check_schema(connection)
    with pytest.raises(MigrationNeeded):
        migrate_sink(connection, [layout()])


def test_a_second_runner_gets_one_clear_line(connection: Connection, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as first:
        first.execute("SELECT pg_advisory_lock(hashtext('upwell.migrate'), 0)")
        with pytest.raises(UpwellError, match=r"^another .*migrate.* is running") as caught:
            migrate_sink(connection, [layout()])
        assert "\n" not in str(caught.value)
        first.execute("SELECT pg_advisory_unlock_all()")  # a closed session's backend ends a moment later
    migrate_sink(connection, [layout()])


def test_h20_a_migrate_waits_for_a_worker_before_it_has_locked_anything(
    connection: Connection, dsn: str
) -> None:
    """Altering a table first, and then waiting for a worker that wants the table, is a deadlock."""
    wider = layout(metadata=[*COLUMNS, Column("added", "text")])
    with (
        ThreadPoolExecutor(1) as thread,
        psycopg.connect(dsn, autocommit=True) as other,
        psycopg.connect(dsn) as worker,
    ):
        worker.execute(
            "SELECT pg_advisory_xact_lock_shared(hashtext('upwell.collection'), hashtext('content'))"
        )
        migrating = thread.submit(migrate_sink, other, [wider])
        query = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        until(lambda: connection.execute(query).fetchone() == (True,), 10, "it waits for the worker")
        for table in ("record_content", "pending", "embedding_content_g1", "audit"):
            worker.execute(f"LOCK TABLE upwell.{table} IN ROW EXCLUSIVE MODE NOWAIT".encode())
        worker.commit()
        migrating.result(10)
    assert connection.execute("SELECT added FROM upwell.content").fetchall() == []


def test_nothing_is_left_of_a_migrate_that_failed(empty: Connection) -> None:
    bad = layout("customers", metadata=[Column("odd", "no_such_type")])
    with pytest.raises(UpwellError):
        migrate_sink(empty, [layout(), bad])
    assert empty.execute("SELECT to_regclass('upwell.pending')").fetchone() == (None,)
    migrate_sink(empty, [layout()])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"template": "x", "fingerprint": "f2"}, "template"),
        ({"max_tokens": 64, "fingerprint": "f2"}, "max_tokens"),
    ],
)
def test_other_vectors_need_a_generation_command(
    connection: Connection, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(GenerationMismatch, match=rf"{said}.*upwell generation create content"):
        migrate_sink(connection, [layout(**changed)])


@pytest.mark.parametrize("name", ["_key", "_offset", "embedding", "is_stale", "stale_since"])
def test_a_column_with_one_of_our_names_is_refused(connection: Connection, name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        migrate_sink(connection, [layout(metadata=[Column(name, "text")])])


async def test_a_new_metadata_column_appends_wherever_it_is_named(dsn: str, connection: Connection) -> None:
    store = await PostgresStore.open(dsn, writer="w")
    await take_in(store, change(1, 1, "tea", locale="de", price="3.50"))
    await embed_all(store)
    await store.close()
    migrate_sink(connection, [layout(metadata=[Column("locale", "text"), *COLUMNS])])
    assert connection.execute("SELECT id, locale, price::text FROM upwell.content").fetchall() == [
        (1, "de", "3.50")
    ]
    description = connection.execute("SELECT * FROM upwell.content").description
    assert description is not None
    assert description[-1].name == "locale"
    assert migrate_sink(connection, [layout(metadata=[Column("locale", "text"), *COLUMNS])]) == []


async def test_a_column_of_another_type_is_made_anew_and_all_rows_are_read_again(
    dsn: str, connection: Connection
) -> None:
    """Its values were rewritten at the source, and no event says so. What cannot be converted is NULL until then."""
    store = await PostgresStore.open(dsn, writer="w")
    await take_in(store, change(1, 1, "tea", price="3.50", locale="de"), change(2, 2, "milk", price="4"))
    await embed_all(store)
    await store.close()
    wider = [Column("price", "text") if column.name == "price" else column for column in COLUMNS]
    assert migrate_sink(connection, [layout(metadata=wider)]) == [
        "collection content: price is text now",
        "collection content: 2 rows are read again",
    ]
    assert connection.execute("SELECT price FROM upwell.content ORDER BY id").fetchall() == [
        ("3.50",),
        ("4",),
    ]
    assert migrate_sink(connection, [layout(metadata=wider)]) == []
    narrower = [Column("title", "int") if column.name == "title" else column for column in wider]
    migrate_sink(connection, [layout(metadata=narrower)])
    assert connection.execute("SELECT title FROM upwell.content").fetchall() == [(None,), (None,)]
    query = "SELECT score FROM upwell.search_content('package:fake', '[1,0,0,0]', 5)"
    assert len(connection.execute(query).fetchall()) == 2


async def test_rows_are_read_again_where_a_new_column_has_values_that_no_event_told_of(
    dsn: str, connection: Connection
) -> None:
    store = await PostgresStore.open(dsn, writer="w")
    await take_in(store, change(1, 1, "tea"), change(2, 2, "milk", stars=5), change(3, 3, "x"))
    await take_in(store, change(3, 4, None))
    await store.close()
    added = layout(metadata=[*COLUMNS, Column("stars", "int")])
    assert migrate_sink(connection, [replace(added, valued=frozenset({"stars"}))]) == [
        "collection content: 1 rows are read again"
    ]
    assert connection.execute("SELECT key, committed_at FROM upwell.repair").fetchall() == [("[1]", None)]


async def test_values_have_their_own_types(dsn: str, connection: Connection) -> None:
    store = await PostgresStore.open(dsn, writer="w")
    row: dict[str, Any] = {
        "published": True,
        "price": "1234.50",
        "tags": ["a", 'b "quoted", c'],
        "updated_at": "2026-03-01T10:00:00+00:00",
    }
    await take_in(store, change(9007199254740993, 1, "tea", **row))
    await embed_all(store)
    await store.close()
    found = connection.execute(
        "SELECT id, published, price::text, tags, updated_at AT TIME ZONE 'UTC' FROM upwell.content"
    ).fetchone()
    assert found is not None
    assert found[:4] == (9007199254740993, True, "1234.50", ["a", 'b "quoted", c'])
    assert str(found[4]) == "2026-03-01 10:00:00"


async def test_a_row_that_cannot_be_stored_is_rejected_and_nothing_else_written(dsn: str) -> None:
    from schemas.errors import RecordRejected

    store = await PostgresStore.open(dsn, writer="w")
    for bad in ({"price": "99999999999.00"}, {"updated_at": "no time"}, {"tags": ["nul \x00"]}):
        with pytest.raises(RecordRejected) as caught:
            await take_in(store, change(1, 1, "ok"), change(2, 2, "bad", **bad), upto=3)
        assert "\n" not in str(caught.value)
    assert await store.positions(["shop.shop.content"]) == {}
    await store.close()


OLDER_VIEW = """
DROP FUNCTION upwell.search_content(text, vector, int, int);
DROP VIEW upwell.content;
CREATE VIEW upwell.content AS
SELECT r.id, e.chunk_no, e.chunk_text, e.embedding::vector, 'package:fake'::text AS model,
       r._committed_at AS source_committed_at, e.embedded_at, false AS is_stale, r.price, r.title
  FROM upwell.embedding_content_g1 e JOIN upwell.record_content r ON r._key = e.key;
CREATE FUNCTION upwell.search_content(text, vector, int, int) RETURNS TABLE (id bigint, is_stale boolean)
LANGUAGE sql AS 'SELECT id, is_stale FROM upwell.content';
"""


def columns_of(connection: Connection, relation: str) -> list[str]:
    return [
        column.name for column in connection.execute(f"SELECT * FROM {relation}".encode()).description or ()
    ]


@pytest.mark.parametrize("server", [16, 18], indirect=True)
def test_a_view_of_before_is_brought_in_line(server: Server, connection: Connection) -> None:
    """The column is in its place, metadata stay in the order that they had, and new ones append."""
    connection.execute(OLDER_VIEW.encode())
    migrate_sink(connection, [layout()])
    system = list(VIEW_COLUMNS)
    expected = ["id", *system, "price", "title", "published", "tags", "updated_at"]
    assert columns_of(connection, "upwell.content") == expected
    search = "upwell.search_content('package:fake', '[1,0,0,0]')"
    assert columns_of(connection, search) == [*expected, "score"]
    for relation in ("upwell.content", search):
        assert as_role(connection, "upwell_reader", f"SELECT stale_since FROM {relation}"), relation
    oid = connection.execute("SELECT 'upwell.content'::regclass::oid").fetchone()
    assert migrate_sink(connection, [layout()]) == []
    assert connection.execute("SELECT 'upwell.content'::regclass::oid").fetchone() == oid, "made once"


# -- roles


def as_role(connection: Connection, role: str, query: str) -> bool:
    """Whether `role` may."""
    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
    try:
        connection.execute(query.encode())
    except psycopg.errors.InsufficientPrivilege:
        return False
    finally:
        connection.execute("RESET ROLE")
    return True


def test_a_reader_sees_views_and_functions_only(connection: Connection) -> None:
    search = "SELECT * FROM upwell.search_content('package:fake', '[1,0,0,0]', 3)"
    assert as_role(connection, "upwell_reader", "SELECT * FROM upwell.content")
    assert as_role(connection, "upwell_reader", search)
    for table in (
        "record_content",
        "embedding_content_g1",
        "pending",
        "audit",
        "dead_letter",
        "position",
        "generation",
    ):
        assert not as_role(connection, "upwell_reader", f"SELECT * FROM upwell.{table}"), table
    assert not as_role(connection, "upwell_reader", "SELECT upwell.make_audit_partitions(1, 1)")


def test_nobody_else_sees_anything(connection: Connection) -> None:
    connection.execute("DROP ROLE IF EXISTS passer_by")
    connection.execute("CREATE ROLE passer_by")
    assert not as_role(connection, "passer_by", "SELECT * FROM upwell.content")
    assert not as_role(connection, "passer_by", "SELECT upwell.make_audit_partitions(1, 1)")


def test_a_worker_cannot_change_what_only_migrate_changes(connection: Connection) -> None:
    for query in (
        "DELETE FROM upwell.migration",
        "UPDATE upwell.generation SET state = 'retired'",
        "DELETE FROM upwell.collection",
        "DELETE FROM upwell.audit",
        "UPDATE upwell.audit SET key = NULL",
        "CREATE TABLE upwell.mine ()",
        "DROP TABLE upwell.pending",
    ):
        assert not as_role(connection, "upwell_worker", query), query


@pytest.mark.parametrize("server", [16, 18], indirect=True)
async def test_a_worker_can_do_its_work(server: Server, dsn: str, connection: Connection) -> None:
    database = connection.info.dbname
    store = await PostgresStore.open(server.dsn(database, options="-c role=upwell_worker"), writer="w")
    await store.register_worker("w", "host", 1)
    await take_in(store, change(1, 1, "tea"), change(2, 2, "milk"), upto=3)
    await embed_all(store)
    await take_in(store, change(1, 4, None), expected=3, upto=5)
    await take_in(store, change(3, 5, "x"))
    from schemas.errors import UnusableVector
    from schemas.sink import Fence

    (claimed,) = await claim(store)
    await store.fail(claimed, UnusableVector("NaN"), None)
    await take_in(store, fence=Fence(1, 10))
    await store.release("w")
    await store.flush_measures({}, {}, {("content", when(10)): (1, 0)})
    store.serves_at("http://127.0.0.1:8100")
    calls = iter([False, True])
    await store.keep_house(lambda: next(calls, True))
    await store.close()
    assert connection.execute("SELECT count(*) FROM upwell.audit").fetchone() != (0,)
    assert connection.execute("SELECT url FROM upwell.worker").fetchone() == ("http://127.0.0.1:8100",)


# -- slots


async def test_a_slot_is_one_workers(dsn: str, connection: Connection) -> None:
    first, second = await PostgresStore.open(dsn, writer="s"), await PostgresStore.open(dsn, writer="s")
    await first.register_worker("s", "here", 1)
    with pytest.raises(SlotTaken, match="slot s") as caught:
        await second.register_worker("s", "here", 2, wait_seconds=0)
    assert "\n" not in str(caught.value)
    await second.register_worker("other", "here", 2)
    await first.close()
    connection.execute("UPDATE upwell.worker SET url = 'http://of-the-first'")
    third = await PostgresStore.open(dsn, writer="s")
    await third.register_worker("s", "here", 3)
    assert connection.execute("SELECT url FROM upwell.worker WHERE slot = 's'").fetchone() == ("",)
    await third.close()
    await second.close()


# -- audit partitions


def test_days_are_made_ahead_and_dropped_past_retention(connection: Connection) -> None:
    connection.execute("CREATE TABLE upwell.audit_20200101 PARTITION OF upwell.audit FOR VALUES FROM "
                       "('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00')")  # fmt: skip
    connection.execute(
        "INSERT INTO upwell.audit (at, collection, action) VALUES (now() + '20 days', 'content', 'x')"
    )
    assert connection.execute("SELECT count(*) FROM upwell.audit_default").fetchone() == (1,)
    assert connection.execute("SELECT upwell.make_audit_partitions(30, 90) > 0").fetchone() == (True,)
    assert connection.execute("SELECT count(*) FROM upwell.audit_default").fetchone() == (0,)
    assert connection.execute("SELECT count(*) FROM upwell.audit").fetchone() == (1,)
    assert connection.execute("SELECT to_regclass('upwell.audit_20200101')").fetchone() == (None,)
    assert connection.execute("SELECT upwell.make_audit_partitions(30, 90)").fetchone() == (0,)


async def test_a_document_is_audited_with_its_text_and_model_generation(
    dsn: str, connection: Connection
) -> None:
    store = await PostgresStore.open(dsn, writer="w")
    await take_in(store, change(1, 1, "tea"))
    (claimed,) = await claim(store)
    await store.write([document(claimed)])
    await store.close()
    found = connection.execute(
        "SELECT a.generation, a.chunks, a.first_offset, a.text_hash = r._text_hash FROM upwell.audit a "
        "JOIN upwell.record_content r ON r._key = a.key WHERE action = 'embedded'"
    ).fetchall()
    assert found == [(1, 1, 1, True)]
