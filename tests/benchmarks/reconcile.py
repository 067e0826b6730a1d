"""What does `upwell reconcile` cost? `python -m tests.benchmarks.reconcile`

A million rows a side, made by SQL on a Postgres of its own: no Kafka, so the round of a pass is taken for complete at
once (on a real line it takes 2 to 5 seconds). Each reading is a process of its own, for its peak memory. Printed
beside: a plain scan of both tables, and their whole export through the client.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any, Final, cast

import psycopg

from connectors.postgres.comparison import SinkRows, SourceRows, compared
from connectors.postgres.mending import Documents, Mending
from connectors.postgres.migrate import migrate_sink
from connectors.postgres.source import inspect_tables
from schemas.template import Template
from streams.reconcile.report import Report
from streams.reconcile.round import Round
from streams.reconcile.run import Comparison, Options
from tests.contracts.server import Server, running
from tests.contracts.sinks import layout

METADATA: Final = ("title", "published", "price", "tags", "updated_at")
TABLE: Final = """
CREATE SCHEMA shop;
CREATE TABLE shop.content (id bigint PRIMARY KEY, title text, body text, published boolean, price numeric(10,2),
                           tags text[], updated_at timestamptz);
"""
ROWS: Final = """
SELECT i AS id, 'Piece ' || i AS title, repeat('Body number ' || i || '. ', 8) AS body, i % 3 > 0 AS published,
       (i % 1000)::numeric(10,2) AS price, ARRAY['a', 'b' || i % 7] AS tags,
       timestamptz '2026-01-01 UTC' + i * interval '1 second' AS updated_at
  FROM generate_series(1, {rows}) AS i
"""
RECORDS: Final = """
INSERT INTO upwell.record_content (_key, _row, _text_hash, _lineage, _offset, _deleted, _streamed, _taken_in_at, id,
                                   title, published, price, tags, updated_at)
SELECT '[' || id || ']', to_jsonb(r) || jsonb_build_object('price', price::text), '', 1, id, false, false, now(), id,
       title, published, price, tags, updated_at FROM ({rows}) AS r
"""
VECTORS: Final = """
INSERT INTO upwell.embedding_content_g1
SELECT _key, 0, '', '', '[1,0,0,0]', now() FROM upwell.record_content
"""
SCAN: Final = {
    "source": "SELECT count(*), sum(length(t::text)) FROM shop.content t",
    "sink": "SELECT count(*), sum(length(_row::text)) FROM upwell.record_content",
}
EXPORT: Final = {
    "source": "COPY (SELECT * FROM shop.content ORDER BY id) TO STDOUT",
    "sink": "COPY (SELECT _key, _row FROM upwell.record_content ORDER BY id) TO STDOUT",
}


class AtOnce:
    """A round where nothing is in flight."""

    def complete(self) -> None:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="at least 4000")
    parser.add_argument("--of", nargs=3, metavar=("WHAT", "SOURCE", "SINK"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.of:
        measured(*given.of)
        return
    with running(18) as server:
        source, sink = fill(server, given.rows)
        scan = timed("scan", source, sink)
        export = timed("export", source, sink)
        print(f"{given.rows} rows a side; a plain scan of both {scan['seconds']:.1f} s")
        print(f"their export through the client {export['seconds']:.1f} s, {export['mib']:.0f} MiB")
        for number in (0, 1000):
            damage(sink, number)
            found = timed("compare", source, sink)
            assert found["found"] == number, found
            print(
                f"{number} differences: {found['seconds']:.1f} s, {given.rows / found['seconds']:.0f} rows/s, "
                f"{found['mib']:.0f} MiB; {found['seconds'] / scan['seconds']:.1f} x the scan, "
                f"{found['seconds'] / export['seconds']:.1f} x the export"
            )


def fill(server: Server, rows: int) -> tuple[str, str]:
    """Both sides, analysed."""
    source, sink = server.create("source"), server.create("sink")
    made = ROWS.format(rows=rows)
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute(TABLE.encode())
        connection.execute(f"INSERT INTO shop.content {made}".encode())
        connection.execute("VACUUM ANALYZE shop.content")
    with psycopg.connect(sink, autocommit=True) as connection:
        migrate_sink(
            connection, [layout("content", tuple(c for c in layout().metadata if c.name in METADATA))]
        )
        connection.execute(RECORDS.format(rows=made).encode())
        connection.execute(
            "DROP INDEX upwell.embedding_content_g1_hnsw"
        )  # hours to build, and read by no query here
        connection.execute(VECTORS)
        connection.execute("VACUUM ANALYZE upwell.record_content, upwell.embedding_content_g1")
    return source, sink


def damage(dsn: str, number: int) -> None:
    """A third each of lost rows, ghosts and stale ones, spread over all ranges."""
    if number == 0:
        return
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "DELETE FROM upwell.record_content WHERE id %% 7 = 1 AND id <= %s * 7 / 2", (number,)
        )
        connection.execute(
            "UPDATE upwell.record_content SET price = price + 1 WHERE id %% 7 = 2 AND id <= %s * 7 / 2",
            (number,),
        )


def timed(what: str, source: str, sink: str) -> dict[str, Any]:
    """A reading in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.reconcile", "--of", what, source, sink]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def measured(what: str, source_dsn: str, sink_dsn: str) -> None:
    started, found = time.monotonic(), 0
    with (
        psycopg.connect(source_dsn, autocommit=True) as source,
        psycopg.connect(sink_dsn, autocommit=True) as sink,
    ):
        if what == "compare":
            report = comparison(source, sink).run()
            found = sum(len(each) for kind, each in report.found.items() if "vector" not in kind)
        for name, connection in (("source", source), ("sink", sink)):
            if what == "scan":
                connection.execute(SCAN[name].encode()).fetchone()
            elif what == "export":
                with connection.cursor() as cursor, cursor.copy(EXPORT[name].encode()) as copy:
                    for _ in copy:
                        pass
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.monotonic() - started, "mib": mib, "found": found}))


def comparison(source: psycopg.Connection[Any], sink: psycopg.Connection[Any]) -> Comparison:
    """As `upwell reconcile --sample 0`. The template has no text, so that no vector is missed."""
    table = inspect_tables(source, ["shop.content"], server=False)["shop.content"]
    what = compared(source, table, {*METADATA, "body"})
    return Comparison(
        collection="content",
        source=SourceRows(source, what),
        sink=SinkRows(sink, "content", what, METADATA),
        documents=Documents(sink, "content", 1),
        mending=Mending(sink, "content", 1),
        template=Template("{{ none }}"),
        round=cast(Round, AtOnce()),
        recipe=lambda: NotImplemented,
        options=Options(repair=False, sample=0, wait_seconds=60.0),
        progress=lambda line: None,
        report=Report("content"),
    )


if __name__ == "__main__":
    main()
