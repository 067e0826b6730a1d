"""The Faust agent, by the rules of DESIGN 4: no idiom of Faust's survives an exception without losing messages.

One reader task, a queue of one batch, one writer task; acknowledged in arrival order after COMMIT. An exception ends
both, the agent and, by CrashingSupervisor, the process: un-acknowledged, to be restarted.
"""

from __future__ import annotations

import asyncio
from typing import Any

from schemas.change import TopicPartition
from schemas.envelope import RawMessage
from streams.intake.stage import Intake


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


async def consume(stream: Any, intake: Intake, batch_size: int) -> None:
    """Read and write until the stream ends; the queue of one batch is all that waits in memory."""
    unacknowledged = stream.noack()
    queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=batch_size)

    async def read() -> None:
        async for event in unacknowledged.events():
            await queue.put(event)

    async def write() -> None:
        while True:
            batch = [await queue.get()]
            while len(batch) < batch_size and not queue.empty():
                batch.append(queue.get_nowait())
            await intake.take_in([raw_message(event) for event in batch])
            for event in batch:
                await unacknowledged.ack(event)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        tasks.create_task(write())
