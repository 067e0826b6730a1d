"""The keeper: one detached process that starts the components, and whose children die with it.

Until all are ready it dies with its caller (the end of its standard input says so), afterwards only by SIGTERM
(`down`). SIGUSR1 makes it start again what died. It talks to its caller in JSON lines on standard output.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from infra.stack.components import Component, components, failure
from infra.stack.environment import check_free, choose_ports, write_environment, write_secrets
from infra.stack.errors import StackError
from infra.stack.jars import fetch
from infra.stack.processes import born, spawn, stop

READY_SECONDS: Final = 120.0
STOP_SECONDS: Final = 20.0


class Keeper:
    """Owns the children of one home. Everything happens in the main thread: children are tied to it."""

    def __init__(self, home: Path, wanted: dict[str, int]) -> None:
        self.home, self.wanted = home, wanted
        self.parts: list[Component] = []
        self.ports: dict[str, int] = {}
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.attached = True

    def tell(self, **message: Any) -> None:
        """One line to the caller, who may be gone."""
        with contextlib.suppress(BrokenPipeError, ValueError, OSError):
            print(json.dumps(message), flush=True)

    def run(self) -> int:
        """Start, wait, stop. Returns the exit code."""
        signal.signal(signal.SIGTERM, _stop_now)
        signal.signal(signal.SIGINT, _stop_now)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        try:
            self._start_all()
            self._stay()
        except StackError as error:
            self.tell(error=str(error), code=error.exit_code)
            return error.exit_code
        except _Stopped:
            return 0
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self._stop_all()
        return 0

    def _start_all(self) -> None:
        jars = fetch(lambda line: self.tell(progress=line))
        self._check_caller()
        self.ports = choose_ports(self.home, self.wanted)
        for name, port in self.ports.items():
            check_free(name, port)
        write_secrets(self.home)
        self.parts = components(self.home, self.ports, jars)
        self.start_missing()
        write_environment(self.home, self.ports)
        self.tell(ready=True)
        self.attached = False

    def start_missing(self) -> None:
        """Start every component that does not run, wait until all are ready."""
        waiting = [part for part in self.parts if not self._runs(part)]
        starting: dict[str, Component] = {}
        ready = {part.name for part in self.parts} - {part.name for part in waiting}
        deadline = time.monotonic() + READY_SECONDS
        while waiting or starting:
            for part in [part for part in waiting if ready.issuperset(part.after)]:
                waiting.remove(part)
                starting[part.name] = part
                self.children[part.name] = spawn(part.command, self._log(part), part.environment)
                self._write_state()
            for part in list(starting.values()):
                if self._is_ready(part, deadline):
                    del starting[part.name]
                    ready.add(part.name)
                    self.tell(progress=f"{part.name} ready")
            self._check_caller()
            time.sleep(0.05)

    def _is_ready(self, part: Component, deadline: float) -> bool:
        if not self._runs(part):
            raise failure(part, self._log(part), "ended while it started")
        if part.is_ready():
            part.on_ready()
            return True
        if time.monotonic() > deadline:
            raise failure(part, self._log(part), f"is not ready after {READY_SECONDS:.0f} s")
        return False

    def _runs(self, part: Component) -> bool:
        child = self.children.get(part.name)
        return child is not None and child.poll() is None

    def _log(self, part: Component) -> Path:
        return self.home / "log" / f"{part.name}.log"

    def _write_state(self) -> None:
        pids = {name: {"pid": child.pid, "born": born(child.pid)} for name, child in self.children.items()}
        new = self.home / "stack.json.new"
        new.write_text(
            json.dumps({"keeper": {"pid": os.getpid(), "born": born(os.getpid())}, "children": pids})
        )
        new.replace(self.home / "stack.json")

    def _check_caller(self) -> None:
        """Until everything is ready, the end of standard input means that the caller is gone."""
        if not self.attached:
            return
        with selectors.DefaultSelector() as selector:
            selector.register(sys.stdin, selectors.EVENT_READ)
            if selector.select(0) and not os.read(sys.stdin.fileno(), 1):
                raise _Stopped

    def _stay(self) -> None:
        """Sleep until a signal: SIGUSR1 starts again what died."""
        with open(os.devnull, "r+b") as nowhere:
            os.dup2(nowhere.fileno(), 0)
            os.dup2(nowhere.fileno(), 1)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        while True:
            if signal.sigtimedwait({signal.SIGUSR1}, 1.0) is None:
                for child in self.children.values():
                    child.poll()
                continue
            answer = self.home / "restart.json"
            try:
                self.start_missing()
                answer.write_text(json.dumps({"ready": True}))
            except StackError as error:
                answer.write_text(json.dumps({"error": str(error), "code": error.exit_code}))

    def _stop_all(self) -> None:
        """Connect before Kafka, the servers last; all at once within each step would be no faster."""
        for part in reversed(self.parts):
            child = self.children.get(part.name)
            if child is not None:
                stop(child, part.stop_signal, STOP_SECONDS)
        (self.home / "stack.json").unlink(missing_ok=True)


class _Stopped(Exception):
    """Told to stop, or the caller is gone."""


def _stop_now(number: int, frame: object) -> None:
    raise _Stopped


def main() -> int:
    """`python -m infra.stack.keeper HOME '{"kafka": 9092}'`."""
    home, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    with (home / "keeper.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(json.dumps({"error": f"another keeper is starting in {home}", "code": 2}), flush=True)
            return 2
        os.set_inheritable(lock.fileno(), False)
        return Keeper(home, wanted).run()


if __name__ == "__main__":
    sys.exit(main())
