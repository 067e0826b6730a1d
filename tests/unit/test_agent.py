"""The agent acknowledges what is committed, in arrival order, and nothing else (DESIGN 4)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from schemas.envelope import RawMessage
from schemas.errors import PositionConflict
from streams.intake.agent import BATCH_BYTES, Batches, consume
from streams.intake.stage import Intake


@dataclass
class Stream:
    """As Faust's: what it has yielded it acknowledges itself, also when an exception comes by, unless `noack`."""

    numbers: Sequence[int]
    happened: list[str] = field(default_factory=list)
    acknowledging: bool = True

    def noack(self) -> Stream:
        return Stream(self.numbers, self.happened, acknowledging=False)

    async def events(self) -> AsyncIterator[Any]:
        for number in self.numbers:
            event = SimpleNamespace(
                message=SimpleNamespace(
                    topic="t", partition=0, offset=number, key=b"", value=b"", headers=None, timestamp=0.0
                )
            )
            try:
                yield event
            finally:
                if self.acknowledging:
                    await self.ack(event)
        await asyncio.Event().wait()

    async def ack(self, event: Any) -> None:
        self.happened.append(f"acknowledged {event.message.offset}")


@dataclass
class Taking:
    """An intake that fails from `fails` on."""

    happened: list[str]
    fails: int = 100

    async def take_in(self, messages: Sequence[RawMessage]) -> None:
        if any(message.offset >= self.fails for message in messages):
            raise PositionConflict("another owner")
        await asyncio.sleep(0)
        self.happened += [f"committed {message.offset}" for message in messages]


async def _consume(stream: Stream, intake: Taking, batch: int) -> None:
    async with asyncio.timeout(5):
        await consume(stream, cast(Intake, intake), batch)


@pytest.mark.parametrize("batch", [1, 3])
async def test_nothing_is_acknowledged_before_its_commit(batch: int) -> None:
    """A batch that fails leaves no trace; those before it are acknowledged in arrival order, after their commits."""
    stream = Stream(range(7))
    with pytest.raises(BaseExceptionGroup) as caught:
        await _consume(stream, Taking(stream.happened, fails=6), batch)
    assert caught.group_contains(PositionConflict)
    for number in range(6 - 6 % batch):
        committed = stream.happened.index(f"committed {number}")
        assert committed < stream.happened.index(f"acknowledged {number}")
    acknowledged = [line for line in stream.happened if line.startswith("acknowledged")]
    assert acknowledged == [f"acknowledged {number}" for number in range(len(acknowledged))]
    assert "acknowledged 6" not in stream.happened


async def test_what_fails_ends_the_agent_unacknowledged() -> None:
    stream = Stream(range(3))
    with pytest.raises(BaseExceptionGroup):
        await _consume(stream, Taking(stream.happened, fails=0), 1)
    assert stream.happened == []


def event(offset: int, size: int = 1) -> Any:
    return SimpleNamespace(message=SimpleNamespace(offset=offset, value=b"x" * size))


async def test_a_batch_is_filled_while_more_is_known_to_be_there() -> None:
    """Faust gives one event after the other; a transaction for each few of them would cost ten times as much."""
    batches = Batches(3, lambda message: message.offset < 4)
    taken: list[list[int]] = []

    async def take() -> None:
        while sum(map(len, taken)) < 6:
            taken.append([each.message.offset for each in await batches.next()])

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        tasks.create_task(take())
        for offset in range(6):
            await batches.add(event(offset))
            await asyncio.sleep(0.001)
    assert taken == [[0, 1, 2], [3, 4], [5]], "full, up to the end of what was known, and what came alone"


async def test_a_batch_does_not_wait_for_long_for_what_does_not_come() -> None:
    batches = Batches(3, lambda message: True)
    await batches.add(event(0))
    async with asyncio.timeout(5):
        assert len(await batches.next()) == 1


async def test_no_more_than_a_batch_waits_in_memory() -> None:
    batches = Batches(2, lambda message: True)
    await batches.add(event(0))
    await batches.add(event(1))
    third = asyncio.create_task(batches.add(event(2)))
    await asyncio.sleep(0.01)
    assert not third.done()
    assert len(await batches.next()) == 2
    async with asyncio.timeout(5):
        await third
        assert len(await batches.next()) == 1


async def test_a_batch_of_large_events_is_small() -> None:
    batches = Batches(500, lambda message: True)
    await batches.add(event(0))
    await batches.add(event(1, BATCH_BYTES))
    third = asyncio.create_task(batches.add(event(2)))
    await asyncio.sleep(0.01)
    assert not third.done()
    async with asyncio.timeout(5):
        assert len(await batches.next()) == 2
        await third
        assert len(await batches.next()) == 1
