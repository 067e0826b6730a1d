"""The embedder over a sink in memory: what it encodes, whom a bad text holds up, and what ends it."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from schemas.change import Version
from schemas.errors import (
    Conflict,
    DimensionMismatch,
    ModelHung,
    RecordRejected,
    SinkUnavailable,
    UnusableVector,
)
from schemas.sink import EmbedWrite, Lane, RecordState, WriteOutcome
from schemas.template import Template
from streams.embed import stage
from streams.embed.stage import Embedder, EmbedLimits, Recipe
from streams.freshness.measures import Measures
from streams.vitals import Vitals
from streams.worker_metrics import WorkerMetrics
from tests.property.test_simulation import START, FakeEncoder, MemoryStore, WordChunker

CUTTER = ThreadPoolExecutor(1)
AT_ONCE = EmbedLimits(
    batch=2000, backfill_share=0.25, lease_seconds=100, poll_seconds=0.01, attempts=3, first_batch=2000
)


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as one:
        yield one


def stored(store: MemoryStore, key: str, text: object, offset: int = 0, lane: Lane = Lane.LIVE) -> None:
    """A record as intake leaves it: stored and pending, with `text` in its row."""
    version, row = Version(1, offset), {"text": text}
    digest = hashlib.sha256(str(text).encode()).digest()
    store.records[key] = RecordState(version, False, digest, lane is Lane.LIVE, row=row)  # type: ignore[arg-type]
    store._wait(key, version, lane, START if lane is Lane.LIVE else None, 1)


def embedder(
    store: MemoryStore,
    encoder: FakeEncoder,
    executor: Executor,
    limits: EmbedLimits = AT_ONCE,
    measures: Measures | None = None,
) -> Embedder:
    recipe = Recipe(Template("{{ text }}"), WordChunker(), encoder, 1000)
    recipes, measures = {("content", 1): recipe}, measures or Measures()
    return Embedder(store, recipes, measures, slot="a", limits=limits, executor=executor, cutter=CUTTER)


def shown(store: MemoryStore) -> dict[str, str]:
    return {key: " ".join(text for _, text, _ in chunks) for key, chunks in store.embedding.items()}


class SometimesUnusable(FakeEncoder):
    """Makes a NaN of each text that contains "nan"."""

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if any("nan" in text for text in texts):
            raise UnusableVector("no usable vector of one text")
        return super().encode(texts)


async def test_a_thousand_rows_of_the_same_text_are_encoded_once(executor: Executor) -> None:
    store, encoder, measures = MemoryStore(), FakeEncoder(), Measures()
    for number in range(1000):
        stored(store, f"[{number}]", "same")
    assert await embedder(store, encoder, executor, measures=measures).step() == 1000
    assert encoder.encoded == ["same"]
    assert len(store.embedding) == 1000
    names = {name: number for (_, _, name), number in measures.drain().counters.items()}
    assert (names["chunks_encoded"], names["chunks_copied"], names["embed_written"]) == (1, 999, 1000)


async def test_h33_only_a_text_of_its_own_shows_that_the_model_works(executor: Executor) -> None:
    """A probe with a fixed text is a kept chunk from the second time on: with a dead model it would look fresh."""
    store, encoder = MemoryStore(), FakeEncoder()
    for offset, text in enumerate(("probe", "probe", "probe 5f3a")):
        stored(store, "[1]", text, offset)
        await embedder(store, encoder, executor).step()
    assert encoder.encoded == ["probe", "5f3a"]


async def test_one_changed_chunk_is_encoded_alone(executor: Executor) -> None:
    store, encoder = MemoryStore(), FakeEncoder()
    one = embedder(store, encoder, executor)
    stored(store, "[1]", "tea milk sugar")
    await one.step()
    stored(store, "[1]", "tea lemon sugar", offset=1)
    encoder.encoded.clear()
    await one.step()
    assert encoder.encoded == ["lemon"]
    assert shown(store) == {"[1]": "tea lemon sugar"}


async def test_a_text_without_a_usable_vector_delays_itself_only(executor: Executor) -> None:
    store, encoder = MemoryStore(), SometimesUnusable()
    one = embedder(store, encoder, executor)
    for key, text in (("[1]", "tea"), ("[2]", "nan"), ("[3]", "milk")):
        stored(store, key, text)
    await one.step()
    assert shown(store) == {"[1]": "tea", "[3]": "milk"}
    assert store.pending["[2]"].attempts == 1
    assert await one.step() == 0
    store.now += timedelta(seconds=stage.FIRST_RETRY_SECONDS)
    assert await one.step() == 1


async def test_it_is_tried_again_alone_later_and_later_and_then_dead_lettered(executor: Executor) -> None:
    store, encoder = MemoryStore(), SometimesUnusable()
    one = embedder(store, encoder, executor)
    stored(store, "[2]", "nan")
    pauses: list[int] = []
    for _ in range(3):
        stored(store, f"[{10 + len(pauses)}]", f"tea{len(pauses)}")
        asked = len(encoder.encoded)
        while await one.step():
            pass
        assert encoder.encoded[asked:] == [f"tea{len(pauses)}"]
        if "[2]" in store.pending:
            pauses.append(round((store.pending["[2]"].available_at - store.now).total_seconds()))
        store.now += timedelta(seconds=pauses[-1])
    assert pauses == [1, 2]
    assert store.embed_dead == {"[2]": "UnusableVector"}
    assert not store.pending


async def test_a_claim_that_failed_before_is_encoded_alone(executor: Executor) -> None:
    """Its batch would fail with it again. Nothing else is claimed meanwhile: it may end the process."""
    store, encoder = MemoryStore(), SometimesUnusable()
    batches: list[list[str]] = []

    class Noting(SometimesUnusable):
        def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            batches.append([*texts, *sorted(claimed(store))])
            return super().encode(texts)

    encoder = Noting()
    stored(store, "[1]", "nan")
    store.pending["[1]"].attempts = 1
    one = embedder(store, encoder, executor)
    for number in (2, 3, 4):
        stored(store, f"[{number}]", f"tea{number}")
    await one.step()
    assert batches == [["nan", "[1]"]]
    store.now += timedelta(seconds=10)
    await one.step()
    assert batches[1:] == [["tea2", "tea3", "tea4", "[2]", "[3]", "[4]"]]


async def test_those_that_failed_and_those_that_did_not_take_turns(executor: Executor) -> None:
    store, encoder = MemoryStore(), FakeEncoder()
    one = embedder(store, encoder, executor, replace(AT_ONCE, batch=3))
    for number in range(4):
        stored(store, f"[{number}]", f"bad{number}")
        store.pending[f"[{number}]"].attempts = 1
        stored(store, f"[1{number}]", f"new{number}")
    steps = []
    while await one.step():
        steps.append("".join(encoder.encoded))
        encoder.encoded.clear()
    assert [step[:3] for step in steps[:3]] == ["bad", "new", "bad"]
    assert len(shown(store)) == 8


class Killed(BaseException):
    """kill -9 while the model has a text, by whomever: the out-of-memory killer, a bug in the model."""


class Deadly(FakeEncoder):
    """Kills the process with each text that contains "poison"."""

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if any("poison" in text for text in texts):
            raise Killed
        return super().encode(texts)


async def deaths(store: MemoryStore, encoder: FakeEncoder, executor: Executor, attempts: int) -> int:
    """Start a worker again and again until one has nothing left to do; how many were killed."""
    for number in range(30):
        one = embedder(store, encoder, executor, replace(AT_ONCE, batch=4, attempts=attempts))
        await store.release("a", died=True)
        try:
            while await one.step():
                pass
        except Killed:
            continue
        return number
    raise AssertionError("it dies for ever")


@pytest.mark.parametrize(("attempts", "killed"), [(1, 2), (3, 3), (5, 5)])
async def test_a_text_that_kills_its_worker_becomes_a_dead_letter_and_no_other(
    executor: Executor, attempts: int, killed: int
) -> None:
    """Of a batch nobody knows which it was: once together, and then each alone."""
    store = MemoryStore()
    for number in range(10):
        stored(store, f"[{number}]", f"poison{number}" if number == 2 else f"tea{number}")
    assert await deaths(store, Deadly(), executor, attempts) == killed
    assert store.embed_dead == {"[2]": "NeverEmbedded"}
    assert len(shown(store)) == 9


async def test_two_of_them_take_nobody_with_them(executor: Executor) -> None:
    store = MemoryStore()
    for number in range(10):
        stored(store, f"[{number}]", f"poison{number}" if number in (1, 3) else f"tea{number}")
    await deaths(store, Deadly(), executor, 3)
    assert sorted(store.embed_dead) == ["[1]", "[3]"]
    assert len(shown(store)) == 8


async def test_a_model_that_hangs_ends_the_worker_and_its_text_is_tried_alone(executor: Executor) -> None:
    store, fatal, answer = MemoryStore(), list[BaseException](), threading.Event()

    class Hanging(FakeEncoder):
        def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            if "hang" in texts:
                answer.wait(20)
            return super().encode(texts)

    stored(store, "[1]", "hang")
    stored(store, "[2]", "tea")
    limits = replace(AT_ONCE, encode_deadline_seconds=0.05)
    await asyncio.wait_for(embedder(store, Hanging(), executor, limits).run(fatal.append), 5)
    answer.set()
    assert [type(error) for error in fatal] == [ModelHung]
    assert "has not answered for 0.05 s" in str(fatal[0])
    assert claimed(store) == {"[1]", "[2]"}, "its successor counts them as failed"
    again = embedder(store, FakeEncoder(), executor, limits)
    running = asyncio.create_task(again.run(fatal.append))
    await until(lambda: not store.pending)
    again.stop()
    await asyncio.wait_for(running, 5)
    assert set(shown(store)) == {"[1]", "[2]"}


async def test_a_long_document_is_many_calls_of_the_model(executor: Executor) -> None:
    """So that the deadline is one of bounded work."""
    store, sizes = MemoryStore(), list[int]()

    class Counting(FakeEncoder):
        def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            sizes.append(len(texts))
            return super().encode(texts)

    words = [f"w{number}" for number in range(2 * stage.CALL_CHUNKS + 1)]
    stored(store, "[1]", " ".join(words))
    recipe = Recipe(Template("{{ text }}"), WordChunker(), Counting(), 10_000)
    recipes = {("content", 1): recipe}
    one = Embedder(store, recipes, Measures(), slot="a", limits=AT_ONCE, executor=executor, cutter=CUTTER)
    await one.step()
    assert max(sizes) <= stage.CALL_CHUNKS
    assert sum(sizes) == len(words)
    assert shown(store) == {"[1]": " ".join(words)}


async def test_the_first_claim_is_small_and_those_of_a_quick_model_grow(executor: Executor) -> None:
    """Nobody knows yet how long a text takes; a slow model would hold what is live up for minutes."""
    store = MemoryStore()
    for number in range(200):
        stored(store, f"[{number}]", f"t{number}")
    one = embedder(store, FakeEncoder(), executor, replace(AT_ONCE, batch=128, first_batch=stage.FIRST_BATCH))
    assert [await one.step() for _ in range(2)] == [stage.FIRST_BATCH, 128]


@pytest.mark.parametrize(
    ("lengths", "characters", "count"),
    [([10, 20, 30], 60, 2), ([10, 20, 30], 90, 3), ([500], 60, 1), ([1] * 1000, 1e9, stage.CALL_CHUNKS)],
)
def test_a_call_has_as_many_texts_as_its_time_allows(
    lengths: list[int], characters: float, count: int
) -> None:
    """Padded to the longest; at least one."""
    assert stage.fitting(lengths, characters) == count


async def test_what_ends_the_worker_by_itself_is_no_texts_fault(executor: Executor) -> None:
    class Wrong(FakeEncoder):
        def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            raise DimensionMismatch("3 dimensions, the generation has 2")

    store = MemoryStore()
    stored(store, "[1]", "tea")
    await asyncio.wait_for(embedder(store, Wrong(), executor).run(lambda error: None), 5)
    await store.release("a", died=True)
    assert store.pending["[1]"].attempts == 0


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Failed to allocate memory")])
async def test_a_model_that_runs_out_of_memory_tries_each_text_alone(
    executor: Executor, error: Exception
) -> None:
    """As Python and ONNX Runtime say it: too much for a batch may be enough for each."""

    class Large(FakeEncoder):
        def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            if len(texts) > 1 or "huge" in texts:
                raise error
            return super().encode(texts)

    store = MemoryStore()
    for key, text in (("[1]", "tea"), ("[2]", "huge"), ("[3]", "milk")):
        stored(store, key, text)
    one = embedder(store, Large(), executor)
    await one.step()
    assert shown(store) == {"[1]": "tea", "[3]": "milk"}
    for _ in range(3):
        store.now += timedelta(seconds=10)
        await one.step()
    assert store.embed_dead == {"[2]": type(error).__name__}


def claimed(store: MemoryStore) -> set[str]:
    return {key for key, row in store.pending.items() if row.token is not None}


async def test_a_row_that_the_template_cannot_render_is_dead_lettered_at_once(executor: Executor) -> None:
    store = MemoryStore()
    stored(store, "[1]", "tea")
    stored(store, "[2]", "tea")
    store.records["[2]"] = replace(store.records["[2]"], row={"other": 1})
    await embedder(store, FakeEncoder(), executor).step()
    assert store.embed_dead == {"[2]": "TemplateError"}
    assert shown(store) == {"[1]": "tea"}


async def test_what_is_deleted_while_claimed_is_thrown_away(executor: Executor) -> None:
    """H13."""
    store = MemoryStore()

    class Deleting(FakeEncoder):
        def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            store.records["[1]"] = replace(store.records["[1]"], deleted=True, row=None)
            store._forget("[1]")
            return super().encode(texts)

    measures = Measures()
    stored(store, "[1]", "tea")
    await embedder(store, Deleting(), executor, measures=measures).step()
    assert shown(store) == {}
    counted = {name for _, _, name in measures.drain().counters}
    assert "embed_discarded" in counted
    assert "embed_written" not in counted


async def test_a_newer_text_while_claimed_is_written_next(executor: Executor) -> None:
    """H18: the claimed text is written, and the row stays pending since the first change after the claim."""
    store = MemoryStore()
    later = START + timedelta(hours=1)

    class Changing(FakeEncoder):
        def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            if not self.encoded:
                store.records["[1]"] = replace(
                    store.records["[1]"], version=Version(1, 9), row={"text": "new"}
                )
                store._wait("[1]", Version(1, 9), Lane.LIVE, later, 1)
            return super().encode(texts)

    one = embedder(store, Changing(), executor)
    stored(store, "[1]", "old")
    await one.step()
    assert shown(store) == {"[1]": "old"}
    assert store.pending["[1]"].since == later
    await one.step()
    assert shown(store) == {"[1]": "new"}
    assert not store.pending


async def test_a_kept_chunk_that_vanished_leaves_the_row_pending(executor: Executor) -> None:
    """H17."""
    store = MemoryStore()
    one = embedder(store, FakeEncoder(), executor)
    stored(store, "[1]", "tea")
    await one.step()
    stored(store, "[2]", "tea milk")

    class Vanishing(FakeEncoder):
        def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            store.embedding.pop("[1]", None)
            return super().encode(texts)

    other = embedder(store, Vanishing(), executor)
    await other.step()
    assert shown(store) == {}
    assert "[2]" in store.pending
    await other.step()
    assert shown(store) == {"[2]": "tea milk"}


async def test_a_conflict_is_written_again(executor: Executor) -> None:
    class Conflicting(MemoryStore):
        conflicts = 2

        async def write(self, writes: Sequence[EmbedWrite]) -> tuple[Sequence[WriteOutcome], datetime]:
            if self.conflicts:
                self.conflicts -= 1
                raise Conflict("deadlock")
            return await super().write(writes)

    store, encoder = Conflicting(), FakeEncoder()
    stored(store, "[1]", "tea")
    await embedder(store, encoder, executor).step()
    assert (shown(store), encoder.encoded) == ({"[1]": "tea"}, ["tea"])


async def test_a_slow_model_makes_the_batch_smaller_and_a_fast_one_larger(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "STEP_SECONDS", 0.02)
    pause, now = 0.005, 0.0
    monkeypatch.setattr(stage, "time", SimpleNamespace(monotonic=lambda: now))

    class Slow(FakeEncoder):
        def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            nonlocal now
            now += pause * len(texts)
            return super().encode(texts)

    store = MemoryStore()
    for number in range(60):
        stored(store, f"[{number}]", f"text{number}")
    one = embedder(store, Slow(), executor, replace(AT_ONCE, batch=16))
    assert await one.step() == 16
    assert await one.step() == 4
    pause = 0.0
    await one.step()
    assert await one.step() == 16


async def test_a_halt_ends_the_run(executor: Executor) -> None:
    class Wrong(FakeEncoder):
        def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            raise DimensionMismatch("3 dimensions, the generation has 2")

    store, fatal = MemoryStore(), list[BaseException]()
    stored(store, "[1]", "tea")
    stored(store, "[2]", "tea")
    await asyncio.wait_for(embedder(store, Wrong(), executor).run(fatal.append), 5)
    assert [type(error) for error in fatal] == [DimensionMismatch]
    assert store.embed_dead == {}
    assert set(store.pending) == {"[1]", "[2]"}


async def test_it_frees_its_slots_leases_and_wakes_at_once(executor: Executor) -> None:
    store, encoder, fatal = MemoryStore(), FakeEncoder(), list[BaseException]()
    stored(store, "[1]", "tea")
    await store.claim([("content", 1)], "a", 1, 0.25, 10_000)
    one = embedder(store, encoder, executor, replace(AT_ONCE, poll_seconds=60))
    running = asyncio.create_task(one.run(fatal.append))
    await until(lambda: "[1]" in store.embedding)
    stored(store, "[2]", "milk")
    one.wake()
    await until(lambda: "[2]" in store.embedding)
    one.stop()
    await asyncio.wait_for(running, 5)
    assert fatal == []


async def test_a_sink_that_is_away_is_tried_again(executor: Executor) -> None:
    class Away(MemoryStore):
        refusals = 2

        async def release(self, slot: str, *, died: bool = False) -> int:
            if self.refusals:
                self.refusals -= 1
                raise SinkUnavailable("away")
            assert died, "what an earlier life left is not freed yet"
            return await super().release(slot, died=died)

    store, fatal = Away(), list[BaseException]()
    stored(store, "[1]", "tea")
    one = embedder(store, FakeEncoder(), executor)
    running = asyncio.create_task(one.run(fatal.append))
    await until(lambda: "[1]" in store.embedding)
    one.stop()
    await asyncio.wait_for(running, 5)
    assert fatal == []
    assert one._vitals.retries["embed"] == 2


async def test_a_step_and_a_call_of_the_model_are_told(executor: Executor) -> None:
    class Told(WorkerMetrics):
        calls = 0

        def encoded(self, collection: str, seconds: float) -> None:
            assert (collection, seconds >= 0) == ("content", True)
            assert one._vitals._embed_since, "a step is under way"
            self.calls += 1

    store, fatal, measures = MemoryStore(), list[BaseException](), Measures()
    told = measures.observer = Told(Vitals())
    stored(store, "[1]", "tea")
    one = embedder(store, FakeEncoder(), executor, measures=measures)
    running = asyncio.create_task(one.run(fatal.append))
    await until(lambda: "[1]" in store.embedding)
    one.stop()
    await asyncio.wait_for(running, 5)
    assert fatal == []
    assert told.calls == 1
    assert not one._vitals._embed_since


async def test_a_sink_that_goes_away_at_the_write_delays_no_lease_long(executor: Executor) -> None:
    """The claims of the failed step must not wait for the end of their lease."""

    class Away(MemoryStore):
        refusals = 1

        async def write(self, writes: Sequence[EmbedWrite]) -> tuple[Sequence[WriteOutcome], datetime]:
            if self.refusals:
                self.refusals -= 1
                raise SinkUnavailable("away")
            return await super().write(writes)

    store, fatal = Away(), list[BaseException]()
    stored(store, "[1]", "tea")
    one = embedder(store, FakeEncoder(), executor)
    running = asyncio.create_task(one.run(fatal.append))
    try:
        await until(lambda: "[1]" in store.embedding, 2)
    finally:
        one.stop()
        await asyncio.wait_for(running, 5)


async def test_a_document_that_the_sink_refuses_delays_itself_only(executor: Executor) -> None:
    class Refusing(MemoryStore):
        async def write(self, writes: Sequence[EmbedWrite]) -> tuple[Sequence[WriteOutcome], datetime]:
            if any(write.claim.key == "[2]" for write in writes):
                raise RecordRejected("22021")
            return await super().write(writes)

    store = Refusing()
    stored(store, "[1]", "tea")
    stored(store, "[2]", "milk")
    await embedder(store, FakeEncoder(), executor).step()
    assert shown(store) == {"[1]": "tea"}
    assert store.embed_dead == {"[2]": "RecordRejected"}


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Poll with a deadline."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_text_that_is_too_long_in_this_template_is_dead_lettered(executor: Executor) -> None:
    """Intake has checked the text of its own template only."""
    store = MemoryStore()
    stored(store, "[1]", "x" * 1001)
    stored(store, "[2]", "tea")
    await embedder(store, FakeEncoder(), executor).step()
    assert store.embed_dead == {"[1]": "DocumentTooLarge"}
    assert shown(store) == {"[2]": "tea"}


async def test_a_generation_that_fills_counts_neither_as_delay_nor_as_a_load(executor: Executor) -> None:
    store, measures, encoder = MemoryStore(), Measures(), FakeEncoder()
    stored(store, "[1]", "tea")
    one = embedder(store, encoder, executor, measures=measures)
    one.use({("content", 1): Recipe(Template("{{ text }}"), WordChunker(), encoder, 1000, is_live=False)})
    assert await one.step() == 1
    drained = measures.drain()
    counted = {name: number for (_, _, name), number in drained.counters.items()}
    assert counted.pop("embed_busy_ms") >= 1
    assert counted == {"fill_written": 1, "embed_texts": 1}
    assert drained.sketches == {}
