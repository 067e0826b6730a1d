"""`python -m tests.mutations [--jobs N] [NAME...]`: take out guards, all or those whose name contains one of NAME."""

from __future__ import annotations

import argparse
import sys
import time

from tests.mutations import runner
from tests.mutations.guards import GUARDS


def main(arguments: list[str]) -> int:
    """0 if every guard that was taken out was noticed by a test, 1 otherwise, 2 if the tests fail as it is."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    chosen = [
        guard
        for guard in GUARDS
        if not options.names or any(name.lower() in guard.name.lower() for name in options.names)
    ]
    if not chosen:
        print("no guard has such a name", file=sys.stderr)
        return 2
    begun = time.monotonic()
    runner.warm()
    with runner.postgres(chosen):
        code, output = runner.unchanged(chosen)
        if code != 0:
            print(f"{output}\nthe tests fail though nothing was taken out", file=sys.stderr)
            return 2
        runs = runner.take_out(chosen, options.jobs, tell)
    missed = [run for run in runs if not run.noticed]
    for run in missed:
        print(f"\n{run.guard.name}: pytest ended with {run.code}\n{run.output[-3000:]}")
    print(f"{len(runs) - len(missed)} of {len(runs)} noticed, {time.monotonic() - begun:.0f} s")
    return 1 if missed else 0


def tell(run: runner.Run) -> None:
    said = "noticed" if run.noticed else "NOT NOTICED"
    print(f"{said:11}  {run.seconds:4.1f} s  {run.guard.name}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
