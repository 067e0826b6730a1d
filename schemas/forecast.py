"""The queue before the model at one moment: what a forecast is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueuedCollection:
    """Texts of one collection's live generation that wait to be embedded.

    `late`: live ones whose deadline has passed. `waiting`: the other live ones as (seconds until the deadline, texts),
    in ascending order. `backfill`: of a first load. `arrivals_per_second`: live texts that came over the last minutes;
    a key that changed again while it waited counts again.
    """

    name: str
    threshold_seconds: float
    late: int = 0
    waiting: Sequence[tuple[float, int]] = ()
    backfill: int = 0
    arrivals_per_second: float = 0.0

    @property
    def pending(self) -> int:
        """All that waits."""
        return self.late + sum(texts for _, texts in self.waiting) + self.backfill


@dataclass(frozen=True, slots=True)
class QueueReading:
    """All collections that share the workers, the canary's too.

    `filling`: texts that wait in generations beside the live ones; they count as backfill. `workers`: those that live.
    `texts_per_second`: what one worker embeds while it has work, None if nothing was embedded for too long.
    """

    collections: Sequence[QueuedCollection] = ()
    filling: int = 0
    workers: int = 0
    texts_per_second: float | None = None
