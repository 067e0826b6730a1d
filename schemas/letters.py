"""Dead letters as the sink keeps them, and what a replay makes of one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from schemas.change import Outcome, TopicPartition, Undecodable, Version
from schemas.sink import IntakePlan


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """One row of `upwell.dead_letter`. Of stage `intake` with the bytes as consumed, until it is closed; of stage
    `embed` with a generation and without `at` and bytes.

    `closed_by`: superseded, replayed or waived; None while it is open. `reason`: why it was waived.
    """

    id: int
    collection: str
    stage: str
    at: TopicPartition | None
    version: Version
    generation: int | None
    key: str | None
    key_bytes: bytes | None
    value_bytes: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    error_class: str
    error: str
    committed_at: datetime | None
    created_at: datetime
    closed_at: datetime | None = None
    closed_by: str | None = None
    reason: str | None = None

    @property
    def is_open(self) -> bool:
        return self.closed_at is None


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What a replay writes: an intake plan that moves no position, and what becomes of the letter.

    `closed_by` is replayed (it was accepted) or superseded (something newer was, or a truncate took it). None: it
    stays open with the error of `still`, and nothing else is written.
    """

    plan: IntakePlan
    outcome: Outcome
    closed_by: str | None
    still: Undecodable | None = None
