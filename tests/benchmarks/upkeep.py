"""What an HNSW index costs over its life: `python -m tests.benchmarks.upkeep`, some minutes.

10,000 vectors of 384 dimensions around 200 centres, normalised, on a Postgres of its own; pgvector's own parameters.
Seconds of the client's clock: ratios of one run count, not figures of two. Recall of the ten nearest of 200 queries
against exact search.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import psycopg

from tests.contracts.server import running

ROWS: Final = 10_000
DIMENSION: Final = 384
BATCH: Final = 100
QUERIES: Final = 200
TABLE: Final = (
    "CREATE TABLE {} (key int PRIMARY KEY, v {} ({}) NOT NULL) "
    "WITH (fillfactor = 70, autovacuum_enabled = false)"
)

Connection = psycopg.Connection[Any]


def vectors(rows: int, seed: int) -> list[str]:
    """As pgvector reads them."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(200, DIMENSION))
    found = centres[draw.integers(0, 200, rows)] + 0.7 * draw.normal(size=(rows, DIMENSION))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return ["[" + ",".join(f"{value:.7g}" for value in row) + "]" for row in found]


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{what:58} {time.monotonic() - began:7.1f} s", flush=True)


def write(connection: Connection, table: str, texts: list[str], kind: str = "vector") -> None:
    """Inserted or rewritten, a batch a transaction, as workers do."""
    query = (
        f"INSERT INTO {table} SELECT * FROM unnest(%s::int[], %s::text[]::{kind}[]) "
        "ON CONFLICT (key) DO UPDATE SET v = excluded.v"
    )
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        connection.execute(query.encode(), (list(range(start, start + len(batch))), batch))


def make(connection: Connection, table: str, kind: str = "vector") -> None:
    connection.execute(TABLE.format(table, kind, DIMENSION).encode())


def index(connection: Connection, table: str, kind: str = "vector", name: str = "") -> None:
    query = f"CREATE INDEX {name or table + '_hnsw'} ON {table} USING hnsw (v {kind}_cosine_ops)"
    connection.execute(query.encode())


def megabytes(connection: Connection, relation: str) -> float:
    row = connection.execute("SELECT pg_total_relation_size(%s::regclass)", (relation,)).fetchone()
    assert row is not None
    return float(row[0]) / 1024**2


def recall(connection: Connection, table: str, queries: list[str]) -> float:
    """The query vector is a `vector`, whatever the column is."""
    query = f"SELECT key FROM {table} ORDER BY v <=> %s::vector LIMIT 10".encode()
    plan = "\n".join(row[0] for row in connection.execute(b"EXPLAIN " + query, queries[:1], prepare=False))
    assert "hnsw" in plan, plan
    same = 0
    for each in queries:
        found = {row[0] for row in connection.execute(query, (each,), prepare=False)}
        with connection.transaction():
            connection.execute("SET LOCAL enable_indexscan = off")
            same += len(found & {row[0] for row in connection.execute(query, (each,), prepare=False)})
    return same / (10 * len(queries))


def main() -> None:
    first, second, queries = vectors(ROWS, 1), vectors(ROWS, 2), vectors(QUERIES, 3)
    with running(18) as server, server.connect("postgres") as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("SET maintenance_work_mem = '256MB'; SET max_parallel_maintenance_workers = 0")
        make(connection, "early")
        index(connection, "early")
        with timed("fill, the index is there"):
            write(connection, "early", first)
        make(connection, "late")
        with timed("fill without it"):
            write(connection, "late", first)
        with timed("and the index built afterwards"):
            index(connection, "late")
        for share in (0.1, 0.2, 1.0):
            rewritten = second[: round(ROWS * share)]
            for table in ("early", "late"):
                write(connection, table, rewritten)
            with timed(f"{share:.0%} rewritten: VACUUM"):
                connection.execute("VACUUM early")
            with timed(f"{share:.0%} rewritten: another index, the old one dropped, VACUUM"):
                index(connection, "late", name="late_new")
                connection.execute("DROP INDEX late_hnsw")
                connection.execute("ALTER INDEX late_new RENAME TO late_hnsw")
                connection.execute("VACUUM late")
            print(
                f"  index of {megabytes(connection, 'early_hnsw'):.0f} and {megabytes(connection, 'late_hnsw'):.0f} MiB"
            )
        make(connection, "half", "halfvec")
        write(connection, "half", second, "halfvec")
        with timed("the index of halfvec built afterwards"):
            index(connection, "half", "halfvec")
        for table in ("late", "half"):
            connection.execute(f"VACUUM ANALYZE {table}".encode())
            print(
                f"{table}: with index {megabytes(connection, table):.0f} MiB, of it index "
                f"{megabytes(connection, table + '_hnsw'):.0f} MiB, recall {recall(connection, table, queries):.3f}"
            )


if __name__ == "__main__":
    main()
