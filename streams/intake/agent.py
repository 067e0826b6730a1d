"""The Faust agent, by the rules of DESIGN 4: no idiom of Faust's survives an exception without losing messages.

One reader task, a buffer of one batch, one writer task; acknowledged in arrival order after COMMIT. An exception ends
both, the agent and, by CrashingSupervisor, the process: un-acknowledged, to be restarted.

A transaction costs as much as a hundred events and more. Faust gives one event at a time and no faster than the writer
writes a few, so while the partition is known to hold more the batch waits to be filled; the last event of a partition
is written at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from schemas.change import TopicPartition
from schemas.envelope import RawMessage
from streams.intake.stage import Intake

#: A batch is not filled for longer, should what is known to be there not come.
FILL_SECONDS: Final = 0.1
#: Nor with more than this, but for one event that is larger: rows may have megabytes.
BATCH_BYTES: Final = 8 * 1024 * 1024


def raw_message(event: Any) -> RawMessage:
    """A Faust event as the decoder takes it. The timestamp is in seconds since the epoch."""
    message = event.message
    return RawMessage(
        at=TopicPartition(message.topic, message.partition),
        offset=message.offset,
        key=message.key,
        value=message.value,
        headers=tuple(message.headers or ()),
        timestamp_seconds=message.timestamp,
    )


class Batches:
    """Events in arrival order between the reader and the writer. `is_behind` says of a message whether its partition is
    known to hold more.
    """

    def __init__(self, size: int, is_behind: Callable[[Any], bool]) -> None:
        self._size, self._is_behind = size, is_behind
        self._events: list[Any] = []
        self._bytes = 0
        self._any, self._enough, self._room = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def add(self, event: Any) -> None:
        """Wait while a whole batch waits."""
        while self._is_full:
            self._room.clear()
            await self._room.wait()
        self._events.append(event)
        self._bytes += len(event.message.value or b"")
        self._any.set()
        if self._is_full or not self._is_behind(event.message):
            self._enough.set()

    @property
    def _is_full(self) -> bool:
        return len(self._events) >= self._size or self._bytes >= BATCH_BYTES

    async def next(self) -> list[Any]:
        """All that has come, at most `size`; at once where no more is known to be there."""
        await self._any.wait()
        if not self._enough.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._enough.wait(), FILL_SECONDS)
        batch, self._events, self._bytes = self._events, [], 0
        self._any.clear()
        self._enough.clear()
        self._room.set()
        return batch


async def consume(
    stream: Any, intake: Intake, batch_size: int, is_behind: Callable[[Any], bool] = lambda message: False
) -> None:
    """Read and write until the stream ends; one batch is all that waits in memory."""
    unacknowledged = stream.noack()
    batches = Batches(batch_size, is_behind)

    async def read() -> None:
        async for event in unacknowledged.events():
            await batches.add(event)

    async def write() -> None:
        while True:
            batch = await batches.next()
            await intake.take_in([raw_message(event) for event in batch])
            for event in batch:
                await unacknowledged.ack(event)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        tasks.create_task(write())
