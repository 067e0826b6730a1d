"""Small words for the suite: changes as plans, documents as embed writes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from schemas.change import Origin, Outcome, TopicPartition, Undecodable, Version
from schemas.sink import (
    ChunkVector,
    Claim,
    EmbedWrite,
    Fence,
    IntakePlan,
    IntakeRequest,
    Lane,
    RecordState,
    RecordWrite,
    WriteOutcome,
)
from streams.ports import WorkerStore

AT: Final = TopicPartition("shop.shop.content", 0)


def when(hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 3, 1, hour, minute, tzinfo=UTC)


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def vector(text: str) -> list[float]:
    """A unit vector of a text."""
    raw = [byte / 255 + 0.01 for byte in digest(text)[:4]]
    length = sum(value * value for value in raw) ** 0.5
    return [value / length for value in raw]


def change(
    key: int,
    offset: int,
    text: str | None,
    *,
    lineage: int = 1,
    embed: str = "pending",
    since: datetime | None = None,
    lsn: int | None = None,
    lane: Lane = Lane.LIVE,
    changes: int = 1,
    at: TopicPartition | None = None,
    **row: Any,
) -> RecordWrite:
    """An accepted change; `text` None deletes, "" is nothing to embed."""
    deleted = text is None
    origin = Origin(lsn=lsn, committed_at=since, snapshot=lane is Lane.BACKFILL)
    state = RecordState(
        version=Version(lineage, offset),
        deleted=deleted,
        text_hash=b"" if text is None else digest(text),
        streamed=lane is Lane.LIVE,
        lsn=lsn,
        fence_lsn=lsn,
        committed_at=since,
        row=None if deleted else {"id": key, "title": text, **row},
    )
    return RecordWrite(
        key=f"[{key}]",
        state=state,
        origin=origin,
        embed="remove" if not text else embed,
        lane=lane,
        committed_since=since,
        changes=changes,
        at=at or AT,
        operation="d" if deleted else "u",
        outcome=Outcome.DELETED if deleted else Outcome.UNCHANGED if embed == "keep" else Outcome.APPLIED,
    )


def undecodable(key: int | None, offset: int, error: str = "bad bytes", *, lineage: int = 1) -> Undecodable:
    return Undecodable(
        at=AT,
        version=Version(lineage, offset),
        key=None if key is None else f"[{key}]",
        key_bytes=b"\x00k",
        value_bytes=b"\x00v",
        headers=(("h", b"\xff"), ("n", None)),
        error_class="BadMagicByte",
        error=error,
        committed_at=when(9),
    )


async def take_in(
    store: WorkerStore,
    *writes: RecordWrite,
    expected: int | None = None,
    upto: int | None = None,
    fence: Fence | None = None,
    letters: Sequence[Undecodable] = (),
    at: TopicPartition | None = None,
    collection: str = "content",
    **plan: Any,
) -> datetime:
    """One intake transaction. Positions are not moved unless `at` or `upto` says so."""
    positions = {} if upto is None else {at or AT: upto}
    made = IntakePlan(writes=writes, dead_letters=letters, fence=fence, positions=positions, **plan)
    request = IntakeRequest(
        collection=collection,
        positions={} if upto is None else {at or AT: expected},
        keys=sorted({write.key for write in writes}),
        exclusive=fence is not None,
        lineage=max((write.state.version.lineage for write in writes), default=1),
    )
    return (await store.intake(request, lambda view: made))[1]


async def claim(
    store: WorkerStore, limit: int = 10, generations: Sequence[int] = (1,), **changed: Any
) -> list[Claim]:
    values: dict[str, Any] = {"slot": "w1", "limit": limit, "backfill_share": 0.2, "lease_seconds": 60.0}
    return list(await store.claim([("content", number) for number in generations], **{**values, **changed}))


def document(claimed: Claim, *texts: str, kept: Sequence[str] = ()) -> EmbedWrite:
    """Chunks with new vectors; those of `kept` bring none."""
    cut = texts or (str(claimed.row["title"]),)
    return EmbedWrite(
        claimed,
        [
            ChunkVector(number, text, digest(text), None if text in kept else vector(text))
            for number, text in enumerate(cut)
        ],
    )


async def embed(store: WorkerStore, *claims: Claim) -> list[WriteOutcome]:
    outcomes, _ = await store.write([document(each) for each in claims])
    return list(outcomes)


async def embed_all(store: WorkerStore) -> None:
    """Until nothing can be claimed."""
    while claims := await claim(store, 100):
        await embed(store, *claims)
