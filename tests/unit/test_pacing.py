"""First loads go no faster than they are taken in: when the pause is asked for, and when it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import cast

import pytest

from connectors.kafka import Kafka
from schemas.change import TopicPartition
from schemas.errors import SourceUnavailable
from streams import attend, pacing
from streams.pacing import Pacing

TOPIC = "shop1.shop.content"


class FakeState:
    """A load that goes on for as many looks as there are lags; `None` is a partition without a position."""

    def __init__(self, lags: list[int | None]) -> None:
        self.lags = lags
        self.alone = True

    @contextlib.contextmanager
    def open(self, dsn: str) -> Iterator[FakeState]:
        yield self

    def is_loading(self) -> bool:
        return bool(self.lags)

    def try_pacing(self) -> bool:
        return self.alone

    def positions(self, topic: str) -> dict[int, int]:
        lag = self.lags.pop(0)
        return {} if lag is None else {0: 10_000 - lag}


class FakeKafka:
    def end_offsets(self, topics: Collection[str]) -> dict[TopicPartition, int]:
        return {TopicPartition(topic, 0): 10_000 for topic in topics}

    def log_starts(self, topics: Collection[str]) -> dict[TopicPartition, int]:
        return {TopicPartition(topic, 0): 9_000 for topic in topics}


async def loading() -> bool:
    return True


def signals(monkeypatch: pytest.MonkeyPatch, *lags: int | None, alone: bool = True) -> list[str]:
    """What is sent while the lags are seen one after the other."""
    sent: list[str] = []
    state = FakeState(list(lags))
    state.alone = alone
    monkeypatch.setattr(pacing, "CaptureState", state)
    monkeypatch.setattr(pacing, "connect_source", lambda dsn: contextlib.nullcontext())
    monkeypatch.setattr(pacing, "pause", lambda source: sent.append("pause"))
    monkeypatch.setattr(pacing, "resume", lambda source: sent.append("resume"))
    monkeypatch.setattr(pacing, "POLL_SECONDS", 0.0)
    Pacing("", "", cast(Kafka, FakeKafka()), [TOPIC], 400, loading)._watch(lambda: False)
    return sent


def test_paused_above_and_resumed_below_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = signals(monkeypatch, 0, 300, 401, 900, 200, 100, 99, 300)
    assert sent == ["resume", "pause", "resume", "resume"]


def test_a_load_that_somebody_left_paused_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert signals(monkeypatch, 50, 50, 50) == ["resume", "resume"]


def test_a_load_is_not_left_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert signals(monkeypatch, 0, 900)[-1] == "resume"


def test_a_pause_without_effect_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connector forgets it when it restarts."""
    monkeypatch.setattr(pacing, "AGAIN_SECONDS", -1.0)
    assert signals(monkeypatch, 900, 900, 900) == ["pause", "pause", "pause", "resume"]


def test_a_partition_without_a_position_counts_from_its_log_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert signals(monkeypatch, None) == ["pause", "resume"]


@pytest.mark.parametrize(("lags", "alone"), [((), True), ((900,), False)])
def test_nothing_without_a_load_or_beside_another_worker(
    monkeypatch: pytest.MonkeyPatch, lags: tuple[int, ...], alone: bool
) -> None:
    assert signals(monkeypatch, *lags, alone=alone) == []


@pytest.mark.parametrize("at", ["looking", "working"])
async def test_a_neighbour_that_is_away_ends_nothing(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    monkeypatch.setattr(attend, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(attend, "PAUSE_LOOKS", 1)
    done: list[str] = []

    def away(what: str) -> None:
        done.append(what)
        if what == at and done.count(at) == 1:
            raise SourceUnavailable("source database: gone")

    async def is_due() -> bool:
        away("looking")
        return True

    await attend.attend("test", is_due, lambda: away("working"), lambda: done.count("working") >= 2)
    assert done.count(at) >= 2
