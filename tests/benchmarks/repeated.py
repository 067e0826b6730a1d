"""A text that stands in many rows: `python -m tests.benchmarks.repeated`, some minutes.

3,000 different texts of real English by the real model, and among them texts that stand in as many rows as is said,
written in random order, a hundred at a time: once all of them in the HNSW index, once as `migrate` sets them apart.
Lost: the share of the different texts that a search with their own vector does not have among its ten nearest. Three
runs each, as pgvector draws levels at random. Milliseconds are the client's: ratios of one run count.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import psycopg

from connectors.postgres.migrate import migrate_sink
from streams.benchmark.bare import model_settings
from streams.benchmark.corpus import Corpus
from streams.models import encoder_of
from tests.contracts.server import Server, running
from tests.contracts.sinks import layout

TEXTS: Final = 3000
RUNS: Final = 3
SAME: Final = "Not available."
#: Texts that repeat, and how many rows have each.
REPEATED: Final = ((0, 0), (1, 300), (1, 1000), (1, 10_000), (30, 100), (30, 1000))
#: All in the index; as `migrate` does it; the same, with an index over what is set apart.
WAYS: Final = ("indexed", "apart", "apart, indexed")
FILL: Final = """
INSERT INTO upwell.record_content (_key, _row, _text_hash, _lineage, _offset, _deleted, _streamed, _taken_in_at, id)
SELECT '[' || n || ']', '{}', '\\x00', 1, n, false, true, now(), n FROM unnest(%(keys)s::int[]) AS n;
"""
WRITE: Final = """
INSERT INTO upwell.embedding_content_g1
SELECT '[' || n || ']', 0, hash, 'text', v::vector, now()
  FROM unnest(%(keys)s::int[], %(vectors)s::text[], %(hashes)s::bytea[]) AS u(n, v, hash)
"""


def vectors(texts: Sequence[str]) -> list[str]:
    """As pgvector reads them."""
    settings = model_settings()
    found = encoder_of(settings, settings.model.name, print).encode(texts)
    return ["[" + ",".join(f"{value:.7g}" for value in row) + "]" for row in found]


def measure(
    server: Server, every: Sequence[str], order: Sequence[int], way: str
) -> tuple[float, float, float]:
    """Share of the texts that are lost, median of milliseconds of a search, milliseconds a row was written in."""
    dsn = server.create("repeated")
    with psycopg.connect(dsn, autocommit=True) as connection:
        migrate_sink(connection, [layout(dimension=384)])
        if way == "indexed":
            connection.execute("ALTER TABLE upwell.embedding_content_g1 DISABLE TRIGGER set_apart")
        if way == "apart, indexed":
            connection.execute(
                "CREATE INDEX ON upwell.repeated_content_g1 USING hnsw (embedding vector_cosine_ops)"
            )
        writing = 0.0
        for start in range(0, len(order), 100):
            keys = list(range(start, min(start + 100, len(order))))
            written = [every[order[key]] for key in keys]
            rows: dict[str, Any] = {
                "keys": keys,
                "vectors": written,
                "hashes": [hashlib.sha256(each.encode()).digest() for each in written],
            }
            connection.execute(FILL, rows)
            began = time.monotonic()
            connection.execute(WRITE, rows)
            writing += time.monotonic() - began
        connection.execute("ANALYZE upwell.record_content; ANALYZE upwell.embedding_content_g1")
        query = "SELECT id FROM upwell.content ORDER BY embedding <=> %s LIMIT 10"
        place = {number: key for key, number in enumerate(order)}
        lost, took = 0, []
        for number in range(0, TEXTS, 3):
            began = time.monotonic()
            found = connection.execute(query, (every[number],)).fetchall()
            took.append(time.monotonic() - began)
            lost += (place[number],) not in found
    server.drop("repeated")
    return lost / len(took), 1000 * statistics.median(took), 1000 * writing / len(order)


def main() -> None:
    corpus = Corpus(1)
    different = vectors([corpus.short(number) for number in range(TEXTS)])
    repeated = vectors([f"{SAME} {corpus.short(TEXTS + number)}" for number in range(30)])
    repeated[0] = vectors([SAME])[0]
    print(f"{'texts x rows':>14} {'':14} {'lost':>20} {'search ms':>10} {'write ms':>9}", flush=True)
    with running(18) as server:
        for texts, rows in REPEATED:
            every = different + [vector for vector in repeated[:texts] for _ in range(rows)]
            for way in WAYS:
                runs = [
                    measure(
                        server,
                        every,
                        [int(number) for number in np.random.default_rng(run).permutation(len(every))],
                        way,
                    )
                    for run in range(RUNS)
                ]
                lost = " ".join(f"{run[0]:6.1%}" for run in runs)
                search, write = (statistics.median(run[part] for run in runs) for part in (1, 2))
                print(f"{texts:6} x {rows:5} {way:14} {lost:>20} {search:10.2f} {write:9.2f}", flush=True)


if __name__ == "__main__":
    main()
