"""What applications query: the view's plan with 20,000 vectors, staleness, and the search function."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import psycopg
import pytest

from connectors.postgres.read import search_rows
from connectors.postgres.store import PostgresStore
from schemas.errors import UnusableVector
from schemas.sink import Lane
from tests.contracts.server import Server
from tests.contracts.steps import change, claim, document, embed_all, take_in, undecodable, when

Connection = psycopg.Connection[Any]

VECTORS: Final = 20_000
QUERY: Final = "[0.5,0.5,0.5,0.5]"
FILL: Final = f"""
SELECT setseed(0.5);
INSERT INTO upwell.record_content
    (_key, _row, _text_hash, _lineage, _offset, _deleted, _streamed, _taken_in_at, id, title, published)
SELECT '[' || n || ']', '{{}}', '\\x00', 1, n, false, true, now(), n, 't' || n, n % 3 = 0
FROM generate_series(1, {VECTORS}) AS n;
INSERT INTO upwell.embedding_content_g1
SELECT '[' || n || ']', 0, int4send(n), 'text ' || n,
    ('[' || random() || ',' || random() || ',' || random() || ',' || random() || ']')::vector, now()
FROM generate_series(1, {VECTORS}) AS n;
"""
#: The first of them have one text, which is set apart.
SAME: Final = """
INSERT INTO upwell.embedding_content_g1
SELECT '[' || n || ']', 0, '\\x77', 'n/a', '[-1,-1,-1,-1]', now() FROM generate_series(1, 600) AS n
ON CONFLICT (key, chunk_no) DO UPDATE SET chunk_hash = excluded.chunk_hash, embedding = excluded.embedding;
"""
ANALYZE: Final = """
ANALYZE upwell.record_content;
ANALYZE upwell.embedding_content_g1;
"""


@pytest.fixture(scope="module", params=[16, 18])
def filled(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """20,000 vectors, once for each major; in 18 a text stands in 600 of them."""
    server: Server = request.getfixturevalue(f"server{request.param}")
    dsn = server.create("filled", "migrated")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(FILL.encode())
        if request.param == 18:
            connection.execute(SAME.encode())
            assert connection.execute("SELECT count(*) FROM upwell.repeated_content_g1").fetchone() == (500,)
        connection.execute(ANALYZE.encode())
        connection.execute(
            "INSERT INTO upwell.evaluation "
            "(collection, lineage, evaluated_at, verdict, reason, threshold_seconds, watermark) "
            "VALUES ('content', 1, now(), 'FRESH', '', 3600, now())"
        )
        yield connection
    server.drop("filled")


FRESH_ENOUGH: Final = "(NOT is_stale OR stale_since > now() - interval '30 seconds')"
FRESH_COLLECTION: Final = (
    "EXISTS (SELECT 1 FROM upwell.freshness WHERE collection = 'content' AND verdict = 'FRESH')"
)


@pytest.mark.parametrize(
    "where",
    [
        "",
        "WHERE published",
        "WHERE published AND title <> 't5'",
        f"WHERE {FRESH_ENOUGH}",
        f"WHERE published AND {FRESH_ENOUGH} AND {FRESH_COLLECTION}",
    ],
)
def test_the_view_uses_the_hnsw_index(filled: Connection, where: str) -> None:
    columns = "id, chunk_text, is_stale, stale_since"
    query = f"SELECT {columns} FROM upwell.content {where} ORDER BY embedding <=> %s LIMIT 10"
    plan = "\n".join(row[0] for row in filled.execute(f"EXPLAIN {query}".encode(), (QUERY,)).fetchall())
    assert "Index Scan using embedding_content_g1_hnsw" in plan, plan
    assert "Order By" in plan
    assert "Merge Append" in plan
    assert plan.count("->  Sort") == 1, plan
    assert re.search(r"->  Sort.*\n.*Sort Key.*\n.*on repeated_content_g1", plan), plan
    filled.execute("UPDATE upwell.evaluation SET evaluated_at = clock_timestamp()")
    assert len(filled.execute(query.encode(), (QUERY,)).fetchall()) == 10


def test_the_view_uses_it_in_a_prepared_statement_too(filled: Connection) -> None:
    filled.execute(
        "PREPARE nearest(vector) AS SELECT id FROM upwell.content ORDER BY embedding <=> $1 LIMIT 10"
    )
    for _ in range(8):
        filled.execute(f"EXECUTE nearest('{QUERY}')".encode())
    plan = filled.execute(f"EXPLAIN EXECUTE nearest('{QUERY}')".encode()).fetchall()
    filled.execute("DEALLOCATE nearest")
    assert any("Index Scan using embedding_content_g1" in row[0] for row in plan), plan


def test_a_key_is_found_without_reading_the_table(filled: Connection) -> None:
    plan = filled.execute("EXPLAIN SELECT chunk_text FROM upwell.content WHERE id = 42").fetchall()
    assert not any("Seq Scan on record_content" in row[0] for row in plan), plan


def test_search_finds_the_nearest_in_order(filled: Connection) -> None:
    exact = filled.execute(
        "SELECT key FROM (SELECT key, embedding <=> %s::vector AS d FROM upwell.embedding_content_g1 OFFSET 0) "
        "AS exact ORDER BY d LIMIT 50",
        (QUERY,),
    ).fetchall()
    found = filled.execute(
        "SELECT id, score FROM upwell.search_content('package:fake', %s, 50, 400)", (QUERY,)
    ).fetchall()
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert len({f"[{key}]" for key, _ in found} & {row[0] for row in exact}) >= 48


def test_search_uses_the_index_each_time(filled: Connection) -> None:
    """Also from the sixth call on, when a generic plan would not know k."""
    counts = []
    for _ in range(8):
        filled.execute("SELECT count(*) FROM upwell.search_content('package:fake', %s)", (QUERY,))
    filled.execute("SELECT pg_stat_force_next_flush()")
    for _ in range(2):
        filled.execute("SELECT count(*) FROM upwell.search_content('package:fake', %s)", (QUERY,))
        filled.execute("SELECT pg_stat_force_next_flush()")
        row = filled.execute(
            "SELECT seq_scan FROM pg_stat_user_tables WHERE relid = 'upwell.embedding_content_g1'::regclass"
        ).fetchone()
        counts.append(row)
    assert counts[0] == counts[1]


def test_search_leaves_no_setting_behind(filled: Connection) -> None:
    with filled.transaction():
        filled.execute("SELECT count(*) FROM upwell.search_content('package:fake', %s, 10, 333)", (QUERY,))
        assert filled.execute("SHOW hnsw.ef_search").fetchone() == ("40",)
        assert filled.execute("SHOW hnsw.iterative_scan").fetchone() == ("off",)


def test_a_query_vector_of_another_model_is_an_error(filled: Connection) -> None:
    for model in ("package:other", None):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="package:fake"):
            filled.execute("SELECT * FROM upwell.search_content(%s, %s)", (model, QUERY))


def test_view_and_search_have_the_columns_that_were_promised(connection: Connection) -> None:
    promised = [
        "id",
        "chunk_no",
        "chunk_text",
        "embedding",
        "model",
        "source_committed_at",
        "embedded_at",
        "is_stale",
        "stale_since",
    ]
    metadata = ["title", "published", "price", "tags", "updated_at"]
    view = connection.execute("SELECT * FROM upwell.content").description
    search = connection.execute(
        "SELECT * FROM upwell.search_content('package:fake', '[1,0,0,0]')"
    ).description
    assert view is not None
    assert search is not None
    assert [column.name for column in view] == [*promised, *metadata]
    assert [column.name for column in search] == [*promised, *metadata, "score"]


async def test_is_stale_until_the_newest_text_is_searchable(dsn: str, connection: Connection) -> None:
    store = await PostgresStore.open(dsn, writer="w")

    def stale() -> list[tuple[Any, ...]]:
        return connection.execute("SELECT id, is_stale, published FROM upwell.content ORDER BY id").fetchall()

    await take_in(store, change(1, 1, "tea"), change(2, 2, "milk"))
    assert stale() == []
    await embed_all(store)
    await take_in(store, change(1, 3, "coffee", published=True))
    assert stale() == [(1, True, True), (2, False, None)]
    (claimed,) = await claim(store)
    await store.fail(claimed, UnusableVector("NaN"), None)
    assert stale() == [(1, True, True), (2, False, None)], "a dead letter is unreflected too"
    await take_in(store, change(1, 4, "cocoa"))
    await embed_all(store)
    assert stale() == [(1, False, None), (2, False, None)]
    await store.close()


def since(connection: Connection) -> dict[int, tuple[bool, Any]]:
    """`is_stale` and `stale_since` by id, as the view and the search function both say."""
    view = connection.execute("SELECT id, is_stale, stale_since FROM upwell.content").fetchall()
    search = connection.execute(
        "SELECT id, is_stale, stale_since FROM upwell.search_content('package:fake', '[1,0,0,0]')"
    ).fetchall()
    assert sorted(view, key=str) == sorted(search, key=str)
    return {row[0]: (row[1], row[2]) for row in view}


async def test_stale_since_is_the_oldest_commit_that_is_not_reflected(
    dsn: str, connection: Connection
) -> None:
    store = await PostgresStore.open(dsn, writer="w")
    await take_in(store, *(change(key, key, f"text {key}", since=when(8)) for key in (1, 2, 3)))
    await embed_all(store)
    assert since(connection) == dict.fromkeys((1, 2, 3), (False, None))
    await take_in(store, change(1, 11, "a", since=when(10)), change(2, 12, "b", lane=Lane.BACKFILL))
    await take_in(store, change(1, 13, "c", since=when(11)))
    expected: dict[int, tuple[bool, Any]] = {1: (True, when(10)), 2: (True, None), 3: (False, None)}
    assert since(connection) == expected, "of a load's row no commit is known"
    claimed = {each.key: each for each in await claim(store)}
    await take_in(store, change(1, 14, "d", since=when(12)))
    assert since(connection) == expected, "what came after the claim is younger"
    await store.write([document(claimed["[1]"])])
    assert since(connection)[1] == (True, when(12))
    (again,) = await claim(store)
    await store.fail(again, UnusableVector("NaN"), None)
    assert since(connection)[1] == (True, when(12)), "a dead letter of the embed stage"
    await take_in(store, letters=[undecodable(3, 20), replace(undecodable(3, 21), committed_at=when(7))])
    assert since(connection)[3] == (True, when(7)), "the older of two of the intake stage"
    await take_in(store, change(3, 22, "e", since=when(13)))
    assert since(connection)[3] == (True, when(13)), "a newer change closes them"
    await store.close()


def test_another_generations_rows_are_not_what_search_lacks(connection: Connection) -> None:
    connection.execute(FILL.replace(str(VECTORS), "1").encode())
    connection.execute(
        'INSERT INTO upwell.pending (collection, generation, key, lineage, "offset", lane, deadline, pending_since, '
        "changes, taken_in_at) VALUES ('content', 2, '[1]', 1, 1, 'live', now(), now(), 1, now()), "
        "('customers', 1, '[1]', 1, 1, 'live', now(), now(), 1, now())"
    )
    connection.execute(
        'INSERT INTO upwell.dead_letter (collection, stage, generation, "offset", lineage, key, error_class, error, '
        "committed_at, closed_at, closed_by) VALUES ('content', 'embed', 2, 1, 1, '[1]', '', '', now(), NULL, NULL), "
        "('content', 'embed', 1, 1, 1, '[1]', '', '', now(), now(), 'waived')"
    )
    assert since(connection) == {1: (False, None)}


async def test_a_hit_says_for_how_long_it_is_stale(dsn: str, connection: Connection) -> None:
    store = await PostgresStore.open(dsn, writer="w")
    ago = datetime.now(UTC) - timedelta(seconds=90)
    await take_in(store, change(1, 1, "tea"), change(2, 2, "milk"))
    await embed_all(store)
    await take_in(store, change(1, 3, "coffee", since=ago))
    await store.close()
    hits = search_rows(connection, "content", "package:fake", np.ones(4, np.float32), 5)
    found = {hit.key: hit for hit in hits}
    assert 90 <= (found["[1]"].stale_seconds or 0) < 150
    assert found["[2]"].stale_seconds is None
    assert set(found["[1]"].metadata) == {"title", "published", "price", "tags", "updated_at"}
