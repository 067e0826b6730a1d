"""Which sections run, and how much each measures. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from schemas.errors import SettingsError

#: In the order in which they run.
SECTIONS: Final = (
    "encoders",
    "backfill",
    "idle",
    "busy",
    "intake",
    "chunks",
    "search",
    "rows",
    "memory",
)
#: Those that a run has if none is named: `memory` takes as long as it is asked to.
USUAL: Final = tuple(name for name in SECTIONS if name != "memory")


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of a run; the defaults take about twenty minutes on two cores.

    `documents`: of mixed lengths; of short ones there are three times as many. `busy_documents`: of the backfill that
    live changes pass. `few_rows`, `rows`: records in the sink beside those that are measured.
    """

    sections: Sequence[str] = USUAL
    seed: int = 1
    quick: bool = False
    documents: int = 1_500
    idle_changes: int = 250
    busy_documents: int = 20_000
    busy_seconds: float = 90.0
    events: int = 40_000
    event_documents: int = 1_000
    long_documents: int = 25
    same_rows: int = 1_000
    searched: int = 4_000
    queries: int = 100
    few_rows: int = 10_000
    rows: int = 100_000
    row_events: int = 20_000
    row_documents: int = 600
    minutes: float = 45.0
    memory_rows: int = 500
    live_rate: float = 10.0

    @property
    def short_documents(self) -> int:
        return 3 * self.documents


QUICK: Final = Plan(
    quick=True,
    documents=100,
    idle_changes=40,
    busy_documents=2_000,
    busy_seconds=20.0,
    events=6_000,
    event_documents=200,
    long_documents=5,
    same_rows=200,
    searched=400,
    queries=40,
    few_rows=1_000,
    rows=5_000,
    row_events=4_000,
    row_documents=100,
    minutes=1.0,
    memory_rows=100,
)


def planned(
    only: str,
    *,
    quick: bool,
    seed: int,
    documents: int | None = None,
    rows: int | None = None,
    minutes: float | None = None,
) -> Plan:
    """The plan of a command line. `only`: sections with commas between, "" for the usual ones. Raises SettingsError."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = sorted(set(names) - set(SECTIONS))
    if unknown or (only and not names):
        raise SettingsError(
            f"there is no section {unknown[0] if unknown else only!r}: write some of {', '.join(SECTIONS)}"
        )
    plan = QUICK if quick else Plan()
    wanted = tuple(name for name in SECTIONS if name in names) or plan.sections
    plan = replace(plan, sections=wanted, seed=seed)
    if documents is not None:
        plan = replace(plan, documents=documents)
    if rows is not None:
        plan = replace(plan, rows=rows)
    if minutes is not None:
        plan = replace(plan, minutes=minutes)
    if plan.rows <= plan.few_rows:
        raise SettingsError(f"--rows has to be more than the {plan.few_rows} that it is compared with")
    return plan
