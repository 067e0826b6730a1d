"""`upwell benchmark`: how fast upwell is on this machine, next to its parts alone; and what has changed since."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas.errors import SettingsError
from streams.cli.context import home_from, say

if TYPE_CHECKING:
    from streams.benchmark.comparison import Change
    from streams.benchmark.results import Results


@click.command()
@click.option(
    "--only",
    default="",
    metavar="SECTION,...",
    help="These sections only; `memory` is run only if it is named.",
)
@click.option("--quick", is_flag=True, help="Small sizes, a few minutes: to see that it works.")
@click.option(
    "--documents",
    type=click.IntRange(min=50),
    help="Documents of mixed lengths; three times as many short ones.",
)
@click.option("--rows", type=click.IntRange(min=1), help="Records in the sink of `rows`, at most.")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="How long `memory` takes; 45 by default."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Another one: other texts."
)
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where its stack lives meanwhile; default `benchmark` in UPWELL_HOME.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where benchmark.json and benchmark.svg go; default: its home.",
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The benchmark.json of an earlier run: show what has changed.",
)
@click.option(
    "--loss",
    type=click.FloatRange(min=0, max=1),
    default=0.1,
    show_default=True,
    help="With --compare: the part of a figure that may be lost.",
)
@click.pass_context
def benchmark(
    ctx: click.Context,
    *,
    only: str,
    quick: bool,
    documents: int | None,
    rows: int | None,
    minutes: float | None,
    seed: int,
    home: Path | None,
    out: Path | None,
    compare: Path | None,
    loss: float,
) -> None:
    """Measure upwell end to end and its parts alone, on a stack of its own. Exit 1 if a target is missed."""
    from streams.benchmark import chart
    from streams.benchmark.plan import planned
    from streams.benchmark.run import run

    plan = planned(only, quick=quick, seed=seed, documents=documents, rows=rows, minutes=minutes)
    before = None if compare is None else _read(compare)
    place = (home or home_from(ctx) / "benchmark").resolve()
    target = (out or place).resolve()
    for folder in (place, target):
        folder.mkdir(parents=True, exist_ok=True)
    stopped = signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it ends all of it
    try:
        results = run(plan, place, _Stopwatch())
    finally:
        signal.signal(signal.SIGTERM, stopped)
    (target / "benchmark.json").write_text(results.to_json(), encoding="utf-8")
    (target / "benchmark.svg").write_text(chart.page(results), encoding="utf-8")
    _print(results)
    lost = before is not None and _print_changes(before, results, loss)
    say(f"\n{target / 'benchmark.json'}, {target / 'benchmark.svg'}")
    if lost or not results.holds:
        sys.exit(1)


def _read(path: Path) -> Results:
    """Raises SettingsError."""
    from streams.benchmark.results import Results

    try:
        return Results.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{path} cannot be compared with: {error}") from error


class _Stopwatch:
    """Progress lines with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, line: str) -> None:
        say(f"{time.monotonic() - self._started:7.1f} s  {line}")


def _print(results: Results) -> None:
    """One table: what, measured, target, holds."""
    from streams.benchmark.chart import measured, wanted
    from streams.cli.table import console, print_whole, table

    made = table(
        None, "section", "what", "measured", "target", "holds", left=("section", "what", "target", "holds")
    )
    for section in results.sections:
        name = section.name
        for figure in section.figures:
            holds = {True: "yes", False: "NO", None: ""}[figure.holds]
            made.add_row(name, figure.says, measured(figure), wanted(figure), holds)
            name = ""
        if section.problem:
            made.add_row(name, "not measured", "", "", "NO")
        made.add_section()
    say("")
    print_whole(console(), made)
    for section in results.sections:
        for note in section.notes:
            say(f"{section.name}: {note}")
        if section.problem:
            say(f"{section.name} was not measured: {section.problem}")
    missed = sum(not section.holds for section in results.sections)
    say("all targets hold" if missed == 0 else f"{missed} of {len(results.sections)} sections do not hold")


def _print_changes(before: Results, after: Results, loss: float) -> bool:
    """Whether something was lost."""
    from streams.benchmark.comparison import compare, unlike
    from streams.cli.table import console, print_whole, table

    for line in unlike(before, after):
        say(f"not quite comparable: {line}")
    changes = compare(before, after, loss)
    made = table(f"since {before.started_at}", "what", "before", "now", "change", "", left=("what", ""))
    for change in changes:
        made.add_row(change.figure.says, *_changed(change))
    print_whole(console(), made)
    lost = sum(change.lost for change in changes)
    say("nothing was lost" if lost == 0 else f"{lost} figures are worse by more than {loss * 100:.0f} %")
    return lost > 0


def _changed(change: Change) -> tuple[str, str, str, str]:
    """Cells of a row."""
    from streams.freshness.charts import quantity

    unit, ratio = change.figure.unit, change.change
    now = "not measured" if change.after is None else quantity(change.after, unit)
    return (
        quantity(change.before, unit),
        now,
        "" if ratio is None else f"{ratio * 100:+.1f} %",
        "LOST" if change.lost else "",
    )
