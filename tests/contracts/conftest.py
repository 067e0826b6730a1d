"""One server of each major a session, a fresh copy of a migrated database a test."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import psycopg
import pytest

from connectors.postgres.migrate import migrate_sink
from connectors.postgres.store import PostgresStore
from tests.contracts.server import Server, running
from tests.contracts.sinks import FakeSink, PostgresSink, Sink, generation, layout
from tests.fakes.store import FakeStore

#: Ends of names of databases: others may use the same server.
NUMBERS: Final = (f"{os.getpid()}_{number}" for number in itertools.count(1))


def _migrated(server: Server) -> Server:
    if server.has("migrated"):
        return server
    dsn = server.create("migrated")
    with psycopg.connect(dsn, autocommit=True) as connection:
        migrate_sink(connection, [layout("content"), layout("customers")])
    return server


@pytest.fixture(scope="session")
def server18() -> Iterator[Server]:
    with running(18) as server:
        yield _migrated(server)


@pytest.fixture(scope="session")
def server16() -> Iterator[Server]:
    with running(16) as server:
        yield _migrated(server)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    """18, or what a test asks for by indirect parameters."""
    major = getattr(request, "param", 18)
    found: Server = request.getfixturevalue(f"server{major}")
    return found


@pytest.fixture
def dsn(server: Server) -> Iterator[str]:
    """A migrated database of the test's own."""
    name = f"t{next(NUMBERS)}"
    yield server.create(name, "migrated")
    server.drop(name)


@pytest.fixture
def empty_dsn(server: Server) -> Iterator[str]:
    """A database that was never migrated."""
    name = f"t{next(NUMBERS)}"
    yield server.create(name)
    server.drop(name)


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as found:
        yield found


@pytest.fixture
async def postgres(dsn: str) -> AsyncIterator[PostgresSink]:
    """The real store."""
    store = await PostgresStore.open(dsn, writer="test")
    yield PostgresSink(store, dsn)
    await store.close()


@pytest.fixture(params=["fake", "postgres18", "postgres16"])
async def sink(request: pytest.FixtureRequest) -> AsyncIterator[Sink]:
    """Every store in turn."""
    if request.param == "fake":
        yield FakeSink(FakeStore([generation("content"), generation("customers")]))
        return
    server: Server = request.getfixturevalue(f"server{request.param.removeprefix('postgres')}")
    name = f"t{next(NUMBERS)}"
    dsn = server.create(name, "migrated")
    store = await PostgresStore.open(dsn, writer="test")
    yield PostgresSink(store, dsn)
    await store.close()
    server.drop(name)
