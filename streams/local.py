"""The whole line on one machine, as `up`, `down` and `demo` drive it: stack, sample, capture, workers, monitor."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.errors import SettingsError
from streams.settings import Settings, read_environment_file

Progress = Callable[[str], None]
STOP_SECONDS: Final = 40.0
WORKERS: Final = 2
#: Until a monitor that was started has said where its page is.
MONITOR_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Line:
    """One local deployment in `home`."""

    home: Path
    progress: Progress

    def start_stack(self) -> None:
        """Kafka, Connect, registry, source and sink; starts what is not running."""
        from infra import stack

        stack.up(self.home, progress=self.progress)

    def stop_stack(self) -> None:
        from infra import stack

        stack.down(self.home)

    def prepare(self, settings: Settings, *, sample: bool) -> None:
        """Sample rows, migrations, topics and connector; each does only what is missing."""
        from infra import sample as shop
        from streams.capture import apply
        from streams.migration import migrate

        if sample:
            shop.load(settings.source.dsn, progress=self.progress)
        migrate(settings, self.progress, load=False)
        apply(settings, self.progress, load=False)

    def load(self, settings: Settings, deadline: float) -> None:
        """The first load, until it is searchable. `deadline` is a time of `time.monotonic()`."""
        from streams.capture import apply, wait_searchable

        apply(settings, self.progress)
        if not wait_searchable(settings, deadline, self.progress):
            raise SettingsError(
                f"the first load is not searchable yet; see {self.worker_log} and run it again"
            )

    @property
    def worker_log(self) -> Path:
        return self._log("worker")

    def worker_running(self) -> int | None:
        """Process id of the workers' supervisor that was started here, if it still is that process."""
        return self._running("worker")

    def start_worker(self, spec: Path | None) -> None:
        """A detached supervisor of workers, unless it runs."""
        if self.worker_running() is None:
            self._start("worker", spec, "worker", "--slot", "local", "--processes", str(WORKERS))
            self.progress(f"workers started, log in {self.worker_log}")

    def stop_worker(self) -> None:
        """SIGTERM, and SIGKILL after a while; what is not committed is taken in again at the next start."""
        self._stop("worker")

    def start_monitor(self, spec: Path | None, port: int) -> None:
        """A detached monitor, unless it runs; on any free port if another has `port`."""
        if self._running("monitor") is None:
            self._start("monitor", spec, "monitor", "--port", str(port if _free(port) else 0))

    def monitor_url(self, settings: Settings) -> str:
        """Where the page of the monitor that was started here is; "" if it has not said so within a while."""
        from connectors.postgres.capture_state import connect_sink

        deadline = time.monotonic() + MONITOR_SECONDS
        while (pid := self._running("monitor")) is not None and time.monotonic() < deadline:
            with connect_sink(settings.sink.dsn) as sink:
                row = sink.execute("SELECT url FROM upwell.monitor WHERE pid = %s", (pid,)).fetchone()
            if row is not None:
                return str(row[0])
            time.sleep(0.1)
        self.progress(f"the monitor does not run; see {self._log('monitor')}")
        return ""

    def stop_monitor(self) -> None:
        self._stop("monitor")

    def _log(self, name: str) -> Path:
        return self.home / "log" / f"{name}.log"

    def _file(self, name: str) -> Path:
        return self.home / f"{name}.json"

    def _running(self, name: str) -> int | None:
        try:
            kept = json.loads(self._file(name).read_text())
        except (FileNotFoundError, ValueError):
            return None
        from infra.stack.processes import born

        pid = int(kept["pid"])
        return pid if born(pid) == kept["born"] else None

    def _start(self, name: str, spec: Path | None, *arguments: str) -> None:
        from infra.stack.processes import born

        self._log(name).parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "streams.cli"]
        if spec is not None:
            command += ["--spec", str(spec.resolve())]
        environment = {
            **os.environ,
            **read_environment_file(self.home / "stack.env"),
            "UPWELL_HOME": str(self.home),
        }
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(
                [*command, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._file(name).write_text(json.dumps({"pid": process.pid, "born": born(process.pid)}))

    def _stop(self, name: str) -> None:
        pid = self._running(name)
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while self._running(name) is not None and time.monotonic() < deadline:
                _reap(pid)
                time.sleep(0.05)
            if self._running(name) is not None:
                os.kill(pid, signal.SIGKILL)
                _reap(pid)
        self._file(name).unlink(missing_ok=True)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _reap(pid: int) -> None:
    """Collect a child that has ended; one that is not ours is collected by its own parent."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
