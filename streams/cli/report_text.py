"""The report as text for a terminal: verdicts first, then where the time went, and why the slowest were slow."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from rich.table import Table

from streams.cli.table import console, duration, one_line, percent, print_whole, seconds, table
from streams.freshness.forecast import forecast_sentences
from streams.freshness.report import CollectionReport, Delays, Report
from streams.freshness.slow import why

LEFT: Final = ("collection", "verdict", "stage", "first load")
#: A key is shown by so many letters.
KEY_LETTERS: Final = 40


def render(found: Report) -> None:
    """Tables for a person."""
    screen = console()
    at = f"{found.evaluated_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    screen.print(f"The last {duration(found.window_seconds)} until {at}\n")
    print_whole(screen, _verdicts(found))
    for name, each in found.collections.items():
        screen.print(f"{name} is {each.verdict.state.value}: {one_line(each.verdict.reason, 1000)}")
    for sentence in forecast_sentences(found.forecasts):
        screen.print(sentence)
    screen.print("")
    for made in (_delays(found), _state(found), _work(found)):
        print_whole(screen, made)
    for line in (*_notes(found), *_saved(found), *_worst(found), *_who(found)):
        screen.print(line)


def _verdicts(found: Report) -> Table:
    columns = ("staleness", "threshold", "SLI", "objective", "budget left", "burn 1h", "time budget")
    made = table("Verdicts", "collection", "verdict", *columns, left=LEFT)
    for name, each in found.collections.items():
        slo = each.slo
        burn = slo["burn_rates"]["1h"]
        made.add_row(
            name,
            each.verdict.state.value,
            duration(each.staleness_seconds),
            duration(each.threshold_seconds),
            _share(slo["sli"]),
            _share(slo["objective"]),
            percent(slo["budget_remaining_ratio"]),
            "-" if burn is None else f"{burn:.1f}x",
            percent(slo["time"]["budget_remaining_ratio"]),
        )
    return made


def _share(value: float | None) -> str:
    """A share near one: its nines matter."""
    return "-" if value is None else f"{value * 100:.2f} %"


def _delays(found: Report) -> Table:
    """One block a collection: the total, then its stages."""
    columns = ("changes", "p50", "p95", "p99", "max", "mean", "share")
    made = table("Seconds from commit until searchable", "collection", "stage", *columns, left=LEFT)
    for name, each in found.collections.items():
        made.add_row(name, "total", *_numbers(each.delay), "")
        for stage, of in each.stages.items():
            mark = " ~" if of.approximate else ""
            made.add_row("", f"  {stage}{mark}", *_numbers(of.delays), percent(of.share))
        made.add_section()
    return made


def _numbers(delays: Delays) -> Iterator[str]:
    yield str(delays.count)
    for value in (delays.p50, delays.p95, delays.p99, delays.max, delays.mean):
        yield seconds(value)


def _state(found: Report) -> Table:
    columns = ("pending live", "backfill", "oldest", "done in", "dead letters")
    made = table("Now", "collection", "first load", *columns, left=LEFT)
    for name, each in found.collections.items():
        counts = (str(each.pending["live"]), str(each.pending["backfill"]))
        waits = (duration(each.oldest_pending_seconds), duration(each.eta_seconds))
        made.add_row(name, _load(each), *counts, *waits, str(each.dead_letters))
    return made


def _load(each: CollectionReport) -> str:
    load = each.load
    if load.rows is None or load.state == "complete":
        return load.state
    return f"{load.state}: {percent(load.searchable)} of {load.rows} rows"


def _work(found: Report) -> Table:
    outcomes = ("applied", "unchanged", "superseded", "deleted", "other")
    made = table("Work", "collection", *outcomes, "encoded", "kept", "copied", "saved", left=LEFT)
    for name, each in found.collections.items():
        named = [each.outcomes[outcome] for outcome in outcomes[:-1]]
        numbers = [*named, each.taken_in - sum(named), *each.chunks.values()]
        made.add_row(name, *(str(number) for number in numbers), percent(each.chunks_saved))
    return made


def _notes(found: Report) -> Iterator[str]:
    yield "SLI: share of the changes within the threshold. time budget: left of that of minutes that are FRESH."
    yield "done in: at the rate of the window. ~ also crosses the clock of Kafka Connect."
    yield "share: of the seconds spent in all stages."
    yield "applied ... other: changes. encoded, kept, copied: chunks; saved: those not encoded."
    for name, each in found.collections.items():
        if each.clock_negative:
            yield f"{name}: {each.clock_negative} delays were negative and count as 0: clocks differ."


def _saved(found: Report) -> Iterator[str]:
    for name, each in found.collections.items():
        if each.taken_in:
            unchanged, superseded = each.outcomes["unchanged"], each.outcomes["superseded"]
            yield (
                f"{name}: {unchanged + superseded} of {each.taken_in} changes ({percent(each.changes_saved)}) needed "
                f"no embedding: {unchanged} left the text as it was, {superseded} had a newer one in the same batch."
            )
        if chunks := sum(each.chunks.values()):
            kept, copied = each.chunks["kept"], each.chunks["copied"]
            yield (
                f"{name}: {kept + copied} of {chunks} chunks ({percent(each.chunks_saved)}) did not go through the "
                f"model: {kept} vectors were kept, {copied} copied from the same text elsewhere."
            )


def _worst(found: Report) -> Iterator[str]:
    if not found.worst:
        return
    yield "\nThe slowest changes"
    for change in found.worst:
        key = one_line(change.key, KEY_LETTERS)
        yield f"  {seconds(change.seconds):>9} s  {change.collection} {key}, committed {_at(change.committed_at)}"
        yield f"               {why(change.seconds, change.stages)}"
    yield ""


def _who(found: Report) -> Iterator[str]:
    evaluated = [each.evaluated_at for each in found.collections.values() if each.evaluated_at is not None]
    if evaluated:
        yield f"Evaluated at {_at(max(evaluated))}."
    if not found.monitors:
        yield "No monitor runs: verdicts and SLOs need `upwell monitor`."
    for monitor in found.monitors:
        yield (
            f"Monitor {monitor.name} on {monitor.host} (pid {monitor.pid}) was seen "
            f"{duration(monitor.seen_seconds)} ago."
        )
    if not found.workers:
        yield "No worker has ever run."
    for worker in found.workers:
        yield f"Worker {worker.slot} on {worker.host} (pid {worker.pid}) was seen {duration(worker.seen_seconds)} ago."


def _at(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
