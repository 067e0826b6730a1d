"""CPU and memory of processes and all below them, from /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS: Final = os.sysconf("SC_CLK_TCK")
MIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a tree of processes. Memory that several of them share counts once, as far as that is known."""

    cpu_seconds: float
    resident_mib: float


def usage(roots: Mapping[str, Sequence[int]]) -> dict[str, Usage]:
    """By name. CPU includes children that have ended and were waited for, so that differences are right."""
    below = _children()
    return {name: _tree([*_below(pids, below)]) for name, pids in roots.items()}


def spent(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> dict[str, float]:
    """CPU seconds between two readings, by name."""
    return {name: after[name].cpu_seconds - before[name].cpu_seconds for name in before}


def resident_mib(pid: int) -> float:
    """Of one process; 0 if it is gone."""
    return _memory(pid).get("VmRSS", 0.0)


def _tree(pids: Sequence[int]) -> Usage:
    memory = [_memory(pid) for pid in pids]
    shared = max((each.get("RssShmem", 0.0) for each in memory), default=0.0)
    own = sum(each.get("VmRSS", 0.0) - each.get("RssShmem", 0.0) for each in memory)
    return Usage(sum(_cpu_seconds(pid) for pid in pids), own + shared)


def _cpu_seconds(pid: int) -> float:
    return sum(int(each) for each in _stat(pid)[11:15]) / TICKS


def _memory(pid: int) -> dict[str, float]:
    """Fields of /proc/PID/status that are sizes, in MiB."""
    found: dict[str, float] = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, rest = line.partition(":")
            if rest.endswith(" kB"):
                found[name] = int(rest.split()[0]) / MIB
    return found


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _stat(int(entry))):
            found.setdefault(int(stat[1]), []).append(int(entry))
    return found


def _below(pids: Sequence[int], children: Mapping[int, Sequence[int]]) -> Iterator[int]:
    for pid in pids:
        yield pid
        yield from _below(children.get(pid, ()), children)
