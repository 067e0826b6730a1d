"""Generations beside each other: created, looked at, switched and dropped, each in one transaction (DESIGN 8).

Whatever changes something takes the collection's lock alone: an intake transaction is either before it, and its rows
are seen, or after it, and knows the generation (H19).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from connectors.postgres.capture_state import connect_sink
from connectors.postgres.embed_store import SQL as SINK
from connectors.postgres.layout import (
    CollectionLayout,
    Column,
    embedding_table,
    hnsw_name,
    record_table,
    vector_index,
)
from connectors.postgres.migrate import (
    SQL as LAYOUT,
)
from connectors.postgres.migrate import (
    check_schema,
    drop_embedding,
    fed_generations,
    hnsw_indexes,
    hnsw_query,
    insert_generation,
    make_embedding,
    make_read_side,
)
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from connectors.postgres.upkeep import Progress, Upkeep, read_vectors
from schemas.errors import Conflict, MigrationNeeded, SettingsError
from schemas.freshness import CANARY
from schemas.names import VIEW_COLUMNS, check_identifier
from schemas.sink import GenerationInfo

SQL: Final = Queries.load("generations")


@dataclass(frozen=True, slots=True)
class GenerationFacts:
    """A generation as it stands. `bytes`: table with indexes; `oldest_pending_seconds`: by the source's commit, None if
    no change waits; `eta_seconds`: at the rate of the last minutes, None if nothing was embedded in them.
    """

    info: GenerationInfo
    created_at: datetime
    chunks: int
    bytes: int
    pending: int
    oldest_pending_seconds: float | None
    dead_letters: int
    eta_seconds: float | None


@dataclass(frozen=True, slots=True)
class Readiness:
    """Rows of a generation that were never embedded, changes that wait for longer than the threshold, all that waits,
    open dead letters, and whether its HNSW index is there.
    """

    unfilled: int
    late: int
    pending: int
    dead_letters: int
    is_indexed: bool

    @property
    def is_filled(self) -> bool:
        return not (self.unfilled or self.late or self.dead_letters)

    @property
    def is_ready(self) -> bool:
        return self.is_filled and self.is_indexed


#: What was live, what was to be, and how ready that was.
Switched = tuple[GenerationInfo, GenerationInfo, Readiness]


def quiet(line: str) -> None:
    """Progress that nobody looks at."""


class Generations:
    """Of all collections. The connection is in autocommit mode."""

    def __init__(self, connection: psycopg.Connection[Any], dsn: str) -> None:
        self._connection = connection
        self._dsn = dsn

    @classmethod
    @contextlib.contextmanager
    def open(cls, dsn: str) -> Iterator[Generations]:
        """Raises SinkUnavailable, MigrationNeeded."""
        with connect_sink(dsn) as connection:
            check_schema(connection)
            yield cls(connection, dsn)

    def fed(self, collection: str) -> list[GenerationInfo]:
        """Filling, live and retired ones, the live one first. Raises MigrationNeeded if there is none."""
        check_identifier(collection, "collection")
        with sink_errors():
            found = fed_generations(self._connection, collection)
        if not found:
            raise MigrationNeeded(
                f"collection {collection} is not in the sink yet: run `upwell migrate` first"
            )
        return found

    def create(self, wanted: GenerationInfo) -> tuple[GenerationInfo, int]:
        """A filling generation with a pending row for each stored one; returns it and how many. It has no HNSW index
        before it is switched to: filled first, it is indexed in a fraction of the time.

        Its number is the next one, whatever `wanted` says. One that is fed already is returned as it is, with 0.
        Raises SettingsError while another fills.
        """
        collection = wanted.collection
        with self._alone(collection):
            fed = self.fed(collection)
            for each in fed:
                if each.fingerprint == wanted.fingerprint:
                    return each, 0
                if each.state == "filling":
                    raise SettingsError(
                        f"generation {each.number} of {collection} is filling: "
                        f"run `upwell generation drop {collection} {each.number}` first, or switch to it"
                    )
            number = max(row["number"] for row in self._rows(SQL["numbers"], {"collection": collection})) + 1
            made = replace(wanted, number=number, state="filling")
            at = {"collection": collection, "number": number}
            index = self._layout(made).index
            insert_generation(self._connection, made)
            make_embedding(self._connection, made, index)
            if collection == CANARY:  # one row: nobody waits for it
                self._connection.execute(hnsw_query(collection, number, index))
            fill = SQL.filled("fill", record=record_table(collection))
            pending = self._connection.execute(fill, at).rowcount
            self._audit(made, "generation_created", {"pending": pending})
            self._connection.execute(SQL["notify_pending"], at)
            return made, pending

    def switch(self, collection: str, number: int | None, progress: Progress = quiet) -> Switched:
        """Make another generation the live one, if it is ready: what was live, what was to be, how ready that was.

        `number` None is the filling one. What is ready but for its HNSW index gets that first, beside workers: it may
        take long. Raises SettingsError if there is no such generation.
        """
        found = self._switch(collection, number)
        live, target, ready = found
        if target.number == live.number or not ready.is_filled or ready.is_indexed:
            return found
        self._build_index(target, progress)
        return self._switch(collection, number)

    def _switch(self, collection: str, number: int | None) -> Switched:
        with self._alone(collection):
            fed = self.fed(collection)
            chosen = [
                each for each in fed if each.number == number or (number is None and each.state == "filling")
            ]
            if not chosen:
                which = "generation that fills" if number is None else f"generation {number}"
                raise SettingsError(
                    f"{collection} has no {which}: see `upwell generation status {collection}`"
                )
            live, target = fed[0], chosen[0]
            readiness = self._readiness(fed[0], target)
            if readiness.is_ready and target.number != live.number:
                self._make_live(live, target, "generation_switched")
            return live, target, readiness

    def rollback(self, collection: str, progress: Progress = quiet) -> Switched:
        """Back to the generation that was live last, at once, whatever waits in it; returns what `switch` does.

        Only for an HNSW index that is missing it waits.
        """
        found = self._rollback(collection)
        if found[2].is_indexed:
            return found
        self._build_index(found[1], progress)
        return self._rollback(collection)

    def _rollback(self, collection: str) -> Switched:
        with self._alone(collection):
            fed = self.fed(collection)
            last = self._rows(SQL["last_live"], {"collection": collection})
            if not last:
                raise SettingsError(f"{collection} has no retired generation to go back to")
            target = next(each for each in fed if each.number == last[0]["number"])
            readiness = self._readiness(fed[0], target)
            if readiness.is_indexed:
                self._make_live(fed[0], target, "generation_rolled_back")
            return fed[0], target, readiness

    def _build_index(self, target: GenerationInfo, progress: Progress) -> None:
        """Not under the collection's lock: workers go on."""
        with Upkeep.open(self._dsn) as upkeep:
            for facts in read_vectors(upkeep.connection, target.collection):
                if facts.generation == target.number and not facts.is_indexed:
                    progress(f"index of {facts.place}: is built before it is switched to")
                    upkeep.build(facts, progress)

    def drop(self, collection: str, number: int) -> bool:
        """Remove a generation that is not live, with all that waits for it. False if it was dropped before."""
        with self._alone(collection):
            states = {
                row["number"]: row["state"] for row in self._rows(SQL["numbers"], {"collection": collection})
            }
            if number not in states:
                raise SettingsError(f"{collection} has no generation {number}")
            if states[number] == "dropped":
                return False
            if states[number] == "live":
                raise SettingsError(
                    f"generation {number} of {collection} is live: switch to another one first"
                )
            gone = next(each for each in self.fed(collection) if each.number == number)
            at = {"collection": collection, "number": number}
            for query in ("drop_pending", "waive_dead_letters", "mark_dropped"):
                self._connection.execute(SQL[query], at)
            drop_embedding(self._connection, collection, number)
            self._audit(gone, "generation_dropped", {"was": states[number]})
            return True

    def facts(self, collection: str) -> list[GenerationFacts]:
        """Of all that are fed, by number."""
        return [self._facts(each) for each in sorted(self.fed(collection), key=lambda each: each.number)]

    def problems(self) -> list[str]:
        """What workers that live cannot do, a line each."""
        found = self._rows(SQL["problems"], {})
        return [f"worker {row['slot']}: {line}" for row in found for line in row["problems"]]

    def rows(self, collection: str) -> int:
        """Stored rows, without markers."""
        query = SQL.filled("rows", record=record_table(collection))
        return int(self._rows(query, {})[0]["rows"])

    def sample(self, collection: str, limit: int) -> list[Mapping[str, Any]]:
        """Some stored rows, spread over the table; the same ones each time."""
        query = SQL.filled("sample", record=record_table(collection))
        return [row["_row"] for row in self._rows(query, {"limit": limit})]

    def known_hashes(self, collection: str, number: int, hashes: Collection[bytes]) -> frozenset[bytes]:
        """Which chunk hashes have a vector in the generation."""
        query = SINK.filled("known_hashes", embedding=embedding_table(collection, number))
        return frozenset(row["chunk_hash"] for row in self._rows(query, {"hashes": list(hashes)}))

    @contextlib.contextmanager
    def _alone(self, collection: str) -> Iterator[None]:
        """One transaction that no intake and no embedding of the collection runs beside."""
        check_identifier(collection, "collection")
        try:
            with sink_errors(), self._connection.transaction():
                self._connection.execute(SQL["patience"])
                self._connection.execute(SINK["lock_collection_alone"], {"collection": collection})
                yield
        except Conflict as error:
            raise Conflict(
                f"{collection}: a transaction or query has held it for 5 s, nothing was changed: try again"
            ) from error

    def _readiness(self, live: GenerationInfo, target: GenerationInfo) -> Readiness:
        query = SQL.filled(
            "readiness",
            embedding=embedding_table(target.collection, target.number),
            live=embedding_table(live.collection, live.number),
        )
        indexes = hnsw_indexes(self._connection, embedding_table(target.collection, target.number))
        index = indexes.get(hnsw_name(target.collection, target.number))
        indexed = index is not None and index.valid
        return Readiness(**self._rows(query, _place(target))[0], is_indexed=indexed)

    def _make_live(self, live: GenerationInfo, target: GenerationInfo, action: str) -> None:
        at = _place(target)
        for query in ("retire", "make_live", "swap_lanes", "lower_watermark"):
            self._connection.execute(SQL[query], at)
        make_read_side(self._connection, self._layout(target))
        self._audit(target, action, {"from": live.number})
        self._connection.execute(SQL["notify_pending"], at)

    def _layout(self, generation: GenerationInfo) -> CollectionLayout:
        """From what is there: a switch needs neither the source nor the spec."""
        name = generation.collection
        found = self._rows(SQL["collection"], {"collection": name})[0]
        types = {
            row["attname"]: Column(row["attname"], row["format_type"])
            for row in self._rows(SINK["column_types"], {"table": f"upwell.record_{name}"})
        }
        shown = [row["attname"] for row in self._rows(LAYOUT["view_columns"], {"view": f"upwell.{name}"})]
        keys = found["key_columns"]
        return CollectionLayout(
            name=name,
            table="",
            key=[types[column] for column in keys],
            metadata=[types[name] for name in shown[len(keys) :] if name not in VIEW_COLUMNS],
            generation=generation,
            threshold_seconds=found["threshold_seconds"],
            index=vector_index(found),
        )

    def _facts(self, info: GenerationInfo) -> GenerationFacts:
        table = embedding_table(info.collection, info.number)
        regclass = sql.Literal(f"upwell.embedding_{info.collection}_g{info.number}")
        repeated = sql.Literal(f"upwell.repeated_{info.collection}_g{info.number}")
        query = SQL.filled("facts", embedding=table, regclass=regclass, repeated=repeated)
        row = self._rows(query, _place(info))[0]
        rate, waiting = row["fill_rate"], row["pending"]
        eta = 0.0 if not waiting else waiting / rate if rate and info.state == "filling" else None
        return GenerationFacts(
            info=info,
            created_at=row["created_at"],
            chunks=row["chunks"],
            bytes=row["bytes"],
            pending=waiting,
            oldest_pending_seconds=None if row["oldest"] is None else max(row["oldest"].total_seconds(), 0.0),
            dead_letters=row["dead_letters"],
            eta_seconds=eta,
        )

    def _audit(self, generation: GenerationInfo, action: str, detail: Mapping[str, object]) -> None:
        made_with = {"model": generation.model, "dimension": generation.dimension}
        values = {"action": action, "detail": json.dumps({**made_with, **detail})}
        self._connection.execute(SQL["audit"], {**_place(generation), **values})

    def _rows(
        self, query: sql.SQL | sql.Composed, parameters: Mapping[str, object]
    ) -> Sequence[dict[str, Any]]:
        with sink_errors(), self._connection.cursor(row_factory=dict_row) as cursor:
            return list(cursor.execute(query, parameters))


def _place(generation: GenerationInfo) -> dict[str, Any]:
    return {"collection": generation.collection, "number": generation.number}
