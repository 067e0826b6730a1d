"""Child processes that die with their parent, and processes known by pid and start time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)

#: Run by a child to tie itself to its parent: entering a user namespace had cleared the kernel's note.
TIED: Final = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
)


def tied_to(parent: int) -> Callable[[], None]:
    """What a child runs before its program. A parent that died before the kernel was told leaves no orphan."""

    def tie() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if os.getppid() != parent:
            os._exit(1)

    return tie


def spawn(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own that is killed when this thread's process ends. Main thread only."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            preexec_fn=tied_to(os.getpid()),  # noqa: PLW1509  the keeper has one thread
        )


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, or until this process ends."""
    return subprocess.run(
        list(command),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        preexec_fn=tied_to(os.getpid()),
    )


def unprivileged(command: Sequence[str]) -> list[str]:
    """As root, the command in a user namespace where it is not (Postgres refuses root); else as it is."""
    if os.geteuid() != 0:
        return list(command)
    namespace = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    return [*namespace, sys.executable, "-I", "-S", "-c", TIED, str(os.getpid()), *command]


def born(pid: int) -> str:
    """Start time of a process in clock ticks; "" if there is none, or only a zombie: a reused pid is another one.
    A zombie with threads is still dying, and still holds its ports."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" and int(fields[17]) <= 1 else fields[19]


def stop(process: subprocess.Popen[bytes], number: signal.Signals, seconds: float) -> None:
    """Signal, wait, and kill what is left of its session."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def wait_gone(pid: int, birth: str, seconds: float) -> bool:
    """Whether a process that is not our child ended in time."""
    deadline = time.monotonic() + seconds
    while born(pid) == birth and birth:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def end(pid: int, seconds: float = 10.0) -> None:
    """Kill a process that is not our child, and wait until it is gone."""
    birth = born(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_gone(pid, birth, seconds)


def running(program: Path, directory: Path) -> list[int]:
    """Processes of a program that work in a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            here = (os.readlink(entry / "exe"), os.readlink(entry / "cwd"))
            if here == (str(program.resolve()), str(directory.resolve())):
                found.append(int(entry.name))
    return found


def tail(path: Path, lines: int = 8) -> str:
    """Last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"
