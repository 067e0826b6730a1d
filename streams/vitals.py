"""How a worker is: ready to take changes in, and alive or stuck. Pure; told by those who know, with a clock to turn.

*Ready*: a member of the consumer group, not rebalancing, not stopping, and the sink has answered lately.

*Stuck* is said only of what a restart may cure, because whoever asks will restart it: changes wait in a partition of
ours and none was taken in for `STUCK_SECONDS`, though nothing is known that explains it; or one batch has been with the
model for `EMBED_STUCK_SECONDS`. A neighbour that is away, a blocked collection and a rebalance explain it. An event
loop that hangs does not answer at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from schemas.change import TopicPartition
from schemas.errors import Blocked

#: The sink is asked every second.
SINK_SECONDS: Final = 10.0
STUCK_SECONDS: Final = 300.0
EMBED_STUCK_SECONDS: Final = 1800.0
#: Where embedding has its troubles; intake has them under the collection's name.
EMBED: Final = "(embed)"
#: A failed attempt explains a wait for so long: the next one may take a while to fail.
EXPLAINS_SECONDS: Final = 120.0


@dataclass(slots=True)
class _Partition:
    position: int
    moved_at: float


@dataclass(frozen=True, slots=True)
class _Trouble:
    """What the last attempt said; `at` in our own seconds."""

    at: float
    blocked: bool
    reason: str


class Vitals:
    """Not thread-safe: lives on the event loop. Seconds are `monotonic`'s."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._now = monotonic
        self.retries: dict[str, int] = {"intake": 0, "embed": 0}
        self._troubles: dict[str, _Trouble] = {}
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._waiting: dict[TopicPartition, int] = {}
        self._sink_at: float | None = None
        self._rebalanced_at = monotonic()
        self._embed_since: dict[int, float] = {}
        #: Collections by topic; what Faust says: (a member id is there, rebalancing); set by the worker.
        self.collections: Mapping[str, str] = {}
        self.group: Callable[[], tuple[bool, bool]] = lambda: (False, False)
        self.stopping: Callable[[], bool] = lambda: False

    # Told

    def trouble(self, where: str, error: Exception) -> None:
        """An attempt of a collection's intake (`where`: its name), or of EMBED, failed and will be made again."""
        is_blocked = isinstance(error, Blocked)
        self._troubles[where] = _Trouble(self._now(), is_blocked, str(error))
        if not is_blocked:
            self.retries["embed" if where == EMBED else "intake"] += 1

    def mended(self, where: str) -> None:
        """The attempt succeeded."""
        self._troubles.pop(where, None)

    def sink_answered(self) -> None:
        self._sink_at = self._now()

    def embedding(self, is_busy: bool, runner: int = 0) -> None:
        """A batch went to one of the embedder's runners, or came back."""
        if is_busy:
            self._embed_since[runner] = self._now()
        else:
            self._embed_since.pop(runner, None)

    def looked(
        self, positions: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int] | None
    ) -> None:
        """Where our partitions are, and the ends of their topics; None where Kafka did not say."""
        now = self._now()
        for at in set(self._partitions) - set(positions):
            del self._partitions[at]
        for at, position in positions.items():
            known = self._partitions.get(at)
            is_done = ends is None or ends.get(at, 0) <= position
            if known is None or known.position != position or is_done:
                self._partitions[at] = _Partition(position, now)
        self._waiting = {at: ends[at] - position for at, position in positions.items() if ends and at in ends}
        if self.group()[1]:
            self._rebalanced_at = now

    # Asked

    @property
    def blocked(self) -> Mapping[str, str]:
        """Why, by collection."""
        return {name: each.reason for name, each in self._troubles.items() if each.blocked}

    def not_ready(self) -> str:
        """Why the worker takes nothing in, "" if it does."""
        if self.stopping():
            return "stopping"
        is_member, is_rebalancing = self.group()
        if not is_member:
            return "not a member of the consumer group yet"
        if is_rebalancing:
            return "rebalancing"
        if self._sink_at is None:
            return "the sink has not answered yet"
        silent = self._now() - self._sink_at
        return f"the sink has not answered for {silent:.0f} s" if silent > SINK_SECONDS else ""

    def stuck(self) -> str:
        """What stands still though nothing explains it, "" if nothing does."""
        now = self._now()
        embedding = now - min(self._embed_since.values(), default=now)
        if embedding > EMBED_STUCK_SECONDS:
            return f"one batch has been with the embedder for {embedding:.0f} s"
        if now - self._rebalanced_at < STUCK_SECONDS:
            return ""
        for at, each in sorted(self._partitions.items()):
            still = now - each.moved_at
            if self._waiting.get(at, 0) > 0 and still > STUCK_SECONDS and not self._is_explained(at, now):
                where = f"{at.topic}/{at.partition}"
                return f"{self._waiting[at]} changes wait in {where}, none was taken in for {still:.0f} s"
        return ""

    def _is_explained(self, at: TopicPartition, now: float) -> bool:
        trouble = self._troubles.get(self.collections.get(at.topic, ""))
        return trouble is not None and (trouble.blocked or now - trouble.at < EXPLAINS_SECONDS)
