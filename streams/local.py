"""The whole line on one machine, as `up`, `down` and `demo` drive it: stack, sample, capture, workers."""

from __future__ import annotations

import json
import os
import signal
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
        return self.home / "log" / "worker.log"

    @property
    def _worker_file(self) -> Path:
        return self.home / "worker.json"

    def worker_running(self) -> int | None:
        """Process id of the worker that was started here, if it still is that process."""
        try:
            kept = json.loads(self._worker_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        from infra.stack.processes import born

        pid = int(kept["pid"])
        return pid if born(pid) == kept["born"] else None

    def start_worker(self, spec: Path | None) -> None:
        """A detached supervisor of workers, unless it runs."""
        from infra.stack.processes import born

        if self.worker_running() is not None:
            return
        self.worker_log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "streams.cli"]
        if spec is not None:
            command += ["--spec", str(spec.resolve())]
        environment = {
            **os.environ,
            **read_environment_file(self.home / "stack.env"),
            "UPWELL_HOME": str(self.home),
        }
        with self.worker_log.open("ab") as log:
            process = subprocess.Popen(
                [*command, "worker", "--slot", "local", "--processes", str(WORKERS)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._worker_file.write_text(json.dumps({"pid": process.pid, "born": born(process.pid)}))
        self.progress(f"workers started, log in {self.worker_log}")

    def stop_worker(self) -> None:
        """SIGTERM, and SIGKILL after a while; what is not committed is taken in again at the next start."""
        pid = self.worker_running()
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while self.worker_running() is not None and time.monotonic() < deadline:
                _reap(pid)
                time.sleep(0.05)
            if self.worker_running() is not None:
                os.kill(pid, signal.SIGKILL)
                _reap(pid)
        self._worker_file.unlink(missing_ok=True)


def _reap(pid: int) -> None:
    """Collect a child that has ended; one that is not ours is collected by its own parent."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
