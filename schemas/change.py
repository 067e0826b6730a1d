"""A change as the pipeline sees it, after decoding and before anything is decided.

Which change wins is decided by `Version`, the Kafka order within the key's partition (DESIGN 3);
`source.lsn` only orders a truncate against rows and recognises a replay by the connector.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, TypeAlias

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"


class Operation(enum.StrEnum):
    """Debezium's operation codes, and the tombstone that follows a delete."""

    CREATE = "c"
    UPDATE = "u"
    DELETE = "d"
    READ = "r"
    TRUNCATE = "t"
    MESSAGE = "m"
    TOMBSTONE = "tombstone"


class Version(NamedTuple):
    """Orders the changes of one key: lineage first, then the offset in the key's partition."""

    lineage: int
    offset: int


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where in the source's log a change comes from. Snapshot rows have only `sequence_lsn`.

    `lsn`, `sequence_last_commit` (`sequence[0]`) and `sequence_lsn` (`sequence[1]`) are WAL positions in bytes;
    `committed_at` is the source database's clock at commit (`source.ts_us`), None for snapshot rows.
    """

    lsn: int | None = None
    sequence_last_commit: int | None = None
    sequence_lsn: int | None = None
    transaction_id: int | None = None
    committed_at: datetime | None = None
    snapshot: bool = False

    @property
    def fence_lsn(self) -> int | None:
        """What a truncate's fence is compared with: `lsn`, or `sequence[1]` for snapshot rows (H8)."""
        return self.lsn if self.lsn is not None else self.sequence_lsn


@dataclass(frozen=True, slots=True)
class Change:
    """One consumed Kafka record that is about one key, or a truncate (then `key` is None).

    `row` is the decoded `after` without excluded columns, JSON values only; None for deletes and tombstones.
    `text` is the rendered template of the spec ("" = nothing to embed), `text_hash` the hash of both (32 bytes).
    `moved_to` says that a delete is one half of a key change (`__debezium.newkey`).
    `kafka_at` is the record's timestamp, set by Connect's clock.
    `unavailable` names the columns whose value Debezium did not have: until they are filled from the stored row
    they are not in `row`, and `text` and `text_hash` are empty.
    `doubtful`: what was sent says that the key changed, but not what the row is now; the source is asked for it.
    """

    operation: Operation
    at: TopicPartition
    version: Version
    key: str | None
    origin: Origin = field(default_factory=Origin)
    row: Mapping[str, JsonValue] | None = None
    text: str = ""
    text_hash: bytes = b""
    moved_to: bool = False
    kafka_at: datetime | None = None
    unavailable: frozenset[str] = frozenset()
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A consumed Kafka record that becomes a dead letter, with everything needed to replay it.

    `key` is the canonical key if it could be read, `committed_at` the source commit time if it could.
    """

    at: TopicPartition
    version: Version
    key: str | None
    key_bytes: bytes | None
    value_bytes: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    error_class: str
    error: str
    committed_at: datetime | None = None


class Outcome(enum.StrEnum):
    """Each consumed offset ends in exactly one of these (promise 4)."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    SUPERSEDED = "superseded"
    DUPLICATE = "duplicate"
    DELETED = "deleted"
    IGNORED = "ignored"
    DEAD_LETTER = "dead_letter"
