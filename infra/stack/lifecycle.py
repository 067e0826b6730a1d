"""`up`, `down` and `status`: what a caller sees of the keeper."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infra.stack.environment import StackEnvironment, kept_ports
from infra.stack.errors import PortTaken, StackError, StartFailed
from infra.stack.processes import born, end, tail, wait_gone
from infra.stack.security import Security

NAMES: Final = ("source", "sink", "kafka", "registry", "connect")
DOWN_SECONDS: Final = 120.0
RESTART_SECONDS: Final = 150.0


@dataclass(frozen=True, slots=True)
class ComponentStatus:
    """One component; `pid` None if it does not run."""

    name: str
    pid: int | None
    log: Path


def _state(home: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((home / "stack.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return state


def _alive(entry: Mapping[str, Any] | None) -> int | None:
    """The pid, if it still is the process that was started: a reused pid is never touched."""
    if not entry or not entry["born"] or born(int(entry["pid"])) != entry["born"]:
        return None
    return int(entry["pid"])


def status(home: Path) -> list[ComponentStatus]:
    """Every component of a home, running or not."""
    children = _state(home).get("children", {})
    return [ComponentStatus(name, _alive(children.get(name)), home / "log" / f"{name}.log") for name in NAMES]


def up(
    home: Path,
    *,
    progress: Callable[[str], None],
    ports: Mapping[str, int] | None = None,
    security: Security | None = None,
) -> StackEnvironment:
    """Start what does not run and return when all are ready. Raises StackError; then nothing is left running
    that was not before. A home keeps the `security` of its first start."""
    home, wanted = home.resolve(), dict(ports or {})
    try:
        (home / "log").mkdir(parents=True, exist_ok=True)
        with _alone(home, progress):
            keeper = _settled_keeper(home)
            if security is not None and kept_ports(home) == {}:
                security.save(home)
            if keeper is None:
                _start_keeper(home, wanted, progress)
            else:
                _check_ports(home, wanted)
                _start_missing(home, keeper, progress)
    except OSError as error:
        raise StackError(
            f"the stack's state cannot be written: {error.filename or home}: {error.strerror}"
        ) from error
    return StackEnvironment.load(home)


@contextlib.contextmanager
def _alone(home: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """One `up` of a home at a time: a second one waits for the first, and then finds everything ready."""
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("stack: waiting for another start of this stack")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _settled_keeper(home: Path) -> int | None:
    """The keeper, if it has made everything ready. One that has not has no caller left, or it is going down: it is
    waited for."""
    state = _state(home)
    keeper = _alive(state.get("keeper"))
    if keeper is None or state["settled"]:
        return keeper
    wait_gone(keeper, state["keeper"]["born"], DOWN_SECONDS)
    return None


def _check_ports(home: Path, wanted: Mapping[str, int]) -> None:
    kept = kept_ports(home)
    for name, port in wanted.items():
        if kept.get(name) != port:
            raise PortTaken(
                f"the stack runs with port {kept.get(name)} for {name}: stop it before you change it"
            )


def _start_keeper(home: Path, ports: dict[str, int], progress: Callable[[str], None]) -> None:
    log = home / "log" / "keeper.log"
    with log.open("ab") as out:
        keeper = subprocess.Popen(
            # -P: a folder `infra` where the caller stands is not ours.
            [sys.executable, "-P", "-m", "infra.stack.keeper", str(home), json.dumps(ports)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
            start_new_session=True,
        )
    assert keeper.stdout is not None
    for line in keeper.stdout:
        message = json.loads(line)
        if "progress" in message:
            progress(f"stack: {message['progress']}")
        elif "error" in message:
            keeper.wait()
            raise _told(message)
        elif message.get("ready"):
            return
    keeper.wait()
    raise StartFailed(f"the stack's keeper ended with {keeper.returncode}; last lines of {log}:\n{tail(log)}")


def _told(message: Mapping[str, Any]) -> StackError:
    error = StackError(message["error"])
    error.exit_code = message["code"]
    return error


def _start_missing(home: Path, keeper: int, progress: Callable[[str], None]) -> None:
    """Ask the keeper also when everything runs: its answer says that everything is ready, too."""
    answer = home / "restart.json"
    answer.unlink(missing_ok=True)
    dead = ", ".join(each.name for each in status(home) if each.pid is None)
    if dead:
        progress(f"stack: starting {dead} again")
    os.kill(keeper, signal.SIGUSR1)
    deadline = time.monotonic() + RESTART_SECONDS
    while not answer.exists() or not answer.read_text():
        if time.monotonic() > deadline or born(keeper) == "":
            raise StartFailed(f"{dead or 'the stack'} did not start again; see {home / 'log'}")
        time.sleep(0.05)
    found = json.loads(answer.read_text())
    if "error" in found:
        raise _told(found)


def down(home: Path) -> None:
    """Stop everything of a home; what it stored stays. Does nothing where nothing runs."""
    state = _state(home)
    keeper = _alive(state.get("keeper"))
    if keeper is not None:
        os.kill(keeper, signal.SIGTERM)
        birth = state["keeper"]["born"]
        if not wait_gone(keeper, birth, DOWN_SECONDS):
            end(keeper)
    for entry in state.get("children", {}).values():
        pid = _alive(entry)
        if pid is not None:
            end(pid)
    if (home / "ports.json").exists():
        from infra.stack import postgres

        for name in ("source", "sink"):
            postgres.sweep(home / name, security=Security.load(home))
