"""What the contract suite looks at, the same for the fake and for Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple, Protocol

import psycopg

from connectors.postgres.layout import CollectionLayout, Column
from connectors.postgres.read import read_blocked
from connectors.postgres.store import PostgresStore
from schemas.change import TopicPartition, Version
from schemas.sink import GenerationInfo
from streams.ports import WorkerStore
from tests.fakes.store import FakeStore, open_letters

MODEL: Final = "package:fake"
DIMENSION: Final = 4
COLUMNS: Final = (
    Column("title", "text"),
    Column("published", "boolean"),
    Column("price", "numeric(10,2)"),
    Column("tags", "text[]"),
    Column("updated_at", "timestamp with time zone"),
)


def generation(collection: str = "content", **changed: Any) -> GenerationInfo:
    """Generation 1 of a collection."""
    values: dict[str, Any] = {
        "collection": collection,
        "number": 1,
        "fingerprint": "f1",
        "model": MODEL,
        "dimension": DIMENSION,
        "template": "{{ title }}",
        "max_tokens": 126,
        "overlap_tokens": 0,
        "state": "live",
    }
    return GenerationInfo(**{**values, **changed})


def layout(name: str = "content", metadata: Sequence[Column] = COLUMNS, **changed: Any) -> CollectionLayout:
    """A collection of the shop."""
    return CollectionLayout(
        name=name,
        table=f"shop.{name}",
        key=(Column("id", "bigint"),),
        metadata=metadata,
        generation=generation(name, **changed),
        threshold_seconds=30.0,
    )


class PendingRow(NamedTuple):
    """What the suite checks of a pending row."""

    version: Version
    lane: str
    pending_since: datetime | None
    next_since: datetime | None
    claimed: bool
    attempts: int


class Sink(Protocol):
    """A store under test, and a look behind it."""

    @property
    def store(self) -> WorkerStore: ...

    async def chunks(self, key: str, number: int = 1) -> list[str]:
        """Texts of a key's chunks in order."""
        ...

    async def pending(self, key: str, number: int = 1) -> PendingRow | None: ...

    async def alive(self) -> list[str]:
        """Keys of records that are no markers."""
        ...

    async def dead_letters(self) -> list[tuple[str, str | None]]:
        """(stage, key) of the open ones."""
        ...

    async def actions(self) -> list[tuple[str, str | None]]:
        """(action, key) of the audit."""
        ...

    async def judged(self, collection: str = "content") -> list[tuple[datetime, int, int]]:
        """(minute, good, bad) of the history, in order."""
        ...

    async def expire_leases(self) -> None: ...

    async def restore_positions(self, at: TopicPartition, offset: int) -> None:
        """As a sink that was restored from a backup."""
        ...

    async def remove_chunks(self, key: str) -> None: ...

    async def publish(self, watermark: datetime, lineage: int = 1) -> None:
        """What a monitor has published of a lineage; the newest one is 1."""
        ...

    async def violations(self) -> int: ...

    async def blocked(self) -> dict[str, str]:
        """Reasons, by collection."""
        ...

    async def set_threshold(self, collection: str, seconds: float) -> None:
        """As a migrate, for what comes from now on."""
        ...

    async def add_generation(self, number: int, template: str = "{{ title }}") -> None:
        """A second generation that is being filled; what is stored is not pending in it."""
        ...


@dataclass
class FakeSink:
    store: FakeStore

    async def chunks(self, key: str, number: int = 1) -> list[str]:
        stored = self.store.embeddings.get(("content", number), {}).get(key, {})
        return [stored[each].text for each in sorted(stored)]

    async def pending(self, key: str, number: int = 1) -> PendingRow | None:
        row = self.store.pending.get(("content", number, key))
        if row is None:
            return None
        claimed = row.token is not None
        return PendingRow(
            row.version, row.lane.value, row.pending_since, row.next_since, claimed, row.attempts
        )

    async def alive(self) -> list[str]:
        records = self.store.records.get("content", {})
        return sorted(key for key, state in records.items() if not state.deleted)

    async def dead_letters(self) -> list[tuple[str, str | None]]:
        return [(letter.stage, letter.key) for letter in open_letters(self.store.dead_letters)]

    async def actions(self) -> list[tuple[str, str | None]]:
        return [(row["action"], row["key"]) for row in self.store.audit]

    async def judged(self, collection: str = "content") -> list[tuple[datetime, int, int]]:
        found = self.store.judged.items()
        return sorted((minute, *counts) for (name, minute), counts in found if name == collection)

    async def expire_leases(self) -> None:
        for row in self.store.pending.values():
            row.lease_until = row.lease_until and row.taken_in_at

    async def restore_positions(self, at: TopicPartition, offset: int) -> None:
        self.store.stored_positions[at] = offset

    async def publish(self, watermark: datetime, lineage: int = 1) -> None:
        if lineage == 1:
            self.store.watermarks["content"] = watermark

    async def violations(self) -> int:
        return self.store.violations.get("content", 0)

    async def remove_chunks(self, key: str) -> None:
        self.store.embeddings.get(("content", 1), {}).pop(key, None)

    async def blocked(self) -> dict[str, str]:
        return dict(self.store.blocked)

    async def set_threshold(self, collection: str, seconds: float) -> None:
        self.store.thresholds[collection] = seconds

    async def add_generation(self, number: int, template: str = "{{ title }}") -> None:
        self.store.generation_infos.append(
            generation(number=number, fingerprint="f2", state="filling", template=template)
        )


@dataclass
class PostgresSink:
    store: PostgresStore
    dsn: str

    async def rows(self, query: Any, *parameters: Any) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            cursor = await connection.execute(query, parameters or None)
            return await cursor.fetchall() if cursor.description else []

    async def waits(self, doing: asyncio.Future[Any] | Future[Any]) -> None:
        """Until a session waits for a lock, as what is being done here should; it may not be done instead."""
        query: LiteralString = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        async with (
            asyncio.timeout(20),
            await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection,
        ):
            while (await (await connection.execute(query)).fetchone() or (0,))[0] == 0:
                assert not doing.done(), "it has waited for nobody"
                await asyncio.sleep(0.01)

    async def chunks(self, key: str, number: int = 1) -> list[str]:
        table = f"upwell.embedding_content_g{number}"
        return [
            row[0]
            for row in await self.rows(
                f"SELECT chunk_text FROM {table} WHERE key = %s ORDER BY chunk_no", key
            )
        ]

    async def pending(self, key: str, number: int = 1) -> PendingRow | None:
        found = await self.rows(
            'SELECT lineage, "offset", lane, pending_since, next_since, token IS NOT NULL, attempts '
            "FROM upwell.pending WHERE collection = 'content' AND generation = %s AND key = %s",
            number,
            key,
        )
        return PendingRow(Version(*found[0][:2]), *found[0][2:]) if found else None

    async def alive(self) -> list[str]:
        return [
            row[0]
            for row in await self.rows("SELECT _key FROM upwell.record_content WHERE NOT _deleted ORDER BY 1")
        ]

    async def dead_letters(self) -> list[tuple[str, str | None]]:
        query = "SELECT stage, key FROM upwell.dead_letter WHERE closed_at IS NULL ORDER BY id"
        return [(row[0], row[1]) for row in await self.rows(query)]

    async def actions(self) -> list[tuple[str, str | None]]:
        return [
            (row[0], row[1]) for row in await self.rows("SELECT action, key FROM upwell.audit ORDER BY at")
        ]

    async def judged(self, collection: str = "content") -> list[tuple[datetime, int, int]]:
        query = "SELECT bucket, good, bad FROM upwell.freshness_history WHERE collection = %s ORDER BY bucket"
        return [(row[0], row[1], row[2]) for row in await self.rows(query, collection)]

    async def expire_leases(self) -> None:
        await self.rows(
            "UPDATE upwell.pending SET lease_until = now() - interval '1 s' WHERE token IS NOT NULL"
        )

    async def restore_positions(self, at: TopicPartition, offset: int) -> None:
        await self.rows(
            "UPDATE upwell.position SET next_offset = %s WHERE topic = %s AND partition = %s", offset, *at
        )

    async def publish(self, watermark: datetime, lineage: int = 1) -> None:
        await self.rows("INSERT INTO upwell.lineage VALUES (1, 'shop_1')")
        await self.rows(
            "UPDATE upwell.watermark SET lineage = %s, watermark = %s WHERE collection = 'content'",
            lineage,
            watermark,
        )

    async def violations(self) -> int:
        rows = await self.rows("SELECT violations FROM upwell.watermark WHERE collection = 'content'")
        return int(rows[0][0])

    async def remove_chunks(self, key: str) -> None:
        await self.rows("DELETE FROM upwell.embedding_content_g1 WHERE key = %s", key)

    async def blocked(self) -> dict[str, str]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return {each.collection: each.reason for each in read_blocked(connection)}

    async def set_threshold(self, collection: str, seconds: float) -> None:
        query = "UPDATE upwell.collection SET threshold_seconds = %s WHERE name = %s"
        await self.rows(query, seconds, collection)

    async def add_generation(self, number: int, template: str = "{{ title }}") -> None:
        await self.rows(
            "INSERT INTO upwell.generation SELECT collection, %s, 'f2', model, dimension, %s, max_tokens, "
            "overlap_tokens, 'filling' FROM upwell.generation WHERE collection = 'content'",
            number,
            template,
        )
        await self.rows(
            f"CREATE TABLE upwell.embedding_content_g{number} (LIKE upwell.embedding_content_g1 INCLUDING ALL)"
        )
