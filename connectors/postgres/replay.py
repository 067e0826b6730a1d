"""The replay of one dead letter: the transaction of an intake, or of a change of `pending`, that also closes it.

Locks are taken in the order that all transactions share; the letter's own row is the last, as it is for an intake that
supersedes it. So workers go on meanwhile, and none of their memory is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from psycopg.rows import dict_row

from connectors.postgres.intake_store import SQL as SINK
from connectors.postgres.intake_store import Connection, IntakeTransactions, lock_and_read, write_plan
from connectors.postgres.intake_writes import storable
from connectors.postgres.layout import record_table
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from schemas.change import TopicPartition, Undecodable, Version
from schemas.errors import Conflict
from schemas.letters import ReplayPlan, StoredLetter
from schemas.sink import IntakeRequest, IntakeView, Lane

SQL: Final = Queries.load("dead_letters")


def stored_letter(row: Mapping[str, Any]) -> StoredLetter:
    """A row of the query `letter`."""
    rest = {
        name: row[name]
        for name in StoredLetter.__dataclass_fields__
        if name not in ("at", "version", "headers")
    }
    return StoredLetter(
        **rest,
        at=None if row["topic"] is None else TopicPartition(row["topic"], row["partition"]),
        version=Version(row["lineage"], row["offset"]),
        headers=tuple(
            (name, None if value is None else bytes.fromhex(value)) for name, value in row["headers"] or ()
        ),
    )


class ReplayTransactions(IntakeTransactions):
    """Implements `ReplayStore` of streams/ports.py."""

    async def letter(self, number: int) -> StoredLetter:
        """See `ReplayStore.letter`."""
        with sink_errors():
            async with (
                self._pool.connection() as connection,
                connection.cursor(row_factory=dict_row) as cursor,
            ):
                row = await (await cursor.execute(SQL["letter"], {"id": number})).fetchone()
        if row is None:
            raise Conflict(f"dead letter {number} was removed meanwhile")
        return stored_letter(row)

    async def replay(
        self, letter: StoredLetter, request: IntakeRequest, decide: Callable[[IntakeView], ReplayPlan]
    ) -> ReplayPlan:
        """See `ReplayStore.replay`."""
        with sink_errors():
            async with self._pool.connection() as connection, connection.transaction():
                seen = await lock_and_read(connection, request)
                upsert = await self._upsert_of(connection, request.collection, seen.attributes)
                replay = decide(seen.view)
                if replay.closed_by is None:
                    return replay
                await write_plan(connection, request, replay.plan, seen, upsert, audited=False)
                await _close(connection, letter, replay.closed_by, _facts(replay))
                return replay

    async def embed_again(self, letter: StoredLetter) -> str:
        """See `ReplayStore.embed_again`."""
        at = {"collection": letter.collection, "generation": letter.generation, "key": letter.key}
        record = record_table(letter.collection)
        with sink_errors():
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(SINK["lock_collection"], at)
                fed = await (await connection.execute(SQL["is_fed"], at)).fetchone()
                stored = await connection.execute(SQL.filled("lock_record", record=record), at)
                row = await stored.fetchone()
                if fed is None or row is None or row[0]:
                    await _close(connection, letter, "superseded", {"outcome": "ignored"})
                    return "superseded"
                await connection.execute(SINK["upsert_pending"], _pending(letter, Version(row[1], row[2])))
                await _close(connection, letter, "replayed", {"outcome": "pending", "text_hash": row[3]})
                await connection.execute(SINK["notify_pending"], at)
                return "replayed"

    async def keep_open(self, letter: StoredLetter, still: Undecodable) -> None:
        """See `ReplayStore.keep_open`."""
        found = {
            "id": letter.id,
            "error_class": still.error_class,
            "error": storable(still.error),
            "key": still.key,
            "committed_at": still.committed_at,
        }
        with sink_errors():
            async with self._pool.connection() as connection:
                await connection.execute(SQL["keep_open"], found)


def _facts(replay: ReplayPlan) -> dict[str, Any]:
    """What the audit says of the change that was taken in."""
    write = next(iter(replay.plan.writes), None)
    outcome = "truncated" if replay.plan.fence is not None else replay.outcome.value
    if write is None:
        lsn = None if replay.plan.fence is None else replay.plan.fence.lsn
        return {"outcome": outcome, "lsn": lsn}
    return {
        "outcome": outcome,
        "key": write.key,
        "lsn": write.origin.lsn,
        "transaction_id": write.origin.transaction_id,
        "text_hash": write.state.text_hash or None,
    }


def _pending(letter: StoredLetter, version: Version) -> dict[str, Any]:
    """The text is the one that could not be embedded, in the version that its record has now."""
    live = letter.committed_at is not None
    return {
        "collection": letter.collection,
        "generations": [letter.generation],
        "keys": [letter.key],
        "lineages": [version.lineage],
        "offsets": [version.offset],
        "lanes": [Lane.LIVE.value if live else Lane.BACKFILL.value],
        "since": [letter.committed_at],
        "changes": [int(live)],
    }


async def _close(
    connection: Connection, letter: StoredLetter, closed_by: str, facts: Mapping[str, Any]
) -> None:
    nothing = {"key": None, "lsn": None, "transaction_id": None, "text_hash": None, "reason": None}
    values = {**nothing, **facts, "id": letter.id, "closed_by": closed_by}
    if (await connection.execute(SQL["close"], values)).rowcount != 1:
        raise Conflict(f"dead letter {letter.id} was closed meanwhile")
    await connection.execute(SQL["audit_closed"], values)
