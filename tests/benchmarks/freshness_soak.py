"""Faults at random under the oracle of the acceptance test: `python -m tests.benchmarks.freshness_soak`

One line a fault. In the end: how often somebody looked, and how often FRESH or a watermark claimed too much; exit 1 if
ever.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import requests
from confluent_kafka import Producer

from infra import stack
from tests.acceptance import test_freshness as faults
from tests.acceptance.plain import one
from tests.chaos.claims import Oracle
from tests.deployment import Deployment, Stack, WorkerProcess

#: Longer than what any fault here needs to be undone again.
SETTLE_SECONDS: Final = 90.0


@dataclass
class Nemesis:
    """What it breaks, it mends after a while."""

    line: Deployment
    random: random.Random
    worker: WorkerProcess
    monitor: WorkerProcess

    def strike(self) -> str:
        """One fault, for a few seconds or longer than the threshold; what it was."""
        seconds = self.random.choice([2.0, 5.0, 15.0])
        fault: Callable[[float], str] = self.random.choice(
            [
                self.kill_worker,
                self.freeze_worker,
                self.kill_monitor,
                self.stop_connector,
                self.break_connector,
                self.poison,
                lambda seconds: self.freeze("connect", seconds),
                lambda seconds: self.freeze("kafka", seconds),
                lambda seconds: self.freeze("registry", seconds),
                lambda seconds: self.kill("connect", seconds),
            ]
        )
        return fault(seconds)

    def kill_worker(self, seconds: float) -> str:
        self.worker.kill()
        time.sleep(seconds)
        self.worker = faults.start_worker(self.line, "w1")
        return f"worker killed for {seconds:g} s"

    def freeze_worker(self, seconds: float) -> str:
        self._frozen(self.worker.process.pid, seconds)
        return f"worker frozen for {seconds:g} s"

    def kill_monitor(self, seconds: float) -> str:
        self.monitor.kill()
        time.sleep(seconds)
        self.monitor = faults.start_monitor(self.line)
        return f"monitor killed for {seconds:g} s"

    def stop_connector(self, seconds: float) -> str:
        url = f"{self.line.environment['UPWELL_CONNECT_URL']}/connectors/upwell-{self.line.name}"
        requests.put(f"{url}/stop", timeout=60).raise_for_status()
        time.sleep(seconds)
        requests.put(f"{url}/resume", timeout=60).raise_for_status()
        return f"connector stopped for {seconds:g} s"

    def break_connector(self, seconds: float) -> str:
        url = f"{self.line.environment['UPWELL_CONNECT_URL']}/connectors/upwell-{self.line.name}/config"
        config = requests.get(url, timeout=60).json()
        requests.put(url, json={**config, "publication.name": "gone"}, timeout=60).raise_for_status()
        time.sleep(seconds)
        requests.put(url, json=config, timeout=60).raise_for_status()
        return f"connector's config broken for {seconds:g} s"

    def poison(self, seconds: float) -> str:
        producer = Producer({"bootstrap.servers": self.line.environment["UPWELL_KAFKA_BOOTSTRAP_SERVERS"]})
        producer.produce(f"{self.line.name}_1.shop.content", value=b"no Avro", partition=0)
        producer.flush(30)
        time.sleep(seconds)
        self.waive()
        return f"a record that nobody can read, waived after {seconds:g} s"

    def waive(self) -> None:
        with self.line.sink() as sink:
            letters = sink.execute(
                "SELECT id::text FROM upwell.dead_letter WHERE closed_at IS NULL"
            ).fetchall()
        if letters:
            self.line.upwell("dead-letters", "waive", *(row[0] for row in letters), "--reason", "soak")

    def freeze(self, component: str, seconds: float) -> str:
        self._frozen(self._pid(component), seconds)
        return f"{component} frozen for {seconds:g} s"

    def kill(self, component: str, seconds: float) -> str:
        os.kill(self._pid(component), signal.SIGKILL)
        time.sleep(seconds)
        stack.up(self.line.stack.home, progress=lambda line: None)
        return f"{component} killed for {seconds:g} s"

    def _pid(self, component: str) -> int:
        pid = next(each.pid for each in stack.status(self.line.stack.home) if each.name == component)
        assert pid is not None, f"{component} does not run"
        return pid

    def _frozen(self, pid: int, seconds: float) -> None:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        home = folder / "home"
        variables = dict(stack.up(home, progress=print).variables)
        opened.callback(stack.down, home)
        line = opened.enter_context(Deployment.create(Stack(home, variables), folder, faults.spec()))
        if not soak(line, given.minutes, given.seed):
            sys.exit(1)


def soak(line: Deployment, minutes: float, seed: int) -> bool:
    """Whether nothing claimed too much."""
    faults.capture(line)
    nemesis = Nemesis(line, random.Random(seed), faults.start_worker(line, "w1"), faults.start_monitor(line))
    faults.sees(line, "FRESH")
    struck, end = 0, time.monotonic() + 60 * minutes
    with Oracle(line, faults.THRESHOLD) as oracle:
        while time.monotonic() < end:
            print(f"{time.strftime('%H:%M:%S')}  {nemesis.strike()}", flush=True)
            struck += 1
            time.sleep(nemesis.random.uniform(2.0, 20.0))
        nemesis.waive()
        faults.sees(line, "FRESH")
    with line.sink() as sink:
        violations = one(sink, "SELECT sum(violations) FROM upwell.watermark")
    print(f"seed {seed}: {struck} faults, {len(oracle.changes)} changes, {oracle.samples} looks")
    print(f"claimed too much: {len(oracle.wrong)}; violations that intake has counted: {violations}")
    for each in oracle.wrong[:10]:
        print(f"  {each}")
    return not oracle.wrong and not violations


if __name__ == "__main__":
    main()
