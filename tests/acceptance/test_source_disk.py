"""The source's disk is full: first it refuses what it cannot store, then it ends, as it cannot write its log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tests.acceptance import test_freshness as faults
from tests.acceptance.plain import fake_encode
from tests.contracts.small_server import SmallServer, running
from tests.deployment import Deployment, Stack, until
from tests.oracle import compare

pytestmark = [pytest.mark.acceptance, pytest.mark.long]

#: More than fits into what is left in a table's pages, and into what is left of the log: random, so not compressed.
BIG: Final = (
    b"INSERT INTO shop.content (id, title, body) SELECT 1000, 'Big', string_agg(md5(random()::text), '') "
)
MUCH: Final = BIG + b"FROM generate_series(1, 30000)"
LOGGED: Final = (
    b"SELECT pg_logical_emit_message(false, 'more', repeat('x', 1000000)) FROM generate_series(1, 100)"
)


@pytest.fixture
def small() -> Iterator[SmallServer]:
    with running(source=True) as server:
        yield server


@pytest.fixture
def captured(small: SmallServer, stack: Stack, tmp_path: Path) -> Iterator[Deployment]:
    """A deployment whose source is small, on the shared sink, Kafka, Connect and registry."""
    variables = {**stack.variables, "UPWELL_SOURCE_DSN": small.dsn("postgres")}
    with Deployment.create(Stack(stack.home, variables), tmp_path, faults.spec()) as fresh:
        faults.capture(fresh)
        yield fresh


def test_a_full_disk_loses_nothing_and_is_said(small: SmallServer, captured: Deployment) -> None:
    worker, monitor = faults.start_worker(captured, "w1"), faults.start_monitor(captured)
    faults.sees(captured, "FRESH")
    with small.full():
        with captured.source() as source, pytest.raises(psycopg.errors.DiskFull):
            source.execute(MUCH)
        with captured.source() as source, pytest.raises(psycopg.OperationalError):
            source.execute(LOGGED)
        until(lambda: not small.answers(), 20, "the source has ended")
        faults.sees(captured, "STALE")
    until(small.answers, 30, "the source is back by itself")
    with captured.source() as source:
        source.execute("DELETE FROM shop.content WHERE id <= 5")
        source.execute("UPDATE shop.content SET body = 'there is room again' WHERE id = 6")
    until(
        lambda: not compare(captured.source_dsn, captured.sink_dsn, "content", fake_encode),
        90,
        "the sink is what the source is",
    )
    faults.sees(captured, "FRESH")
    for process in (worker, monitor):
        assert process.stop() == 0, process.tail()
