"""One worker process: intake and embed over one sink, started and stopped in order.

Intake begins at once; the model loads in a thread meanwhile, and embedding begins when it is ready. Whatever is fatal
ends the process un-acknowledged: exit 2 for a HALT, 1 for what a restart cures.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import structlog
from aiohttp.web import AppRunner
from faust.types import AppT

from schemas.change import TopicPartition
from schemas.errors import (
    DeploymentChanged,
    GapFound,
    LineageMismatch,
    MigrationNeeded,
    PositionConflict,
    Retry,
    UpwellError,
)
from schemas.sink import GenerationInfo
from streams.embed.recipes import RecipeBook
from streams.embed.stage import Embedder, EmbedLimits, Recipe
from streams.freshness.measures import Measures
from streams.freshness.rounds import Ends
from streams.intake.app import faust_settings, make_app
from streams.intake.retry import Stopping, persist
from streams.intake.stage import Intake
from streams.ports import Encoder, WorkerStore
from streams.settings import Settings
from streams.vitals import Vitals
from streams.worker_http import make_http, port_of, start_http
from streams.worker_metrics import WorkerMetrics

log = structlog.get_logger()

LOOK_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What `app.py` wires for a worker. Recipes and intakes are made when model and loop are there.

    `generations`: those that are fed, as the start found them. `read_ends`: ends and log starts of our topics, for
    `vitals`; it blocks. `check_topics` raises LineageMismatch if one of them is no longer the one that was created, and
    KafkaUnavailable; it blocks, too. `on_stopping` is told once, with the exit code to come,
    before anything is waited for.
    """

    settings: Settings
    slot: str
    store: WorkerStore
    load_encoder: Callable[[str], Encoder]
    make_recipe: Callable[[GenerationInfo, Encoder], Recipe]
    make_intakes: Callable[[IntakeNeeds], Mapping[str, Intake]]
    generations: Sequence[GenerationInfo]
    services: tuple[Callable[[Callable[[], bool]], Awaitable[None]], ...] = ()
    on_stopping: Callable[[int], None] = lambda exit_code: None
    vitals: Vitals = field(default_factory=Vitals)
    read_ends: Callable[[], Ends] = lambda: Ends({}, {})
    check_topics: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class IntakeNeeds:
    """What every intake shares within a worker."""

    measures: Measures
    positions: dict[TopicPartition, int]
    wake: Callable[[], None]
    should_stop: Callable[[], bool]
    vitals: Vitals = field(default_factory=Vitals)


class Worker:
    """Runs until SIGTERM or SIGINT, or until something fatal happens."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._measures = Measures(thresholds(parts.settings))
        self._positions: dict[TopicPartition, int] = {}
        self._stop = asyncio.Event()
        self._fatal: BaseException | None = None
        self._embedder: Embedder | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._cutter = ThreadPoolExecutor(1, thread_name_prefix="cutter")
        self._vitals = parts.vitals
        self._vitals.stopping = self._stop.is_set
        self._metrics = self._measures.observer = WorkerMetrics(self._vitals)

    async def run(self) -> None:
        """Raises the fatal error, if one ended it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_now)
        needs = IntakeNeeds(
            self._measures, self._positions, self._wake_embedder, self._stop.is_set, self._vitals
        )
        settings, intakes = self._parts.settings, self._parts.make_intakes(needs)
        self._vitals.collections = {topic: intake.collection for topic, intake in intakes.items()}
        app = make_app(
            faust_settings(
                settings.group_id,
                settings.kafka.bootstrap_servers,
                self._parts.slot,
                settings.home,
                settings.worker.session_timeout_seconds,
                security=settings.kafka.security(),
                max_message_bytes=settings.kafka.max_message_bytes,
            ),
            intakes,
            batch_size=settings.worker.batch_size,
            read_positions=self._read_positions,
            on_fatal=self._on_fatal,
        )
        self._vitals.group = lambda: (app.started and app.consumer.is_member, app.rebalancing)
        runner = await self._serve_http()
        embedding = asyncio.create_task(self._embed())
        flushing = asyncio.create_task(self._flush_often())
        looking = asyncio.create_task(self._look_often(app))
        services = [asyncio.create_task(self._serve(run)) for run in self._parts.services]
        try:
            await self._start(app)
            await self._stop.wait()
        finally:
            await self._wind_down(app, [embedding, *services], [flushing, looking])
            if runner is not None:
                await runner.cleanup()
        if self._fatal is not None:
            raise self._fatal

    async def _serve_http(self) -> AppRunner | None:
        slot, settings = self._parts.slot, self._parts.settings.worker
        made = make_http(self._vitals, self._metrics)
        runner, url = await start_http(made, settings.http_host, port_of(settings.http_port, slot))
        self._parts.store.serves_at(url)
        return runner

    async def _look_often(self, app: AppT) -> None:
        """What waits for us in Kafka, and how far we are, for `vitals`; and whether its offsets still mean the same."""
        while True:
            ends: Ends | None = None
            try:
                await asyncio.to_thread(self._parts.check_topics)
            except LineageMismatch as error:
                self._on_fatal(error)
            except Retry:
                pass  # away: it is asked again
            with contextlib.suppress(UpwellError):
                ends = await asyncio.to_thread(self._parts.read_ends)
            await self._look_for_a_restore()
            starts = {} if ends is None else ends.starts
            assigned = app.consumer.assigned() if app.started else frozenset()
            positions = {at: self._positions.get(at, starts.get(at, 0)) for at in assigned}
            self._vitals.looked(positions, None if ends is None else ends.ends)
            await asyncio.sleep(LOOK_SECONDS)

    async def _look_for_a_restore(self) -> None:
        """A sink behind our positions was restored from a backup (H21). Where nothing arrives, only this finds out.

        Ours are moved after the commit, so those read before the sink's are never ahead of them.
        """
        ours = dict(self._positions)
        try:
            found = await self._parts.store.positions(sorted({at.topic for at in ours}))
        except UpwellError:
            return
        for at, position in sorted(ours.items()):
            if found.get(at, 0) < position:
                self._on_fatal(
                    PositionConflict(
                        f"{at.topic}/{at.partition}: the sink's position is {found.get(at)}, this worker has taken "
                        f"in up to {position}: a restored sink; a restart begins at the sink's"
                    )
                )
                return

    async def _start(self, app: object) -> None:
        log.info("worker starting", slot=self._parts.slot)
        try:
            await app.start()  # type: ignore[attr-defined]
        except Exception as error:
            self._on_fatal(error)

    async def _wind_down(
        self, app: object, tasks: list[asyncio.Task[None]], endless: list[asyncio.Task[None]]
    ) -> None:
        self._stop.set()
        if self._embedder is not None:
            self._embedder.stop()
        with contextlib.suppress(Exception):
            if isinstance(self._fatal, DeploymentChanged):
                app.consumer.leave_group()  # type: ignore[attr-defined]
            await app.stop()  # type: ignore[attr-defined]
        await asyncio.wait(tasks, timeout=20)
        for task in (*tasks, *endless):
            task.cancel()
        await asyncio.gather(*tasks, *endless, return_exceptions=True)
        with contextlib.suppress(UpwellError):
            await self._flush()
        for executor in (self._executor, self._cutter):
            executor.shutdown(wait=False, cancel_futures=True)
        await self._parts.store.close()
        log.info("worker stopped", slot=self._parts.slot)

    def _wake_embedder(self) -> None:
        if self._embedder is not None:
            self._embedder.wake()

    def _on_fatal(self, error: BaseException) -> None:
        """Remember the first fatal error and stop; a consequence of stopping is none."""
        if isinstance(error, MigrationNeeded | GapFound):
            # It was all there at the start, or will be after a rebuild: the next start finds out.
            error = DeploymentChanged(f"{error}; this worker starts again")
        if self._fatal is None and not isinstance(error, Stopping | asyncio.CancelledError):
            self._fatal = error
            log.error("fatal", error=str(error), kind=type(error).__name__)
        self._stop_now()

    def _stop_now(self) -> None:
        if not self._stop.is_set():
            self._parts.on_stopping(getattr(self._fatal, "exit_code", 1) if self._fatal is not None else 0)
        self._stop.set()

    async def _read_positions(self, partitions: frozenset[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The sink's positions of newly assigned partitions; waits for the sink, as nothing can be read without.

        A topic with more partitions has its keys elsewhere: they would be taken for older ones than those there (H11).
        """
        topics = sorted({at.topic for at in partitions})

        async def read() -> Mapping[TopicPartition, int]:
            await asyncio.to_thread(self._parts.check_topics)
            return await self._parts.store.positions(topics)

        found = await persist(
            read,
            should_stop=self._stop.is_set,
            deadline_seconds=self._parts.settings.worker.retry_deadline_seconds,
            where="positions",
        )
        mine = {at: offset for at, offset in found.items() if at in partitions}
        self._positions.clear()
        self._positions.update(mine)
        return mine

    async def _embed(self) -> None:
        parts, settings = self._parts, self._parts.settings.worker
        book = RecipeBook(parts.store, parts.settings.collections, parts.load_encoder, parts.make_recipe)
        try:
            recipes = await book.live(parts.generations)
            embedder = self._embedder = Embedder(
                self._parts.store,
                recipes,
                self._measures,
                slot=self._parts.slot,
                limits=EmbedLimits(
                    settings.embed_batch,
                    settings.backfill_share,
                    settings.lease_seconds,
                    settings.poll_seconds,
                    settings.embed_attempts,
                    settings.encode_deadline_seconds,
                ),
                executor=self._executor,
                cutter=self._cutter,
                vitals=self._vitals,
            )
            log.info("embedding", models=sorted({each.encoder.name for each in recipes.values()}))
            if not self._stop.is_set():
                following = self._serve(lambda should_stop: book.follow(embedder.use, should_stop))
                await asyncio.gather(embedder.run(self._on_fatal), following)
        except Exception as error:
            self._on_fatal(error)

    async def _serve(self, run: Callable[[Callable[[], bool]], Awaitable[None]]) -> None:
        try:
            await run(self._stop.is_set)
        except Exception as error:
            self._on_fatal(error)

    async def _flush_often(self) -> None:
        while True:
            await asyncio.sleep(self._parts.settings.worker.metrics_interval_seconds)
            with contextlib.suppress(UpwellError):
                await self._flush()

    async def _flush(self) -> None:
        drained = self._measures.drain()
        if drained.is_empty:
            return
        try:
            await self._parts.store.flush_measures(
                drained.counters, drained.sketches, drained.judged, drained.slow
            )
        except (UpwellError, asyncio.CancelledError):
            self._measures.give_back(drained)
            raise


def thresholds(settings: Settings) -> dict[str, float]:
    """Within how many seconds changes should be searchable, by collection."""
    return {name: spec.slo.threshold_seconds for name, spec in settings.collections.items()}
