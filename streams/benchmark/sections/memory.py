"""Mixed load for a while: does memory of workers and monitor stay what it was, do tables and indexes after vacuum?

Slopes are of a straight line through the second half of the samples. As many rows come as go, under the same keys: one
that is deleted for good leaves a marker.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import psycopg

from streams.benchmark.bench import PROCESSES, Bench
from streams.benchmark.line import RECORDS, VECTORS, Deployment, one
from streams.benchmark.probe import DELETE, FIRST_KEY, INSERT, UPDATE
from streams.benchmark.processes import resident_mib
from streams.benchmark.results import Figure, Section, Target

SAMPLE_SECONDS: Final = 5.0
#: Growth that counts as flat over the whole time, of the mean: a trend, not a wave.
FLAT: Final = 0.05
#: How much larger tables and indexes may be at the end than at half time, both after vacuum.
BOUNDED: Final = 1.25
SETTLE_SECONDS: Final = 120.0
SIZES: Final = (
    f"SELECT pg_table_size('{RECORDS}') + pg_table_size('{VECTORS}') + pg_table_size('upwell.pending'), "
    f"pg_indexes_size('{RECORDS}') + pg_indexes_size('{VECTORS}') + pg_indexes_size('upwell.pending')"
)

Series = dict[str, list[tuple[float, float]]]
Sizes = tuple[float, float]


def measure(bench: Bench) -> Section:
    seconds = bench.plan.minutes * 60
    series: Series = {}
    with bench.stack.deployment("memory") as deployment, deployment.sink() as sink:
        deployment.filled([bench.corpus.mixed(number) for number in range(bench.plan.memory_rows)], PROCESSES)
        watched = {f"worker {n}": process.pid for n, process in enumerate(deployment.workers)}
        watched["monitor"] = deployment.start_monitor()
        load = _Load(bench, deployment)
        begun = time.monotonic()
        bench.tell(f"mixed load for {bench.plan.minutes:g} minutes")
        load.run(begun, seconds / 2, watched, series)
        half = _sizes(deployment, sink)
        load.run(begun, seconds, watched, series)
        before, last = _read(sink), _sizes(deployment, sink)
    return Section("memory", _figures(series, seconds, half, before, last), series=series)


class _Load:
    """Inserts, updates, metadata changes and deletes at a steady rate."""

    def __init__(self, bench: Bench, deployment: Deployment) -> None:
        self._bench, self._deployment = bench, deployment
        self._chance = random.Random(f"memory/{bench.plan.seed}")
        self._number, self._rows = 0, bench.plan.memory_rows
        self._there: set[int] = set()

    def run(self, begun: float, until: float, watched: dict[str, int], series: Series) -> None:
        """Until so many seconds after `begun`, with a sample of memory now and then."""
        sampled = 0.0
        with self._deployment.source() as source:
            while (now := time.monotonic() - begun) < until:
                self._change(source)
                if now - sampled >= SAMPLE_SECONDS:
                    sampled = now
                    self._deployment.check()
                    for name, pid in watched.items():
                        series.setdefault(name, []).append((now, resident_mib(pid)))
                time.sleep(1 / self._bench.plan.live_rate)

    def _change(self, source: psycopg.Connection[Any]) -> None:
        self._number += 1
        text, kind = self._bench.corpus.mixed(self._rows + self._number), self._chance.random()
        if kind < 0.4:
            key = FIRST_KEY + self._chance.randrange(self._rows)
            if key in self._there:
                source.execute(DELETE, (key,))
            else:
                source.execute(INSERT, (key, text))
            self._there ^= {key}
        elif kind < 0.7:
            source.execute(UPDATE, (text, self._chance.randint(1, self._rows)))
        else:
            note = (
                "UPDATE bench.document SET note = %s WHERE id = %s",
                (text[:40], self._chance.randint(1, self._rows)),
            )
            source.execute(*note)


def _sizes(deployment: Deployment, sink: psycopg.Connection[Any]) -> Sizes:
    """MiB of tables and of indexes once nothing is pending and all is vacuumed."""
    deployment.until(
        lambda: one(sink, "SELECT count(*) FROM upwell.pending") == 0,
        SETTLE_SECONDS,
        "nothing pending",
        every=0.1,
    )
    sink.execute(f"VACUUM ANALYZE {RECORDS}, {VECTORS}, upwell.pending".encode())
    return _read(sink)


def _read(sink: psycopg.Connection[Any]) -> Sizes:
    row = sink.execute(SIZES.encode()).fetchone()
    assert row is not None
    return float(row[0]) / 2**20, float(row[1]) / 2**20


def slope_per_hour(points: Sequence[tuple[float, float]]) -> float:
    """Of a straight line through the second half of the points: seconds and values."""
    second = points[len(points) // 2 :]
    if len(second) < 2:
        return float("nan")
    return float(np.polyfit([at for at, _ in second], [value for _, value in second], 1)[0]) * 3600


def _figures(series: Series, seconds: float, half: Sizes, before: Sizes, last: Sizes) -> list[Figure]:
    figures = []
    for name, points in series.items():
        mean, slope = float(np.mean([value for _, value in points])), slope_per_hour(points)
        key = name.replace(" ", "_")
        figures += [
            Figure(f"memory.{key}.rss", f"{name}: resident, mean", mean, "MiB", "less"),
            Figure(f"memory.{key}.slope", f"{name}: growth an hour", slope, "MiB/h"),
            Figure(
                f"memory.{key}.grown",
                f"{name}: growth over the time, of the mean",
                slope * seconds / 3600 / mean,
                "times",
                "",
                Target("at most", FLAT),
            ),
        ]
    for number, what in enumerate(("tables", "indexes")):
        figures += [
            Figure(f"memory.{what}.before", f"{what} before vacuum", before[number], "MiB"),
            Figure(f"memory.{what}.after", f"{what} after vacuum", last[number], "MiB"),
            Figure(
                f"memory.{what}.grown",
                f"{what} after vacuum, end to half time",
                last[number] / half[number],
                "times",
                "",
                Target("at most", BOUNDED),
            ),
        ]
    return figures
