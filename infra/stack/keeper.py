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
import traceback
from pathlib import Path
from typing import Any, Final, TextIO

from infra.stack.components import Component, check_machine, components, failure
from infra.stack.environment import (
    check_free,
    choose_ports,
    replace_file,
    write_environment,
    write_secrets,
)
from infra.stack.errors import StackError, StartFailed
from infra.stack.jars import fetch
from infra.stack.processes import born, end, spawn, stop
from infra.stack.security import Security

READY_SECONDS: Final = 120.0
STOP_SECONDS: Final = 20.0
LOCK_SECONDS: Final = 20.0


class Keeper:
    """Owns the children of one home. Everything happens in the main thread: children are tied to it."""

    def __init__(self, home: Path, wanted: dict[str, int], out: TextIO) -> None:
        self.home, self.wanted, self.out = home, wanted, out
        self.parts: list[Component] = []
        self.ports: dict[str, int] = {}
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.attached = True

    def tell(self, **message: Any) -> None:
        """One line to the caller, who may be gone."""
        with contextlib.suppress(BrokenPipeError, ValueError, OSError):
            print(json.dumps(message), file=self.out, flush=True)

    def run(self) -> int:
        """Start, wait, stop. Returns the exit code."""
        signal.signal(signal.SIGTERM, _stop_now)
        signal.signal(signal.SIGINT, _stop_now)
        # Blocked, not ignored: who asks while it starts is answered once it has.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        try:
            self._start_all()
            self._stay()
        except _Stopped:
            self.tell(error="the stack was stopped while it started", code=StartFailed.exit_code)
            return 0
        except Exception as error:
            told = self._explained(error)
            self.tell(**told)
            return int(told["code"])
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._stop_all()
        return 0

    def _explained(self, error: Exception) -> dict[str, Any]:
        """One line for the caller; the trace of what nobody foresaw goes to the log."""
        if isinstance(error, StackError):
            return {"error": str(error), "code": error.exit_code}
        traceback.print_exception(error)
        said = (str(error).splitlines() or [""])[0]
        return {"error": f"{type(error).__name__}: {said}; see {self._log('keeper')}", "code": 1}

    def _start_all(self) -> None:
        self._bury()
        self._write_state()
        check_machine()
        jars = fetch(lambda line: self.tell(progress=line), check=self._check_caller)
        self._check_caller()
        self.ports = choose_ports(self.home, self.wanted)
        write_secrets(self.home)
        security = Security.load(self.home)
        for part in components(self.home, self.ports, jars, security):
            self.parts.append(part)
            self._check_caller()
        self.start_missing()
        write_environment(self.home, self.ports, {} if security is None else security.variables(self.ports))
        self.attached = False
        self._write_state()
        self.tell(ready=True)

    def _bury(self) -> None:
        """Wait for the children of a keeper that was killed: they are dying, and still hold their ports."""
        try:
            left = json.loads((self.home / "stack.json").read_text())["children"]
        except (FileNotFoundError, ValueError, KeyError):
            return
        for child in left.values():
            if child["born"] and born(child["pid"]) == child["born"]:
                end(child["pid"])

    def start_missing(self) -> None:
        """Start every component that does not run, wait until all are ready. If one fails, those that were started
        with it are stopped; the others run on."""
        waiting = [part for part in self.parts if not self._runs(part)]
        starting: dict[str, Component] = {}
        try:
            self._start_in_order(waiting, starting)
        except StackError:
            for part in starting.values():
                self._end(part)
            raise
        finally:
            self._write_state()

    def _start_in_order(self, waiting: list[Component], starting: dict[str, Component]) -> None:
        ready = {part.name for part in self.parts} - {part.name for part in waiting}
        deadline = time.monotonic() + READY_SECONDS
        while waiting or starting:
            for part in [part for part in waiting if ready.issuperset(part.after)]:
                waiting.remove(part)
                self._start(part)
                starting[part.name] = part
            for part in list(starting.values()):
                if self._is_ready(part, deadline):
                    del starting[part.name]
                    ready.add(part.name)
                    self.tell(progress=f"{part.name} ready")
            self._check_caller()
            time.sleep(0.05)

    def _start(self, part: Component) -> None:
        part.sweep()
        for name in part.ports:
            check_free(name, self.ports[name])
        self.children[part.name] = spawn(part.command, self._log(part.name), part.environment)
        self._write_state()

    def _end(self, part: Component) -> None:
        child = self.children.get(part.name)
        if child is not None:
            stop(child, part.stop_signal, STOP_SECONDS)
            part.sweep()

    def _is_ready(self, part: Component, deadline: float) -> bool:
        if not self._runs(part):
            raise failure(part, self._log(part.name), "ended while it started")
        if part.is_ready():
            part.on_ready()
            return True
        if time.monotonic() > deadline:
            raise failure(part, self._log(part.name), f"is not ready after {READY_SECONDS:.0f} s")
        return False

    def _runs(self, part: Component) -> bool:
        child = self.children.get(part.name)
        return child is not None and child.poll() is None

    def _log(self, name: str) -> Path:
        return self.home / "log" / f"{name}.log"

    def _write_state(self) -> None:
        """`settled` between readiness and the end: only then does the keeper answer."""
        me = {"pid": os.getpid(), "born": born(os.getpid())}
        pids = {name: {"pid": child.pid, "born": born(child.pid)} for name, child in self.children.items()}
        state = {"keeper": me, "settled": not self.attached, "children": pids}
        replace_file(self.home / "stack.json", json.dumps(state))

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
            os.dup2(nowhere.fileno(), self.out.fileno())
        while True:
            if signal.sigtimedwait({signal.SIGUSR1}, 1.0) is None:
                for child in self.children.values():
                    child.poll()
                continue
            told: dict[str, Any] = {"ready": True}
            try:
                self.start_missing()
            except Exception as error:
                told = self._explained(error)
            replace_file(self.home / "restart.json", json.dumps(told))

    def _stop_all(self) -> None:
        """Connect before Kafka, the servers last; all at once within each step would be no faster."""
        self.attached = True
        with contextlib.suppress(OSError):  # a full disk must not keep anything running
            self._write_state()
        for part in reversed(self.parts):
            self._end(part)
        (self.home / "stack.json").unlink(missing_ok=True)


class _Stopped(BaseException):
    """Told to stop, or the caller is gone. Like KeyboardInterrupt, caught by nobody on the way."""


def _stop_now(number: int, frame: object) -> None:
    raise _Stopped


def main() -> int:
    """`python -m infra.stack.keeper HOME '{"kafka": 9092}'`."""
    home, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    # The caller reads JSON lines: whatever a library prints belongs into the log.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with (home / "keeper.lock").open("w") as lock:
        keeper = Keeper(home, wanted, out)
        if not _locked(lock):
            keeper.tell(error=f"another keeper runs in {home}", code=StackError.exit_code)
            return StackError.exit_code
        return keeper.run()


def _locked(lock: TextIO) -> bool:
    """Whether the home is ours; one that is just ending is waited for."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True


if __name__ == "__main__":
    exit_code = main()
    sys.stderr.flush()
    # Not sys.exit: it would wait for downloads that nobody wants any more.
    os._exit(exit_code)
