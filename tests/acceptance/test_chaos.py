"""A short `make chaos` with a fixed seed and the fake model, on a stack of its own: everything is killed once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployment import ROOT

pytestmark = pytest.mark.acceptance

SEED = 5
MINUTES = "0.5"
#: Alone on two cores it takes a quarter of it.
SECONDS = 480


@pytest.mark.timeout(SECONDS + 90)
def test_everything_is_killed_once_and_every_promise_holds(tmp_path: Path) -> None:
    """Its lines are what is needed to do it again: seed, faults, and the key and numbers of what did not hold."""
    home = tmp_path / "home"
    command = ["--seed", str(SEED), "--minutes", MINUTES, "--model", "fake", "--home", str(home)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", *command],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("UPWELL_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        out, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it stops what it started
        out, _ = process.communicate(timeout=60)
    print(out)
    assert process.returncode == 0, out
    assert out.rstrip().endswith(": PASSED")
    assert not home.exists()
