"""What crashes is started again, what halts stops all, and nobody outlives the supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.stack.processes import born, tied_to
from schemas.errors import Halt
from streams import supervisor
from streams.supervisor import Supervisor
from tests.deployment import until

#: Notes its start in a file of its slot, then does what it is told.
CHILD = "import os, signal, sys, time; open(sys.argv[1], 'a').write(f'{{os.getpid()}} '); {}"
SLEEP = "time.sleep(60)"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 0.05)


def starting(folder: Path, **programs: str) -> Callable[[str], subprocess.Popen[bytes]]:
    """Starts the program of a slot."""

    def start(slot: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-S", "-c", CHILD.format(programs[slot]), str(folder / slot)]
        return subprocess.Popen(command, preexec_fn=tied_to(os.getpid()))

    return start


def pids(folder: Path, slot: str) -> list[int]:
    path = folder / slot
    return [int(each) for each in path.read_text().split()] if path.exists() else []


def terminate_when(condition: Callable[[], bool]) -> threading.Thread:
    """SIGTERM to this process once `condition` holds."""

    def wait() -> None:
        until(condition, 20, "the condition")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_crash_is_started_again_and_the_others_stay(tmp_path: Path) -> None:
    start = starting(tmp_path, a="sys.exit(1)", b=SLEEP, c="os.kill(os.getpid(), signal.SIGKILL)")
    ending = terminate_when(lambda: len(pids(tmp_path, "a")) >= 3 and len(pids(tmp_path, "c")) >= 3)
    Supervisor(["a", "b", "c"], start).run()
    ending.join()
    assert len(pids(tmp_path, "b")) == 1
    assert all(born(pid) == "" for slot in "abc" for pid in pids(tmp_path, slot))


def test_each_crash_waits_longer_and_a_steady_worker_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LONGEST_BACKOFF_SECONDS", 0.3)
    made = Supervisor([], lambda slot: pytest.fail("started"))
    child = supervisor._Child("a", backoff_seconds=0.05)
    waits = []
    for now, started_at in ((100.0, 99.0), (100.0, 99.0), (100.0, 99.0), (100.0, 99.0), (100.0, 30.0)):
        child.started_at = started_at
        made._later(child, 1, now)
        waits.append(round(child.start_at - now, 3))
    assert waits == [0.05, 0.1, 0.2, 0.3, 0.05]


def test_a_halt_stops_all(tmp_path: Path) -> None:
    start = starting(tmp_path, a=SLEEP, b="time.sleep(0.3); sys.exit(2)")
    with pytest.raises(Halt, match="worker b halted"):
        Supervisor(["a", "b"], start).run()
    assert [born(pid) for pid in pids(tmp_path, "a")] == [""]


def test_what_ends_with_0_is_not_started_again(tmp_path: Path) -> None:
    start = starting(tmp_path, a="sys.exit(0)", b="time.sleep(0.5)")
    Supervisor(["a", "b"], start).run()
    assert [len(pids(tmp_path, slot)) for slot in "ab"] == [1, 1]


def test_what_does_not_end_is_killed(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); open(sys.argv[1] + '.deaf', 'w'); time.sleep(60)"
    ending = terminate_when(lambda: (tmp_path / "a.deaf").exists())
    Supervisor(["a"], starting(tmp_path, a=deaf), stop_seconds=0.5).run()
    ending.join()
    assert [born(pid) for pid in pids(tmp_path, "a")] == [""]


def test_a_killed_supervisor_leaves_nobody(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from streams.supervisor import Supervisor;"
        "from tests.unit.test_supervisor import SLEEP, starting;"
        "Supervisor(['a', 'b'], starting(Path(sys.argv[1]), a=SLEEP, b=SLEEP)).run()"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}) as process:
        until(lambda: pids(tmp_path, "a") and pids(tmp_path, "b"), 30, "two workers")
        process.kill()
    for slot in "ab":
        (pid,) = pids(tmp_path, slot)
        until(lambda pid=pid: born(pid) == "", 10, f"the end of {slot}")  # type: ignore[misc]
