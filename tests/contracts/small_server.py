"""A Postgres 18 whose data lie on a small disk of their own, in a user namespace; it can be filled, stopped and killed.

Its log of changes lies on the real disk, unless it is a source: a full disk there ends Postgres itself.
"""

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
from typing import Any, Final

import psycopg
from psycopg import sql

from infra.stack.environment import free_port
from infra.stack.postgres import programs
from infra.stack.processes import tied_to
from tests.deployment import until

MEBIBYTES: Final = 96
#: $0 the folder, $1 the programs, $2 the port, $3 where the log is, $4 more settings. While `go` is there a server that
#: ends is started again, unless held.
SERVE: Final = """
initdb=$1/initdb; postgres=$1/postgres
$initdb -D $0/data/pg -X $3 --wal-segsize=1 -U postgres -E UTF8 --locale=C -N || exit 1
while [ -e $0/go ]; do
    if [ -e $0/hold ]; then sleep 0.05; continue; fi
    $postgres -D $0/data/pg -p $2 -k '' -c listen_addresses=127.0.0.1 -c fsync=off -c full_page_writes=off \
        -c shared_buffers=32MB -c log_min_messages=fatal -c max_wal_size=16MB -c min_wal_size=2MB $4
done
"""
MOUNT: Final = f"""
mount -t tmpfs -o size={MEBIBYTES}m,mode=0777 tmpfs $0/data &&
exec unshare --user --map-user=1000 --map-group=1000 sh -c "$5" $0 $1 $2 $3 "$4"
"""


@dataclass
class SmallServer:
    """`data`: the small disk, as it is seen from outside."""

    directory: Path
    port: int
    data: Path

    def dsn(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname={database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn(database), autocommit=True)

    def answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def signal(self, number: int) -> None:
        """To the postmaster: SIGINT stops it at once, and it is started again."""
        os.kill(int((self.data / "pg" / "postmaster.pid").read_text().split()[0]), number)

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Stopped for a while."""
        (self.directory / "hold").touch()
        self.signal(signal.SIGINT)
        until(lambda: not self.answers(), 20, "the server has stopped")
        yield
        (self.directory / "hold").unlink()

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """No room on its disk for a while."""
        ballast = self.data / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(self.data).free)
        yield
        ballast.unlink()

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """As a primary that was demoted, or whose administrators say so for a while."""
        with self.connect() as connection:
            for value in ("on", "off"):
                connection.execute("SET default_transaction_read_only = off")
                connection.execute(
                    sql.SQL("ALTER SYSTEM SET default_transaction_read_only = {}").format(value)
                )
                connection.execute("SELECT pg_reload_conf()")
                if value == "on":
                    yield


@contextlib.contextmanager
def running(*, source: bool = False) -> Iterator[SmallServer]:
    """Start it in a temporary directory; stop and remove it afterwards. `source`: fit to be captured from."""
    directory = Path(tempfile.mkdtemp(prefix="upwell-small-"))
    directory.chmod(0o755)
    (directory / "data").mkdir()
    (directory / "wal").mkdir(mode=0o700)
    (directory / "go").touch()
    port = free_port()
    wal, settings = ("data/wal", "-c wal_level=logical") if source else ("wal", "")
    arguments = [str(directory), str(programs()), str(port), str(directory / wal), settings, SERVE]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, *arguments],
            stdout=log,
            stderr=log,
            preexec_fn=tied_to(os.getpid()),
        )
    server = SmallServer(directory, port, Path(f"/proc/{process.pid}/root{directory}/data"))
    try:
        until(lambda: server.answers() or process.poll() is not None, 60, "the small server")
        assert process.poll() is None, (directory / "log").read_text()
        yield server
    finally:
        (directory / "go").unlink()
        with contextlib.suppress(OSError, IndexError):
            server.signal(signal.SIGINT)
        _end(process)
        shutil.rmtree(directory, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
