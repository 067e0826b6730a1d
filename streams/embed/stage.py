"""The shell of embedding: claim, cut, encode what is new, write; by deadline, live changes first.

Two steps overlap (`runners.py`); cutting and the model have a thread each. No lock is held while encoding. What
happened meanwhile is found at the write: a deleted or replaced document is thrown away there by its lease token (H13).

A text may end the process, or never come back from the model. Nobody can tell which one of a batch it was, so all that
a dead process had are tried alone, and nothing else is held meanwhile: what the next one dies with is what it died of.
After `attempts` of them it becomes a dead letter (ADR 0018).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from schemas.errors import (
    Conflict,
    DocumentTooLarge,
    Halt,
    NeverEmbedded,
    Retry,
    UnusableVector,
    UpwellError,
)
from schemas.sink import Claim, EmbedWrite, WriteOutcome
from schemas.template import Template
from streams.embed.core import ChunkCounts, Cut, counts, cut, embed_write, to_encode
from streams.embed.on_the_way import OnTheWay, Share, Vector
from streams.embed.runners import Runners
from streams.embed.thread import OneThread
from streams.freshness.measures import Measures
from streams.ports import Chunker, EmbedStore, Encoder
from streams.vitals import Vitals

T = TypeVar("T")

log = structlog.get_logger()

#: A step aims at this: the more texts are sorted by length together, the less is padding.
STEP_SECONDS: Final = 1.0
#: So long is a call of the model: what is live waits for two of another's at most.
CALL_SECONDS: Final = 0.1
#: A slow model would need minutes for as many as a quick one has in a step.
FIRST_BATCH: Final = 16
#: What a model is taken for until its first call is over.
FIRST_PACE: Final = 10_000.0
#: Of a step that has only what is live, beside two that have a backfill.
LIVE_BATCH: Final = 16
FIRST_RETRY_SECONDS: Final = 1.0
LONGEST_RETRY_SECONDS: Final = 300.0
#: Most chunks of one call of the model, so that its deadline is one of bounded work.
CALL_CHUNKS: Final = 256


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one generation's documents are made from rows, and their vectors.

    `is_live`: its delays are what is measured. `copy_from`: a generation of the same model, whose vectors may be taken.
    """

    template: Template
    chunker: Chunker
    encoder: Encoder
    max_document_bytes: int
    is_live: bool = True
    copy_from: int | None = None


@dataclass(frozen=True, slots=True)
class EmbedLimits:
    """Settings of the embedder; seconds unless named otherwise. `first_batch`: most claims of the first step, while
    nobody knows how long a text takes.
    """

    batch: int
    backfill_share: float
    lease_seconds: float
    poll_seconds: float
    attempts: int
    encode_deadline_seconds: float = 600.0
    first_batch: int = FIRST_BATCH


class Embedder:
    """Embeds pending rows until stopped. One per process.

    The models run in `executor`, off the event loop, and documents are cut in `cutter`; each has one thread.
    """

    def __init__(
        self,
        store: EmbedStore,
        recipes: Mapping[tuple[str, int], Recipe],
        measures: Measures,
        *,
        slot: str,
        limits: EmbedLimits,
        executor: Executor,
        cutter: Executor,
        vitals: Vitals | None = None,
    ) -> None:
        self._store, self._recipes, self._measures = store, recipes, measures
        self._slot, self._limits = slot, limits
        self._model = OneThread(executor, limits.encode_deadline_seconds)
        self._cutter = OneThread(cutter, limits.encode_deadline_seconds)
        self._vitals = vitals or Vitals()
        self._runners = Runners(self.step, self._release, self._vitals, limits.poll_seconds)
        self._pace = FIRST_PACE  # characters a second
        self._on_the_way = OnTheWay()
        self._busy = _BusyTime()
        self._batch = min(limits.batch, limits.first_batch)
        self._failed_next = True

    def wake(self) -> None:
        """There is a pending row: do not wait for the poll."""
        self._runners.wake()

    def use(self, recipes: Mapping[tuple[str, int], Recipe]) -> None:
        """From the next step on, embed for these generations."""
        self._recipes = recipes
        self._runners.wake()

    def stop(self) -> None:
        """Finish the steps that run, then return from `run`."""
        self._runners.stop()

    async def run(self, on_fatal: Callable[[BaseException], None]) -> None:
        """Free this slot's leases of an earlier life or step, then embed until `stop`. Halt errors go to `on_fatal`."""
        await self._runners.run(on_fatal)

    async def _release(self, died: bool) -> int:
        return await self._store.release(self._slot, died=died)

    async def step(self, alone: bool = True, live_only: bool = False) -> int:
        """Claim and embed one batch, or, `alone` in this process, one text that failed before. Returns the number of
        claims. `live_only`: a small one, beside others that are at work.
        """
        recipes = self._recipes
        asked = min(self._batch, LIVE_BATCH) if live_only else self._batch
        claims = await self._store.claim(
            sorted(recipes),
            self._slot,
            asked,
            self._limits.backfill_share,
            self._limits.lease_seconds,
            live_only=live_only,
        )
        failed_before = any(claim.attempts > 0 for claim in claims)
        is_full = None if live_only else len(claims) >= asked
        self._runners.claimed(alone=alone, is_full=is_full, failed_before=failed_before)
        chosen = await self._chosen(claims, alone)
        groups: dict[tuple[str, int], list[Claim]] = {}
        for claim in chosen:
            groups.setdefault((claim.collection, claim.generation), []).append(claim)
        with self._busy.working():
            seconds = [await self._worked(recipes[place], group) for place, group in groups.items()]
        if not live_only:
            self._adapt(len(chosen), sum(seconds))
        return len(claims)

    async def _chosen(self, claims: Sequence[Claim], alone: bool) -> Sequence[Claim]:
        """Those that never failed, or, `alone` and by turns, one that did; the others are given back."""
        new = [claim for claim in claims if claim.attempts == 0]
        again = [claim for claim in claims if claim.attempts > 0]
        one = alone and bool(again) and (self._failed_next or not new)
        if alone:
            self._failed_next = not one
        chosen, others = (again[:1], new + again[1:]) if one else (new, again)
        if others:
            await self._store.give_back(others)
        return chosen

    async def _worked(self, recipe: Recipe, claims: Sequence[Claim]) -> float:
        """Returns for how many seconds the embedder was busy with them."""
        first = claims[0]
        # What died in a batch is tried alone at least once.
        if first.attempts >= max(self._limits.attempts, 2):
            await self._bury(first)
            return 0.0
        await self._embed(recipe, claims)
        seconds = self._busy.spent()
        self._measures.worked(first.collection, first.claimed_at, len(claims), seconds)
        return seconds

    def _adapt(self, claims: int, seconds: float) -> None:
        """Claim about as many as fit into a step, so that a slow model does not hold live changes back."""
        if claims:
            fitting = int(STEP_SECONDS / max(seconds / claims, 1e-6))
            self._batch = max(1, min(self._limits.batch, fitting))

    async def _embed(self, recipe: Recipe, claims: Sequence[Claim]) -> None:
        """Embed claims of one generation. A failure is isolated to its own document by trying each alone."""
        started = time.monotonic()
        try:
            cuts = await self._cut(recipe, claims)
            if not cuts:
                return
            place = claims[0].collection, claims[0].generation
            with self._on_the_way.share(*place) as share:
                async with _beside(self._store.own_hashes(*place, [one.claim.key for one in cuts])) as own:
                    vectors, encoded = await self._vectors(recipe, cuts, share)
                    made = counts(cuts, encoded, await own)
                writes = [embed_write(one, vectors, recipe.copy_from) for one in cuts]
                await self._write(recipe, writes, made, time.monotonic() - started)
        except (Halt, Retry):
            raise
        except Exception as error:
            await self._isolate(recipe, claims, error)

    async def _cut(self, recipe: Recipe, claims: Sequence[Claim]) -> list[Cut]:
        def work() -> list[Cut]:
            return [cut(claim, recipe.chunker.chunks(_document(recipe, claim))) for claim in claims]

        return await self._cutter.run(work)

    async def _vectors(
        self, recipe: Recipe, cuts: Sequence[Cut], share: Share
    ) -> tuple[dict[bytes, Vector], frozenset[bytes]]:
        """Vectors of all that is not in the sink yet, and which of them were encoded here."""
        vectors: dict[bytes, Vector] = {}
        encoded: set[bytes] = set()
        left = frozenset(digest for one in cuts for digest in one.hashes)
        while left:
            mine = share.take(left)
            known = await self._known(recipe, cuts[0].claim, mine)
            share.settle(dict.fromkeys(known))
            missing = {digest: text for digest, text in to_encode(cuts, known).items() if digest in mine}
            made = await self._encoded(recipe, cuts[0].claim.collection, missing, share)
            theirs = await share.theirs()
            vectors |= made | {digest: vector for digest, vector in theirs.items() if vector is not None}
            encoded |= made.keys()
            left -= mine | theirs.keys()
        return vectors, frozenset(encoded)

    async def _known(self, recipe: Recipe, claim: Claim, wanted: frozenset[bytes]) -> frozenset[bytes]:
        if not wanted:
            return wanted
        known = await self._store.known_hashes(claim.collection, claim.generation, wanted)
        if recipe.copy_from is not None and wanted - known:
            known |= await self._store.known_hashes(claim.collection, recipe.copy_from, wanted - known)
        return known

    async def _encoded(
        self, recipe: Recipe, collection: str, missing: Mapping[bytes, str], share: Share
    ) -> dict[bytes, Vector]:
        made: dict[bytes, Vector] = {}
        spent = 0.0

        def work(some: Sequence[str]) -> Sequence[Vector]:
            nonlocal spent
            started = time.monotonic()
            vectors = recipe.encoder.encode(some)
            seconds = time.monotonic() - started
            spent += seconds
            self._pace += (sum(map(len, some)) / max(seconds, 1e-6) - self._pace) / 4
            return list(vectors)

        left = sorted(missing.items(), key=lambda item: len(item[1]))
        while left:
            some = left[: fitting([len(text) for _, text in left], self._pace * CALL_SECONDS)]
            left = left[len(some) :]
            vectors = await self._model.run(work, [text for _, text in some])
            found = dict(zip([digest for digest, _ in some], vectors, strict=True))
            share.settle(found)
            made |= found
        if made:
            self._measures.encoded(collection, spent)
        return made

    async def _write(
        self, recipe: Recipe, writes: Sequence[EmbedWrite], made: ChunkCounts, seconds: float
    ) -> None:
        claim = writes[0].claim
        while True:
            try:
                outcomes, visible_at = await self._store.write(writes)
                break
            except Conflict as error:
                log.info("embed write conflict", collection=claim.collection, error=str(error))
        if not recipe.is_live:
            written = sum(outcome in (WriteOutcome.WRITTEN, WriteOutcome.MOVED_ON) for outcome in outcomes)
            self._measures.count(claim.collection, visible_at, "fill_written", written)
            return
        for write, outcome in zip(writes, outcomes, strict=True):
            self._measures.count(claim.collection, visible_at, f"embed_{outcome.value}")
            if outcome in (WriteOutcome.WRITTEN, WriteOutcome.MOVED_ON):
                self._measures.searchable(write.claim, visible_at, seconds)
        for name in ("encoded", "kept", "copied"):
            self._measures.count(claim.collection, visible_at, f"chunks_{name}", getattr(made, name))

    async def _bury(self, claim: Claim) -> None:
        """Whoever tried it died, or the model hung: not once more."""
        error = NeverEmbedded(
            f"{claim.attempts} attempts at this text have failed or ended with their worker: it died, or the model hung"
        )
        log.error(
            "embed failed",
            collection=claim.collection,
            version=list(claim.version),
            attempt=claim.attempts,
            error=type(error).__name__,
            dead_letter=True,
        )
        await self._store.fail(claim, error, None)

    async def _isolate(self, recipe: Recipe, claims: Sequence[Claim], error: Exception) -> None:
        if len(claims) > 1:
            for claim in claims:
                await self._embed(recipe, [claim])
            return
        claim = claims[0]
        hopeless = isinstance(error, UpwellError) and not isinstance(error, UnusableVector)
        last = hopeless or claim.attempts + 1 >= self._limits.attempts
        pause = min(FIRST_RETRY_SECONDS * 2**claim.attempts, LONGEST_RETRY_SECONDS)
        log.error(
            "embed failed",
            collection=claim.collection,
            version=list(claim.version),
            attempt=claim.attempts + 1,
            error=type(error).__name__,
            dead_letter=last,
        )
        await self._store.fail(claim, error, None if last else pause)


def fitting(lengths: Sequence[int], characters: float) -> int:
    """How many of the texts one call takes: one at least, CALL_CHUNKS at most. Each counts as long as the last one."""
    count = sum(number * length <= characters for number, length in enumerate(lengths[:CALL_CHUNKS], start=1))
    return max(1, count)


def _document(recipe: Recipe, claim: Claim) -> str:
    """Raises TemplateError, and DocumentTooLarge: intake has checked the text of its own template only."""
    text = recipe.template.render(claim.row)
    size = len(text.encode())
    if size > recipe.max_document_bytes:
        raise DocumentTooLarge(
            f"the document has {size} bytes, max_document_bytes is {recipe.max_document_bytes}"
        )
    return text


@contextlib.asynccontextmanager
async def _beside(call: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """A call that runs meanwhile; not longer than what it runs beside."""
    task = asyncio.create_task(call)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _BusyTime:
    """How long at least one step has been at work, each second once, whoever counts it."""

    def __init__(self) -> None:
        self._steps, self._counted_until = 0, 0.0

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        if self._steps == 0:
            self._counted_until = time.monotonic()
        self._steps += 1
        try:
            yield
        finally:
            self._steps -= 1

    def spent(self) -> float:
        """Seconds that were not counted before."""
        now = time.monotonic()
        seconds, self._counted_until = now - self._counted_until, now
        return seconds
