"""The shell of embedding: claim, cut, encode what is new, write; by deadline, live changes first.

No lock is held while encoding. What happened meanwhile is found at the write: a deleted or replaced document is
thrown away there by its lease token (H13).

A text may end the process, or never come back from the model. Nobody can tell which one of a batch it was, so all that
a dead process had are tried alone, and nothing else is held meanwhile: what the next one dies with is what it died of.
After `attempts` of them it becomes a dead letter (ADR 0018).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from schemas.errors import (
    Conflict,
    DocumentTooLarge,
    Halt,
    ModelHung,
    NeverEmbedded,
    Retry,
    UnusableVector,
    UpwellError,
)
from schemas.sink import Claim, EmbedWrite, WriteOutcome
from schemas.template import Template
from streams.embed.core import Cut, counts, cut, embed_write, to_encode
from streams.freshness.measures import Measures
from streams.ports import Chunker, EmbedStore, Encoder
from streams.vitals import EMBED, Vitals

log = structlog.get_logger()

T = TypeVar("T")

#: A step aims at this, so that a live change waits for at most about one step of backfill.
STEP_SECONDS: Final = 0.5
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
    """Settings of the embedder; seconds unless named otherwise."""

    batch: int
    backfill_share: float
    lease_seconds: float
    poll_seconds: float
    attempts: int
    encode_deadline_seconds: float = 600.0


class Embedder:
    """Embeds pending rows until stopped. One per process; the models run in `executor`, off the event loop."""

    def __init__(
        self,
        store: EmbedStore,
        recipes: Mapping[tuple[str, int], Recipe],
        measures: Measures,
        *,
        slot: str,
        limits: EmbedLimits,
        executor: Executor,
        vitals: Vitals | None = None,
    ) -> None:
        self._store, self._recipes, self._measures = store, recipes, measures
        self._slot, self._limits, self._executor = slot, limits, executor
        self._vitals = vitals or Vitals()
        self._wake = asyncio.Event()
        self._batch = limits.batch
        self._stopping = False
        self._alone_next = True

    def wake(self) -> None:
        """There is a pending row: do not wait for the poll."""
        self._wake.set()

    def use(self, recipes: Mapping[tuple[str, int], Recipe]) -> None:
        """From the next step on, embed for these generations."""
        self._recipes = recipes
        self._wake.set()

    def stop(self) -> None:
        """Finish the step that runs, then return from `run`."""
        self._stopping = True
        self._wake.set()

    async def run(self, on_fatal: Callable[[BaseException], None]) -> None:
        """Free this slot's leases of an earlier life or step, then embed until `stop`. Halt errors go to `on_fatal`."""
        pause = 0.1
        released, died = False, True
        while not self._stopping:
            try:
                if not released:
                    await self._store.release(self._slot, died=died)
                    released, died = True, False
                self._wake.clear()
                if await self._timed_step() == 0:
                    await self._wait(self._limits.poll_seconds)
                pause = 0.1
            except Retry as error:
                self._vitals.trouble(EMBED, error)
                released = False  # what the failed step had claimed must not wait for the end of its lease
                log.warning("embed retry", error=str(error), pause_seconds=pause)
                await self._wait(pause)
                pause = min(pause * 2, 5.0)
            except Exception as error:
                on_fatal(error)
                if not isinstance(error, ModelHung):  # no text's fault
                    with contextlib.suppress(UpwellError):
                        await self._store.release(self._slot)
                return

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except TimeoutError:
            return

    async def _timed_step(self) -> int:
        self._vitals.embedding(True)
        try:
            return await self.step()
        finally:
            self._vitals.embedding(False)

    async def step(self) -> int:
        """Claim and embed one batch, or one text that failed before. Returns the number of claims."""
        recipes = self._recipes
        claims = await self._store.claim(
            sorted(recipes),
            self._slot,
            self._batch,
            self._limits.backfill_share,
            self._limits.lease_seconds,
        )
        chosen = await self._chosen(claims)
        started = time.monotonic()
        groups: dict[tuple[str, int], list[Claim]] = {}
        for claim in chosen:
            groups.setdefault((claim.collection, claim.generation), []).append(claim)
        for place, group in groups.items():
            await self._worked(recipes[place], group)
        self._adapt(len(chosen), time.monotonic() - started)
        return len(claims)

    async def _chosen(self, claims: Sequence[Claim]) -> Sequence[Claim]:
        """Those that never failed, or one that did, by turns; the others are given back."""
        new = [claim for claim in claims if claim.attempts == 0]
        again = [claim for claim in claims if claim.attempts > 0]
        alone = bool(again) and (self._alone_next or not new)
        self._alone_next = not alone
        chosen, others = (again[:1], new + again[1:]) if alone else (new, again)
        if others:
            await self._store.give_back(others)
        return chosen

    async def _worked(self, recipe: Recipe, claims: Sequence[Claim]) -> None:
        started = time.monotonic()
        first = claims[0]
        # What died in a batch is tried alone at least once.
        if first.attempts >= max(self._limits.attempts, 2):
            await self._bury(first)
            return
        await self._embed(recipe, claims)
        self._measures.worked(first.collection, first.claimed_at, len(claims), time.monotonic() - started)

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
            writes, encoded = await self._encoded(recipe, cuts)
            await self._write(recipe, cuts, writes, encoded, time.monotonic() - started)
        except (Halt, Retry):
            raise
        except Exception as error:
            await self._isolate(recipe, claims, error)

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        """Off the event loop. Raises ModelHung at the deadline."""
        running = asyncio.get_running_loop().run_in_executor(self._executor, call, *arguments)
        seconds = self._limits.encode_deadline_seconds
        await asyncio.wait({running}, timeout=seconds)
        if not running.done():
            raise ModelHung(
                f"the model has not answered for {seconds:g} s: this worker ends and starts again"
            )
        return running.result()

    async def _cut(self, recipe: Recipe, claims: Sequence[Claim]) -> list[Cut]:
        def work() -> list[Cut]:
            return [cut(claim, recipe.chunker.chunks(_document(recipe, claim))) for claim in claims]

        return await self._in_thread(work)

    async def _encoded(
        self, recipe: Recipe, cuts: Sequence[Cut]
    ) -> tuple[list[EmbedWrite], frozenset[bytes]]:
        claim = cuts[0].claim
        wanted = {digest for one in cuts for digest in one.hashes}
        known = await self._store.known_hashes(claim.collection, claim.generation, wanted)
        if recipe.copy_from is not None and wanted - known:
            known |= await self._store.known_hashes(claim.collection, recipe.copy_from, wanted - known)
        missing = to_encode(cuts, known)
        vectors: dict[bytes, Sequence[float]] = {}
        if missing:
            started = time.monotonic()
            hashes, texts = list(missing), list(missing.values())
            for begin in range(0, len(texts), CALL_CHUNKS):
                some = slice(begin, begin + CALL_CHUNKS)
                encoded = await self._in_thread(recipe.encoder.encode, texts[some])
                vectors.update(zip(hashes[some], encoded, strict=True))
            self._measures.encoded(claim.collection, time.monotonic() - started)
        return [embed_write(one, vectors, recipe.copy_from) for one in cuts], frozenset(missing)

    async def _write(
        self,
        recipe: Recipe,
        cuts: Sequence[Cut],
        writes: Sequence[EmbedWrite],
        encoded: frozenset[bytes],
        seconds: float,
    ) -> None:
        claim = cuts[0].claim
        own = await self._store.own_hashes(
            claim.collection, claim.generation, [one.claim.key for one in cuts]
        )
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
        for one, outcome in zip(cuts, outcomes, strict=True):
            self._measures.count(claim.collection, visible_at, f"embed_{outcome.value}")
            if outcome in (WriteOutcome.WRITTEN, WriteOutcome.MOVED_ON):
                self._measures.searchable(one.claim, visible_at, seconds)
        result = counts(cuts, encoded, own)
        for name in ("encoded", "kept", "copied"):
            self._measures.count(claim.collection, visible_at, f"chunks_{name}", getattr(result, name))

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


def _document(recipe: Recipe, claim: Claim) -> str:
    """Raises TemplateError, and DocumentTooLarge: intake has checked the text of its own template only."""
    text = recipe.template.render(claim.row)
    size = len(text.encode())
    if size > recipe.max_document_bytes:
        raise DocumentTooLarge(
            f"the document has {size} bytes, max_document_bytes is {recipe.max_document_bytes}"
        )
    return text
