"""A text that stands in many chunks: a hundred of them are indexed, the others are beside, all are found (ADR 0023)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psycopg
import pytest

from connectors.postgres.migrate import migrate_sink
from connectors.postgres.store import PostgresStore
from connectors.postgres.upkeep import read_vectors
from tests.contracts.sinks import PostgresSink, layout
from tests.contracts.steps import change, claim, document, embed_all, take_in

both = pytest.mark.parametrize("server", [16, 18], indirect=True)

COPIES: Final = 100
SAME: Final = "not available"
WHERE: Final = (
    "SELECT e.key, e.tableoid = 'upwell.repeated_content_g1'::regclass, e.chunk_text "
    "FROM upwell.embedding_content_g1 e"
)
PUT_BACK: Final = """
DROP TABLE upwell.repeated_content_g1;
DROP FUNCTION upwell.set_apart_content_g1() CASCADE;
"""


class Text:
    """Rows by key with what searches see of them; offsets only grow."""

    def __init__(self, postgres: PostgresSink) -> None:
        self._postgres, self._offset = postgres, 0

    async def write(self, text: str | None, *keys: int) -> None:
        changes = []
        for key in keys:
            self._offset += 1
            changes.append(change(key, self._offset, text))
        await take_in(self._postgres.store, *changes)
        await embed_all(self._postgres.store)

    async def apart(self) -> set[str]:
        """Keys beside the index; no key is there twice, and the view has all."""
        rows = await self._postgres.rows(WHERE)
        assert len({row[0] for row in rows}) == len(rows)
        seen = await self._postgres.rows("SELECT id, chunk_text FROM upwell.content")
        assert sorted(seen) == sorted((int(row[0][1:-1]), row[2]) for row in rows)
        return {row[0] for row in rows if row[1]}

    async def of(self, key: int) -> list[str]:
        return [
            row[0]
            for row in await self._postgres.rows("SELECT chunk_text FROM upwell.content WHERE id = %s", key)
        ]


@pytest.fixture
async def postgres(empty_dsn: str) -> AsyncIterator[PostgresSink]:
    """Migrated here, not copied from what was migrated before: these are tests of what `migrate` makes."""
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        migrate_sink(connection, [layout()])
    store = await PostgresStore.open(empty_dsn, writer="test")
    yield PostgresSink(store, empty_dsn)
    await store.close()


@pytest.fixture
def text(postgres: PostgresSink) -> Text:
    return Text(postgres)


def one(keys: set[str]) -> int:
    return int(min(keys)[1:-1])


async def test_a_hundred_of_them_are_indexed(text: Text) -> None:
    await text.write(SAME, *range(1, 151))
    assert len(await text.apart()) == 50
    await text.write("another", *range(201, 301))
    assert len(await text.apart()) == 50


@both
async def test_a_row_is_in_one_place_whatever_becomes_of_its_text(text: Text) -> None:
    await text.write(SAME, *range(1, 121))
    apart = await text.apart()
    key, other = one(apart), one({f"[{key}]" for key in range(1, 121)} - apart)
    await text.write("a text of its own", key)
    assert await text.apart() == apart - {f"[{key}]"}
    assert await text.of(key) == ["a text of its own"]
    await text.write(SAME, key)
    assert await text.apart() == apart
    await text.write("now this one", other)
    assert await text.of(other) == ["now this one"]
    await text.write(SAME, other)  # there was room again
    assert await text.apart() == apart
    await text.write(SAME, 500)
    assert await text.apart() == apart | {"[500]"}
    assert await text.of(500) == [SAME]


async def test_an_indexed_row_may_take_over_a_repeated_text(text: Text) -> None:
    await text.write("a text of its own", 500)
    await text.write(SAME, *range(1, 101))
    assert await text.apart() == set()
    await text.write(SAME, 500)
    assert await text.apart() == {"[500]"}
    assert await text.of(500) == [SAME]


async def test_what_is_apart_is_deleted_with_its_row(text: Text) -> None:
    await text.write(SAME, *range(1, 131))
    apart = await text.apart()
    gone = one(apart)
    await text.write(None, gone)
    assert await text.apart() == apart - {f"[{gone}]"}
    assert await text.of(gone) == []
    await text.write(None, *(key for key in range(1, 131) if key != gone))
    assert await text.apart() == set()


async def test_it_comes_back_to_the_index_where_there_is_room(text: Text) -> None:
    await text.write(SAME, *range(1, 111))
    apart = await text.apart()
    await text.write(None, *(key for key in range(1, 111) if f"[{key}]" not in apart))
    assert await text.apart() == apart
    key = one(apart)
    await text.write("a text of its own", key)
    await text.write(SAME, key)
    assert await text.apart() == apart - {f"[{key}]"}


async def test_other_chunks_of_the_document_stay_what_they_are(postgres: PostgresSink, text: Text) -> None:
    """All chunks of a document are written each time; those with the same hash are let be."""
    await text.write(SAME, *range(1, 101))
    for offset, last in ((1001, "first ending"), (1002, "second ending")):
        await take_in(postgres.store, change(500, offset, last))
        (claimed,) = await claim(postgres.store)
        await postgres.store.write(
            [document(claimed, "beginning", SAME, last, kept=() if offset == 1001 else (SAME,))]
        )
        rows = await postgres.rows(f"{WHERE} WHERE key = '[500]' ORDER BY chunk_no")
        assert [row[1:] for row in rows] == [(False, "beginning"), (True, SAME), (False, last)]


async def test_a_table_of_before_is_set_apart_by_migrate(postgres: PostgresSink, text: Text) -> None:
    await postgres.rows(PUT_BACK)
    await text.write(SAME, *range(1, 151))
    await text.write("another", *range(201, 301))
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        assert migrate_sink(connection, [layout()]) == []
        assert len(await text.apart()) == 50
        assert migrate_sink(connection, [layout()]) == []
    await text.write(SAME, 500)
    assert len(await text.apart()) == 51


async def test_migrate_waits_for_nobody_with_it(postgres: PostgresSink, text: Text) -> None:
    await postgres.rows(PUT_BACK)
    await text.write(SAME, *range(1, 151))
    with (
        psycopg.connect(postgres.dsn) as other,
        psycopg.connect(postgres.dsn, autocommit=True) as connection,
    ):
        other.execute("LOCK TABLE upwell.embedding_content_g1 IN SHARE UPDATE EXCLUSIVE MODE")  # as VACUUM
        (left,) = await asyncio.to_thread(migrate_sink, connection, [layout()])
        assert "its repeated texts are set apart by the next migrate" in left
        other.rollback()
        assert migrate_sink(connection, [layout()]) == []
    assert len(await text.apart()) == 50


async def test_how_many_are_read_by_each_search(postgres: PostgresSink, text: Text) -> None:
    await text.write(SAME, *range(1, 151))
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        (facts,) = read_vectors(connection, "content")
        assert (facts.table.rows, facts.apart) == (100, 50)
        connection.execute(
            "CREATE INDEX ON upwell.repeated_content_g1 USING hnsw (embedding vector_cosine_ops)"
        )
        (facts,) = read_vectors(connection, "content")
        assert (facts.apart, facts.index is not None, facts.leftovers) == (0, True, ())
        # as a build that was killed leaves it: no search uses it
        connection.execute(
            "UPDATE pg_index SET indisvalid = false "
            "WHERE indexrelid = 'upwell.repeated_content_g1_embedding_idx'::regclass"
        )
        (facts,) = read_vectors(connection, "content")
        assert facts.apart == 50
    assert len(await text.apart()) == 50


async def test_a_worker_may_write_there_and_nobody_else(postgres: PostgresSink, text: Text) -> None:
    await text.write(SAME, *range(1, 102))
    query = """SELECT grantee::text, privilege_type::text FROM information_schema.role_table_grants
                WHERE table_name = %s AND grantee LIKE 'upwell%%' ORDER BY 1, 2"""
    rights = await postgres.rows(query, "repeated_content_g1")
    assert rights == await postgres.rows(query, "embedding_content_g1")
    assert len(rights) == 4


# -- searches


def texts_of(vectors: npt.NDArray[np.float64]) -> list[str]:
    return ["[" + ",".join(f"{value:.6g}" for value in each) + "]" for each in vectors]


def fill(
    connection: psycopg.Connection[Any], keys: Sequence[int], vectors: Sequence[str], hashes: Sequence[bytes]
) -> None:
    connection.execute(
        """INSERT INTO upwell.record_content
               (_key, _row, _text_hash, _lineage, _offset, _deleted, _streamed, _taken_in_at, id)
           SELECT '[' || n || ']', '{}', '\\x00', 1, n, false, true, now(), n FROM unnest(%s::int[]) AS n""",
        (list(keys),),
    )
    connection.execute(
        """INSERT INTO upwell.embedding_content_g1
           SELECT '[' || n || ']', 0, hash, 'text', v::vector, now()
             FROM unnest(%s::int[], %s::text[], %s::bytea[]) AS u(n, v, hash)""",
        (list(keys), list(vectors), list(hashes)),
    )


@both
def test_every_text_is_found_among_many_copies_of_one(empty_dsn: str) -> None:
    """With all copies in the index many of the others were found no more (python -m tests.benchmarks.repeated)."""
    draw = np.random.default_rng(7)
    rows, copies, dimension = 1000, 2000, 16
    vectors = texts_of(draw.normal(size=(rows + 1, dimension)))
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        migrate_sink(connection, [layout(dimension=dimension)])
        order = [int(number) for number in draw.permutation(rows + copies)]
        for start in range(0, len(order), 100):
            some = order[start : start + 100]
            fill(
                connection,
                some,
                [vectors[min(number, rows)] for number in some],
                [min(number, rows).to_bytes(4) for number in some],
            )
        connection.execute("ANALYZE upwell.record_content; ANALYZE upwell.embedding_content_g1")
        query = b"SELECT id FROM upwell.content ORDER BY embedding <=> %s LIMIT 10"
        missed = [
            number
            for number in range(rows)
            if (number,) not in connection.execute(query, (vectors[number],)).fetchall()
        ]
        nearest = connection.execute(query, (vectors[rows],)).fetchall()
    assert len(missed) <= rows // 100, missed
    assert all(row[0] >= rows for row in nearest)


def test_whoever_finds_too_few_in_the_graph_reads_all(postgres: PostgresSink) -> None:
    """Between a large deletion and its vacuum a search meets dead rows alone, and gives up."""
    vectors = texts_of(np.random.default_rng(1).uniform(size=(2000, 4)))
    near = b"ORDER BY (embedding <=> '[0.5,0.5,0.5,0.5]') + 0"
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute("ALTER TABLE upwell.embedding_content_g1 SET (autovacuum_enabled = false)")
        fill(connection, range(2000), vectors, [number.to_bytes(4) for number in range(2000)])
        table = b"upwell.embedding_content_g1"
        connection.execute(
            b"DELETE FROM %b WHERE key IN (SELECT key FROM %b %b LIMIT 1950)" % (table, table, near)
        )
        connection.execute("SET hnsw.max_scan_tuples = 1000; SET hnsw.iterative_scan = relaxed_order")
        exact = connection.execute(b"SELECT id FROM upwell.content %b LIMIT 10" % near).fetchall()
        connection.execute("SET enable_seqscan = off")  # of so few rows the planner would rather read all
        searched = [
            connection.execute(
                "SELECT id, score FROM upwell.search_content('package:fake', '[0.5,0.5,0.5,0.5]', %s)", (k,)
            ).fetchall()
            for k in (10, 70)
        ]
        plain = connection.execute(b"SELECT id FROM upwell.content %b LIMIT 10" % near[:-4]).fetchall()
    assert len(plain) < 10
    assert [row[:1] for row in searched[0]] == exact
    assert len(searched[1]) == 50
    for found in searched:
        assert [row[1] for row in found] == sorted((row[1] for row in found), reverse=True)
