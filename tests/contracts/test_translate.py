"""Every error of the driver becomes one of ours, and the outcome is the right one."""

from __future__ import annotations

import psycopg
import psycopg_pool
import pytest
from psycopg import errors

from connectors.postgres.store import PostgresStore
from connectors.postgres.translate import sink_errors
from schemas.errors import (
    Conflict,
    MigrationNeeded,
    RecordRejected,
    SettingsError,
    SinkUnavailable,
    UpwellError,
)


def _all(kind: type[psycopg.Error]) -> list[type[psycopg.Error]]:
    return [kind, *(below for each in kind.__subclasses__() for below in _all(each))]


@pytest.mark.parametrize("kind", sorted(set(_all(psycopg.Error)), key=str))
def test_every_error_of_the_driver_is_mapped(kind: type[psycopg.Error]) -> None:
    with pytest.raises(UpwellError) as caught, sink_errors():
        raise kind("first line\nDETAIL: a row")
    assert "\n" not in str(caught.value)
    assert "DETAIL" not in str(caught.value)
    assert isinstance(caught.value.__cause__, kind)


@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        (errors.AdminShutdown, SinkUnavailable),
        (errors.CannotConnectNow, SinkUnavailable),
        (errors.CheckViolation, RecordRejected),
        (errors.ConnectionFailure, SinkUnavailable),
        (errors.DeadlockDetected, Conflict),
        (errors.DiskFull, SinkUnavailable),
        (errors.InsufficientPrivilege, SettingsError),
        (errors.InvalidPassword, SettingsError),
        (errors.InvalidSchemaName, MigrationNeeded),
        (errors.InvalidTextRepresentation, RecordRejected),
        (errors.LockNotAvailable, Conflict),
        (errors.NumericValueOutOfRange, RecordRejected),
        (errors.ProgramLimitExceeded, RecordRejected),
        (errors.ReadOnlySqlTransaction, SinkUnavailable),
        (errors.SerializationFailure, Conflict),
        (errors.StatementTooComplex, RecordRejected),
        (errors.TooManyConnections, SinkUnavailable),
        (errors.UndefinedTable, MigrationNeeded),
        (errors.UntranslatableCharacter, RecordRejected),
        (psycopg.DataError, RecordRejected),
        (psycopg.InterfaceError, SinkUnavailable),
        (psycopg.OperationalError, SinkUnavailable),
        (psycopg_pool.PoolTimeout, SinkUnavailable),
        (psycopg_pool.PoolClosed, SinkUnavailable),
        (psycopg_pool.TooManyRequests, SinkUnavailable),
    ],
)
def test_the_class_fixes_the_outcome(kind: type[psycopg.Error], ours: type[UpwellError]) -> None:
    with pytest.raises(ours), sink_errors():
        raise kind("said")


def test_ours_pass() -> None:
    with pytest.raises(Conflict, match="mine"), sink_errors():
        raise Conflict("mine")


async def test_no_password_in_what_a_dead_sink_says() -> None:
    dsn = "postgresql://somebody:hidden-secret@127.0.0.1:1/none?connect_timeout=1"
    with pytest.raises(SinkUnavailable) as caught:
        await PostgresStore.open(dsn, writer="w")
    assert "hidden-secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
