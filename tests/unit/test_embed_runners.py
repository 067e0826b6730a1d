"""Two steps of one embedder beside each other: what overlaps, and what must not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from schemas.errors import DimensionMismatch, ModelHung, SinkUnavailable
from schemas.sink import Claim, EmbedWrite, Lane, WriteOutcome
from streams.embed import runners, stage
from streams.embed.on_the_way import OnTheWay
from streams.embed.stage import Embedder
from streams.embed.thread import OneThread
from tests.property.test_simulation import FakeEncoder, MemoryStore
from tests.unit.test_embed_stage import AT_ONCE, claimed, embedder, shown, stored, until

#: Nothing is claimed because of the poll within a test.
LIMITS = replace(AT_ONCE, batch=2, poll_seconds=60)


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as one:
        yield one


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A held model does not make the batches smaller."""
    monkeypatch.setattr(stage, "STEP_SECONDS", 10_000)
    monkeypatch.setattr(stage, "CALL_SECONDS", 10_000)


class HeldEncoder(FakeEncoder):
    """Each call waits until the test lets one go on; `inside` are the texts of the one that waits."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []
        self._go = threading.Semaphore(0)

    def go_on(self, calls: int = 1) -> None:
        self._go.release(calls)

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.inside = list(texts)
        self._go.acquire()
        self.inside = []
        return super().encode(texts)


class CountingStore(MemoryStore):
    """Counts claims."""

    claims = 0

    async def claim(self, *arguments: Any, **options: Any) -> Sequence[Claim]:
        self.claims += 1
        return await super().claim(*arguments, **options)


@asynccontextmanager
async def running(one: Embedder, encoder: HeldEncoder) -> Any:
    """Fatal errors; at the end it stops, and nothing is held up any more."""
    fatal: list[BaseException] = []
    task = asyncio.create_task(one.run(fatal.append))
    try:
        yield fatal
    finally:
        encoder.go_on(1000)
        one.stop()
        await asyncio.wait_for(task, 10)


def texts(store: MemoryStore, number: int, first: int = 0) -> None:
    """Records [10], [11], ... with a text each, to be claimed in this order."""
    for each in range(first, first + number):
        stored(store, f"[{10 + each}]", f"text{each}")


def is_inside(encoder: HeldEncoder, text: str) -> bool:
    return encoder.inside == [text]


async def spin() -> None:
    """Everything that can happen without the model happens."""
    for _ in range(20):
        await asyncio.sleep(0.002)


async def test_one_batch_is_claimed_and_written_while_another_is_with_the_model(executor: Executor) -> None:
    store, encoder = CountingStore(), HeldEncoder()
    texts(store, 6)
    async with running(embedder(store, encoder, executor, LIMITS), encoder) as fatal:
        await until(lambda: encoder.inside == ["text0", "text1"])
        encoder.go_on()  # the first step after a start has no company
        await until(lambda: encoder.inside == ["text2", "text3"])
        await until(lambda: claimed(store) == {"[12]", "[13]", "[14]", "[15]"})
        assert set(shown(store)) == {"[10]", "[11]"}
        encoder.go_on()
        await until(lambda: encoder.inside == ["text4", "text5"])
        await until(lambda: set(shown(store)) == {"[10]", "[11]", "[12]", "[13]"})
        encoder.go_on()
        await until(lambda: not store.pending)
    assert fatal == []


async def test_what_is_live_goes_between_the_calls_of_long_steps(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of a backfill have the model, a call for each text: what is live waits for one call of each."""
    monkeypatch.setattr(stage, "CALL_CHUNKS", 1)
    store, encoder = CountingStore(), HeldEncoder()
    texts(store, 20)
    for pending in store.pending.values():
        pending.lane = Lane.BACKFILL
    one = embedder(store, encoder, executor, replace(LIMITS, batch=6))
    async with running(one, encoder) as fatal:
        for number in range(6):  # the first step after a start has no company
            await until(partial(is_inside, encoder, f"text{number}"))
            encoder.go_on()
        await until(lambda: len(claimed(store)) == 12)
        stored(store, "[99]", "live")
        one.wake()
        await until(lambda: "[99]" in claimed(store))
        for _ in range(2):
            await until(lambda: bool(encoder.inside))
            encoder.go_on()
        await until(partial(is_inside, encoder, "live"))
        encoder.go_on()
        await until(lambda: "[99]" in shown(store))
        assert len(shown(store)) == 7, "neither of the two steps is at its end"
    assert fatal == []


async def test_a_short_queue_costs_no_claim_more_and_waits_for_no_company(executor: Executor) -> None:
    store, encoder = CountingStore(), HeldEncoder()
    texts(store, 1)
    async with running(embedder(store, encoder, executor, LIMITS), encoder):
        await until(lambda: encoder.inside == ["text0"])
        await spin()
        assert store.claims == 1
        encoder.go_on()
        await until(lambda: store.claims == 2)
        await spin()
        assert store.claims == 2


async def test_no_poll_makes_company_for_a_step(executor: Executor) -> None:
    store, encoder = CountingStore(), HeldEncoder()
    texts(store, 1)
    async with running(embedder(store, encoder, executor, replace(LIMITS, poll_seconds=0.005)), encoder):
        await until(lambda: encoder.inside == ["text0"])
        await spin()
        encoder.go_on()
        await until(lambda: not store.pending)
        texts(store, 1, first=1)
        await until(lambda: encoder.inside == ["text1"])
        claims = store.claims
        await spin()
        assert store.claims == claims


async def test_what_comes_during_a_long_step_does_not_wait_for_its_end(executor: Executor) -> None:
    store, encoder = CountingStore(), HeldEncoder()
    texts(store, 1)
    one = embedder(store, encoder, executor, replace(LIMITS, poll_seconds=0.01))
    async with running(one, encoder):
        await until(lambda: encoder.inside == ["text0"])
        encoder.go_on()
        await until(lambda: not store.pending)
        texts(store, 1, first=1)
        one.wake()
        await until(lambda: encoder.inside == ["text1"])
        texts(store, 1, first=2)
        one.wake()
        await until(lambda: claimed(store) == {"[11]", "[12]"})


async def test_two_steps_encode_the_same_text_once(executor: Executor) -> None:
    store, encoder = CountingStore(), HeldEncoder()
    texts(store, 2)
    for key in ("[20]", "[21]", "[22]", "[23]"):
        stored(store, key, "same")
    async with running(embedder(store, encoder, executor, LIMITS), encoder):
        await until(lambda: encoder.inside == ["text0", "text1"])
        encoder.go_on()
        await until(lambda: encoder.inside == ["same"])
        await until(lambda: len(claimed(store)) == 4)
        await spin()
        encoder.go_on(10)
        await until(lambda: not store.pending)
    assert encoder.encoded == ["text0", "text1", "same"]
    assert len(shown(store)) == 6


async def test_what_a_step_fails_at_is_made_by_the_one_that_waits_for_it() -> None:
    way = OnTheWay()
    with way.share("content", 1) as first:
        assert first.take({b"a", b"b"}) == {b"a", b"b"}
        first.settle({b"b": (1.0,)})
        with way.share("content", 2) as other:
            assert other.take({b"a"}) == {b"a"}, "another generation's"
        with way.share("content", 1) as second:
            assert second.take({b"a", b"b", b"c"}) == {b"c"}
            second.settle({b"c": None})
            waiting = asyncio.create_task(second.theirs())
            await asyncio.sleep(0)
            assert not waiting.done()
            first.end()
            first._mine.clear()
            assert await waiting == {b"b": (1.0,)}
            assert second.take({b"a"}) == {b"a"}
    assert not way._texts


async def test_leases_are_freed_when_both_are_at_rest(executor: Executor) -> None:
    """What the other one works on would be claimed and encoded a second time."""
    encoder = HeldEncoder()

    class Away(CountingStore):
        refuses = False

        async def write(self, writes: Sequence[EmbedWrite]) -> tuple[Sequence[WriteOutcome], datetime]:
            if self.refuses:
                self.refuses = False
                raise SinkUnavailable("away")
            return await super().write(writes)

        async def release(self, slot: str, *, died: bool = False) -> int:
            assert not encoder.inside
            return await super().release(slot, died=died)

    store = Away()
    texts(store, 6)
    one = embedder(store, encoder, executor, LIMITS)
    async with running(one, encoder) as fatal:
        await until(lambda: encoder.inside == ["text0", "text1"])
        encoder.go_on()
        await until(lambda: encoder.inside == ["text2", "text3"] and len(claimed(store)) == 4)
        store.refuses = True
        encoder.go_on()
        await until(lambda: encoder.inside == ["text4", "text5"] and not store.refuses)
        await spin()
        encoder.go_on(10)
        await until(lambda: not store.pending)
    assert fatal == []
    assert encoder.encoded[-2:] == ["text2", "text3"], "of the step that failed, and of no other"
    assert len(encoder.encoded) == 8
    assert one._vitals.retries["embed"] == 1


async def test_what_a_failure_wakes_is_not_the_next_attempt(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "FIRST_PAUSE_SECONDS", 60)

    class Away(CountingStore):
        async def claim(self, *arguments: Any, **options: Any) -> Sequence[Claim]:
            self.claims += 1
            raise SinkUnavailable("away")

    store, encoder = Away(), HeldEncoder()
    async with running(embedder(store, encoder, executor, LIMITS), encoder):
        await until(lambda: store.claims > 0)
        await spin()
        assert store.claims == 1


async def test_what_failed_before_is_alone_in_the_process(executor: Executor) -> None:
    """It may end it, and whatever is held meanwhile would count as failed, too."""
    store, encoder = CountingStore(), HeldEncoder()
    texts(store, 8)
    store.pending["[14]"].attempts = 1
    store.pending["[14]"].available_at = store.now + timedelta(hours=1)
    seen = []
    async with running(embedder(store, encoder, executor, LIMITS), encoder):
        while store.pending:
            await until(lambda: bool(encoder.inside) or not store.pending)
            await spin()
            if encoder.inside:
                seen.append((encoder.inside, claimed(store)))
                if len(seen) == 2:
                    store.pending["[14]"].available_at = store.now
                encoder.go_on()
                await until(lambda: encoder.inside != seen[-1][0])
    alone = [keys for inside, keys in seen if "text4" in inside]
    assert alone == [{"[14]"}]
    assert not any("[14]" in keys for inside, keys in seen if "text4" not in inside), "they may end it, too"
    assert any(len(keys) > 2 for _, keys in seen), "others had company"


async def test_a_model_that_hangs_ends_the_worker_with_two_steps_under_way(executor: Executor) -> None:
    store, encoder = CountingStore(), HeldEncoder()
    texts(store, 6)
    one = embedder(store, encoder, executor, replace(LIMITS, encode_deadline_seconds=1))
    async with running(one, encoder) as fatal:
        await until(lambda: bool(encoder.inside))
        encoder.go_on()
        await until(lambda: len(claimed(store)) == 4)
        await until(lambda: bool(fatal))
        await until(lambda: not one._vitals._embed_since)
    assert [type(error) for error in fatal] == [ModelHung]
    assert len(claimed(store)) == 4, "the next worker counts them as failed"


async def test_a_halt_is_told_at_once_and_the_other_step_is_finished(executor: Executor) -> None:
    class Wrong(HeldEncoder):
        def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            made = super().encode(texts)
            if "text2" in texts:
                raise DimensionMismatch("3 dimensions")
            return made

    store, encoder = CountingStore(), Wrong()
    texts(store, 6)
    async with running(embedder(store, encoder, executor, LIMITS), encoder) as fatal:
        await until(lambda: bool(encoder.inside))
        encoder.go_on()
        await until(lambda: encoder.inside == ["text2", "text3"] and len(claimed(store)) == 4)
        encoder.go_on()
        await until(lambda: encoder.inside == ["text4", "text5"])
        assert [type(error) for error in fatal] == [DimensionMismatch]
        encoder.go_on()
        await until(lambda: not claimed(store))
    assert set(shown(store)) == {"[10]", "[11]", "[14]", "[15]"}


async def test_a_stop_finishes_both_steps(executor: Executor) -> None:
    store, encoder, fatal = CountingStore(), HeldEncoder(), list[BaseException]()
    texts(store, 10)
    one = embedder(store, encoder, executor, LIMITS)
    task = asyncio.create_task(one.run(fatal.append))
    await until(lambda: bool(encoder.inside))
    encoder.go_on()
    await until(lambda: len(claimed(store)) == 4)
    one.stop()
    await spin()
    assert not task.done()
    encoder.go_on(10)
    await asyncio.wait_for(task, 5)
    assert (len(shown(store)), len(store.pending), claimed(store), fatal) == (6, 4, set(), [])


class CountingExecutor(ThreadPoolExecutor):
    """Two threads, so that only its caller keeps calls apart."""

    def __init__(self) -> None:
        super().__init__(2)
        self.calls = 0

    def submit(self, *arguments: Any, **named: Any) -> Future[Any]:
        self.calls += 1
        return super().submit(*arguments, **named)


async def test_a_call_is_handed_over_when_the_one_before_is_over() -> None:
    """Its deadline begins then: what waits behind a long call does not hang."""
    go = threading.Event()
    with CountingExecutor() as executor:
        one = OneThread(executor, 60)
        first, second = (asyncio.create_task(one.run(go.wait, 10)) for _ in range(2))
        await spin()
        assert executor.calls == 1
        go.set()
        assert await first
        assert await second


async def test_nothing_is_handed_to_a_thread_that_hangs() -> None:
    go = threading.Event()
    with CountingExecutor() as executor:
        one = OneThread(executor, 0.05)
        for _ in range(2):
            with pytest.raises(ModelHung):
                await one.run(go.wait, 10)
        assert executor.calls == 1
        go.set()


def test_no_second_of_work_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forecasts divide texts by them."""
    now = 0.0
    monkeypatch.setattr(stage, "time", SimpleNamespace(monotonic=lambda: now))
    busy, counted = stage._BusyTime(), []

    def at(seconds: float, call: Callable[[], Any]) -> None:
        nonlocal now
        now = seconds
        call()

    one, other = busy.working(), busy.working()
    at(1, one.__enter__)
    at(2, other.__enter__)
    at(4, lambda: counted.append(busy.spent()))
    at(4, lambda: one.__exit__(None, None, None))
    at(5, lambda: counted.append(busy.spent()))
    at(5, lambda: other.__exit__(None, None, None))
    at(9, busy.working().__enter__)
    at(10, lambda: counted.append(busy.spent()))
    assert counted == [3, 1, 1]
