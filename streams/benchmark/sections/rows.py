"""Does the cost of a change grow with the records in the sink? Intake and embed with few and with many synthetic ones.

The HNSW index is dropped for the first two figures: its cost grows with the logarithm, and is measured apart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from schemas.spec import VectorIndex
from schemas.upkeep import needed_bytes
from streams.benchmark.bench import Bench
from streams.benchmark.events import embed, fill_topic, take_in
from streams.benchmark.line import RECORDS, VECTORS, Deployment, one
from streams.benchmark.machine import this_machine
from streams.benchmark.results import Figure, Section, Target

#: Of synthetic records.
FIRST_KEY: Final = 2_000_000_000
LEAST: Final = 0.8
INDEX: Final = "embedding_document_g1_hnsw"
SIZES: Final = {
    "table": f"SELECT pg_table_size('{RECORDS}') + pg_table_size('{VECTORS}')",
    "index": f"SELECT pg_indexes_size('{RECORDS}') + pg_indexes_size('{VECTORS}')",
}
FILL: Final = f"""
INSERT INTO {RECORDS} (_key, _row, _text_hash, _lineage, _offset, _deleted, _streamed, _taken_in_at, id, note)
SELECT '[' || n || ']', jsonb_build_object('id', n, 'body', 'synthetic', 'note', ''), int8send(n), 1, 0, false, false,
       now(), n, '' FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
"""
FILL_VECTORS: Final = f"""
INSERT INTO {VECTORS} (key, chunk_no, chunk_hash, chunk_text, embedding, embedded_at)
SELECT '[' || n || ']', 0, sha256(int8send(n)), 'synthetic ' || n,
       (SELECT array_agg(random() - 0.5) FROM generate_series(1, %(dimension)s + 0 * n::int4))::vector, now()
  FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
"""


@dataclass(frozen=True, slots=True)
class Rates:
    """With so many synthetic records: events/s, documents/s without and with HNSW, seconds to build that.

    `table_bytes`: of a record and its one vector; `index_bytes`: of both tables' indexes, HNSW nearly all of it.
    """

    rows: int
    events: float
    documents: float
    documents_hnsw: float
    index_seconds: float
    table_bytes: float
    index_bytes: float


def measure(bench: Bench) -> Section:
    plan = bench.plan
    with bench.stack.deployment("rows") as deployment, deployment.sink() as sink:
        deployment.filled([bench.corpus.short(number) for number in range(plan.row_documents)], 1)
        deployment.stop_workers()
        definition = str(one(sink, f"SELECT pg_get_indexdef('upwell.{INDEX}'::regclass)"))
        found, stored = [], 0
        for rows in (plan.few_rows, plan.rows):
            sink.execute(f"DROP INDEX upwell.{INDEX}".encode())
            _fill(bench, sink, stored, rows)
            found.append(_rates(bench, deployment, sink, rows, definition))
            stored = rows
    return Section("rows", _figures(found))


def _fill(bench: Bench, sink: psycopg.Connection[Any], stored: int, rows: int) -> None:
    bench.tell(f"{rows:,} synthetic records")
    span = {
        "first": FIRST_KEY + stored,
        "last": FIRST_KEY + rows - 1,
        "dimension": bench.encoder.dimension,
    }
    sink.execute(FILL.encode(), span)
    sink.execute(FILL_VECTORS.encode(), span)
    sink.execute(f"VACUUM ANALYZE {RECORDS}, {VECTORS}".encode())


def _rates(
    bench: Bench, deployment: Deployment, sink: psycopg.Connection[Any], rows: int, definition: str
) -> Rates:
    plan = bench.plan
    filled = fill_topic(deployment, "unchanged", plan.row_events, plan.row_documents)
    events = take_in(deployment, filled.end, 1)
    deployment.start_workers(1)
    documents = embed(deployment, plan.row_documents, f"{rows}a")
    sink.execute(f"SET maintenance_work_mem = {_build_kilobytes(rows + plan.row_documents, bench)}".encode())
    begun = time.monotonic()
    sink.execute(definition.encode())
    built = time.monotonic() - begun
    with_hnsw = embed(deployment, plan.row_documents, f"{rows}b")
    deployment.stop_workers()
    bench.tell(
        f"{rows:,}: {events:.0f} events/s, {documents:.1f} documents/s, {with_hnsw:.1f} with HNSW, "
        f"built in {built:.0f} s"
    )
    bytes_of = [float(one(sink, SIZES[what])) / (rows + plan.row_documents) for what in ("table", "index")]
    return Rates(rows, events, documents, with_hnsw, built, *bytes_of)


def _build_kilobytes(rows: int, bench: Bench) -> int:
    """Memory in which the whole index can be built, as `upwell maintain --memory` would give it; half the machine's at
    most.
    """
    index = 2 * needed_bytes(rows, bench.encoder.dimension, VectorIndex())
    return max(64 * 1024, min(index // 1024, this_machine().memory_mib * 1024 // 2))


def _figures(found: Sequence[Rates]) -> list[Figure]:
    few, many = found
    figures = []
    for rates in found:
        which, told = ("few" if rates is few else "many"), f"{rates.rows:,} records in the sink"
        figures += [
            Figure(f"rows.{which}.events", f"{told}: intake", rates.events, "events/s", "more"),
            Figure(f"rows.{which}.documents", f"{told}: embed", rates.documents, "documents/s", "more"),
            Figure(
                f"rows.{which}.documents_hnsw",
                f"{told}: embed with HNSW",
                rates.documents_hnsw,
                "documents/s",
                "more",
            ),
            Figure(f"rows.{which}.index", f"{told}: HNSW built in", rates.index_seconds, "s"),
            Figure(f"rows.{which}.table_bytes", f"{told}: tables", rates.table_bytes, "bytes/record", "less"),
            Figure(
                f"rows.{which}.index_bytes", f"{told}: indexes", rates.index_bytes, "bytes/record", "less"
            ),
        ]
    target = Target("at least", LEAST)
    return [
        *figures,
        Figure("rows.events_kept", "intake, many to few", many.events / few.events, "times", "more", target),
        Figure(
            "rows.documents_kept",
            "embed without HNSW, many to few",
            many.documents / few.documents,
            "times",
            "more",
            target,
        ),
        Figure(
            "rows.documents_hnsw_kept",
            "embed with HNSW, many to few",
            many.documents_hnsw / few.documents_hnsw,
            "times",
            "more",
        ),
    ]
