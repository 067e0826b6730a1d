"""Faust's consumer, seeking to the sink's positions instead of the group's offsets (DESIGN 4, H21, H22).

Faust calls `seek_to_committed` after each rebalance, once the in-flight messages are gone: this is the only place
where a seek is not undone. Kafka's group offsets stay for display.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from functools import partial
from types import coroutine
from typing import Any, Final

from faust.exceptions import ConsumerNotStarted
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.transport.drivers.aiokafka import Consumer as AiokafkaConsumer
from faust.transport.drivers.aiokafka import Transport as AiokafkaTransport
from faust.types import TP
from mode.services import WaitResults

from schemas.change import TopicPartition
from schemas.errors import GapFound

#: A fetch leaves out partitions whose last records are still buffered, and the next one waits for it to return. With
#: Faust's 1500 ms an idle partition held a busy one up for most of a second.
FETCH_WAIT_MS: Final = 50

#: How often to look whether a full buffer has room again.
FULL_PAUSE_SECONDS: Final = 0.02

ReadPositions = Callable[[frozenset[TopicPartition]], Awaitable[Mapping[TopicPartition, int]]]


def starting_offsets(
    positions: Mapping[TopicPartition, int], log_starts: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """Where to read each partition from: the sink's position, or the log's start where there is none.

    Raises GapFound if the log no longer holds what comes after a position (H23).
    """
    offsets = {}
    for at, log_start in log_starts.items():
        position = positions.get(at)
        if position is not None and log_start > position:
            raise GapFound(
                f"{at.topic}/{at.partition}: the log starts at {log_start}, the sink has taken in up to {position}: "
                f"{log_start - position} changes are lost; run upwell connector rebuild"
            )
        offsets[at] = log_start if position is None else position
    return offsets


async def _finish(begun: Coroutine[Any, Any, Any], pending: Any) -> Any:
    """The rest of a coroutine that waits for `pending`."""
    return await _rest(begun, pending)


@coroutine
def _rest(begun: Coroutine[Any, Any, Any], pending: Any) -> Generator[Any, Any, Any]:
    while True:
        try:
            step = partial(begun.send, (yield pending))
        except BaseException as error:
            step = partial(begun.throw, error)
        try:
            pending = step()
        except StopIteration as done:
            return done.value


class PromptThread(AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust has no setting for how long a fetch waits."""

    def _create_consumer(self, loop: Any) -> Any:
        consumer = super()._create_consumer(loop)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer


class PositionedConsumer(AiokafkaConsumer):  # type: ignore[misc]
    """A consumer whose only offsets are the sink's."""

    def _new_consumer_thread(self) -> PromptThread:
        return PromptThread(self, loop=self.loop, beacon=self.beacon)

    async def seek_to_committed(self) -> Mapping[Any, int]:
        """Seek every assigned partition to its starting offset and return those."""
        assigned = list(self.assignment())
        if not assigned:
            return {}
        partitions = frozenset(TopicPartition(tp.topic, tp.partition) for tp in assigned)
        starts = await self._thread.earliest_offsets(*assigned)
        log_starts = {TopicPartition(tp.topic, tp.partition): offset for tp, offset in starts.items()}
        offsets = starting_offsets(await self.app.read_positions(partitions), log_starts)
        seek = {TP(at.topic, at.partition): offset for at, offset in offsets.items()}
        await self._thread.seek_wait(seek)
        return seek

    def assigned(self) -> frozenset[TopicPartition]:
        """Our partitions, none before the start."""
        try:
            return frozenset(TopicPartition(tp.topic, tp.partition) for tp in self.assignment())
        except ConsumerNotStarted:
            return frozenset()

    async def _wait_next_records(self, timeout: float) -> Any:  # noqa: ASYNC109  Faust's
        """While some partitions' buffers are full Faust waits for a second for records of the others, and the full ones
        are empty long before.
        """
        if not self._buffered_partitions:
            return await super()._wait_next_records(timeout)
        while self.flow_active and self.assignment() and not self._get_active_partitions():
            await self.sleep(FULL_PAUSE_SECONDS)
        return await super()._wait_next_records(FULL_PAUSE_SECONDS)

    async def wait_first(self, *waited: Any, timeout: Any = None) -> WaitResults:  # noqa: ASYNC109  mode's
        """Faust delivers each message by this, with four tasks beside it; nearly always there is room, and it is done
        at once: a third of all that a message costs.
        """
        first, *others = waited
        if not isinstance(first, Coroutine):
            return await super().wait_first(*waited, timeout=timeout)
        try:
            pending = first.send(None)
        except StopIteration as done:
            for other in others:
                if isinstance(other, Coroutine):
                    other.close()
            return WaitResults([first], [done.value], stopped=False)
        return await super().wait_first(_finish(first, pending), *others, timeout=timeout)

    def is_behind(self, message: Any) -> bool:
        """Whether the broker has told of records behind this one; not, if the partition is no longer ours."""
        try:
            highwater = self._thread.highwater(message.tp)
        except (ConsumerNotStarted, AssertionError, AttributeError):  # aiokafka's, of what is revoked
            return False
        return highwater is not None and highwater > message.offset + 1

    @property
    def is_member(self) -> bool:
        """Whether the group's coordinator has given this consumer a member id."""
        consumer = getattr(self._thread, "_consumer", None)
        return bool(getattr(getattr(consumer, "_coordinator", None), "member_id", ""))

    def leave_group(self) -> None:
        """Leave the group when this consumer stops, as a static member never does.

        One that comes back with other topics would be given what it had, and nobody would read the new ones until
        something else makes the group share out its partitions anew: minutes were seen.
        """
        consumer = getattr(self._thread, "_consumer", None)
        coordinator = getattr(consumer, "_coordinator", None)
        if coordinator is not None:
            coordinator._group_instance_id = None


class PositionedTransport(AiokafkaTransport):  # type: ignore[misc]
    """Faust's Kafka transport with our consumer."""

    Consumer = PositionedConsumer
