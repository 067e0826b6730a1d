"""What refusing stale rows costs next to a kNN query: `python -m tests.benchmarks.stale_search`, a minute.

20,000 random vectors of 384 dimensions on a Postgres of its own, 100 of them pending; each query in turn, one client,
ten nearest. p50 of the client's clock in milliseconds.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any, Final

import psycopg

from connectors.postgres.migrate import migrate_sink
from tests.contracts.server import running
from tests.contracts.sinks import layout

VECTORS: Final = 20_000
DIMENSION: Final = 384
ROUNDS: Final = 400
FILL: Final = f"""
SELECT setseed(0.5);
INSERT INTO upwell.record_content
    (_key, _row, _text_hash, _lineage, _offset, _deleted, _streamed, _taken_in_at, id, title, published)
SELECT '[' || n || ']', '{{}}', '\\x00', 1, n, false, true, now(), n, 't' || n, n % 3 = 0
  FROM generate_series(1, {VECTORS}) AS n;
INSERT INTO upwell.embedding_content_g1
SELECT '[' || n || ']', 0, int4send(n), 'text ' || n,
       (SELECT array_agg(random() - 0.5) FROM generate_series(1, {DIMENSION} + 0 * n))::vector, now()
  FROM generate_series(1, {VECTORS}) AS n;
INSERT INTO upwell.pending
    (collection, generation, key, lineage, "offset", lane, deadline, pending_since, changes, taken_in_at)
SELECT 'content', 1, '[' || n * 200 || ']', 1, 1, 'live', now(), now(), 1, now() FROM generate_series(1, 100) n;
INSERT INTO upwell.evaluation (collection, lineage, evaluated_at, verdict, reason, threshold_seconds, watermark)
VALUES ('content', 1, now() + interval '10 s', 'FRESH', '', 3600, now());
VACUUM ANALYZE;
"""
NEAREST: Final = "ORDER BY embedding <=> %(vector)s::vector LIMIT 10"
QUERIES: Final = {
    "bare table": f"SELECT key, chunk_text FROM upwell.embedding_content_g1 {NEAREST}",
    "view": f"SELECT id, chunk_text FROM upwell.content {NEAREST}",
    "view, is_stale and stale_since shown": (
        f"SELECT id, chunk_text, is_stale, stale_since FROM upwell.content {NEAREST}"
    ),
    "view, stale rows left out": (
        "SELECT id, chunk_text FROM upwell.content "
        f"WHERE NOT is_stale OR stale_since > now() - interval '30 seconds' {NEAREST}"
    ),
    "view, only if the collection is FRESH": (
        "SELECT id, chunk_text FROM upwell.content WHERE EXISTS "
        f"(SELECT 1 FROM upwell.freshness WHERE collection = 'content' AND verdict = 'FRESH') {NEAREST}"
    ),
}


def measure(connection: psycopg.Connection[Any]) -> dict[str, float]:
    """p50 in milliseconds by query; the queries take turns, each time with another vector."""
    source = random.Random(1)
    taken: dict[str, list[float]] = {name: [] for name in QUERIES}
    for number in range(ROUNDS):
        vector = str([source.random() - 0.5 for _ in range(DIMENSION)])
        if number % 50 == 0:
            connection.execute("UPDATE upwell.evaluation SET evaluated_at = clock_timestamp()")
        for name, query in QUERIES.items():
            begun = time.perf_counter()
            found = connection.execute(query.encode(), {"vector": vector}).fetchall()
            taken[name].append((time.perf_counter() - begun) * 1000)
            assert len(found) == 10, name
    return {name: statistics.median(values[20:]) for name, values in taken.items()}


def main() -> None:
    """Print the table."""
    with running(18) as server:
        dsn = server.create("benchmark")
        with psycopg.connect(dsn, autocommit=True) as connection:
            migrate_sink(connection, [layout(dimension=DIMENSION)])
            for statement in FILL.split(";\n"):
                if statement.strip():
                    connection.execute(statement.encode())
            found = measure(connection)
    bare = found["bare table"]
    for name, value in found.items():
        print(f"{name:40} {value:6.2f} ms  {value - bare:+.2f}")


if __name__ == "__main__":
    main()
