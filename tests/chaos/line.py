"""Everything that runs while there is chaos, by name: the stack's components and upwell's own processes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import requests
from psycopg.conninfo import make_conninfo

from infra import stack
from infra.stack.processes import born, wait_gone
from tests.acceptance.plain import one
from tests.chaos.errors import Violated
from tests.deployment import DSNS, Deployment, Stack, WorkerProcess, until

COMPONENTS: Final = ("source", "sink", "kafka", "registry", "connect")
PROCESSES: Final = ("supervisor", "worker", "monitor")
COLLECTIONS: Final = ("content", "customers")
#: Both as `tests/acceptance/test_freshness.py` has them, with more air for two busy cores.
THRESHOLD_SECONDS: Final = 12.0
SETTINGS: Final = {
    "UPWELL_MONITOR_ROUND_SECONDS": "2",
    "UPWELL_MONITOR_RESTART_SECONDS": "2",
    "UPWELL_CONNECT_HEARTBEAT_INTERVAL_MS": "500",
}
#: `worker --processes 2` and `monitor`, with the real model and with the fake one.
MODULES: Final = {
    "real": (("streams.cli", ("worker", "--processes", "2")), ("streams.cli", ("monitor", "--port", "0"))),
    "fake": (
        ("tests.fake_worker", ("--processes", "2")),
        ("tests.fake_cli", ("monitor", "--port", "0")),
    ),
}
STARTS: Final = 3


def start_stack(home: Path, progress: Callable[[str], None] = lambda line: None) -> dict[str, str]:
    """Its addresses. A start that a busy machine was too slow for is tried again."""
    for _ in range(STARTS - 1):
        with contextlib.suppress(stack.StackError):
            return dict(stack.up(home, progress=progress).variables)
    return dict(stack.up(home, progress=progress).variables)


def families() -> dict[int, list[int]]:
    """Children by their parent, of every process, also in sessions of their own."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    found.setdefault(int(fields[1]), []).append(int(entry.name))
    return found


def tree(pid: int, of: dict[int, list[int]] | None = None) -> list[int]:
    """A process and all below it."""
    of = families() if of is None else of
    return [pid, *(below for child in of.get(pid, []) for below in tree(child, of))]


def send(pid: int, number: signal.Signals) -> None:
    """A signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@dataclass
class Line:
    """A deployment under chaos. Processes are started by the main thread only: they are tied to it."""

    deployment: Deployment
    model: str
    gaps: bool = False
    supervisor: WorkerProcess | None = None
    monitor: WorkerProcess | None = None
    #: What must stand in no output.
    planted: dict[str, str] = field(default_factory=dict)

    @classmethod
    def opened(cls, seed: int, home: Path, variables: dict[str, str], model: str, gaps: bool) -> Line:
        """That of a home, whose databases are made if they are not there."""
        deployment = Deployment.opened(f"chaos_{seed}", Stack(home / "stack", variables), home)
        planted = {
            "a password": f"planted-password-{seed}",
            "the monitor's token": f"planted-token-{seed}",
            "an excluded column": f"planted-email-{seed}@example.org",
        }
        for variable in DSNS:
            with_password = make_conninfo(deployment.environment[variable], password=planted["a password"])
            deployment.environment[variable] = with_password
        deployment.tied = True
        deployment.environment.update(SETTINGS, UPWELL_MONITOR_TOKEN=planted["the monitor's token"])
        if gaps:
            deployment.environment["UPWELL_MONITOR_REBUILD"] = "true"
        if model == "fake":
            deployment.cli = "tests.fake_cli"
        return cls(deployment, model, gaps, planted=planted)

    @property
    def home(self) -> Path:
        return self.deployment.stack.home

    # The stack's components.

    def up(self) -> None:
        """Start what does not run."""
        start_stack(self.home)

    def component(self, name: str) -> int | None:
        return next(each.pid for each in stack.status(self.home) if each.name == name)

    # Our own processes.

    def start_supervisor(self) -> None:
        module, arguments = MODULES[self.model][0]
        self.supervisor = self.deployment.start_worker("w", module=module, arguments=arguments)

    def start_monitor(self) -> None:
        module, arguments = MODULES[self.model][1]
        self.monitor = self.deployment.start_worker("monitor", module=module, arguments=arguments)

    def start_extra(self, slot: str) -> WorkerProcess:
        module, arguments = MODULES[self.model][0]
        return self.deployment.start_worker(slot, module=module, arguments=arguments[:-2])

    def workers(self) -> list[int]:
        """Process ids of the supervised workers that run."""
        return [] if self.supervisor is None else sorted(families().get(self.supervisor.process.pid, []))

    def pids(self, name: str) -> list[int]:
        """Of a component, of a process of ours, or of one of the workers; empty if it does not run."""
        if name in COMPONENTS:
            pid = self.component(name)
            return [] if pid is None else tree(pid)
        if name == "worker":
            return self.workers()[:1]
        process = self.supervisor if name == "supervisor" else self.monitor
        return [] if process is None or process.process.poll() is not None else [process.process.pid]

    def kill(self, name: str) -> bool:
        """kill -9, and nothing else; whether it ran. Workers end with their supervisor by themselves."""
        orphans = {pid: born(pid) for pid in self.workers()} if name == "supervisor" else {}
        found = self.pids(name)[:1]
        for pid in found:
            birth = born(pid)
            send(pid, signal.SIGKILL)
            wait_gone(pid, birth, 10)
        for process in (self.supervisor, self.monitor):
            if process is not None:
                process.process.poll()
        for pid, birth in orphans.items():
            if not wait_gone(pid, birth, 10):
                raise Violated("a worker", f"{pid} outlived its killed supervisor by 10 s")
        return bool(found)

    def freeze(self, name: str) -> list[int]:
        """Stop it where it is; which processes that are."""
        pids = self.pids(name)
        for pid in pids:
            send(pid, signal.SIGSTOP)
        return pids

    def thaw(self) -> None:
        """Let everything go on that is stopped, whoever stopped it."""
        for name in (*COMPONENTS, "supervisor", "monitor"):
            for pid in self.pids(name):
                send(pid, signal.SIGCONT)
        for pid in self.workers():
            send(pid, signal.SIGCONT)

    def run_on(self) -> None:
        """Everything runs: what an operator's init system would start again is started again."""
        self.thaw()
        self.up()
        if self.supervisor is None or self._ended(self.supervisor, "the supervisor"):
            self.start_supervisor()
        if self.monitor is None or self._ended(self.monitor, "the monitor"):
            self.start_monitor()

    def _ended(self, process: WorkerProcess, name: str) -> bool:
        """Whether it has ended. Nobody asked it to, where it ended with 0; a HALT is for good."""
        code = process.process.poll()
        if code in (0, 2):
            raise Violated("a process", f"{name} ended with {code} by itself: {process.tail()}")
        return code is not None

    def stop(self, name: str) -> None:
        """SIGTERM to one of ours, and its exit code must be 0. One that is just being started cannot heed it yet."""
        process = self.supervisor if name == "supervisor" else self.monitor
        if process is None or process.process.poll() is not None:
            return
        if process.stop(60) != 0 and process.log.read_text(errors="replace"):
            raise Violated("a process", f"{name} stopped with {process.process.returncode}: {process.tail()}")
        if name == "supervisor":
            self.supervisor = None
        else:
            self.monitor = None

    def close(self) -> None:
        """End upwell's processes."""
        self.thaw()
        for worker in self.deployment.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 15
        for worker in self.deployment.workers:
            with contextlib.suppress(Exception):
                worker.process.wait(max(0.1, deadline - time.monotonic()))
            if worker.process.poll() is None:
                worker.kill()

    # Neighbours.

    def connector(self, path: str = "", method: str = "GET", **options: Any) -> Any:
        """Connect's answer about our connector, once it gives one: it refuses while it rebalances."""
        url = f"{self.deployment.environment['UPWELL_CONNECT_URL']}/connectors/upwell-{self.deployment.name}{path}"

        def asked() -> requests.Response | None:
            answer: requests.Response | None
            try:
                answer = requests.request(method, url, timeout=30, **options)
            except requests.RequestException:
                answer = None
            if answer is None or not answer.ok:
                time.sleep(0.2)
                return None
            return answer

        answer = until(asked, 90, f"{method} {url}")
        assert answer is not None
        return answer.json() if answer.content else None

    def topic_prefix(self) -> str:
        with self.deployment.sink() as sink:
            return str(one(sink, "SELECT topic_prefix FROM upwell.lineage ORDER BY number DESC LIMIT 1"))
