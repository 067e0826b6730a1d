"""Stops the benchmark's stack when the benchmark is gone, killed or not: `python -m streams.benchmark.guard HOME`.

The stack's keeper outlives whoever started it. This waits for the end of its standard input, which the benchmark holds
open.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path


def main() -> None:
    """In a session of its own: a Control-C is the benchmark's to answer, which then stops the stack itself."""
    from infra import stack

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.buffer.read()
    stack.down(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
