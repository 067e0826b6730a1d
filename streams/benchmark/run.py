"""A whole run: one section after the other, on a stack of its own; one that cannot be measured says why."""

from __future__ import annotations

import contextlib
import importlib
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streams.benchmark.bench import Bench
from streams.benchmark.line import Progress, Stack, stack_in
from streams.benchmark.machine import this_machine
from streams.benchmark.plan import Plan
from streams.benchmark.results import Results, Section


def run(plan: Plan, home: Path, tell: Progress) -> Results:
    """Everything is stopped, and `home/line` is gone, when it returns or raises."""
    machine = this_machine()
    started = datetime.now(UTC)
    if machine.load > 1 / 2:
        tell(f"this machine is not quiet: {machine.load:.1f} processes were running in the last minute")
    with _stack(plan, home / "line", tell) as stack:
        bench = Bench(stack, plan, tell)
        sections = [_measured(name, bench, home / "benchmark.log") for name in plan.sections]
    return Results(
        started_at=started.isoformat(timespec="seconds"),
        seed=plan.seed,
        quick=plan.quick,
        corpus=bench.corpus.identity(plan.documents),
        machine=machine,
        sections=tuple(sections),
    )


def _stack(plan: Plan, home: Path, tell: Progress) -> contextlib.AbstractContextManager[Stack]:
    """Encoders alone need none, but a folder."""
    if set(plan.sections) - {"encoders"}:
        return stack_in(home, tell)
    home.mkdir(parents=True, exist_ok=True)
    return contextlib.nullcontext(Stack(home, {}))


def _measured(name: str, bench: Bench, log: Path) -> Section:
    """The section, or what kept it from measuring as its problem; the trace goes to the log."""
    module: Any = importlib.import_module(f"streams.benchmark.sections.{name}")
    bench.tell(f"{name}:")
    begun = time.monotonic()
    try:
        found: Section = module.measure(bench)
    except Exception as error:
        with log.open("a", encoding="utf-8") as out:
            traceback.print_exception(error, file=out)
        reason = " ".join(str(error).split()) or type(error).__name__
        bench.tell(f"{name} was not measured: {reason}")
        found = Section(name, problem=reason)
    return Section(name, found.figures, found.problem, found.notes, found.series, time.monotonic() - begun)
