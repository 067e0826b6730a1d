"""How many worker processes fit on this machine: a core and enough memory for each. Nothing but files is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from streams.settings import MOST_PROCESSES, Settings

log = structlog.get_logger()

#: Of one worker while it embeds, by runtime: what is seen is about half of it.
ONNX_MB: Final = 600
TORCH_MB: Final = 1500


@dataclass(frozen=True, slots=True)
class Fit:
    """So many processes, and why."""

    processes: int
    why: str


def fitting(cores: int, free_mb: float | None, runtime: str, accelerator: bool) -> Fit:
    """`free_mb`: memory that is free, None if that is not known; `accelerator`: whether torch would use one."""
    if runtime == "torch" and accelerator:
        return Fit(1, "torch on an accelerator serves one best")
    each = TORCH_MB if runtime == "torch" else ONNX_MB
    by_memory = MOST_PROCESSES if free_mb is None else int(free_mb / each)
    if by_memory < cores:
        return Fit(
            max(1, by_memory), f"{free_mb:.0f} MB of memory are free, a worker with {runtime} may use {each}"
        )
    return Fit(min(cores, MOST_PROCESSES), f"{cores} core{'s' * (cores != 1)} may be used")


def fitted(settings: Settings) -> Settings:
    """Settings with a number of processes where it was `auto`, which is logged with its reason."""
    if settings.worker.processes != "auto":
        return settings
    from connectors.encoder.model import choose

    runtime = choose(settings.model.runtime).runtime
    fit = fitting(cores(), free_megabytes(), runtime, choose("auto").runtime == "torch")
    log.info("worker processes", number=fit.processes, why=fit.why)
    return with_processes(settings, fit.processes)


def with_processes(settings: Settings, number: int) -> Settings:
    """Settings with this number of worker processes."""
    worker = settings.worker.model_copy(update={"processes": number})
    return settings.model_copy(update={"worker": worker})


def cores(root: Path = Path("/")) -> int:
    """Those that this process may run on, less where a control group has a smaller share of time; at least 1."""
    allowed = float(len(os.sched_getaffinity(0)))
    for group in _groups(root, "cpu"):
        allowed = min(allowed, _quota(group))
    return max(1, int(allowed))


def free_megabytes(root: Path = Path("/")) -> float | None:
    """Memory that can be had without swapping, within the limits of control groups; None if that is not known."""
    found = [free for group in _groups(root, "memory") if (free := _group_free(group)) is not None]
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    return min(found) / 1e6 if found else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups and of those around them, of version 2 and of version 1."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controller
        else:
            continue
        here = top / path.lstrip("/")
        yield here
        yield from (parent for parent in here.parents if parent == top or top in parent.parents)


def _quota(group: Path) -> float:
    """Cores' worth of time."""
    quota, _, period = _text(group / "cpu.max").strip().partition(" ")
    if not quota:
        quota, period = (_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or not limited
        return float("inf")
    return cores if cores > 0 else float("inf")


def _group_free(group: Path) -> int | None:
    """Bytes; pages of files that are not in use count as free."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        texts = _text(group / limit).strip(), _text(group / used).strip()
        if texts[0].isdecimal() and texts[1].isdecimal():
            return max(0, int(texts[0]) - int(texts[1]) + _inactive(group))
    return None


def _inactive(group: Path) -> int:
    """Bytes of files that were read and are not needed."""
    for line in _text(group / "memory.stat").splitlines():
        name, _, number = line.partition(" ")
        if name in {"inactive_file", "total_inactive_file"} and number.isdecimal():
            return int(number)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
