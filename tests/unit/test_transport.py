"""Faust's transport, where it has no setting for what matters."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from faust.transport.consumer import Consumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP

from schemas.change import TopicPartition
from schemas.errors import GapFound
from streams.intake.app import IntakeApp, faust_settings
from streams.intake.transport import FETCH_WAIT_MS, FULL_PAUSE_SECONDS, PositionedConsumer, PromptThread


async def test_a_fetch_waits_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle partition would hold up a busy one for as long as a fetch may wait."""

    def created(self: Any, loop: Any) -> Any:
        return AIOKafkaConsumer(bootstrap_servers="127.0.0.1:1", fetch_max_wait_ms=1500)

    monkeypatch.setattr(AIOKafkaConsumerThread, "_create_consumer", created)
    thread = PromptThread.__new__(PromptThread)
    consumer = created(thread, None)
    assert consumer._fetch_max_wait_ms == 1500, "aiokafka calls it otherwise now"
    assert thread._create_consumer(None)._fetch_max_wait_ms == FETCH_WAIT_MS


class Thread:
    """Faust's consumer thread: the log of each partition starts at 5, and the group has committed 100."""

    def __init__(self) -> None:
        self.sought: dict[TP, int] = {}

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return dict.fromkeys(partitions, 5)

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        self.sought.update(partitions)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        return dict.fromkeys((TP("t", 0), TP("t", 1)), 100)


class Rebalanced(PositionedConsumer):
    """After a rebalance that has given it two partitions, of a sink that has a position of one."""

    def __init__(self, position: int) -> None:
        self._thread = Thread()
        self._read_offset: dict[TP, int] = {}
        self._committed_offset: dict[TP, int] = {}
        self._position = position
        self.app = SimpleNamespace(read_positions=self._positions)

    def assignment(self) -> set[TP]:
        return {TP("t", 0), TP("t", 1)}

    async def _positions(self, partitions: frozenset[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {at: self._position for at in partitions if at.partition == 0}


async def test_h22_where_faust_seeks_is_the_sinks_position() -> None:
    """H22. `perform_seek` is what Faust itself calls after a rebalance, with the in-flight messages gone."""
    assert "seek_to_committed" in inspect.getsource(Consumer.perform_seek), "Faust seeks otherwise now"
    consumer = Rebalanced(position=70)
    await consumer.perform_seek()
    expected = {TP("t", 0): 70, TP("t", 1): 5}
    assert consumer._thread.sought == consumer._read_offset == consumer._committed_offset == expected


async def test_h22_a_gap_ends_the_rebalance() -> None:
    """H23: nothing is sought where the log starts above the position."""
    consumer = Rebalanced(position=4)
    with pytest.raises(GapFound):
        await consumer.perform_seek()
    assert consumer._thread.sought == {}


async def test_h22_the_app_has_our_consumer(tmp_path: Path) -> None:
    app = IntakeApp(**faust_settings("g", "127.0.0.1:1", "w1", tmp_path, 30.0))
    assert app.transport.Consumer is PositionedConsumer


# What a message costs


class Delivering(PositionedConsumer):
    """A consumer that is neither stopped nor started."""

    def __init__(self) -> None:
        self._stopped, self._crashed = asyncio.Event(), asyncio.Event()
        self.loop = asyncio.get_running_loop()


async def test_a_delivery_that_need_not_wait_needs_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust waits for each message by four tasks."""
    assert "self.wait_first(" in inspect.getsource(Consumer._drain_messages), "Faust delivers otherwise now"
    monkeypatch.setattr(asyncio, "ensure_future", None)

    async def deliver() -> str:
        return "delivered"

    suspended = asyncio.Event().wait()
    found = await Delivering().wait_first(deliver(), suspended)
    assert (found.results, found.stopped) == (["delivered"], False)
    assert inspect.getcoroutinestate(suspended) == inspect.CORO_CLOSED


async def test_a_delivery_that_waits_goes_on_where_it_was() -> None:
    """Its first step is not done twice, errors come out, and an end of the consumer ends it."""
    steps: list[str] = []
    room = asyncio.Event()

    async def deliver() -> str:
        steps.append("begun")
        try:
            await room.wait()
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            steps.append("cancelled")
            raise
        steps.append("done")
        return "delivered"

    asyncio.get_running_loop().call_later(0.01, room.set)
    async with asyncio.timeout(5):
        found = await Delivering().wait_first(deliver(), asyncio.Event().wait())
        assert (found.results, steps) == (["delivered"], ["begun", "done"])

        steps.clear()
        room.clear()
        consumer = Delivering()
        asyncio.get_running_loop().call_later(0.01, consumer._stopped.set)
        assert (await consumer.wait_first(deliver(), asyncio.Event().wait())).stopped
        await asyncio.sleep(0)
        assert steps == ["begun", "cancelled"]

        async def fail() -> None:
            await asyncio.sleep(0)
            raise ValueError("full")

        with pytest.raises(ValueError, match="full"):
            await Delivering().wait_first(fail(), asyncio.Event().wait())


async def test_a_full_buffer_is_looked_at_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust waits a second for records of the other partitions."""
    assert "self.sleep(1)" in inspect.getsource(Consumer._wait_next_records), "Faust waits otherwise now"
    waited: list[float] = []

    async def wait(self: Any, timeout: float) -> None:  # noqa: ASYNC109
        waited.append(timeout)

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        consumer._active_partitions.add(TP("t", 0))

    monkeypatch.setattr(Consumer, "_wait_next_records", wait)
    consumer = Rebalanced(position=70)
    consumer.flow_active, consumer._buffered_partitions = True, set[TP]()
    consumer._active_partitions, consumer._paused_partitions = {TP("t", 1)}, set[TP]()
    await consumer._wait_next_records(1.0)
    consumer._buffered_partitions = {TP("t", 0)}
    await consumer._wait_next_records(1.0)
    monkeypatch.setattr(consumer, "sleep", sleep)
    consumer._active_partitions = set()
    await consumer._wait_next_records(1.0)
    assert waited == [1.0, FULL_PAUSE_SECONDS, FULL_PAUSE_SECONDS, FULL_PAUSE_SECONDS]


@pytest.mark.parametrize(("highwater", "is_behind"), [(None, False), (7, False), (8, False), (9, True)])
def test_behind_is_what_the_broker_has_more_of(highwater: int | None, is_behind: bool) -> None:
    consumer = Rebalanced(position=70)
    consumer._thread = SimpleNamespace(highwater=lambda tp: highwater)  # type: ignore[assignment]
    assert consumer.is_behind(SimpleNamespace(tp=TP("t", 0), offset=7)) is is_behind


def test_of_a_partition_that_was_taken_away_nothing_more_is_known() -> None:
    def revoked(tp: TP) -> int:
        raise AssertionError("Partition is not assigned")

    consumer = Rebalanced(position=70)
    consumer._thread = SimpleNamespace(highwater=revoked)  # type: ignore[assignment]
    assert not consumer.is_behind(SimpleNamespace(tp=TP("t", 0), offset=7))
