"""What the two stages need of the world, as Protocols. Postgres and the model implement them; tests bring fakes.

One contract suite (`tests/contracts`) runs against the fake store and the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import numpy as np
import numpy.typing as npt

from schemas.change import TopicPartition, Undecodable
from schemas.freshness import SlowChange
from schemas.letters import ReplayPlan, StoredLetter
from schemas.sink import (
    Claim,
    EmbedWrite,
    GenerationInfo,
    IntakePlan,
    IntakeRequest,
    IntakeView,
    WriteOutcome,
)


class IntakeStore(Protocol):
    """The sink as the intake stage uses it."""

    async def positions(self, topics: Collection[str]) -> Mapping[TopicPartition, int]:
        """Next offset of every partition that has a position row."""
        ...

    async def intake(
        self, request: IntakeRequest, decide: Callable[[IntakeView], IntakePlan]
    ) -> tuple[IntakePlan, datetime]:
        """One transaction: lock, read, `decide`, write, commit. Returns the plan and the sink's clock at commit.

        `decide` is pure and may be called again when the transaction is retried. Raises PositionConflict when a
        position differs from the request's, SinkUnavailable or Conflict when it may be retried, RecordRejected
        when a row cannot be stored. Nothing is written when it raises.
        """
        ...


class EmbedStore(Protocol):
    """The sink as the embed stage uses it."""

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
        """Take up to `limit` pending rows of `generations` (collection, number): live ones whose deadline has not
        passed, the earliest first; after them the late ones, `LATE_SHARE` of the live ones at least; `backfill_share`
        of all from the backfill lane, of which `live_only` takes none. A deadline is `pending_since` and the
        collection's own threshold.

        Each claim has a fresh token; rows leased by others and not expired are skipped; an expired lease counts as a
        failed attempt. No lock is held afterwards.
        """
        ...

    async def known_hashes(
        self, collection: str, generation: int, hashes: Collection[bytes]
    ) -> frozenset[bytes]:
        """Which chunk hashes have a vector somewhere in the generation. Raises GenerationDropped."""
        ...

    async def own_hashes(
        self, collection: str, generation: int, keys: Collection[str]
    ) -> Mapping[str, frozenset[bytes]]:
        """Chunk hashes stored for each key: those that are `kept`, the other known ones being `copied`. Raises
        GenerationDropped.
        """
        ...

    async def write(self, writes: Sequence[EmbedWrite]) -> tuple[Sequence[WriteOutcome], datetime]:
        """One transaction for documents of one collection: outcomes in the order of `writes`, and the sink's clock."""
        ...

    async def fail(self, claim: Claim, error: Exception, retry_seconds: float | None) -> None:
        """Give a claim back: to be retried alone after `retry_seconds`, or None: dead-lettered."""
        ...

    async def give_back(self, claims: Sequence[Claim]) -> None:
        """Free claims at once, as if they had not been claimed."""
        ...

    async def release(self, slot: str, *, died: bool = False) -> int:
        """Free all leases of a worker slot. Returns how many.

        `died`: its last process ended with them, which counts as a failed attempt of each.
        """
        ...

    async def generations(self) -> Sequence[GenerationInfo]:
        """All generations that are fed: filling, live and retired."""
        ...


class BlockedStore(Protocol):
    """Where a worker says that a collection stands still; what it does not say again within 20 s counts as over."""

    async def set_blocked(self, collection: str, reason: str) -> None:
        """It still stands still, or now does; since when is kept."""
        ...

    async def clear_blocked(self, collection: str) -> None:
        """It goes on."""
        ...


class SourceTables(Protocol):
    """The source's tables as the catalog has them now."""

    async def fits(self, collection: str) -> bool:
        """Whether the table has all that the collection needs. Raises SourceUnavailable."""
        ...

    async def retyped(self, collection: str) -> str:
        """Which column has another type than in the sink, and what to do, or ""; for a table that does not fit, why.

        Raises SourceUnavailable, SinkUnavailable.
        """
        ...


class WorkerStore(IntakeStore, EmbedStore, BlockedStore, Protocol):
    """The sink as a worker process uses it."""

    def serves_at(self, url: str) -> None:
        """Where this worker has its metrics, "" if nowhere; to be said in the sink soon."""
        ...

    async def set_problems(self, problems: Sequence[str]) -> None:
        """Say in the sink what this worker cannot do; none says that all is well."""
        ...

    async def flush_measures(
        self,
        counters: Mapping[tuple[str, datetime, str], int],
        sketches: Mapping[tuple[str, datetime, str], Mapping[str, object]],
        judged: Mapping[tuple[str, datetime], tuple[int, int]],
        slow: Mapping[tuple[str, datetime], Sequence[SlowChange]] | None = None,
    ) -> None:
        """Add counters and replace sketches, by (collection, minute, name), under this process's own writer name.

        `judged`: good and bad changes to add to the history of (collection, minute), whoever else adds to it.
        `slow`: all of this process's slowest changes of a (collection, minute), in place of what the sink has. All or
        nothing is written.
        """
        ...

    async def close(self) -> None:
        """Give all connections back."""
        ...


class ReplayStore(Protocol):
    """The sink as a replay of dead letters uses it, beside workers that run."""

    async def letter(self, number: int) -> StoredLetter:
        """One of that id, open or closed."""
        ...

    async def replay(
        self, letter: StoredLetter, request: IntakeRequest, decide: Callable[[IntakeView], ReplayPlan]
    ) -> ReplayPlan:
        """One transaction as `IntakeStore.intake`, that also closes, empties and audits the letter; returns the plan.

        No position is moved. Where `decide` leaves the letter open nothing is written. Raises what `intake` raises;
        Conflict also where the letter was closed meanwhile.
        """
        ...

    async def embed_again(self, letter: StoredLetter) -> str:
        """Make a text that could not be embedded pending again, and close its letter as `replayed`.

        Superseded instead if the row or the generation is gone. Returns which. Raises Conflict, SinkUnavailable.
        """
        ...

    async def keep_open(self, letter: StoredLetter, still: Undecodable) -> None:
        """Note why a replay failed, and the key and commit time if only now they can be read."""
        ...


class Encoder(Protocol):
    """A sentence-transformers model behind two calls. Not thread-safe; runs off the event loop."""

    @property
    def name(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    @property
    def max_tokens(self) -> int:
        """Text tokens that fit into one chunk: the model's limit less its special tokens."""
        ...

    @property
    def tokenizer_json(self) -> str:
        """The model's own tokenizer, as `tokenizers` serialises it: chunks are counted as the model counts."""
        ...

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Normalised float32 vectors, shape (len(texts), dimension), in the order of `texts`.

        Raises UnusableVector naming the text's index when a vector is NaN, infinite or zero, DimensionMismatch when
        the model disagrees with itself.
        """
        ...


class Chunker(Protocol):
    """Cuts documents by the model's own tokenizer."""

    def chunks(self, document: str) -> Sequence[str]:
        """Non-empty chunks in order, each of at most `max_tokens` tokens; none for a blank document."""
        ...


class SchemaRegistry(Protocol):
    """Writer schemas by id."""

    async def schema(self, schema_id: int) -> str:
        """The Avro schema as JSON text. Raises RegistryUnavailable (also for an id not known yet)."""
        ...

    async def check_topic(self, topic: str) -> None:
        """Raise RegistryUnavailable unless a schema of the topic's values is registered: else it is another registry,
        and what it has given before is forgotten.
        """
        ...
