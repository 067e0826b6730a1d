"""How much memory upwell's processes have, over a whole run."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infra.stack.processes import born
from tests.chaos.background import Background
from tests.chaos.line import Line

#: A process that is younger is still loading.
SETTLED_SECONDS: Final = 60.0
LOOK_SECONDS: Final = 5.0
TICKS: Final = os.sysconf("SC_CLK_TCK")
MOST_RATIO: Final = 1.3


def resident_mb(pid: int) -> float:
    """0 if it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


def age_seconds(pid: int) -> float:
    birth = born(pid)
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - int(birth) / TICKS if birth else 0.0


@dataclass
class Memory(Background):
    """`most`: MB by kind of process, for each minute of the run; of processes that had time to settle."""

    line: Line
    elapsed: float
    most: dict[str, dict[int, float]] = field(default_factory=dict)

    def __enter__(self) -> Memory:
        self._started = time.monotonic()
        return super().__enter__()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            minute = int((self.elapsed + time.monotonic() - self._started) // 60)
            for name, pids in (
                ("supervisor", self.line.pids("supervisor")),
                ("worker", self.line.workers()),
                ("monitor", self.line.pids("monitor")),
            ):
                for pid in pids:
                    if age_seconds(pid) > SETTLED_SECONDS:
                        minutes = self.most.setdefault(name, {})
                        minutes[minute] = max(minutes.get(minute, 0.0), resident_mb(pid))


def growth(most: dict[str, dict[int, float]], minutes: float) -> dict[str, tuple[float, float]]:
    """MB at most in the first and in the last quarter of a run, by kind of process; without those not seen in both."""
    found = {}
    for name, by_minute in most.items():
        first = [mb for minute, mb in by_minute.items() if minute < minutes / 4]
        last = [mb for minute, mb in by_minute.items() if minute >= minutes * 3 / 4]
        if first and last:
            found[name] = (max(first), max(last))
    return found
