"""`upwell monitor`: evaluates every collection once a second, whoever else lives (DESIGN 7).

One thread for each neighbour (`probes.py`) and one that evaluates: it alone writes to the sink. What the page shows is
composed from memory when it is asked for, so that it also tells of a sink that hangs.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any, Final

import psycopg
import structlog

from connectors.postgres.freshness import Evaluation, FreshnessStore, SinkSeen
from connectors.postgres.history import add_verdicts
from connectors.postgres.migrate import check_schema
from schemas.errors import Halt, SettingsError, UpwellError
from schemas.freshness import CANARY, State
from streams.freshness.evaluation import Evaluated, Evaluator, Judged
from streams.freshness.healing import Healing
from streams.freshness.probes import Probe, Sights, open_sink, probes
from streams.freshness.summaries import Summaries, keep
from streams.settings import Settings

log = structlog.get_logger()

#: What is computed over many rows is computed less often.
SLOW_SECONDS: Final = 10.0
RECORD_SECONDS: Final = 5.0
HISTORY_SECONDS: Final = 600.0
HEAL_SECONDS: Final = 3.0
STOP_SECONDS: Final = 5.0
#: An evaluation may take this part of the time.
SHARE: Final = 0.2


class Monitor:
    """Runs until told to stop. `url`: where its page is, for `upwell.monitor`."""

    def __init__(self, settings: Settings, url: str = "") -> None:
        self.settings, self.url = settings, url
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.sights = Sights()
        self.fatal: BaseException | None = None
        #: The last evaluation, None before the first.
        self.last: Evaluated | None = None
        self._evaluator = Evaluator(settings, self.sights)
        self._connection: psycopg.Connection[Any] | None = None
        self._store: FreshnessStore | None = None
        self.summaries = Summaries(settings)
        self._seen_at = 0.0
        self._read: tuple[int, int] | None = None
        self._verdicts: dict[str, State] = {}
        self._verdicts_at = 0.0
        self._told: dict[str, State] = {}
        self._stop = threading.Event()
        self._probes = probes(settings, self.sights)
        self._probes["sink"] = Probe(
            "sink", self._evaluate, settings.monitor.evaluate_seconds, self._drop_connection
        )
        self._probes["summaries"] = Probe(
            "summaries", self.summaries.look, SLOW_SECONDS, self.summaries.reset
        )
        healing = Healing(settings, lambda: self.last, self.sights)
        self._probes["healing"] = Probe("healing", healing.look, HEAL_SECONDS)
        self._probes["history"] = Probe("history", partial(keep, settings), HISTORY_SECONDS)

    def check(self) -> None:
        """Raise what a monitor that starts cannot live with: settings, a refused login, another schema."""
        try:
            self._opened()
        except UpwellError as error:
            if error.exit_code == Halt.exit_code:
                raise
            log.warning("the sink does not answer yet", error=str(error))
        finally:
            self._drop_connection()  # it is opened again by the thread that uses it
        if not self.settings.source.dsn:
            raise SettingsError("source.dsn is not set: UPWELL_SOURCE_DSN or [source] dsn")

    def start(self) -> None:
        """Begin to look and to evaluate, in threads."""
        for probe in self._probes.values():
            probe.start()

    def stop(self) -> None:
        self._stop.set()

    def wait(self) -> None:
        """Until `stop`, or until something fatal was found, which is raised."""
        while not self._stop.wait(0.5):
            pass
        for probe in self._probes.values():
            probe.stop()
        deadline = time.monotonic() + STOP_SECONDS
        for probe in self._probes.values():
            probe.join(max(0.0, deadline - time.monotonic()))
        if self.fatal is not None:
            raise self.fatal

    def _opened(self) -> FreshnessStore:
        if self._store is None:
            self._connection = open_sink(self.settings.sink.dsn)
            check_schema(self._connection)
            self._store = FreshnessStore(self._connection)
            self._store.register(self.name, socket.gethostname(), os.getpid(), self.url, version("upwell"))
        return self._store

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._store = None

    def _evaluate(self) -> None:
        try:
            begun = time.monotonic()
            self._evaluate_now(self._opened())
            self._stop.wait((time.monotonic() - begun) / SHARE - self.settings.monitor.evaluate_seconds)
        except Halt as error:
            self.fatal = error
            self.stop()
            raise

    def _evaluate_now(self, store: FreshnessStore) -> None:
        naming, names = self.sights.naming, list(self.settings.served)
        canary = store.find_canary()
        asked = time.monotonic()
        sink = store.look(names, self.sights.topics)
        looked = (asked + time.monotonic()) / 2
        if self._evaluator.follow(sink.lineage) != naming:
            self._read_on(store, sink.lineage)
            return
        self.sights.begun = any(
            seen.load_state != "incomplete" for name, seen in sink.collections.items() if name != CANARY
        )
        watermarks = {
            name: seen.watermark
            for name, seen in sink.collections.items()
            if seen.watermark is not None and seen.lineage == sink.lineage
        }
        if naming is not None:
            proven = self._evaluator.prove(naming, sink, canary)
            store.raise_watermarks(sink.lineage, proven)
            for each in proven:
                watermarks[each.collection] = max(
                    each.watermark, watermarks.get(each.collection, each.watermark)
                )
        judged = self._evaluator.judge(sink, canary, self.neighbours(), watermarks, self.summaries.last)
        source_now = self.sights.now_at_source(looked)
        ahead = 0.0 if source_now is None else (source_now - sink.at).total_seconds()
        store.write(sink.lineage, sink.at, ahead, [_evaluation(name, each) for name, each in judged.items()])
        self.summaries.ahead_seconds = ahead
        self._remember(store, sink)
        self._record(store, sink, judged)
        self._tell(judged)
        self.last = Evaluated(asked, sink.at, sink, canary, judged, ahead)

    def _read_on(self, store: FreshnessStore, lineage: int) -> None:
        """Where whoever read the canary's topic before has stopped."""
        read = store.canary_seen(lineage)
        with self.sights.lock:
            if self.sights.naming is not None and self.sights.naming.lineage == lineage:
                self.sights.canary_read = self.sights.canary_read or read

    def _remember(self, store: FreshnessStore, sink: SinkSeen) -> None:
        """What the next monitor must know of this lineage."""
        with self.sights.lock:
            read, missing = self.sights.canary_read, self.sights.missing
        if missing and missing not in sink.gaps:
            store.add_gap(sink.lineage, missing)
        if read is not None and read != self._read:
            store.see_canary(sink.lineage, *read)
            self._read = read

    def _record(self, store: FreshnessStore, sink: SinkSeen, judged: Mapping[str, Judged]) -> None:
        """Into the minute's history: every verdict that is new, and all of them often enough to miss no minute."""
        now = time.monotonic()
        verdicts = {name: each.verdict.state for name, each in judged.items()}
        if verdicts != self._verdicts or now - self._verdicts_at > RECORD_SECONDS:
            evaluated = {
                name: (each.verdict.state, each.standing.staleness_seconds, each.seen.pending)
                for name, each in judged.items()
            }
            add_verdicts(store.connection, sink.at, evaluated)
            self._verdicts, self._verdicts_at = verdicts, now
        if now - self._seen_at > SLOW_SECONDS:
            store.seen(self.name)
            self._seen_at = now

    def _tell(self, judged: Mapping[str, Judged]) -> None:
        for name, each in judged.items():
            state = each.verdict.state
            if self._told.get(name) != state:
                self._told[name] = state
                self.sights.tell(f"{name} is {state.value}: {each.verdict.reason}")

    def neighbours(self) -> dict[str, Any]:
        """How long each is silent, by name."""
        now = time.monotonic()
        named = ("source", "kafka", "connect", "registry", "sink")
        return {name: self._probes[name].neighbour(now) for name in named}


def _evaluation(name: str, each: Judged) -> Evaluation:
    seen, threshold = each.seen, each.standing.threshold_seconds
    return Evaluation(name, each.verdict, threshold, each.watermark, seen.pending, seen.dead_letters)


def run(monitor: Monitor, serve: Callable[[], tuple[str, Callable[[], None]]] | None = None) -> None:
    """Until SIGTERM or SIGINT. `serve` starts the page and returns where it is, and what stops it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: monitor.stop())
    monitor.check()
    stop = None
    if serve is not None:
        monitor.url, stop = serve()
        log.info("the page is served", url=monitor.url)
    monitor.start()
    try:
        monitor.wait()
    finally:
        if stop is not None:
            stop()
