"""The embedder over a sink in memory: what it encodes, whom a bad text holds up, and what ends it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from schemas.change import Version
from schemas.errors import Conflict, DimensionMismatch, RecordRejected, SinkUnavailable, UnusableVector
from schemas.sink import EmbedWrite, Lane, RecordState, WriteOutcome
from schemas.template import Template
from streams.embed import stage
from streams.embed.stage import Embedder, EmbedLimits, Recipe
from streams.freshness.measures import Measures
from streams.vitals import Vitals
from streams.worker_metrics import WorkerMetrics
from tests.property.test_simulation import START, FakeEncoder, MemoryStore, WordChunker

AT_ONCE = EmbedLimits(batch=2000, backfill_share=0.25, lease_seconds=100, poll_seconds=0.01, attempts=3)


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
    return Embedder(store, recipes, measures, slot="a", limits=limits, executor=executor)


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
        await one.step()
        assert encoder.encoded[asked:] == [f"tea{len(pauses)}"]
        if "[2]" in store.pending:
            pauses.append(round((store.pending["[2]"].available_at - store.now).total_seconds()))
        store.now += timedelta(seconds=pauses[-1])
    assert pauses == [1, 2]
    assert store.embed_dead == {"[2]": "UnusableVector"}
    assert not store.pending


async def test_a_claim_that_failed_before_is_encoded_alone(executor: Executor) -> None:
    """Its batch would fail with it again: it is not tried with the others first."""
    store, encoder = MemoryStore(), SometimesUnusable()
    batches: list[list[str]] = []

    class Noting(SometimesUnusable):
        def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            batches.append(list(texts))
            return super().encode(texts)

    encoder = Noting()
    stored(store, "[1]", "nan")
    stored(store, "[2]", "tea")
    store.pending["[1]"].attempts = 1
    await embedder(store, encoder, executor).step()
    assert batches == [["tea"], ["nan"]]


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

        async def release(self, slot: str) -> int:
            if self.refusals:
                self.refusals -= 1
                raise SinkUnavailable("away")
            return await super().release(slot)

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
            assert one._vitals._embed_since is not None, "a step is under way"
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
    assert one._vitals._embed_since is None


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
