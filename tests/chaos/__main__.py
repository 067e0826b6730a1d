"""`python -m tests.chaos --seed N --minutes M`: run again with the same seed and home, it goes on where it ended."""

from __future__ import annotations

import argparse
import fcntl
import signal
import sys
from pathlib import Path
from typing import Any

from tests.chaos.run import LONG_MINUTES, Options, run
from tests.deployment import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", choices=("real", "fake"), default="fake")
    parser.add_argument("--home", type=Path)
    parser.add_argument(
        "--gaps",
        action=argparse.BooleanOptionalAction,
        help="changes are lost for good, too, and the monitor rebuilds; default in a long run",
    )
    given = parser.parse_args()
    gaps = given.minutes >= LONG_MINUTES if given.gaps is None else given.gaps
    home = (given.home or ROOT / ".upwell" / f"chaos-{given.seed}").resolve()
    home.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _interrupt)
    with (home / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another run works in {home}")
            return 2
        return run(Options(given.seed, given.minutes, given.model, home, gaps))


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
