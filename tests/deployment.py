"""A deployment of upwell on the test stack, driven as a user drives it: through its command line."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import psycopg
import requests
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.stack.processes import tied_to

T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parent.parent
DSNS: Final = ("UPWELL_SOURCE_DSN", "UPWELL_SINK_DSN")
_numbers = itertools.count(1)

SPEC: Final = """
name = "{name}"

[collections.content]
table = "shop.content"
template = \"\"\"
{{{{ title }}}}

{{{{ body }}}}

{{{{ tags }}}}
\"\"\"
metadata = ["title", "tags", "locale", "published", "price", "updated_at"]
chunk = {{ max_tokens = 126 }}

[collections.customers]
table = "shop.customers"
template = "{{{{ full_name }}}} ({{{{ segment }}}}). Interests: {{{{ interests }}}}. {{{{ notes }}}}"
metadata = ["segment", "marketing_consent", "updated_at"]
exclude = ["email"]
chunk = {{ max_tokens = 126 }}
"""


@dataclass(frozen=True)
class Stack:
    """Where the session's stack lives, and its addresses."""

    home: Path
    variables: Mapping[str, str]


def until(condition: Callable[[], T], seconds: float, what: str) -> T:
    """Poll until `condition` is truthy and return it; fail with `what` at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.01)


@dataclass
class WorkerProcess:
    """A worker as its own process; its log is a file."""

    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """kill -9: no chance to tidy up."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, seconds: float = 30) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"worker did not stop within {seconds} s: {self.tail()}") from None
        return int(self.process.returncode)

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@dataclass
class Deployment:
    """Own databases and names on a shared stack. `tree`: the version of upwell that its commands are of; `cli`: their
    module, `tests.fake_cli` to do without the real model. `tied`: the kernel kills a worker when the thread that
    started it ends.
    """

    name: str
    directory: Path
    stack: Stack
    environment: dict[str, str]
    workers: list[WorkerProcess] = field(default_factory=list)
    tree: Path = ROOT
    cli: str = "streams.cli"
    tied: bool = False

    @classmethod
    @contextlib.contextmanager
    def create(cls, stack: Stack, directory: Path, spec: str = SPEC) -> Iterator[Self]:
        """Make databases and a spec; remove connector, slot and databases afterwards."""
        self = cls.opened(f"t{os.getpid()}_{next(_numbers)}", stack, directory)
        self.make(spec)
        try:
            yield self
        finally:
            self.close()

    @classmethod
    def opened(cls, name: str, stack: Stack, directory: Path) -> Self:
        """The deployment of a name, whose databases may be there already; nobody but the caller closes it."""
        variables = dict(stack.variables)
        for variable in DSNS:
            variables[variable] = make_conninfo(variables[variable], dbname=f"{name}_{_side(variable)}")
        home = directory / ".upwell"
        home.mkdir(exist_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("UPWELL_")}
        return cls(name, directory, stack, {**kept, **variables, "UPWELL_HOME": str(home)})

    def make(self, spec: str = SPEC) -> None:
        """Its databases, unless they are there, and its spec."""
        for variable in DSNS:
            database = f"{self.name}_{_side(variable)}"
            with (
                psycopg.connect(self.stack.variables[variable], autocommit=True) as connection,
                contextlib.suppress(psycopg.errors.DuplicateDatabase),
            ):
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
        (self.directory / "upwell.toml").write_text(spec.format(name=self.name))

    @property
    def source_dsn(self) -> str:
        return self.environment["UPWELL_SOURCE_DSN"]

    @property
    def sink_dsn(self) -> str:
        return self.environment["UPWELL_SINK_DSN"]

    def source(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.source_dsn, autocommit=True)

    def sink(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.sink_dsn, autocommit=True)

    def upwell(
        self, *arguments: str, check: bool = True, seconds: float = 120, module: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command and return it; with `check`, a non-zero exit fails the test with its output.

        `tests.fake_cli` as module has fake models.
        """
        done = subprocess.run(
            [sys.executable, "-m", module or self.cli, *arguments],
            cwd=self.directory,
            env={**self.environment, "PYTHONPATH": str(self.tree)},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"upwell {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def report(self) -> dict[str, Any]:
        """`upwell report --json`, whatever its verdicts."""
        done = self.upwell("report", "--json", check=False)
        assert done.returncode in (0, 1), done.stderr
        return dict(json.loads(done.stdout))

    def start_worker(
        self,
        slot: str = "w1",
        *,
        module: str = "streams.cli",
        arguments: tuple[str, ...] = ("worker",),
        **variables: str,
    ) -> WorkerProcess:
        """A worker process; `tests.fake_worker` as module has a fake model and starts in two seconds."""
        log = self.directory / f"worker-{slot}-{len(self.workers)}.log"
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=self.directory,
            env={
                **self.environment,
                "PYTHONPATH": str(self.tree),
                "UPWELL_WORKER_SLOT": f"{self.name}-{slot}",
                "UPWELL_WORKER_SESSION_TIMEOUT_SECONDS": "6",
                **variables,
            },
            stdout=log.open("ab"),
            stderr=subprocess.STDOUT,
            preexec_fn=tied_to(os.getpid()) if self.tied else None,
        )
        worker = WorkerProcess(process, log)
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        """Stop workers, delete connector and slot, drop the databases."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
        requests.delete(f"{self.environment['UPWELL_CONNECT_URL']}/connectors/upwell-{self.name}", timeout=30)
        for variable in DSNS:
            _drop_database(
                self.stack.variables[variable], conninfo_to_dict(self.environment[variable])["dbname"]
            )


def _side(variable: str) -> str:
    """`source` or `sink`."""
    return variable.split("_")[1].lower()


def _drop_database(admin: str, database: Any) -> None:
    """Drop a database and its replication slots, waiting until the connector has let go of them."""
    with psycopg.connect(admin, autocommit=True) as connection:

        def dropped() -> bool:
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
                "WHERE database = %s AND NOT active",
                (database,),
            )
            try:
                connection.execute(
                    sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(str(database)))
                )
            except psycopg.Error:
                return False
            return True

        until(dropped, 30, f"database {database} dropped")
