"""Does the monitor tell the truth, and what does it cost? `python -m tests.benchmarks.freshness`

Ten collections on the real stack with the real model. A probe, which shares no code with the pipeline, commits changes
at a steady rate and polls the view; its percentiles are compared with those of `upwell report`. Printed besides: how
far the watermarks are behind the truth, CPU and memory of the monitor.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from infra import stack
from tests.acceptance.plain import one
from tests.deployment import Deployment, Stack, until

COLLECTIONS: Final = 10
TABLE: Final = (
    "CREATE TABLE shop.c{0} (id bigint PRIMARY KEY, body text); ALTER TABLE shop.c{0} REPLICA IDENTITY FULL;"
)
SPEC: Final = """
[collections.c{0}]
table = "shop.c{0}"
template = "{{{{{{{{ body }}}}}}}}"
chunk = {{{{ max_tokens = 126 }}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=5.0, help="changes a second")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        variables = dict(stack.up(home, progress=print).variables)
        try:
            spec = 'name = "{name}"\n' + "".join(SPEC.format(number) for number in range(COLLECTIONS))
            with Deployment.create(Stack(home, variables), Path(folder), spec) as deployment:
                measure(deployment, given.seconds, given.rate)
        finally:
            stack.down(home)


def measure(deployment: Deployment, seconds: float, rate: float) -> None:
    with deployment.source() as source:
        source.execute("CREATE SCHEMA shop")
        for number in range(COLLECTIONS):
            source.execute(TABLE.format(number).encode())
            source.execute(
                f"INSERT INTO shop.c{number} SELECT i, 'row ' || i FROM generate_series(1, 100) i".encode()
            )
    deployment.upwell("migrate")
    deployment.upwell("connector", "apply", seconds=180)
    deployment.start_worker()
    monitor = deployment.start_worker("monitor", arguments=("monitor", "--port", "0"))
    until(lambda: fresh(deployment) == COLLECTIONS, 240, "all collections FRESH")
    started, spent = time.monotonic(), cpu_seconds(monitor.process.pid)
    polled, distances = probe(deployment, seconds, rate)
    share = (cpu_seconds(monitor.process.pid) - spent) / (time.monotonic() - started)
    time.sleep(2)  # what the worker has counted is stored every second
    told = deployment.report()["collections"]["c0"]["delay_seconds"]
    print(f"{len(polled)} changes at {rate:g} a second, {COLLECTIONS} collections")
    for name, quantile in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        mine = quantile_of(polled, quantile)
        apart = told[name] - mine
        print(
            f"{name}: probe {mine:.3f} s, reported {told[name]:.3f} s: {apart * 1000:+.0f} ms, {apart / mine:+.0%}"
        )
    mean = statistics.mean(distances)
    print(f"watermark behind the truth: {min(distances):.1f} to {max(distances):.1f} s, mean {mean:.1f} s")
    print(f"monitor: {share:.1%} of one core, {resident_mib(monitor.process.pid):.0f} MiB resident")


def probe(deployment: Deployment, seconds: float, rate: float) -> tuple[list[float], list[float]]:
    """Delays of single changes from commit until the view shows them; distances of watermark and truth in seconds."""
    delays, distances = [], []
    with deployment.source() as source, deployment.sink() as sink:
        end = time.monotonic() + seconds
        number = 0
        while time.monotonic() < end:
            number += 1
            begun = time.monotonic()
            text = f"change number {number} of row {number % 100}"
            source.execute("UPDATE shop.c0 SET body = %s WHERE id = %s", [text, number % 100 + 1])
            committed = time.monotonic()
            query = "SELECT count(*) FROM upwell.c0 WHERE id = %s AND chunk_text = %s"
            while not one(sink, query, number % 100 + 1, text):
                time.sleep(0.002)
            delays.append(time.monotonic() - committed)
            # Everything is searchable now, so the truth is now.
            distances.append(
                float(one(sink, "SELECT staleness_seconds FROM upwell.freshness WHERE collection = 'c0'"))
            )
            time.sleep(max(0.0, 1 / rate - (time.monotonic() - begun)))
    return delays, distances


def fresh(deployment: Deployment) -> int:
    with deployment.sink() as sink:
        return int(one(sink, "SELECT count(*) FROM upwell.freshness WHERE verdict = 'FRESH'"))


def quantile_of(values: Sequence[float], quantile: float) -> float:
    return sorted(values)[min(len(values) - 1, int(quantile * len(values)))]


def cpu_seconds(pid: int) -> float:
    fields: list[Any] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


if __name__ == "__main__":
    main()
