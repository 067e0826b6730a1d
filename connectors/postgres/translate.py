"""psycopg's errors become ours here and nowhere else, by class and SQLSTATE, never by message text."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Final

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

from schemas.errors import (
    Conflict,
    MigrationNeeded,
    RecordRejected,
    SettingsError,
    SinkUnavailable,
    UpwellError,
)

#: SQLSTATE, or its first characters, longest match first -> what it means for the sink.
STATES: Final[tuple[tuple[str, type[UpwellError]], ...]] = (
    ("40001", Conflict),
    ("40P01", Conflict),
    ("55P03", Conflict),
    ("25006", SinkUnavailable),
    ("42501", SettingsError),
    ("42P01", MigrationNeeded),
    ("42703", MigrationNeeded),
    ("42883", MigrationNeeded),
    ("3F000", MigrationNeeded),
    ("22", RecordRejected),
    ("23", RecordRejected),
    ("28", SettingsError),
    ("3D", SettingsError),
    ("08", SinkUnavailable),
    ("53", SinkUnavailable),
    ("54", RecordRejected),
    ("57", SinkUnavailable),
    ("58", SinkUnavailable),
    ("XX", SinkUnavailable),
    ("40", Conflict),
    ("55", Conflict),
    ("25", Conflict),
)


#: What data exceptions quote is a value of the row, and dead letters keep what they say.
QUOTED: Final = re.compile(r'".*"', re.DOTALL)


def meaning(error: psycopg.Error) -> type[UpwellError]:
    """Which of our errors a driver error is; what nobody foresaw is a setting or a bug and halts."""
    state = error.sqlstate or ""
    for prefix, kind in STATES:
        if state.startswith(prefix):
            return kind
    if state:
        return SettingsError
    if isinstance(error, psycopg.DataError):
        return RecordRejected
    return (
        SinkUnavailable
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        else SettingsError
    )


@contextlib.contextmanager
def sink_errors() -> Iterator[None]:
    """Raise ours instead of the driver's, the cause kept; messages hold no DSN and no parameter values."""
    try:
        yield
    except (PoolTimeout, PoolClosed) as error:
        raise SinkUnavailable("sink database: no connection to be had") from error
    except UnicodeEncodeError as error:
        raise RecordRejected("sink database: a text is not valid Unicode") from error
    except psycopg.Error as error:
        kind = meaning(error)
        line = error.diag.message_primary or (str(error).strip().splitlines() or [type(error).__name__])[0]
        if kind is RecordRejected and (error.sqlstate or "22").startswith("22"):
            line = QUOTED.sub('"..."', line)
        hint = ": run `upwell migrate`" if kind is MigrationNeeded else ""
        raise kind(f"sink database: {line}{hint}") from error
