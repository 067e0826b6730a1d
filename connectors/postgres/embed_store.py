"""Claims, lease tokens and the embed transaction (DESIGN 4)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg_pool import AsyncConnectionPool

from connectors.postgres.intake_writes import storable
from connectors.postgres.layout import embedding_table, record_table
from connectors.postgres.sql import Queries
from connectors.postgres.transaction import transaction
from connectors.postgres.translate import sink_errors
from connectors.postgres.vectors import vector_arrays
from schemas.change import Version
from schemas.errors import Conflict, GenerationDropped, UpwellError
from schemas.sink import LATE_SHARE, Claim, EmbedWrite, GenerationInfo, Lane, WriteOutcome

SQL: Final = Queries.load("sink")
Connection = psycopg.AsyncConnection[Any]
Pool = AsyncConnectionPool[Connection]

#: An intake transaction is over long before.
RELEASE_SECONDS: Final = 5.0


class EmbedTransactions:
    """Implements `EmbedStore` of streams/ports.py."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def claim(
        self,
        generations: Collection[tuple[str, int]],
        slot: str,
        limit: int,
        backfill_share: float,
        lease_seconds: float,
        *,
        live_only: bool = False,
    ) -> Sequence[Claim]:
        """See `EmbedStore.claim`. A share of less than one row is taken as often as it is large."""
        parameters = {
            "collections": [collection for collection, _ in generations],
            "generations": [number for _, number in generations],
            "slot": slot,
            "limit": limit,
            "most_backfill": 0 if live_only else limit,
            "reserved": int(limit * backfill_share + random.random()),
            "late_share": LATE_SHARE,
            "chance": random.random(),
            "lease_seconds": lease_seconds,
        }
        with sink_errors():
            async with self._pool.connection() as connection, transaction(connection):
                rows = await (await connection.execute(SQL["claim"], parameters)).fetchall()
                documents = await self._documents(connection, rows)
        rows.sort(key=lambda row: (row[6] != Lane.LIVE.value, row[12] <= row[10], row[12]))
        return [_claim(row, documents[row[0], row[2]]) for row in rows if (row[0], row[2]) in documents]

    async def _documents(
        self, connection: Connection, rows: Sequence[Sequence[Any]]
    ) -> dict[tuple[str, str], Mapping[str, Any]]:
        """Rows of the claimed records; a claim without one is dropped here (its record is gone)."""
        found: dict[tuple[str, str], Mapping[str, Any]] = {}
        for collection in sorted({row[0] for row in rows}):
            mine = [row for row in rows if row[0] == collection]
            query = SQL.filled("claimed_rows", record=record_table(collection))
            cursor = await connection.execute(query, {"keys": [row[2] for row in mine]})
            async for key, document in cursor:
                found[collection, key] = document
            for row in mine:
                if (collection, row[2]) not in found:
                    gone = {
                        "collection": collection,
                        "generation": row[1],
                        "keys": [row[2]],
                        "tokens": [row[5]],
                    }
                    await connection.execute(SQL["drop_pending"], gone)
        return found

    async def known_hashes(
        self, collection: str, generation: int, hashes: Collection[bytes]
    ) -> frozenset[bytes]:
        """Which chunk hashes have a vector somewhere in the generation. Raises GenerationDropped."""
        query = SQL.filled("known_hashes", embedding=embedding_table(collection, generation))
        with sink_errors(), _dropped(collection, generation):
            async with self._pool.connection() as connection:
                rows = await connection.execute(query, {"hashes": list(hashes)})
                return frozenset([row[0] async for row in rows])

    async def own_hashes(
        self, collection: str, generation: int, keys: Collection[str]
    ) -> Mapping[str, frozenset[bytes]]:
        """Chunk hashes stored for each key. Raises GenerationDropped."""
        query = SQL.filled("own_hashes", embedding=embedding_table(collection, generation))
        with sink_errors(), _dropped(collection, generation):
            async with self._pool.connection() as connection:
                rows = await connection.execute(query, {"keys": list(keys)})
                return {row[0]: frozenset(row[1]) async for row in rows}

    async def write(self, writes: Sequence[EmbedWrite]) -> tuple[Sequence[WriteOutcome], datetime]:
        """See `EmbedStore.write`; all writes are of one collection and generation."""
        with sink_errors():
            async with self._pool.connection() as connection:
                async with transaction(connection):
                    outcomes, clock = await _write(connection, writes)
                row = await clock.fetchone()
        assert row is not None
        return outcomes, row[0]

    async def fail(self, claim: Claim, error: Exception, retry_seconds: float | None) -> None:
        """Give a claim back: retried alone after `retry_seconds`; None: dead-lettered if its text is still wanted."""
        at = {
            "collection": claim.collection,
            "generation": claim.generation,
            "key": claim.key,
            "token": claim.token,
            "lineage": claim.version.lineage,
            "offset": claim.version.offset,
            "error_class": type(error).__name__,
            "error": _said(error),
        }
        mine = {**at, "keys": [claim.key], "tokens": [claim.token]}
        with sink_errors():
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(SQL["lock_collection"], at)
                if retry_seconds is None:
                    letter = await connection.execute(SQL["embed_dead_letter"], at)
                    if letter.rowcount:
                        await connection.execute(SQL["audit_embed_dead_letter"], at)
                        await connection.execute(SQL["drop_pending"], mine)
                        return
                seconds = {"seconds": retry_seconds or 0.0, "attempts": 0 if retry_seconds is None else 1}
                await connection.execute(SQL["return_claims"], {**mine, **seconds})

    async def give_back(self, claims: Sequence[Claim]) -> None:
        """Free claims at once, as if they had not been claimed."""
        with sink_errors():
            async with self._pool.connection() as connection, connection.transaction():
                for place in sorted({(claim.collection, claim.generation) for claim in claims}):
                    here = [claim for claim in claims if (claim.collection, claim.generation) == place]
                    await connection.execute(
                        SQL["give_back"],
                        {
                            "collection": place[0],
                            "generation": place[1],
                            "keys": [claim.key for claim in here],
                            "tokens": [claim.token for claim in here],
                        },
                    )

    async def release(self, slot: str, *, died: bool = False) -> int:
        """See `EmbedStore.release`. Raises Conflict if others keep the rows."""
        released, deadline = 0, time.monotonic() + RELEASE_SECONDS
        with sink_errors():
            async with self._pool.connection() as connection:
                while True:
                    freed = await connection.execute(SQL["release_slot"], {"slot": slot, "died": died})
                    released += freed.rowcount
                    left = await (await connection.execute(SQL["slot_holds"], {"slot": slot})).fetchone()
                    if left is None or not left[0]:
                        return released
                    if time.monotonic() > deadline:
                        raise Conflict(f"leases of worker slot {slot} are held by other transactions")
                    await asyncio.sleep(0.01)

    async def generations(self) -> Sequence[GenerationInfo]:
        """All generations that are fed: filling, live and retired."""
        with sink_errors():
            async with self._pool.connection() as connection:
                return [GenerationInfo(*row) async for row in await connection.execute(SQL["generations"])]


def _said(error: Exception) -> str:
    """Of an error of ours what it says. Another's may quote the text, which is not to be read in a dead letter."""
    if not isinstance(error, UpwellError):
        return "the model failed on the text"
    return storable(" ".join(str(error).split()))[:2000]


@contextlib.contextmanager
def _dropped(collection: str, generation: int) -> Iterator[None]:
    """A generation's table is there for as long as the generation is."""
    try:
        yield
    except psycopg.errors.UndefinedTable as error:
        raise GenerationDropped(f"generation {generation} of {collection} was dropped") from error


def _claim(row: Sequence[Any], document: Mapping[str, Any]) -> Claim:
    return Claim(
        collection=row[0],
        generation=row[1],
        key=row[2],
        version=Version(row[3], row[4]),
        token=row[5],
        lane=Lane(row[6]),
        row=document,
        attempts=row[7],
        pending_since=row[8],
        taken_in_at=row[9],
        claimed_at=row[10],
        changes=row[11],
    )


async def _write(
    connection: Connection, writes: Sequence[EmbedWrite]
) -> tuple[Sequence[WriteOutcome], psycopg.AsyncCursor[Any]]:
    """What became of each, and the cursor of the sink's clock, which is not waited for."""
    claims = [write.claim for write in writes]
    at: dict[str, Any] = {"collection": claims[0].collection, "generation": claims[0].generation}
    pending = await _lock(connection, claims, at)
    vectors = await _stored_vectors(connection, [w for w in writes if w.claim.token in pending], at)
    outcomes = [_outcome(write, pending, vectors) for write in writes]
    written = [
        write
        for write, outcome in zip(writes, outcomes, strict=True)
        if outcome in (WriteOutcome.WRITTEN, WriteOutcome.MOVED_ON)
    ]
    by_outcome = {
        kind: [claim for claim, outcome in zip(claims, outcomes, strict=True) if outcome is kind]
        for kind in WriteOutcome
    }
    await _leave_pending(connection, by_outcome, at)
    if written:
        await _store(connection, written, vectors, at)
    return outcomes, await connection.execute(SQL["clock"])


async def _lock(connection: Connection, claims: Sequence[Claim], at: dict[str, Any]) -> dict[str, Version]:
    """Version that is pending now, by token, of the claims whose lease and record are still there (H13)."""
    keys = {"keys": [claim.key for claim in claims], "tokens": [claim.token for claim in claims]}
    record = record_table(at["collection"])
    await connection.execute(SQL["lock_collection"], at)
    records = await connection.execute(SQL.filled("lock_records_to_embed", record=record), keys)
    locked = await connection.execute(SQL["lock_claims"], {**at, **keys})
    alive = {row[0] for row in await records.fetchall() if not row[1]}
    versions = {row[0]: Version(row[1], row[2]) for row in await locked.fetchall()}
    return {
        claim.token: versions[claim.key] for claim in claims if claim.key in versions and claim.key in alive
    }


async def _stored_vectors(
    connection: Connection, writes: Sequence[EmbedWrite], at: dict[str, Any]
) -> dict[bytes, Sequence[float]]:
    """Of the generation itself, or else of the one that the writes may copy from."""
    hashes = {chunk.hash for write in writes for chunk in write.chunks if chunk.vector is None}
    found: dict[bytes, Sequence[float]] = {}
    for number in (at["generation"], *{write.copy_from for write in writes}):
        wanted = hashes - found.keys()
        if number is not None and wanted:
            query = SQL.filled("stored_vectors", embedding=embedding_table(at["collection"], number))
            with _dropped(at["collection"], number):
                rows = await connection.execute(query, {"hashes": list(wanted)})
                found |= {row[0]: json.loads(row[1]) async for row in rows}
    return found


def _outcome(write: EmbedWrite, pending: Mapping[str, Version], vectors: Collection[bytes]) -> WriteOutcome:
    if write.claim.token not in pending:
        return WriteOutcome.DISCARDED
    if any(chunk.vector is None and chunk.hash not in vectors for chunk in write.chunks):
        return WriteOutcome.VANISHED
    same = pending[write.claim.token] == write.claim.version
    return WriteOutcome.WRITTEN if same else WriteOutcome.MOVED_ON


async def _leave_pending(
    connection: Connection, by_outcome: Mapping[WriteOutcome, Sequence[Claim]], at: dict[str, Any]
) -> None:
    """What becomes of the pending rows: gone, waiting for the newer text, or given back."""
    for outcome, query in (
        (WriteOutcome.WRITTEN, "drop_pending"),
        (WriteOutcome.MOVED_ON, "move_on_pending"),
        (WriteOutcome.VANISHED, "return_claims"),
    ):
        claims = by_outcome[outcome]
        if claims:
            mine = {"keys": [claim.key for claim in claims], "tokens": [claim.token for claim in claims]}
            given_back = {"seconds": 0.0, "attempts": 0, "error": "a kept chunk was gone"}
            await connection.execute(SQL[query], {**at, **mine, **given_back})


async def _store(
    connection: Connection,
    writes: Sequence[EmbedWrite],
    vectors: Mapping[bytes, Sequence[float]],
    at: dict[str, Any],
) -> None:
    embedding = embedding_table(at["collection"], at["generation"])
    counts = [len(write.chunks) for write in writes]
    keys = [write.claim.key for write in writes]
    await connection.execute(
        SQL.filled("cut_embeddings", embedding=embedding), {"keys": keys, "counts": counts}
    )
    chunks = [(write.claim.key, chunk) for write in writes for chunk in write.chunks]
    await connection.execute(
        SQL.filled("upsert_embeddings", embedding=embedding),
        {
            "keys": [key for key, _ in chunks],
            "numbers": [chunk.number for _, chunk in chunks],
            "hashes": [chunk.hash for _, chunk in chunks],
            "texts": [chunk.text for _, chunk in chunks],
            **vector_arrays(
                [vectors[chunk.hash] if chunk.vector is None else chunk.vector for _, chunk in chunks]
            ),
        },
    )
    await connection.execute(
        SQL.filled("audit_embeddings", record=record_table(at["collection"])),
        {
            **at,
            "keys": keys,
            "counts": counts,
            "lineages": [write.claim.version.lineage for write in writes],
            "offsets": [write.claim.version.offset for write in writes],
            "encoded": [sum(chunk.vector is not None for chunk in write.chunks) for write in writes],
        },
    )
