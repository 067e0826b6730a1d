"""What source and sink are both asked: clock, timeouts, open transactions, the server's disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from psycopg.conninfo import conninfo_to_dict

from connectors.postgres.doctor import Looking
from schemas.errors import UpwellError
from streams.doctor.core import Verdict, fail, ok, skipped, warn

#: A transaction that is open for longer is worth a word.
LONG_SECONDS: Final = 60.0
SKEW_SECONDS: Final = 5.0
#: Reading a chunk of a table, or building an index, may take so long.
SHORT_TIMEOUT_SECONDS: Final = 60.0
#: Shares of a disk that are left.
LITTLE_DISK: Final = 0.10
NO_DISK: Final = 0.01
GIB: Final = 1024**3

Row = Mapping[str, Any]


def clock(db: Looking) -> Verdict:
    """Half of the round trip is taken off, as the answer was made in its middle."""
    before = time.monotonic()
    there: datetime = db.row("server")["now"]
    here, half = datetime.now(UTC), (time.monotonic() - before) / 2
    return judge_skew((there - here).total_seconds() + half)


def judge_skew(seconds: float) -> Verdict:
    if abs(seconds) <= SKEW_SECONDS:
        return ok(f"{seconds:+.1f} s from this machine's")
    return warn(
        f"{seconds:+.1f} s from this machine's: delays are wrong by as much",
        "let both machines keep time by NTP",
    )


def timeouts(db: Looking) -> Iterator[Verdict]:
    found = {row["name"]: row["milliseconds"] / 1000 for row in db.rows("timeouts")}
    yield from judge_timeouts(found, db.row("server")["role"])


def judge_timeouts(found: Mapping[str, float], role: str) -> Iterator[Verdict]:
    """`found`: seconds of those that are set."""
    for name, seconds in found.items():
        short = seconds < SHORT_TIMEOUT_SECONDS or name == "idle_session_timeout"
        if short:
            breaks = "waiting connections" if name == "idle_session_timeout" else "first loads and migrations"
            yield warn(f"{name} is {seconds:g} s: it ends {breaks}", f"ALTER ROLE {role} SET {name} = 0")
    if not found:
        yield ok("none is set for this user")
    elif not any(s < SHORT_TIMEOUT_SECONDS or n == "idle_session_timeout" for n, s in found.items()):
        yield ok(", ".join(f"{name} {seconds:g} s" for name, seconds in found.items()))


def transactions(db: Looking) -> Iterator[Verdict]:
    """Long and prepared ones: both keep slots from moving on, and VACUUM from cleaning."""
    older = {"older_seconds": LONG_SECONDS}
    server = db.row("server")
    yield from judge_transactions(
        db.rows("long_transactions", older),
        db.rows("prepared_transactions", older),
        sees_all=bool(db.row("role", {"role": server["role"]})["sees_all"]),
        role=server["role"],
    )


def judge_transactions(
    running: list[Any], prepared: list[Any], *, sees_all: bool, role: str
) -> Iterator[Verdict]:
    for row in running:
        holds = "a slot, a first load and VACUUM" if row["writes"] else "VACUUM"
        who = f"pid {row['pid']} ({row['application'] or 'no application name'}, {row['role']})"
        yield warn(
            f"{who} has a transaction open for {row['age_seconds']:.0f} s: it holds back {holds}",
            f"end it there, or SELECT pg_terminate_backend({row['pid']})",
        )
    for row in prepared:
        gid = str(row["gid"]).replace("'", "''")
        yield warn(
            f"prepared transaction {row['gid']} waits for {row['age_seconds']:.0f} s: it holds back slot and VACUUM",
            f"COMMIT PREPARED '{gid}' or ROLLBACK PREPARED '{gid}'",
        )
    if not sees_all:
        yield skipped(
            f"{role} does not see when others' transactions began: GRANT pg_read_all_stats TO {role} shows it"
        )
    elif not running and not prepared:
        yield ok(f"none is open for more than {LONG_SECONDS:.0f} s")


def disk(db: Looking, dsn: str, retained_bytes: int = 0) -> Verdict:
    """Of the server, where it is this machine; otherwise only what the server itself may tell."""
    place = db.row("data_directory")
    folder = _here(dsn, place["path"], place["port"])
    if folder is not None:
        usage = shutil.disk_usage(folder)
        return judge_disk(usage.free, usage.total, retained_bytes)
    if not db.row("wal_folder")["permitted"]:
        return skipped("only the server's administrator sees its disk: watch it there")
    try:
        used = int(db.row("wal_bytes")["bytes"] or 0)
    except UpwellError:
        return skipped("the server does not let its folder of write-ahead log be read")
    return skipped(
        f"the disk is another machine's: watch it there; {used / GIB:.1f} GiB of write-ahead log are on it"
    )


def judge_disk(free: int, total: int, retained_bytes: int) -> Verdict:
    share = free / total if total else 0.0
    says = f"{free / GIB:.1f} GiB of {total / GIB:.0f} GiB are free ({share:.0%})"
    if share < NO_DISK:
        return fail(says, "make room: a full disk stops the server")
    if share < LITTLE_DISK or free < retained_bytes:
        return warn(says, "make room, and watch it: a slot that nobody reads fills a disk")
    return ok(says)


def _here(dsn: str, directory: str | None, port: int) -> Path | None:
    """The folder of write-ahead log, if the server runs on this machine and this user may look into it.

    A forwarded port also has a loopback address: so the folder's own pid file must name the port.
    """
    found = conninfo_to_dict(dsn)
    host = str(found.get("hostaddr") or found.get("host") or "/")
    if directory is None or not (host.startswith("/") or host in {"127.0.0.1", "::1", "localhost"}):
        return None
    path = Path(directory)
    try:
        lines = (path / "postmaster.pid").read_text().splitlines()
        wal = (path / "pg_wal").resolve(strict=True)
    except OSError:
        return None
    return wal if lines[3:4] == [str(port)] else None
