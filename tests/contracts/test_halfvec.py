"""A collection whose vectors are of the type halfvec: two bytes a number, with all that is done to vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import psycopg
import pytest

from connectors.postgres.generations import Generations
from connectors.postgres.layout import CollectionLayout
from connectors.postgres.migrate import migrate_sink
from connectors.postgres.store import PostgresStore
from connectors.postgres.upkeep import read_vectors
from schemas.errors import SettingsError
from schemas.spec import VectorIndex
from tests.contracts.sinks import MODEL, PostgresSink, generation, layout
from tests.contracts.steps import change, claim, document, embed_all, take_in, vector, when

Connection = psycopg.Connection[Any]
HALF: Final = VectorIndex(type="halfvec")
TABLE: Final = "upwell.embedding_content_g1"


def halved(**changed: Any) -> CollectionLayout:
    return replace(layout(**changed), index=HALF)


@pytest.fixture(params=[16, 18])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"server{request.param}")


@pytest.fixture
def connection(empty_dsn: str) -> Iterator[Connection]:
    with psycopg.connect(empty_dsn, autocommit=True) as found:
        migrate_sink(found, [halved(), layout("customers")])
        yield found


@pytest.fixture
async def half(connection: Connection, empty_dsn: str) -> Any:
    store = await PostgresStore.open(empty_dsn, writer="test")
    yield PostgresSink(store, empty_dsn)
    await store.close()


def types(connection: Connection) -> list[str]:
    """Of the vectors in the table, in the view and in what the search function returns, and the index's operators."""
    query = """SELECT format_type(atttypid, atttypmod) FROM pg_attribute
                WHERE attrelid = %s::regclass AND attname = 'embedding'"""
    found = [connection.execute(query, (each,)).fetchone() for each in (TABLE, "upwell.content")]
    found.append(
        connection.execute(
            "SELECT pg_typeof(embedding)::text FROM upwell.search_content(%s, %s, 1)",
            (MODEL, str(vector("a"))),
        ).fetchone()
    )
    found.append(
        connection.execute(
            "SELECT opcname FROM pg_index i JOIN pg_opclass o ON o.oid = i.indclass[0] "
            "WHERE indexrelid = 'upwell.embedding_content_g1_hnsw'::regclass"
        ).fetchone()
    )
    return [str(row[0]) for row in found if row is not None]


async def fill(half: PostgresSink, *titles: str) -> None:
    await take_in(half.store, *(change(n, n, title, since=when(10)) for n, title in enumerate(titles)))
    await embed_all(half.store)


async def test_it_is_found_by_plain_sql_and_by_the_function(
    half: PostgresSink, connection: Connection
) -> None:
    """A query's vector needs no cast of its own: pgvector makes one of the column's type of it."""
    await fill(half, "a", "b", "c")
    assert types(connection) == ["halfvec(4)", "halfvec", "halfvec", "halfvec_cosine_ops"]
    wanted = str(vector("b"))
    connection.execute("SET enable_seqscan = off; SET enable_sort = off")
    plain = "SELECT chunk_text FROM upwell.content ORDER BY embedding <=> %s::vector LIMIT 1"
    assert connection.execute(plain, (wanted,)).fetchone() == ("b",)
    plan = connection.execute(f"EXPLAIN {plain}".encode(), (wanted,)).fetchall()
    assert any("embedding_content_g1_hnsw" in row[0] for row in plan), plan
    found = connection.execute("SELECT chunk_text, score FROM upwell.search_content(%s, %s)", (MODEL, wanted))
    assert next((text, round(score, 3)) for text, score in found) == ("b", 1.0)


async def test_what_is_kept_or_copied_stays_what_it_was(half: PostgresSink, connection: Connection) -> None:
    await fill(half, "a", "b")
    before = connection.execute(f"SELECT chunk_text, embedding::text FROM {TABLE}".encode()).fetchall()
    await take_in(half.store, change(9, 9, "a b", since=when(11)))
    (claimed,) = await claim(half.store)
    await half.store.write([document(claimed, "a", "b", kept=["a", "b"])])
    query = f"SELECT chunk_text, embedding::text FROM {TABLE} WHERE key = '[9]' ORDER BY chunk_text"
    assert connection.execute(query.encode()).fetchall() == sorted(before)


async def test_a_generation_is_filled_switched_to_and_left_behind(
    half: PostgresSink, connection: Connection, empty_dsn: str
) -> None:
    await fill(half, "a", "b")
    with Generations.open(empty_dsn) as generations:
        made, pending = generations.create(
            generation(fingerprint="f2", template="{{ title }}!", state="filling")
        )
        assert pending == 2
        while claims := await claim(half.store, 100, generations=[made.number]):
            await half.store.write([document(each) for each in claims])
        _, target, ready = generations.switch("content", made.number)
        assert ready.is_filled, ready
    assert target.number == 2
    assert types(connection)[1:3] == ["halfvec", "halfvec"]
    wanted = {each.generation: each.wanted.type for each in read_vectors(connection, "content")}
    assert wanted == {1: "halfvec", 2: "halfvec"}


def test_the_type_stays(connection: Connection) -> None:
    """A view's column cannot change its type under its readers."""
    assert migrate_sink(connection, [halved(), layout("customers")]) == []
    for changed, stored in ((layout(), "halfvec"), (replace(layout("customers"), index=HALF), "vector")):
        with pytest.raises(
            SettingsError, match=f'of the type {stored}, which stays .* index.type = "{stored}"'
        ):
            migrate_sink(connection, [changed])


def test_more_dimensions_than_an_index_takes() -> None:
    with pytest.raises(
        SettingsError, match=r'2001 dimensions, pgvector .* 2000 .* index.type = "halfvec" takes 4000'
    ):
        layout(dimension=2001)
    with pytest.raises(SettingsError, match=r"4001 dimensions, pgvector indexes 4000 of the type halfvec$"):
        replace(layout(), index=HALF, generation=generation(dimension=4001))


async def test_four_thousand_dimensions(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        migrate_sink(connection, [replace(layout(), index=HALF, generation=generation(dimension=4000))])
        connection.execute(
            f"INSERT INTO {TABLE} SELECT '[1]', 0, '', 'a', array_agg(n)::halfvec, now() "
            "FROM generate_series(1, 4000) AS n".encode()
        )
