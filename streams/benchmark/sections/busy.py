"""Live changes and deletes while a backfill has the encoders: nobody waits behind it."""

from __future__ import annotations

import random
import time
from typing import Any, Final

import psycopg

from streams.benchmark.bench import PROCESSES, Bench
from streams.benchmark.line import Deployment, NotMeasured, documents
from streams.benchmark.probe import Probe, pause
from streams.benchmark.results import Figure, Section, Target, quantiles

BEGUN_SECONDS: Final = 120.0
#: Searchable documents with which the backfill counts as under way.
UNDER_WAY: Final = 50
FEWEST: Final = 10
#: On a slow machine changes are made for so many times as long, until there are enough.
LONGER: Final = 5


def measure(bench: Bench) -> Section:
    plan = bench.plan
    with bench.stack.deployment("busy") as deployment:
        deployment.prepare(bench.corpus.mixed(number) for number in range(plan.busy_documents))
        deployment.start_workers(PROCESSES)
        deployment.start_monitor()
        deployment.begin_load()
        with deployment.sink() as sink:
            deployment.until(
                lambda: documents(sink) >= UNDER_WAY, BEGUN_SECONDS, "a backfill under way", every=0.1
            )
            bench.tell(f"changes for {plan.busy_seconds:.0f} s during a backfill of {plan.busy_documents}")
            changed, deleted, rate = _changes(bench, deployment, sink)
    if min(len(changed), len(deleted)) < FEWEST:
        raise NotMeasured(
            f"{len(changed)} changes and {len(deleted)} deletes in {plan.busy_seconds:.0f} s are too few"
        )
    told, gone = quantiles(changed), quantiles(deleted)
    return Section(
        "busy",
        [
            Figure("busy.change_p50", "change to searchable, p50", told["p50"], "s", "less", None, told),
            Figure(
                "busy.change_p95", "change to searchable, p95", told["p95"], "s", "less", Target("under", 2.0)
            ),
            Figure("busy.delete_p50", "delete to gone, p50", gone["p50"], "s", "less", None, gone),
            Figure("busy.delete_p95", "delete to gone, p95", gone["p95"], "s", "less", Target("under", 0.3)),
            Figure("busy.rate", "documents of the backfill meanwhile", rate, "documents/s", "more"),
        ],
    )


def _changes(
    bench: Bench, deployment: Deployment, sink: psycopg.Connection[Any]
) -> tuple[list[float], list[float], float]:
    """Delays of changes, of deletes, and documents a second of the backfill. Raises NotMeasured if it ended."""
    chance = random.Random(f"busy/{bench.plan.seed}")
    changed, deleted = list[float](), list[float]()
    begun, first = time.monotonic(), documents(sink)
    with Probe(deployment, bench.corpus.short) as probe:
        while (passed := time.monotonic() - begun) < bench.plan.busy_seconds * LONGER:
            if passed >= bench.plan.busy_seconds and min(len(changed), len(deleted)) >= FEWEST:
                break
            changed.append(probe.insert())
            changed.append(probe.update(chance.choice(probe.keys)))
            if len(probe.keys) > 2:
                deleted.append(probe.delete(chance.choice(probe.keys)))
            pause(chance, 0.0, 0.2)
            if documents(sink) >= bench.plan.busy_documents:
                raise NotMeasured("the backfill ended while changes were made")
    return changed, deleted, (documents(sink) - first) / (time.monotonic() - begun)
