"""`up`, `down` and `status`: what a caller sees of the keeper."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infra.stack.environment import StackEnvironment
from infra.stack.errors import StackError, StartFailed
from infra.stack.processes import born, tail, wait_gone

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
    home: Path, *, progress: Callable[[str], None], ports: Mapping[str, int] | None = None
) -> StackEnvironment:
    """Start what does not run and return when all are ready. Raises StackError; then nothing is left running
    that was not before."""
    home = home.resolve()
    (home / "log").mkdir(parents=True, exist_ok=True)
    keeper = _alive(_state(home).get("keeper"))
    if keeper is None:
        _start_keeper(home, dict(ports or {}), progress)
    elif any(each.pid is None for each in status(home)):
        _restart(home, keeper, progress)
    return StackEnvironment.load(home)


def _start_keeper(home: Path, ports: dict[str, int], progress: Callable[[str], None]) -> None:
    log = home / "log" / "keeper.log"
    with log.open("ab") as out:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "infra.stack.keeper", str(home), json.dumps(ports)],
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
            error = StackError(message["error"])
            error.exit_code = message["code"]
            raise error
        elif message.get("ready"):
            return
    keeper.wait()
    raise StartFailed(f"the stack's keeper ended with {keeper.returncode}; last lines of {log}:\n{tail(log)}")


def _restart(home: Path, keeper: int, progress: Callable[[str], None]) -> None:
    answer = home / "restart.json"
    answer.unlink(missing_ok=True)
    dead = ", ".join(each.name for each in status(home) if each.pid is None)
    progress(f"stack: starting {dead} again")
    os.kill(keeper, signal.SIGUSR1)
    deadline = time.monotonic() + RESTART_SECONDS
    while not answer.exists() or not answer.read_text():
        if time.monotonic() > deadline or born(keeper) == "":
            raise StartFailed(f"{dead} did not start again; see {home / 'log'}")
        time.sleep(0.05)
    found = json.loads(answer.read_text())
    if "error" in found:
        error = StackError(found["error"])
        error.exit_code = found["code"]
        raise error


def down(home: Path) -> None:
    """Stop everything of a home; what it stored stays. Does nothing where nothing runs."""
    state = _state(home)
    keeper = _alive(state.get("keeper"))
    if keeper is not None:
        os.kill(keeper, signal.SIGTERM)
        birth = state["keeper"]["born"]
        if not _reaped(keeper, birth):
            os.kill(keeper, signal.SIGKILL)
            wait_gone(keeper, birth, 10)
    for entry in state.get("children", {}).values():
        pid = _alive(entry)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait_gone(pid, entry["born"], 10)


def _reaped(keeper: int, birth: str) -> bool:
    return wait_gone(keeper, birth, DOWN_SECONDS)
