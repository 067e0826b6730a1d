"""What `upwell reconcile` reads of vectors, and all that it writes in the sink.

Each write is guarded by the version that was proven to be wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from connectors.postgres.capture_state import SILENT_SECONDS
from connectors.postgres.comparison import batches, streamed
from connectors.postgres.layout import embedding_table, record_table
from connectors.postgres.removal import make_markers
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from schemas.change import Version
from schemas.reconcile import Difference, Document
from schemas.sink import Lane

SQL: Final = Queries.load("reconcile")
SINK: Final = Queries.load("sink")
REASON: Final = "reconciled: not in the source"

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a collection stands. `lineage`: the newest of the deployment, None before the first."""

    load_state: str
    table: str
    key_columns: Sequence[str]
    lineage: int | None


def standing(connection: Connection, collection: str) -> Standing | None:
    """None for a collection that the sink does not have. Raises SinkUnavailable, MigrationNeeded."""
    with sink_errors():
        row = connection.execute(SQL["collection"], {"collection": collection}).fetchone()
    return None if row is None else Standing(*row)


def workers(connection: Connection) -> int:
    """How many live."""
    with sink_errors():
        row = connection.execute(SQL["working"], {"silent_seconds": SILENT_SECONDS}).fetchone()
    assert row is not None
    return int(row[0])


class Documents:
    """Records of the live generation with their vectors."""

    def __init__(self, connection: Connection, collection: str, generation: int) -> None:
        self._connection = connection
        self._at = {"collection": collection, "generation": generation}
        self._parts: dict[str, sql.Composable] = {
            "record": record_table(collection),
            "embedding": embedding_table(collection, generation),
            "settled": SQL["settled"],
        }

    def without_vector(self) -> Iterator[Document]:
        """Live records that have none and wait for none; one without text needs none. Memory for one trip."""
        for key, lineage, offset, row in self._stream("without_vector"):
            yield Document(key, Version(lineage, offset), row)

    def orphans(self) -> Iterator[str]:
        """Keys with vectors and without a live record. Memory for one trip."""
        return (row[0] for row in self._stream("vectors_without_record"))

    def sample(self, limit: int) -> list[str]:
        """Keys with vectors, others each time."""
        return self._keys("sampled", {**self._at, "limit": limit})

    def alike(self, hashes: Collection[bytes]) -> list[str]:
        """Keys that have one of these chunks."""
        return self._keys("alike", {"hashes": list(hashes)})

    def read(self, keys: Sequence[str]) -> Iterator[Document]:
        """Those of these that are live and settled, each of one snapshot."""
        query = SQL.filled("documents", **self._parts)
        for some in batches(keys):
            with sink_errors():
                rows = self._connection.execute(query, {**self._at, "keys": list(some)}).fetchall()
            for key, lineage, offset, row, texts, vectors in rows:
                yield Document(key, Version(lineage, offset), row, texts, vectors)

    def _stream(self, name: str) -> Iterator[tuple[Any, ...]]:
        with sink_errors():
            yield from streamed(self._connection, SQL.filled(name, **self._parts), self._at)

    def _keys(self, name: str, parameters: Mapping[str, object]) -> list[str]:
        with sink_errors():
            found = self._connection.execute(SQL.filled(name, **self._parts), parameters).fetchall()
        return [row[0] for row in found]


class Mending:
    """Writes. Over an autocommit connection; each call is one transaction for each KEYS keys."""

    def __init__(self, connection: Connection, collection: str, generation: int) -> None:
        self._connection, self._collection, self._generation = connection, collection, generation
        self._record, self._embedding = record_table(collection), embedding_table(collection, generation)

    def ask(self, differences: Sequence[Difference]) -> None:
        """These keys are read again now: what comes of them may overwrite the version that is stored."""
        with sink_errors():
            self._connection.execute(SQL["ask_repairs"], self._versions(differences))

    def forget(self, differences: Sequence[Difference]) -> None:
        """What was asked for and is of no use any more."""
        with sink_errors():
            self._connection.execute(SINK["drop_repairs"], self._versions(differences))

    def remove_ghosts(self, differences: Sequence[Difference]) -> int:
        """Make markers of those that are still in the version that the source was proven not to have."""
        removed = 0
        query = SQL.filled("lock_ghosts", record=self._record)
        for some in batches(differences):
            versions = self._versions(some)
            with sink_errors(), self._connection.transaction():
                self._connection.execute(SINK["lock_collection"], versions)
                keys = [row[0] for row in self._connection.execute(query, versions).fetchall()]
                make_markers(self._connection, self._collection, keys, REASON)
                self._connection.execute(SINK["close_absent_dead_letters"], versions)
                self._connection.execute(SINK["drop_repairs"], versions)
            removed += len(keys)
        return removed

    def embed_again(self, differences: Sequence[Difference]) -> int:
        """Drop the vectors of records that are still in the version that was looked at, and make them pending.

        Backfill: what was found here is no change of the source, and has no deadline.
        """
        begun = 0
        lock = SQL.filled("lock_to_embed", record=self._record, settled=SQL["settled"])
        remove = SINK.filled("remove_embeddings", embedding=self._embedding)
        with sink_errors(), self._connection.transaction():
            self._connection.execute(SINK["lock_collection"], {"collection": self._collection})
            for some in batches(sorted(differences, key=lambda each: each.key)):
                versions = {**self._versions(some), "generation": self._generation}
                rows = self._connection.execute(lock, versions).fetchall()
                keys = [row[0] for row in rows]
                self._connection.execute(remove, {"keys": keys})
                pending = {
                    "collection": self._collection,
                    "keys": keys,
                    "lineages": [row[1] for row in rows],
                    "offsets": [row[2] for row in rows],
                    "lanes": [Lane.BACKFILL.value] * len(keys),
                    "since": [None] * len(keys),
                    "changes": [1] * len(keys),
                    "generations": [self._generation],
                }
                self._connection.execute(SINK["upsert_pending"], pending)
                begun += len(keys)
            self._connection.execute(SINK["notify_pending"], {"collection": self._collection})
        return begun

    def remove_orphans(self, keys: Sequence[str]) -> int:
        """Drop vectors without a live record; how many keys had any."""
        query = SQL.filled("remove_orphans", record=self._record, embedding=self._embedding)
        for some in batches(keys):
            with sink_errors(), self._connection.transaction():
                self._connection.execute(SINK["lock_collection_alone"], {"collection": self._collection})
                self._connection.execute(query, {"keys": list(some)})
        return len(keys)

    def audit(self, count: int, detail: Mapping[str, Any]) -> None:
        """One row for the whole: how many keys were repaired, and of what kinds."""
        parameters = {"collection": self._collection, "count": count, "detail": Jsonb(dict(detail))}
        with sink_errors():
            self._connection.execute(SQL["audit"], parameters)

    def _versions(self, differences: Collection[Difference]) -> dict[str, Any]:
        """Of a key without a record: a version before any."""
        versions = [each.stored.version or Version(0, 0) for each in differences]
        return {
            "collection": self._collection,
            "keys": [each.key for each in differences],
            "lineages": [version.lineage for version in versions],
            "offsets": [version.offset for version in versions],
        }
