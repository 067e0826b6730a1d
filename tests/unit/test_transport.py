"""Faust's transport, where it has no setting for what matters."""

from __future__ import annotations

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
from streams.intake.transport import FETCH_WAIT_MS, PositionedConsumer, PromptThread


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
