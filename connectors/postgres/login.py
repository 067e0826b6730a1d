"""Why there is no connection: "not now", or "never with these settings".

libpq says so only in words. Its own, about TLS, are known here; the server's may be in any language, but the trace of
the protocol has the SQLSTATE: after a refusal the login is tried once more under a trace, which goes to a file in
memory that nobody else can open.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from typing import Any, Final

import psycopg
from psycopg import pq

from schemas.errors import UpwellError

TIMEOUT_SECONDS: Final = 10
#: Wrong user or password, no such database, no right to connect, an option that does not exist.
_NEVER: Final = ("28", "3D", "42", "22")
#: What libpq itself says, always in English, when it will not get along with the server at the next attempt either.
_WORDS: Final = (
    "no password supplied",
    "certificate verify failed",
    "valid client certificate",
    "server certificate for",
    "root certificate",
    "could not read certificate file",
    "private key file",
    "does not support ssl",
)
_ERROR: Final = re.compile(rb'ErrorResponse\t S ".*?" V "\w+" C "(\w{5})"')
_MOVING: Final = {pq.PollingStatus.READING: (True, False), pq.PollingStatus.WRITING: (False, True)}


def connect(dsn: str, application: str, refused: type[UpwellError], place: str) -> psycopg.Connection[Any]:
    """An autocommit connection. Raises `refused` naming `place`, the setting, where trying again will not help, else
    psycopg's own error.
    """
    try:
        return psycopg.connect(
            dsn, autocommit=True, connect_timeout=TIMEOUT_SECONDS, application_name=application
        )
    except psycopg.OperationalError as error:
        if _never(error, dsn):
            line = str(error).strip().splitlines()[0].split("FATAL:")[-1].strip()
            name = place.partition(".")[0]
            raise refused(
                f"{name} database refuses the login: {line}; mend UPWELL_{name.upper()}_DSN or [{name}] dsn"
            ) from error
        raise


def _never(error: psycopg.OperationalError, dsn: str) -> bool:
    if error.pgconn is not None and error.pgconn.needs_password:
        return True
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return False
    said = str(error).lower()
    if any(words in said for words in _WORDS):
        return True
    return (refusal(dsn) or "").startswith(_NEVER)


def refusal(dsn: str) -> str | None:
    """SQLSTATE with which the server refuses the login; None if it does not answer, or lets it in."""
    memory = os.memfd_create("login", os.MFD_CLOEXEC)
    try:
        _try(dsn, memory)
        os.lseek(memory, 0, os.SEEK_SET)
        with os.fdopen(memory, "rb", closefd=False) as trace:
            found = _ERROR.findall(trace.read())
    except psycopg.Error:
        return None
    finally:
        os.close(memory)
    return found[-1].decode() if found else None


def _try(dsn: str, memory: int) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    connection = pq.PGconn.connect_start(dsn.encode())
    try:
        connection.trace(memory)
        status = pq.PollingStatus.WRITING
        while status in _MOVING and time.monotonic() < deadline:
            reads, writes = _MOVING[status]
            ready = [connection.socket]
            left = max(0.0, deadline - time.monotonic())
            select.select(ready if reads else [], ready if writes else [], [], left)
            status = pq.PollingStatus(connection.connect_poll())
        connection.untrace()
    finally:
        with contextlib.suppress(psycopg.Error):
            connection.finish()
