"""`upwell demo`: the whole line on real components, from nothing to searches that change as the source does."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any, Final

import click
import psycopg

from connectors.postgres.capture_state import connect_sink
from connectors.postgres.source import connect_source
from schemas.errors import UpwellError
from streams.cli.context import home_from, local_settings, say, spec_from
from streams.ports import Encoder
from streams.settings import Settings

LIVE_SECONDS: Final = 30.0
VISIBLE_SECONDS: Final = 30.0
LOAD_SECONDS: Final = 900.0
FRESH: Final = (
    "SELECT count(*) > 0 AND bool_and(source_committed_at >= %(since)s AND NOT is_stale) "
    "FROM upwell.{} WHERE id = %(key)s"
)
GONE: Final = "SELECT count(*) = 0 FROM upwell.{} WHERE id = %(key)s"


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=LIVE_SECONDS,
    show_default=True,
    help="How long to make live changes.",
)
@click.pass_context
def demo(ctx: click.Context, seconds: float) -> None:
    """Start all in a fresh `.upwell/demo`, change rows, search before and after, report, stop."""
    from streams.local import Line

    spec, home = spec_from(ctx), home_from(ctx) / "demo"
    local_settings(spec, home)  # what is wrong in them is said before anything starts
    line = Line(home, _Stopwatch())
    line.stop_monitor()
    line.stop_worker()
    if home.exists():
        line.stop_stack()
        shutil.rmtree(home)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends the demo ends all of it
    try:
        _run(line, home, spec, seconds)
    finally:
        line.stop_monitor()
        line.stop_worker()
        line.stop_stack()
        signal.signal(signal.SIGTERM, before)
    say("demo: everything stopped")


class _Stopwatch:
    """Progress lines with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, line: str) -> None:
        say(f"{time.monotonic() - self._started:6.1f} s  {line}")


def _run(line: Any, home: Path, spec: Path, seconds: float) -> None:
    tell = line.progress
    line.start_stack()
    settings = local_settings(spec, home)
    line.prepare(settings, sample=True)
    line.start_worker(spec)
    line.start_monitor(spec, port=0)
    encoder = _InBackground(settings, tell)
    first = threading.Thread(target=_tell_first_vector, args=(settings, tell), daemon=True)
    first.start()
    line.load(settings, deadline=time.monotonic() + LOAD_SECONDS)
    tell(f"freshness page while the demo runs: {line.monitor_url(settings)}")
    with (
        connect_source(settings.source.dsn) as source,
        connect_sink(settings.sink.dsn) as sink,
    ):
        _live_changes(source, sink, seconds, tell)
        _searches(settings, source, sink, encoder.get())
    line.stop_worker()  # its last counts and delays are stored when it ends
    _report(settings)


class _InBackground:
    """The model for the demo's own queries, loaded while the first load runs."""

    def __init__(self, settings: Settings, tell: Any) -> None:
        self._settings, self._tell, self._found = settings, tell, list[Encoder | Exception]()
        self._thread = threading.Thread(target=self._load, daemon=True)
        self._thread.start()

    def _load(self) -> None:
        from streams.models import encoder_of

        try:
            self._found.append(encoder_of(self._settings, self._settings.model.name, self._tell))
        except Exception as error:
            self._found.append(error)

    def get(self) -> Encoder:
        self._thread.join()
        found = self._found[0]
        if isinstance(found, Exception):
            raise found
        return found


def _tell_first_vector(settings: Settings, tell: Any) -> None:
    with contextlib.suppress(UpwellError, psycopg.Error), connect_sink(settings.sink.dsn) as sink:
        while True:
            for name in settings.collections:
                if sink.execute(f"SELECT 1 FROM upwell.{name} LIMIT 1").fetchone():
                    tell(f"first searchable vector, in {name}")
                    return
            time.sleep(0.1)


def _visible(sink: psycopg.Connection[Any], table: str, key: int, kind: str, since: Any) -> bool:
    query = (GONE if kind == "delete" else FRESH).format(table)
    row = sink.execute(query, {"key": key, "since": since}).fetchone()
    return row is not None and bool(row[0])


def _commit_and_wait(source: psycopg.Connection[Any], sink: psycopg.Connection[Any], change: Any) -> float:
    """Commit one change and return the seconds until the view shows it."""
    since = source.execute("SELECT clock_timestamp()").fetchone()
    assert since is not None
    source.execute(change.sql, change.parameters)
    committed = time.monotonic()
    collection = str(getattr(change, "table", "shop.content")).rpartition(".")[2]
    while not _visible(sink, collection, change.key, change.kind, since[0]):
        if time.monotonic() - committed > VISIBLE_SECONDS:
            raise click.ClickException(f"not visible after {VISIBLE_SECONDS:.0f} s: {change.description}")
        time.sleep(0.005)
    return time.monotonic() - committed


def _live_changes(
    source: psycopg.Connection[Any], sink: psycopg.Connection[Any], seconds: float, tell: Any
) -> None:
    from infra import sample

    say(f"\nLive changes for {seconds:.0f} s: seconds from commit until the view shows it")
    delays: list[float] = []
    until = time.monotonic() + seconds
    for change in sample.live_changes(seed=1):
        delay = _commit_and_wait(source, sink, change)
        delays.append(delay)
        say(f"  {delay:6.3f}  {'#' * min(60, round(delay * 100)):<20} {change.description}")
        if time.monotonic() > until:
            break
        time.sleep(0.3)
    ordered = sorted(delays)
    p50, p95 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)]
    say(f"  {len(delays)} changes: p50 {p50:.3f} s, p95 {p95:.3f} s, max {ordered[-1]:.3f} s\n")


def _searches(
    settings: Settings, source: psycopg.Connection[Any], sink: psycopg.Connection[Any], encoder: Encoder
) -> None:
    from infra import sample

    for search in sample.SEARCHES:
        say(f'Search: "{search.query}"')
        _show("before", settings, sink, encoder, search)
        delay = _commit_and_wait(source, sink, search)
        say(f"  {search.kind} at the source, searchable {delay:.3f} s after its commit: {search.description}")
        _show("after", settings, sink, encoder, search)
        say("")


def _show(
    when: str, settings: Settings, sink: psycopg.Connection[Any], encoder: Encoder, search: Any
) -> None:
    from connectors.postgres.read import search_rows

    vector = encoder.encode([search.query])[0]
    for hit in search_rows(sink, "content", settings.model.name, vector, 3):
        excerpt = " ".join(hit.chunk_text.split())[:88]
        say(f"    {when:>6}  {hit.score:5.3f}  {hit.key}  {excerpt}")


def _report(settings: Settings) -> None:
    from streams.cli.report import print_report

    print_report(settings)
