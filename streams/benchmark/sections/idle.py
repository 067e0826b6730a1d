"""Single changes on a quiet machine, default settings, two workers and the monitor: commit -> searchable."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Final

from streams.benchmark.bench import PROCESSES, Bench
from streams.benchmark.line import Deployment
from streams.benchmark.probe import Arrivals, Probe, commit_seconds, pause
from streams.benchmark.results import Figure, Section, Target, quantile, quantiles

#: Rows of the collection beside those that change.
ROWS: Final = 200
#: Changes and encodings before the clock counts.
WARM: Final = 5
COMMITS: Final = 50


def measure(bench: Bench) -> Section:
    with bench.stack.deployment("idle") as deployment:
        deployment.filled([bench.corpus.short(number) for number in range(ROWS)], PROCESSES)
        deployment.start_monitor()
        bench.tell(f"{bench.plan.idle_changes} single changes")
        delays, from_kafka, texts = _changes(bench, deployment)
        with deployment.sink() as sink:
            commits = commit_seconds(sink, COMMITS)
    encodes = _encodes(bench, texts)
    return Section("idle", _figures(delays, from_kafka, encodes, commits))


def _changes(bench: Bench, deployment: Deployment) -> tuple[list[float], list[float], list[str]]:
    """Delays from the commit and from Kafka, and texts like those that were embedded."""
    chance = random.Random(f"idle/{bench.plan.seed}")
    delays, from_kafka = [], []
    with Arrivals(deployment) as arrivals, Probe(deployment, bench.corpus.short) as probe:
        for number in range(bench.plan.idle_changes + WARM):
            begun = time.monotonic()
            delay = probe.insert() if number % 3 == 0 else probe.update(chance.choice(probe.keys))
            visible, arrived = begun + delay, arrivals.since(begun)
            if number >= WARM:
                delays.append(delay)
                if arrived is not None:
                    from_kafka.append(max(visible - arrived, 0.0))
            pause(chance, 0.1, 0.4)
    return delays, from_kafka, [f"Change {n}. {bench.corpus.short(n)}" for n in range(1, len(delays) + 1)]


def _encodes(bench: Bench, texts: Sequence[str]) -> list[float]:
    """Seconds of one call of the encoder with one text."""
    found = []
    for number, text in enumerate(texts[:100]):
        begun = time.monotonic()
        bench.encoder.encode([text])
        if number >= WARM:
            found.append(time.monotonic() - begun)
    return found


def _figures(
    delays: Sequence[float], from_kafka: Sequence[float], encodes: Sequence[float], commits: Sequence[float]
) -> list[Figure]:
    told, encode, commit = quantiles(delays), quantile(encodes, 0.5), quantile(commits, 0.5)
    limit = 2 * (encode + commit)
    return [
        Figure(
            "idle.p50", "commit to searchable, p50", told["p50"], "s", "less", Target("under", 0.070), told
        ),
        Figure("idle.p90", "commit to searchable, p90", told["p90"], "s", "less"),
        Figure("idle.p99", "commit to searchable, p99", told["p99"], "s", "less", Target("under", 0.250)),
        Figure(
            "idle.from_kafka",
            "Kafka to searchable, p50",
            quantile(from_kafka, 0.5),
            "s",
            "less",
            Target("at most", limit),
            quantiles(from_kafka),
        ),
        Figure("idle.encode", "one bare encode, p50", encode, "s", "less", None, quantiles(encodes)),
        Figure("idle.commits", "two commits in the sink, p50", commit, "s", "", None, quantiles(commits)),
    ]
