"""The sink as a worker process uses it: one pool, the two stages' transactions, and the worker's own housekeeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import psycopg
import structlog
from psycopg import sql
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from connectors.postgres.capture_state import AGAIN_SECONDS, Deployment
from connectors.postgres.capture_state import SQL as CAPTURE
from connectors.postgres.embed_store import EmbedTransactions
from connectors.postgres.intake_store import SQL, Pool
from connectors.postgres.intake_writes import storable
from connectors.postgres.keeping import keep, kept
from connectors.postgres.migrate import check_schema
from connectors.postgres.replay import ReplayTransactions
from connectors.postgres.translate import sink_errors
from schemas.errors import Conflict, SlotTaken, UpwellError
from schemas.freshness import SlowChange
from schemas.readings import BLOCKED_SECONDS

log = structlog.get_logger()

SEEN_SECONDS: Final = 5.0
#: How long a starting worker waits for its slot: what a killed one held, a server that cannot hear of its end lets go
#: when it does not answer `keeping.SERVER` any more.
SLOT_SECONDS: Final = 30.0
SLOT_SAID_SECONDS: Final = 1.0
SLOT_POLL_SECONDS: Final = 0.1
PARTITION_SECONDS: Final = 3600.0
POOL_SECONDS: Final = 10.0
#: The pool doubles its pauses between attempts for as long as this, and begins anew when it is asked for a connection:
#: with its default of five minutes a sink that comes back is not noticed for minutes.
RECONNECT_SECONDS: Final = 3.0

Place = tuple[str, datetime, str]


class PostgresStore(ReplayTransactions, EmbedTransactions):
    """Implements `WorkerStore` and `ReplayStore` of streams/ports.py over psycopg's async pool."""

    def __init__(self, pool: Pool, dsn: str, writer: str, retention_days: int) -> None:
        ReplayTransactions.__init__(self, pool)
        EmbedTransactions.__init__(self, pool)
        self._dsn, self._slot, self._retention_days = dsn, writer, retention_days
        self._writer = f"{writer}@{int(time.time())}"
        self._url = ""
        self._held: psycopg.AsyncConnection[Any] | None = None
        self._registered, self._lost_at = "", 0.0

    @classmethod
    async def open(
        cls, dsn: str, *, writer: str, pool_size: int = 6, retention_days: int = 90
    ) -> PostgresStore:
        """Connect and check the schema. Raises SinkUnavailable, MigrationNeeded, SettingsError."""
        await asyncio.to_thread(_check, dsn)
        dsn = kept(dsn)
        pool: Pool = AsyncConnectionPool(
            dsn,
            min_size=1,
            max_size=pool_size,
            timeout=POOL_SECONDS,
            reconnect_timeout=RECONNECT_SECONDS,
            kwargs={"autocommit": True, "application_name": "upwell worker"},
            configure=keep,
            open=False,
        )
        with sink_errors():
            await pool.open(wait=True, timeout=POOL_SECONDS)
        return cls(pool, dsn, writer, retention_days)

    async def close(self) -> None:
        """Give all connections back, and the slot with them."""
        await self._pool.close()
        if self._held is not None:
            await self._held.close()

    async def key_columns(self) -> Mapping[str, Sequence[str]]:
        """Key columns in order, by collection."""
        with sink_errors():
            async with self._pool.connection() as connection:
                return {row[0]: row[1] async for row in await connection.execute(SQL["collections"])}

    async def register_worker(
        self, slot: str, host: str, pid: int, *, wait_seconds: float = SLOT_SECONDS
    ) -> None:
        """Take a worker slot for as long as this process lives; waits for one that was killed to be gone.

        Raises SlotTaken if another has it for longer.
        """
        with sink_errors():
            self._held = await self._slot_taken(slot, wait_seconds)
            self._registered = slot
            await self._held.execute(SQL["register_worker"], {"slot": slot, "host": host, "pid": pid})
            await self._held.execute(SQL["clear_blocked_slot"], {"slot": slot})

    async def _slot_taken(self, slot: str, wait_seconds: float) -> psycopg.AsyncConnection[Any]:
        """A connection of its own that has the slot's lock."""
        connection = await psycopg.AsyncConnection.connect(
            self._dsn, autocommit=True, connect_timeout=10, application_name=f"upwell slot {slot}"
        )
        try:
            await keep(connection)
            since, is_said = time.monotonic(), False
            while True:
                taken = await (await connection.execute(SQL["take_slot"], {"slot": slot})).fetchone()
                if taken is not None and taken[0]:
                    return connection
                waited = time.monotonic() - since
                if waited >= wait_seconds:
                    raise SlotTaken(
                        f"worker slot {slot} is taken by a live worker: give this one another --slot"
                    )
                if waited > SLOT_SAID_SECONDS and not is_said:
                    log.warning("worker slot is still held: waiting", slot=slot, seconds=wait_seconds)
                    is_said = True
                await asyncio.sleep(SLOT_POLL_SECONDS)
        except BaseException:
            await connection.close()
            raise

    async def _seen(self) -> None:
        """Say that this worker lives, on the slot's own connection: one that was lost is noticed, and taken anew.

        Raises SlotTaken if another worker has taken the slot meanwhile.
        """
        said = {"slot": self._slot, "url": self._url}
        if self._held is None:
            await self._run("seen_worker", said)
            return
        with sink_errors():
            if self._held.closed:
                await self._take_again(self._registered)
            await self._held.execute(SQL["seen_worker"], said)

    async def _take_again(self, slot: str) -> None:
        """What the server still holds for our lost connection is let go of; what is held for longer is another's."""
        now = time.monotonic()
        self._lost_at = self._lost_at or now
        try:
            self._held = await self._slot_taken(slot, 0.0)
        except SlotTaken as error:
            if now - self._lost_at < SLOT_SECONDS:
                raise Conflict(f"worker slot {slot} is not free yet") from error
            raise
        self._lost_at = 0.0
        log.info("worker slot taken again", slot=slot)

    async def deployment(self) -> Deployment:
        """What a worker is started for, as it is now."""
        with sink_errors():
            async with self._pool.connection() as connection:
                row = await (await connection.execute(CAPTURE["deployment"])).fetchone()
        assert row is not None
        return Deployment(row[0], tuple(row[1]), tuple(row[2]))

    async def is_scanned(self, names: Sequence[str]) -> bool:
        """Whether any of these loads has only to be completed."""
        return await self._holds(CAPTURE["scanned"], {"names": list(names)})

    def serves_at(self, url: str) -> None:
        """Where this worker has its metrics; said in the sink with its next sign of life."""
        self._url = url

    async def set_problems(self, problems: Sequence[str]) -> None:
        """Say in the sink what this worker cannot do; none says that all is well."""
        await self._run("set_worker_problems", {"slot": self._slot, "problems": Jsonb(list(problems))})

    async def set_blocked(self, collection: str, reason: str) -> None:
        """Say in the sink that a collection stands still, and why; see `BlockedStore`."""
        said = storable(" ".join(reason.split()))[:2000]
        at = {
            "collection": collection,
            "slot": self._slot,
            "reason": said,
            "blocked_seconds": BLOCKED_SECONDS,
        }
        await self._run("set_blocked", at)

    async def clear_blocked(self, collection: str) -> None:
        """It goes on."""
        await self._run("clear_blocked", {"collection": collection, "slot": self._slot})

    async def repairs_due(self) -> bool:
        """Whether a key is to be looked for at the source."""
        return await self._holds(SQL["repairs_due"], {"again_seconds": AGAIN_SECONDS})

    async def is_loading(self) -> bool:
        """Whether any table is being read for its first load."""
        return await self._holds(CAPTURE["loading"], {})

    async def _holds(self, query: sql.SQL, parameters: Mapping[str, Any]) -> bool:
        with sink_errors():
            async with self._pool.connection() as connection:
                row = await (await connection.execute(query, parameters)).fetchone()
        return row is not None and bool(row[0])

    async def keep_house(self, should_stop: Callable[[], bool]) -> None:
        """Say that this worker lives, and make the coming audit partitions; the sink being away is no matter here.

        Raises SlotTaken.
        """
        partitions_at = 0.0
        while not should_stop():
            try:
                await self._seen()
                if time.monotonic() - partitions_at > PARTITION_SECONDS or not partitions_at:
                    await self._run("make_audit_partitions", {"retention_days": self._retention_days})
                    partitions_at = time.monotonic()
            except SlotTaken:
                raise
            except UpwellError:
                pass
            for _ in range(int(SEEN_SECONDS / 0.25)):
                if should_stop():
                    return
                await asyncio.sleep(0.25)

    async def _run(self, query: str, parameters: Mapping[str, Any]) -> None:
        with sink_errors():
            async with self._pool.connection() as connection:
                await connection.execute(SQL[query], parameters)

    async def flush_measures(
        self,
        counters: Mapping[Place, int],
        sketches: Mapping[Place, Mapping[str, object]],
        judged: Mapping[tuple[str, datetime], tuple[int, int]],
        slow: Mapping[tuple[str, datetime], Sequence[SlowChange]] | None = None,
    ) -> None:
        """Add counters, replace sketches and the slowest changes under this process's own writer name; add to
        everybody's history.
        """
        with sink_errors():
            async with self._pool.connection() as connection, connection.transaction():
                if counters:
                    await connection.execute(
                        SQL["add_counters"],
                        {
                            "writer": self._writer,
                            "collections": [place[0] for place in counters],
                            "minutes": [place[1] for place in counters],
                            "names": [place[2] for place in counters],
                            "values": list(counters.values()),
                        },
                    )
                if sketches:
                    await connection.execute(
                        SQL["set_sketches"],
                        {
                            "writer": self._writer,
                            "collections": [place[0] for place in sketches],
                            "minutes": [place[1] for place in sketches],
                            "stages": [place[2] for place in sketches],
                            "sketches": [Jsonb(_packed(sketch)) for sketch in sketches.values()],
                        },
                    )
                if slow:
                    await connection.execute(SQL["set_slow_changes"], _slow_columns(slow, self._writer))
                if judged:
                    # Last: other workers and the monitor write to these rows too.
                    await connection.execute(
                        SQL["add_judged"],
                        {
                            "collections": [place[0] for place in judged],
                            "minutes": [place[1] for place in judged],
                            "good": [good for good, _ in judged.values()],
                            "bad": [bad for _, bad in judged.values()],
                        },
                    )


def _slow_columns(
    slow: Mapping[tuple[str, datetime], Sequence[SlowChange]], writer: str
) -> dict[str, object]:
    buckets = [minute for (_, minute), changes in slow.items() for _ in changes]
    changes = [change for found in slow.values() for change in found]
    return {
        "writer": writer,
        "collections": [change.collection for change in changes],
        "buckets": buckets,
        "keys": [change.key for change in changes],
        "seconds": [change.seconds for change in changes],
        "committed": [change.committed_at for change in changes],
        "visible": [change.visible_at for change in changes],
        "stages": [Jsonb(dict(change.stages)) for change in changes],
    }


def _packed(sketch: Mapping[str, object]) -> dict[str, object]:
    """A sketch as `upwell.sketch_bins` reads it: bins as one text take a third of the space."""
    bins = sketch["bins"]
    assert isinstance(bins, Mapping)
    return {**sketch, "bins": " ".join(f"{key}:{weight}" for key, weight in bins.items())}


def _check(dsn: str) -> None:
    with sink_errors(), psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
        check_schema(connection)
