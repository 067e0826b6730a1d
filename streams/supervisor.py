"""N worker processes with stable slots: what crashes is started again, what halts stops all (DESIGN 10).

Single-threaded on purpose: children ask the kernel to be killed when the thread that started them ends.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from schemas.errors import Halt

log = structlog.get_logger()

FIRST_BACKOFF_SECONDS: Final = 0.5
LONGEST_BACKOFF_SECONDS: Final = 60.0
#: A worker that ran this long starts again without delay.
STEADY_SECONDS: Final = 60.0
#: After SIGTERM; a worker ends by itself well before.
STOP_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.05


@dataclass(slots=True)
class _Child:
    slot: str
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    backoff_seconds: float = FIRST_BACKOFF_SECONDS
    done: bool = False


@dataclass(slots=True)
class Supervisor:
    """`start` starts the worker of a slot, tied to this process."""

    slots: Sequence[str]
    start: Callable[[str], subprocess.Popen[bytes]]
    stop_seconds: float = STOP_SECONDS
    _stopping: bool = False
    _children: list[_Child] = field(default_factory=list)

    def run(self) -> None:
        """Until SIGTERM or SIGINT, or until every worker has ended with 0. Raises Halt when one has ended with 2."""
        self._children = [_Child(slot) for slot in self.slots]
        with self._signals():
            try:
                while not self._stopping and any(not child.done for child in self._children):
                    for child in self._children:
                        self._look(child)
                    time.sleep(POLL_SECONDS)
            finally:
                self._stop_all()

    def _look(self, child: _Child) -> None:
        now = time.monotonic()
        if child.done:
            return
        if child.process is None:
            if now >= child.start_at:
                child.process, child.started_at = self.start(child.slot), now
            return
        code = child.process.poll()
        if code is None:
            return
        child.process = None
        if code == 0:
            child.done = True
        elif code == Halt.exit_code:
            raise Halt(
                f"worker {child.slot} halted, its reason is in the line above; all workers are stopped"
            )
        else:
            self._later(child, code, now)

    def _later(self, child: _Child, code: int, now: float) -> None:
        if now - child.started_at > STEADY_SECONDS:
            child.backoff_seconds = FIRST_BACKOFF_SECONDS
        ended = {"signal": signal.Signals(-code).name} if code < 0 else {"exit_code": code}
        log.warning("worker ended", slot=child.slot, again_in_seconds=child.backoff_seconds, **ended)
        child.start_at = now + child.backoff_seconds
        child.backoff_seconds = min(2 * child.backoff_seconds, LONGEST_BACKOFF_SECONDS)

    def _stop_all(self) -> None:
        """SIGTERM to all at once, SIGKILL to what is left: nothing is lost, it is taken in again."""
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self.stop_seconds
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("worker killed", pid=process.pid, after_seconds=self.stop_seconds)
                process.kill()
                process.wait()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: Any) -> None:
            self._stopping = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
