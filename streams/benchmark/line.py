"""The benchmark's own stack, and one deployment of upwell a section: own databases, topics, connector and processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from schemas.errors import UpwellError
from streams import neighbours
from streams.settings import Settings, load

T = TypeVar("T")
Progress = Callable[[str], None]

TABLE: Final = "bench.document"
VIEW: Final = "upwell.document"
RECORDS: Final = "upwell.record_document"
VECTORS: Final = "upwell.embedding_document_g1"
SPEC: Final = """
name = "{name}"

[collections.document]
table = "bench.document"
template = "{{{{ body }}}}"
metadata = ["note"]
{options}"""
#: HNSW is built when the load is complete, by `upwell maintain`.
AFTER_LOAD: Final = """
[collections.document.index]
build = "after_load"
"""
CREATE: Final = """
CREATE SCHEMA bench;
CREATE TABLE bench.document (id bigint PRIMARY KEY, body text NOT NULL, note text NOT NULL DEFAULT '',
                             updated_at timestamptz NOT NULL DEFAULT now());
ALTER TABLE bench.document REPLICA IDENTITY FULL;
"""
#: What of the caller's environment concerns the benchmark: all other settings are the defaults.
KEPT: Final = frozenset({"UPWELL_CACHE", "UPWELL_MODEL_NAME", "UPWELL_MODEL_RUNTIME"})
STOP_SECONDS: Final = 20.0
READY_SECONDS: Final = 120.0


class NotMeasured(UpwellError):
    """A section came to no figures; the message says why."""

    exit_code = 1


def until(condition: Callable[[], T], seconds: float, what: str, *, every: float = 0.01) -> T:
    """Poll until `condition` is truthy and return it. Raises NotMeasured with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise NotMeasured(f"not within {seconds:.0f} s: {what}")
        time.sleep(every)


@dataclass
class Deployment:
    """`environment`: settings of its processes. Processes are tied to this one: start them from the main thread."""

    name: str
    folder: Path
    environment: Mapping[str, str]
    settings: Settings
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def topic(self) -> str:
        from connectors.debezium.naming import Naming

        return Naming(self.name, 1).topic(TABLE)

    def source(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.settings.source.dsn, autocommit=True)

    def sink(self) -> psycopg.Connection[Any]:
        """Without prepared statements: their generic plans would outlive a planner setting."""
        return psycopg.connect(self.settings.sink.dsn, autocommit=True, prepare_threshold=None)

    def fill(self, texts: Iterable[str], first: int = 1) -> int:
        """Rows at the source with ids from `first`; returns how many."""
        count = 0
        with (
            self.source() as source,
            source.cursor() as cursor,
            cursor.copy("COPY bench.document (id, body) FROM STDIN") as copy,
        ):
            for count, text in enumerate(texts, start=1):
                copy.write_row((first + count - 1, text))
        return count

    def capture(self) -> None:
        """Migrated, topics made, connector running; nothing is loaded yet."""
        from streams.capture import apply
        from streams.migration import migrate

        migrate(self.settings, _silent, load=False)
        apply(self.settings, _silent, load=False)

    def begin_load(self) -> None:
        """`upwell connector apply` in the background: it reads the table."""
        self.others.append(self._start("apply", "connector", "apply"))

    def start_workers(self, count: int, **variables: str) -> None:
        """So many worker processes, each with a slot of its own; returns at once."""
        for number in range(count):
            slot = f"{self.name}-{number}"
            self.workers.append(self._start(slot, "worker", UPWELL_WORKER_SLOT=slot, **variables))

    def start_monitor(self) -> int:
        """Its process id."""
        self.others.append(self._start("monitor", "monitor", "--port", "0"))
        return self.others[-1].pid

    def stop_workers(self) -> None:
        _stop(self.workers)
        self.workers.clear()

    def check(self) -> None:
        """Raises NotMeasured if a worker has ended."""
        for worker in self.workers:
            if worker.poll() is not None:
                raise NotMeasured(f"a worker ended with {worker.returncode}; see {self.folder / 'log'}")

    def until(self, condition: Callable[[], T], seconds: float, what: str, *, every: float = 0.01) -> T:
        """As `until`, while all workers live."""

        def checked() -> T:
            self.check()
            return condition()

        return until(checked, seconds, what, every=every)

    def loaded(self, count: int, seconds: float) -> None:
        """Wait until so many documents are searchable and nothing is pending."""
        with self.sink() as sink:
            self.until(
                lambda: documents(sink) >= count and one(sink, "SELECT count(*) FROM upwell.pending") == 0,
                seconds,
                f"{count} documents searchable",
                every=0.1,
            )

    def filled(self, texts: Sequence[str], workers: int, **variables: str) -> None:
        """Captured and loaded, with so many workers running. Raises NotMeasured."""
        self.prepare(texts)
        self.start_workers(workers, **variables)
        self.begin_load()
        self.loaded(len(texts), READY_SECONDS + len(texts) / 2)

    def prepare(self, texts: Iterable[str]) -> None:
        """Table with rows, captured."""
        with self.source() as source:
            source.execute(CREATE)
        self.fill(texts)
        self.capture()

    def counters(self, sink: psycopg.Connection[Any]) -> dict[str, int]:
        """What workers have counted so far, by name; written every second, or as often as they were told."""
        rows = sink.execute(
            "SELECT name, sum(value)::bigint FROM upwell.counter WHERE collection = 'document' GROUP BY name"
        ).fetchall()
        return {str(name): int(value) for name, value in rows}

    def close(self) -> None:
        """End its processes, then connector, slot and databases."""
        self.stop_workers()
        _stop(self.others)
        neighbours.connect(self.settings).delete(f"upwell-{self.name}")
        for dsn, side in ((self.settings.source.dsn, "source"), (self.settings.sink.dsn, "sink")):
            _drop(dsn, f"{self.name}_{side}")

    def _start(self, name: str, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        from infra.stack.processes import tied_to

        log = self.folder / "log" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "streams.cli",
            "--spec",
            str(self.folder / "upwell.toml"),
            *arguments,
        ]
        with log.open("ab") as out:
            return subprocess.Popen(
                command,
                env={**plain_environment(), **self.environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                preexec_fn=tied_to(os.getpid()),  # noqa: PLW1509  nothing here forks with locks held
            )


@dataclass(frozen=True)
class Stack:
    """A running stack; `variables` are its addresses."""

    home: Path
    variables: Mapping[str, str]

    @contextlib.contextmanager
    def deployment(self, name: str, options: str = "") -> Iterator[Deployment]:
        """A fresh one, closed at the end. `name`: of the section; `options` of its collection."""
        deployment = self._make(f"bench_{name}", options)
        try:
            yield deployment
        finally:
            deployment.close()

    def pids(self) -> dict[str, list[int]]:
        """Process ids of its components."""
        from infra import stack

        return {each.name: [each.pid] for each in stack.status(self.home) if each.pid is not None}

    def _make(self, name: str, options: str) -> Deployment:
        folder = self.home / name
        folder.mkdir()
        variables = dict(self.variables)
        for side in ("source", "sink"):
            variable = f"UPWELL_{side.upper()}_DSN"
            with psycopg.connect(variables[variable], autocommit=True) as connection:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(f"{name}_{side}")))
            variables[variable] = make_conninfo(variables[variable], dbname=f"{name}_{side}")
        kept = {variable: os.environ[variable] for variable in KEPT & set(os.environ)}
        environment = {**kept, **variables, "UPWELL_HOME": str(folder)}
        spec = folder / "upwell.toml"
        spec.write_text(SPEC.format(name=name, options=options), encoding="utf-8")
        return Deployment(name, folder, environment, load(spec, environment=environment))


@contextlib.contextmanager
def stack_in(home: Path, progress: Progress) -> Iterator[Stack]:
    """A fresh stack in `home`, stopped and removed at the end, also if this process is killed."""
    from infra import stack

    stack.down(home)  # of a benchmark that was killed together with its guard
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    guard = subprocess.Popen(
        [sys.executable, "-P", "-m", "streams.benchmark.guard", str(home)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield Stack(home, dict(stack.up(home, progress=progress).variables))
    finally:
        stack.down(home)
        guard.kill()
        guard.wait()
        shutil.rmtree(home, ignore_errors=True)


def plain_environment() -> dict[str, str]:
    """The caller's without any of our settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("UPWELL_")}


def documents(sink: psycopg.Connection[Any]) -> int:
    """Searchable ones."""
    return int(one(sink, f"SELECT count(*) FROM {VECTORS} WHERE chunk_no = 0"))


def one(connection: psycopg.Connection[Any], query: str, *parameters: object) -> Any:
    """The first value of the first row; None if there is none."""
    row = connection.execute(query.encode(), parameters or None).fetchone()
    return None if row is None else row[0]


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGTERM to all, SIGKILL to what is left."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _drop(dsn: str, database: str) -> None:
    """A database and its replication slots, once the connector has let go of them."""
    with psycopg.connect(make_conninfo(dsn, dbname="postgres"), autocommit=True) as connection:

        def dropped() -> bool:
            try:
                connection.execute(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s",
                    (database,),
                )
                connection.execute(
                    sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database))
                )
            except psycopg.errors.ObjectInUse:
                return False
            return True

        until(dropped, 30, f"database {database} dropped", every=0.1)


def _silent(line: str) -> None:
    """A section tells of its own progress."""
