"""The intake transaction (DESIGN 4): lock, read, decide, write, commit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from connectors.postgres.intake_writes import position_arrays, record_arrays, simple_statements
from connectors.postgres.layout import Column, embedding_table, record_table
from connectors.postgres.sql import Queries
from connectors.postgres.transaction import transaction
from connectors.postgres.translate import sink_errors
from schemas.change import TopicPartition, Version
from schemas.errors import Conflict, DeploymentChanged, MigrationNeeded, PositionConflict
from schemas.sink import Fence, IntakePlan, IntakeRequest, IntakeView, RecordState

SQL: Final = Queries.load("sink")
Connection = psycopg.AsyncConnection[Any]
Pool = AsyncConnectionPool[Connection]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the first half of the transaction read. `fed`: the generations that there are; `attributes`: how many
    columns the record table has had, which says whether it has others than before.
    """

    view: IntakeView
    fed: Sequence[int]
    attributes: int


class IntakeTransactions:
    """Implements `IntakeStore` of streams/ports.py."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._upserts: dict[str, tuple[int, sql.SQL]] = {}

    async def positions(self, topics: Collection[str]) -> Mapping[TopicPartition, int]:
        """Next offset of every partition that has a position row."""
        with sink_errors():
            async with self._pool.connection() as connection:
                rows = await connection.execute(SQL["positions"], {"topics": list(topics)})
                return {TopicPartition(topic, partition): offset async for topic, partition, offset in rows}

    async def intake(
        self, request: IntakeRequest, decide: Callable[[IntakeView], IntakePlan]
    ) -> tuple[IntakePlan, datetime]:
        """One transaction; see `IntakeStore.intake`."""
        with sink_errors():
            async with self._pool.connection() as connection, transaction(connection):
                seen = await lock_and_read(connection, request)
                upsert = await self._upsert_of(connection, request.collection, seen.attributes)
                plan = decide(seen.view)
                return plan, await write_plan(connection, request, plan, seen, upsert)

    async def _upsert_of(self, connection: Connection, collection: str, attributes: int) -> sql.SQL:
        """Writes the record table's columns, which are read again once `migrate` has made another.

        Else a row that is taken in before this worker starts again would lack its value, and nobody would miss it.
        """
        known = self._upserts.get(collection)
        if known is None or known[0] != attributes:
            rows = await connection.execute(SQL["column_types"], {"table": f"upwell.record_{collection}"})
            found = [Column(name, type_name) async for name, type_name in rows]
            # As text: putting it together takes longer than sending it.
            upsert = sql.SQL(_upsert(record_table(collection), found).as_string(connection))
            known = self._upserts[collection] = (attributes, upsert)
        return known[1]


async def lock_and_read(connection: Connection, request: IntakeRequest) -> Seen:
    """Locks in the one order that all transactions share (H20); each statement sees what the lock before let in."""
    record = record_table(request.collection)
    at = sorted(request.positions)
    keys = {"keys": list(request.keys), "with_rows": sorted(request.with_rows)}
    lock = "lock_collection_alone" if request.exclusive else "lock_collection"
    await connection.execute(SQL[lock], {"collection": request.collection})
    positions = await connection.execute(
        SQL["lock_positions"],
        {"topics": [each.topic for each in at], "partitions": [each.partition for each in at]},
    )
    records = await connection.execute(SQL.filled("lock_records", record=record), keys)
    state = await connection.execute(
        SQL.filled("intake_state", record=record),
        {"collection": request.collection, "table": f"upwell.record_{request.collection}", **keys},
    )
    _check_positions(request, await positions.fetchall())
    row = await state.fetchone()
    if row is None:
        raise MigrationNeeded(f"collection {request.collection} is not in the sink: run `upwell migrate`")
    if request.lineage < row[5]:
        raise DeploymentChanged(
            f"{request.collection}: lineage {row[5]} was begun by `upwell connector rebuild`, this worker reads "
            f"{request.lineage}: it starts again"
        )
    fence = None if row[0] is None else Fence(row[0], row[1])
    states = {row[0]: _state(row) for row in await records.fetchall()}
    templates = dict(zip(row[2], row[3], strict=True))
    return Seen(IntakeView(fence, states, frozenset(row[4]), templates, row[6]), row[2], row[7])


def _state(row: Sequence[Any]) -> RecordState:
    return RecordState(
        version=Version(row[3], row[4]),
        deleted=row[1],
        text_hash=row[2],
        streamed=row[5],
        lsn=row[6],
        sequence_last_commit=row[7],
        transaction_id=row[8],
        fence_lsn=row[9],
        committed_at=row[10],
        row=row[11],
    )


def _check_positions(request: IntakeRequest, rows: Sequence[Sequence[Any]]) -> None:
    stored: dict[TopicPartition, int] = {TopicPartition(row[0], row[1]): row[2] for row in rows}
    for at, expected in request.positions.items():
        if stored.get(at) != expected:
            raise PositionConflict(
                f"{request.collection} {at.topic}/{at.partition}: the sink's position is {stored.get(at)}, this "
                f"worker last saw {expected}: another owner, or a restored sink; a restart begins at the sink's"
            )


async def write_plan(
    connection: Connection,
    request: IntakeRequest,
    plan: IntakePlan,
    seen: Seen,
    upsert: sql.SQL,
    *,
    audited: bool = True,
) -> datetime:
    """The second half of the transaction; returns the sink's clock. Not `audited`: the caller does it."""
    collection, record = request.collection, record_table(request.collection)
    common = {"collection": collection}
    if plan.fence is not None:
        await _remove_fenced(connection, collection, plan.fence, seen.fed)
    records = None
    if plan.writes:
        records = await connection.execute(upsert, record_arrays(plan.writes))
    for name, parameters in simple_statements(plan, seen.fed, audited=audited):
        await connection.execute(SQL[name], {**common, **parameters})
    for number in seen.fed:
        removed = [write.key for write in plan.writes if write.embed_in(number) == "remove"]
        if removed:
            query = SQL.filled("remove_embeddings", embedding=embedding_table(collection, number))
            await connection.execute(query, {"keys": removed})
    if plan.repairs_wanted:
        query = SQL.filled("want_repairs", record=record)
        await connection.execute(query, {**common, "keys": sorted(plan.repairs_wanted)})
    moved = await _positions(connection, request, plan)
    # The last answer: those of all statements before it are there, too.
    row = await (await connection.execute(SQL["clock"])).fetchone()
    assert row is not None
    if records is not None and records.rowcount != len(plan.writes):
        raise Conflict(f"{collection}: a record was written by somebody else meanwhile")
    for cursor, wanted in moved:
        if cursor.rowcount != wanted:
            raise PositionConflict(
                f"{collection}: a position was moved by another owner; a restart begins at the sink's"
            )
    return row[0]  # type: ignore[no-any-return]


async def _positions(
    connection: Connection, request: IntakeRequest, plan: IntakePlan
) -> list[tuple[psycopg.AsyncCursor[Any], int]]:
    """Compare-and-set of every position, with the number of rows that each statement must have moved."""
    moved = []
    for name, new in (("move_positions", False), ("first_positions", True)):
        parameters = position_arrays(request, plan.positions, new=new)
        if parameters["topics"]:
            moved.append((await connection.execute(SQL[name], parameters), len(parameters["topics"])))
    return moved


async def _remove_fenced(
    connection: Connection, collection: str, fence: Fence, generations: Sequence[int]
) -> None:
    """Under the exclusive lock: nobody reads "no fence" and writes afterwards (H7)."""
    at = {"collection": collection, "lineage": fence.lineage, "lsn": fence.lsn}
    await connection.execute(SQL.filled("set_fence"), at)
    removed = await connection.execute(SQL.filled("remove_fenced", record=record_table(collection)), at)
    keys = {"collection": collection, "keys": [row[0] for row in await removed.fetchall()]}
    await connection.execute(SQL["remove_pending"], keys)
    for number in generations:
        query = SQL.filled("remove_embeddings", embedding=embedding_table(collection, number))
        await connection.execute(query, keys)
    await connection.execute(SQL["close_fenced_dead_letters"], keys)


def _upsert(record: sql.Identifier, columns: Sequence[Column]) -> sql.Composed:
    names = [sql.Identifier(column.name) for column in columns]
    comma = sql.SQL(", ")
    return SQL.filled(
        "upsert_records",
        record=record,
        columns=sql.Composed([comma + name for name in names]),
        values=sql.Composed([comma + sql.SQL("p.") + name for name in names]),
        types=comma.join(sql.Identifier(column.name) + sql.SQL(" " + column.type) for column in columns),
        assignments=sql.Composed([comma + name + sql.SQL(" = excluded.") + name for name in names]),
    )
