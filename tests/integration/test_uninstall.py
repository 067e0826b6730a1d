"""`upwell uninstall` on the real stack: says first, refuses while workers live, goes on after a kill, spares others."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.kafka import Kafka
from tests.deployment import ROOT, Deployment, Stack, until
from tests.unit.test_cli_errors import closed_port

pytestmark = pytest.mark.integration

TABLES = """
CREATE SCHEMA shop;
CREATE TABLE shop.content (id bigint PRIMARY KEY, title text, body text, tags text[], locale text, published boolean,
    price numeric(10,2), updated_at timestamptz);
CREATE TABLE shop.customers (id bigint PRIMARY KEY, full_name text, segment text, interests text, notes text,
    marketing_consent boolean, email text, updated_at timestamptz);
ALTER TABLE shop.content REPLICA IDENTITY FULL;
ALTER TABLE shop.customers REPLICA IDENTITY FULL;
INSERT INTO shop.content (id, title) VALUES (1, 'tea');
"""


@pytest.fixture
def applied(deployment: Deployment) -> Deployment:
    """One row, captured; no worker."""
    with deployment.source() as source:
        source.execute(TABLES)
    deployment.upwell("migrate")
    deployment.upwell("connector", "apply")
    return deployment


def left(deployment: Deployment) -> dict[str, object]:
    """What is found of it anywhere but in the sink, asked of each neighbour without our own code for it."""
    import requests

    name = deployment.name
    kafka = Kafka(deployment.environment["UPWELL_KAFKA_BOOTSTRAP_SERVERS"])
    connectors = requests.get(f"{deployment.environment['UPWELL_CONNECT_URL']}/connectors", timeout=30).json()
    with deployment.source() as source:
        slots = source.execute(
            "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
        ).fetchall()
        publications = source.execute("SELECT pubname FROM pg_publication").fetchall()
        schema = source.execute("SELECT to_regnamespace('upwell') IS NOT NULL").fetchall()
        rows = source.execute("SELECT count(*) FROM shop.content").fetchall()
    with deployment.sink() as sink:
        in_sink = sink.execute("SELECT to_regnamespace('upwell') IS NOT NULL").fetchall()
    return {
        "connectors": [each for each in connectors if each == f"upwell-{name}"],
        "slots": slots,
        "publications": publications,
        "schemas": schema + in_sink,
        "topics": [topic for topic in kafka.names() if f"{name}_1" in topic],
        "groups": [group for group in kafka.groups() if group == f"upwell-{name}"],
        "rows of the user": rows,
    }


NOTHING = {
    "connectors": [],
    "slots": [],
    "publications": [],
    "schemas": [(False,), (False,)],
    "topics": [],
    "groups": [],
    "rows of the user": [(1,)],
}


def test_said_refused_killed_and_finished(applied: Deployment) -> None:
    worker = applied.start_worker(module="tests.fake_worker", arguments=())
    applied.upwell("connector", "apply", "--wait", "60")
    kafka = Kafka(applied.environment["UPWELL_KAFKA_BOOTSTRAP_SERVERS"])
    until(lambda: kafka.members(f"upwell-{applied.name}") == 1, 30, "a worker that reads")
    assert kafka.members("nobody") == 0
    refused = applied.upwell("uninstall", "--yes", check=False)
    assert refused.returncode == 2
    assert f"workers live: {applied.name}-w1 on" in refused.stderr
    assert worker.process.poll() is None
    assert worker.stop() == 0

    before = left(applied)
    said = applied.upwell("uninstall", check=False)
    assert said.returncode == 2
    assert said.stderr == "upwell: nothing is dropped: give --yes\n"
    for part in (
        f"connector upwell-{applied.name}",
        f"slot upwell_{applied.name}_1",
        f"publication upwell_{applied.name}",
        "schema upwell at the source",
        "7 topics",
        f"consumer group upwell-{applied.name}",
        "1 records of content, 0 records of customers",
        "1 vectors of content, generation 1",
    ):
        assert part in said.stdout, part
    assert "stays:\n  roles" in said.stdout
    assert left(applied) == before

    kill_after(applied, "dropped: publication")
    between = left(applied)
    assert between["slots"] == between["publications"] == between["connectors"] == []
    assert between != NOTHING
    applied.upwell("uninstall", "--yes")
    assert left(applied) == NOTHING
    again = applied.upwell("uninstall", "--yes")
    assert again.stdout.startswith(f"nothing is left of deployment {applied.name}")


def kill_after(applied: Deployment, line: str) -> None:
    """Run it, and kill -9 once it has said so."""
    process = subprocess.Popen(
        [sys.executable, "-m", "streams.cli", "uninstall", "--yes"],
        cwd=applied.directory,
        env={**applied.environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    seen = next((each for each in process.stdout if each.startswith(line)), None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert seen is not None


@pytest.fixture
def neighbour(applied: Deployment, stack: Stack, tmp_path: Path) -> Iterator[Deployment]:
    """A second deployment on the same source, with a sink of its own."""
    folder = tmp_path / "second"
    folder.mkdir()
    with Deployment.create(stack, folder) as second:
        second.environment["UPWELL_SOURCE_DSN"], own = applied.source_dsn, second.source_dsn
        second.upwell("migrate")
        yield second
        second.environment["UPWELL_SOURCE_DSN"] = own


def test_limits_another_deployment_and_connect_away(applied: Deployment, neighbour: Deployment) -> None:
    """While Connect is away the connector would go on, and make its slot again: only --force goes on without it."""
    before, url = left(applied), applied.environment["UPWELL_CONNECT_URL"]
    elsewhere = f"http://127.0.0.1:{closed_port()}"
    applied.environment["UPWELL_CONNECT_URL"] = elsewhere
    away = applied.upwell("uninstall", "--yes", check=False)
    assert away.returncode == 3
    assert away.stderr.startswith("upwell: Connect does not answer at ")
    assert away.stderr.count("\n") == 1
    applied.environment["UPWELL_CONNECT_URL"] = url
    limited = applied.upwell("uninstall", "--source", "--yes", check=False)
    assert limited.returncode == 2
    assert f"connector upwell-{applied.name}" in limited.stderr
    assert "--kafka" in limited.stderr
    assert left(applied) == before
    done = applied.upwell("uninstall", "--source", "--kafka", "--yes")
    assert f"where {neighbour.name} also live" in done.stdout
    with applied.source() as source:
        known = source.execute("SELECT name FROM upwell.deployment").fetchall()
        published = source.execute("SELECT DISTINCT publication FROM upwell.published").fetchall()
    assert known == [(neighbour.name,)]
    assert published == [(f"upwell_{neighbour.name}",)]
    assert left(applied)["schemas"] == [(True,), (True,)]
    applied.environment["UPWELL_CONNECT_URL"] = elsewhere
    forced = applied.upwell("uninstall", "--force", "--yes")
    assert "what it has stays" in forced.stderr
    assert "dropped: schema upwell in the sink" in forced.stdout
    applied.environment["UPWELL_CONNECT_URL"] = url
    assert left(applied)["schemas"] == [(True,), (False,)]
    with applied.source() as source:
        assert source.execute("SELECT pubname FROM pg_publication").fetchall() == [
            (f"upwell_{neighbour.name}",)
        ]
