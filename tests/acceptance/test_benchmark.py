"""`upwell benchmark` on the real stack: it measures, writes what it measured, and leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streams.benchmark.results import Results
from tests.deployment import ROOT, until

pytestmark = [pytest.mark.acceptance, pytest.mark.long]

SECONDS = 500


def begun(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "streams.cli", "benchmark", "--quick", "--home", str(home), *arguments],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("UPWELL_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left(home: Path) -> list[str]:
    """Command lines of processes that have to do with `home`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            except OSError:
                continue
            if str(home / "line") in words:
                found.append(words)
    return found


@pytest.mark.timeout(SECONDS + 60)
def test_it_measures_and_keeps_what_it_measured(tmp_path: Path) -> None:
    """Chunks are counted, so two of their targets hold on any machine; how fast a search is says nothing here."""
    process = begun(tmp_path, "--only", "chunks,search")
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode in (0, 1), out
    found = Results.from_json((tmp_path / "benchmark.json").read_text())
    assert [(section.name, section.problem) for section in found.sections] == [
        ("chunks", ""),
        ("search", ""),
    ], out
    figures = found.figures()
    assert figures["chunks.replaced"].holds, out
    assert figures["chunks.same"].value == 1, out
    assert figures["search.view_recall_churned"].value > 0.8, out
    assert (tmp_path / "benchmark.svg").read_text().startswith("<svg")
    assert not (tmp_path / "line").exists()
    assert left(tmp_path) == []


@pytest.mark.timeout(200)
def test_killed_it_leaves_nothing_running(tmp_path: Path) -> None:
    process = begun(tmp_path, "--only", "chunks")
    until(lambda: any("worker" in words for words in left(tmp_path)), 90, "a worker of the benchmark")
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: left(tmp_path) == [], 90, "everything has ended")
