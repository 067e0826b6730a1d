"""Indexes and tables of the sink: looked at, built anew and vacuumed beside workers and readers (ADR 0020).

An index is built CONCURRENTLY under another name; then the old one is dropped CONCURRENTLY and the new one takes its
name. Killed anywhere, the next run sees what is there and goes on. Whoever calls it is alone (`migrate.alone`).
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from connectors.postgres.capture_state import connect_sink
from connectors.postgres.layout import embedding_table, hnsw_name, record_table, repeated_table, vector_index
from connectors.postgres.migrate import alone, check_schema, hnsw_indexes, hnsw_query, is_there
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from schemas.errors import SettingsError, UpwellError
from schemas.upkeep import TableFacts, VectorFacts

SQL: Final = Queries.load("upkeep")
#: How often a build is looked at, and how often it is told of while nothing but its numbers changes.
LOOK_SECONDS: Final = 1.0
TELL_SECONDS: Final = 10.0

Connection = psycopg.Connection[Any]
Progress = Callable[[str], None]


def read_vectors(connection: Connection, collection: str | None = None) -> list[VectorFacts]:
    """Of every generation that is fed, or of a collection's. Raises SinkUnavailable, MigrationNeeded."""
    with sink_errors():
        found = _rows(connection, SQL["generations"], {})
        wanted = [row for row in found if collection in (None, row["collection"])]
        return [_vectors(connection, row) for row in wanted]


def read_unindexed(connection: Connection) -> list[str]:
    """Collections whose searches read the whole table, though their rows are there. Counts nothing: it is quick."""
    with sink_errors():
        return [row["collection"] for row in _rows(connection, SQL["unindexed"], {})]


def read_table(connection: Connection, relation: sql.Identifier, name: str) -> TableFacts:
    """`name`: without the schema."""
    with sink_errors():
        query = SQL.filled("table", relation=relation)
        return TableFacts(name=name, **_rows(connection, query, {"table": f"upwell.{name}"})[0])


def read_record(connection: Connection, collection: str) -> TableFacts:
    return read_table(connection, record_table(collection), f"record_{collection}")


def read_pending(connection: Connection) -> TableFacts:
    return read_table(connection, sql.Identifier("upwell", "pending"), "pending")


def _rows(
    connection: Connection, query: sql.SQL | sql.Composed, parameters: Mapping[str, object]
) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, parameters).fetchall()


def _vectors(connection: Connection, row: Mapping[str, Any]) -> VectorFacts:
    collection, number = row["collection"], row["number"]
    name, table = hnsw_name(collection, number), f"embedding_{collection}_g{number}"
    indexes = hnsw_indexes(connection, embedding_table(collection, number))
    spare = indexes.get(spare_name(collection, number))
    # REINDEX CONCURRENTLY, run by hand and killed, leaves indexes of such names.
    dead = [
        each.name
        for each in indexes.values()
        if not each.valid and (each is spare or re.fullmatch(rf"{name}_cc(new|old)\d*", each.name))
    ]
    at_once = row["index_build"] == "at_once" and row["state"] == "live"
    return VectorFacts(
        collection=collection,
        generation=number,
        state=row["state"],
        dimension=row["dimension"],
        wanted=vector_index(row),
        filling=row["filling"] and not at_once,
        table=read_table(connection, embedding_table(collection, number), table),
        index=indexes.get(name),
        spare=None if spare is None or not spare.valid else spare,
        leftovers=tuple(dead),
        apart=_apart(connection, collection, number),
    )


def _apart(connection: Connection, collection: str, number: int) -> int:
    name, table = f"repeated_{collection}_g{number}", repeated_table(collection, number)
    if not is_there(connection, name) or any(each.valid for each in hnsw_indexes(connection, table).values()):
        return 0
    return read_table(connection, table, name).rows


def spare_name(collection: str, generation: int) -> str:
    """Of an index that is to take the other one's place."""
    return f"embedding_{collection}_g{generation}_new"


class Upkeep:
    """What is done to indexes and tables. The connection is in autocommit mode and its own."""

    def __init__(self, connection: Connection, dsn: str) -> None:
        self.connection = connection
        self._dsn = dsn

    @classmethod
    @contextlib.contextmanager
    def open(cls, dsn: str, memory: str | None = None) -> Iterator[Upkeep]:
        """Alone on the sink. `memory`: maintenance_work_mem of the builds, as Postgres writes it.

        Raises SinkUnavailable, MigrationNeeded, SettingsError: somebody else is at it, or the login owns nothing.
        """
        with connect_sink(dsn) as connection:
            check_schema(connection)
            with sink_errors():
                owner = connection.execute(SQL["owns"]).fetchone()
                if owner is None or not owner[0]:
                    raise SettingsError(
                        "this login does not own schema upwell: run it with the one that `upwell migrate` uses"
                    )
                connection.execute(SQL["session"], {"memory": memory})
                with alone(connection):
                    yield cls(connection, dsn)

    def build(self, facts: VectorFacts, progress: Progress) -> None:
        """Its index as it is wanted, in place of what is there."""
        for name in facts.leftovers:
            self._drop(name)
        name, spare = hnsw_name(facts.collection, facts.generation), facts.spare
        other = spare_name(facts.collection, facts.generation)
        wanted = facts.wanted
        if spare is not None and (spare.m, spare.ef_construction) != (wanted.m, wanted.ef_construction):
            self._drop(other)
            spare = None
        if spare is None:
            self._create(facts, other, progress)
        self._drop(name)
        self._run(SQL.filled("rename", index=sql.Identifier("upwell", other), to=sql.Identifier(name)))

    def vacuum(self, table: str) -> None:
        """`table`: without the schema."""
        self._run(SQL.filled("vacuum", table=sql.Identifier("upwell", table)))

    def _create(self, facts: VectorFacts, name: str, progress: Progress) -> None:
        place = f"index of {facts.place}"

        def notice(said: psycopg.errors.Diagnostic) -> None:
            progress(f"{place}: {said.message_primary}")

        self.connection.add_notice_handler(notice)
        try:
            with watched(
                self._dsn, self.connection.info.backend_pid, lambda line: progress(f"{place}: {line}")
            ):
                self._run(hnsw_query(facts.collection, facts.generation, facts.wanted, beside=name))
        finally:
            self.connection.remove_notice_handler(notice)

    def _drop(self, name: str) -> None:
        self._run(SQL.filled("drop", index=sql.Identifier("upwell", name)))

    def _run(self, query: sql.Composed) -> None:
        with sink_errors():
            self.connection.execute(query)


@contextlib.contextmanager
def watched(dsn: str, pid: int, progress: Progress) -> Iterator[None]:
    """Tells how far the build of session `pid` is, from a connection of its own."""
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(dsn, pid, progress, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(5)


def _watch(dsn: str, pid: int, progress: Progress, done: threading.Event) -> None:
    before, silent = "", 0.0
    try:
        with connect_sink(dsn) as connection, sink_errors():
            while not done.wait(LOOK_SECONDS):
                silent += LOOK_SECONDS
                rows = _rows(connection, SQL["progress"], {"pid": pid})
                what, line = _said(rows[0]) if rows else ("", "")
                if line and (what != before or silent >= TELL_SECONDS):
                    progress(line)
                    before, silent = what, 0.0
    except UpwellError:
        return  # the build itself says what is wrong with the sink


def _said(row: Mapping[str, Any]) -> tuple[str, str]:
    """What is being done, and the line that says how far it is."""
    if row["waits"] and row["pid"]:
        waits = f"waits for the transaction of pid {row['pid']} to end"
        return waits, waits
    share = f", {row['blocks_done'] / row['blocks_total']:.0%}" if row["blocks_total"] else ""
    return row["phase"], f"{row['phase']}{share}"
