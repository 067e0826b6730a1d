"""What is read from and written to the sink: the vocabulary shared by the pure cores and every store.

A store opens the transaction and takes the locks; what happens in it is decided by pure functions over
these types, so the fake and Postgres run the same rules.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from schemas.change import JsonValue, Origin, Outcome, TopicPartition, Undecodable, Version


class Lane(enum.StrEnum):
    """`live` goes before `backfill`, which keeps a reserved share."""

    LIVE = "live"
    BACKFILL = "backfill"


#: What late changes get of the live lane's embedding while others can still be in time (ADR 0012).
LATE_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Fence:
    """A truncate: rows of older lineages, and of this one below `lsn` (bytes of WAL), are gone (H6-H8)."""

    lineage: int
    lsn: int


@dataclass(frozen=True, slots=True)
class RecordState:
    """A stored record, or its marker (`deleted`, then row and text hash are empty).

    `text_hash`: a hash of 32 bytes for the text by each template that was fed, sorted and joined.
    `lsn` and `sequence_last_commit` are those of the last *streamed* event: a snapshot row never clears them.
    `streamed` says that this state itself came from streaming.
    """

    version: Version
    deleted: bool
    text_hash: bytes
    streamed: bool
    lsn: int | None = None
    sequence_last_commit: int | None = None
    transaction_id: int | None = None
    fence_lsn: int | None = None
    committed_at: datetime | None = None
    row: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True, slots=True)
class IntakeRequest:
    """What an intake transaction must lock and read.

    `positions`: the next offset of each partition as this owner last read or wrote it; None where no position
    row existed. `keys`: record rows to lock, in key order. `exclusive`: a truncate is in the batch, so
    the collection's advisory lock is taken exclusively. `with_rows`: those keys whose stored row must be read too,
    because an unavailable (unchanged TOAST) value is to be taken from it. `lineage`: that of the events; when
    another has begun, nothing of it is taken in any more.
    """

    collection: str
    positions: Mapping[TopicPartition, int | None]
    keys: Sequence[str]
    exclusive: bool = False
    with_rows: frozenset[str] = frozenset()
    lineage: int = 1


@dataclass(frozen=True, slots=True)
class IntakeView:
    """What the transaction saw under its locks. `repairs`: keys that a re-read was asked for (H9).

    `templates`: those of all generations that are fed, by number; read under the collection's lock, so that no
    generation is unknown to an intake transaction (H19). `watermark`: what was published of the newest lineage.
    """

    fence: Fence | None
    records: Mapping[str, RecordState]
    repairs: frozenset[str] = frozenset()
    templates: Mapping[int, str] = field(default_factory=dict)
    watermark: datetime | None = None


@dataclass(frozen=True, slots=True)
class RecordWrite:
    """The newest accepted change of a key in a batch. `deleted` makes a marker.

    `embed` says what becomes of the vectors: "remove" (marker or empty text), "pending" (the text changed) or
    "keep"; `embed_otherwise` the same by generation, where its template decides otherwise. `outcome` is applied,
    unchanged (the text is; audited as a range) or deleted. `committed_since` is the least commit time of the streamed
    changes that this write folds together, None if all are snapshot rows; `changes` their number, at least 1.
    """

    key: str
    state: RecordState
    origin: Origin
    embed: str
    lane: Lane
    committed_since: datetime | None
    changes: int
    at: TopicPartition
    operation: str
    outcome: Outcome = Outcome.APPLIED
    embed_otherwise: Mapping[int, str] = field(default_factory=dict)

    def embed_in(self, generation: int) -> str:
        """What becomes of the vectors of one generation."""
        return self.embed_otherwise.get(generation, self.embed)


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Offsets `first` to `last`, `count` of them, of one partition with one outcome that is not audited singly."""

    at: TopicPartition
    first: int
    last: int
    count: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class IntakePlan:
    """What an intake transaction writes.

    `fence` new or None; with one, all records of older lineages and those of its lineage whose `fence_lsn` is below
    it are removed first. `positions`: next offset by partition. `repairs_wanted`: keys to be re-read at the
    source; `repairs_done`: keys whose re-read arrived. `truncated`: versions of accepted changes that the fence removed
    again within the batch; they close older dead letters as any. `outcomes`: how many offsets had which outcome.
    `violations`: how many accepted changes were committed at or before the published watermark; none ever should.
    """

    writes: Sequence[RecordWrite] = ()
    dead_letters: Sequence[Undecodable] = ()
    ranges: Sequence[OffsetRange] = ()
    positions: Mapping[TopicPartition, int] = field(default_factory=dict)
    fence: Fence | None = None
    fence_committed_at: datetime | None = None
    repairs_wanted: frozenset[str] = frozenset()
    repairs_done: frozenset[str] = frozenset()
    truncated: Mapping[str, Version] = field(default_factory=dict)
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)
    violations: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """A pending row taken by one embedder. `token` is this lease's own; the row as stored renders the document."""

    collection: str
    generation: int
    key: str
    version: Version
    token: str
    lane: Lane
    row: Mapping[str, JsonValue]
    attempts: int
    pending_since: datetime | None
    taken_in_at: datetime
    claimed_at: datetime
    changes: int


@dataclass(frozen=True, slots=True)
class ChunkVector:
    """One chunk of a document: number, text, SHA-256 of the text, and the vector if it was encoded.

    `vector` None means that the sink holds a vector of this hash (kept or copied), to be read again at the write.
    """

    number: int
    text: str
    hash: bytes
    vector: Sequence[float] | None


@dataclass(frozen=True, slots=True)
class EmbedWrite:
    """All chunks of one claimed document, in order.

    `copy_from`: a generation of the same model, whose vectors may be taken where the claim's own has none.
    """

    claim: Claim
    chunks: Sequence[ChunkVector]
    copy_from: int | None = None


class WriteOutcome(enum.StrEnum):
    """`written`: searchable. `moved_on`: written, but a newer text waits. `discarded`: deleted, replaced or
    another lease's. `vanished`: a kept chunk was gone, the row stays pending."""

    WRITTEN = "written"
    MOVED_ON = "moved_on"
    DISCARDED = "discarded"
    VANISHED = "vanished"


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """One row of `upwell.generation`. `number` counts within the collection; `state` is filling, live, retired (was
    live and is still fed, for a rollback) or dropped.
    """

    collection: str
    number: int
    fingerprint: str
    model: str
    dimension: int
    template: str
    max_tokens: int
    overlap_tokens: int
    state: str

    @property
    def is_live(self) -> bool:
        return self.state == "live"
