"""What applications query: the view's plan with 20,000 vectors, staleness, and the search function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest

from connectors.postgres.store import PostgresStore
from schemas.errors import UnusableVector
from tests.contracts.server import Server
from tests.contracts.steps import change, claim, embed_all, take_in

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
ANALYZE upwell.record_content;
ANALYZE upwell.embedding_content_g1;
"""


@pytest.fixture(scope="module", params=[16, 18])
def filled(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """20,000 vectors, once for each major."""
    server: Server = request.getfixturevalue(f"server{request.param}")
    dsn = server.create("filled", "migrated")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(FILL.encode())
        yield connection
    server.drop("filled")


@pytest.mark.parametrize("where", ["", "WHERE published", "WHERE published AND title <> 't5'"])
def test_the_view_uses_the_hnsw_index(filled: Connection, where: str) -> None:
    query = f"SELECT id, chunk_text FROM upwell.content {where} ORDER BY embedding <=> %s LIMIT 10"
    plan = "\n".join(row[0] for row in filled.execute(f"EXPLAIN {query}".encode(), (QUERY,)).fetchall())
    assert "embedding_content_g1_" in plan.split("Index Scan using", 1)[1].splitlines()[0], plan
    assert "Order By" in plan
    assert "Sort" not in plan
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
