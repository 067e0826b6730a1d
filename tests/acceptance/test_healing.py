"""With nobody present: a load that nobody follows any more and that a truncate spoils, then changes that are lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import requests

from tests.acceptance.plain import FAKE, ROWS, TABLES, one
from tests.acceptance.test_freshness import OFTEN, sees, spec, start_monitor
from tests.acceptance.test_rebuild import COMPLETE, equal, running, slots
from tests.deployment import ROOT, Deployment, until

pytestmark = [pytest.mark.acceptance, pytest.mark.long]

LOADED = 20_000
DETAIL = "SELECT load_detail ->> %s FROM upwell.collection WHERE name = 'content'"


def test_nobody_is_needed(deployment: Deployment) -> None:
    (deployment.directory / "upwell.toml").write_text(spec().format(name=deployment.name))
    deployment.environment.update(OFTEN)
    deployment.cli = "tests.fake_cli"
    with deployment.source() as source:
        source.execute(TABLES)
        source.execute(ROWS, (1, LOADED))
    _spoilt_load(deployment)
    monitor = start_monitor(deployment, UPWELL_MONITOR_REBUILD="true")
    with running(deployment) as worker, deployment.sink() as sink:
        until(lambda: one(sink, COMPLETE) == 0, 120, "every table is read and complete")
        equal(deployment)
        said = monitor.log.read_text()
        assert "nobody follows the load of content" in said
        assert "content was truncated while it was being read: it is read again" in said
        sees(deployment, "FRESH")
        _dropped_column(deployment)
        assert "it reads on without scans" in monitor.log.read_text()
        _lost_slot(deployment, lambda: worker.process.poll() is None)
        assert "is gone: what was committed since is lost: the monitor rebuilds" in monitor.log.read_text()
    assert monitor.stop() == 0, monitor.tail()


def _spoilt_load(deployment: Deployment) -> None:
    """`connector apply` is killed while it reads, and the table truncated after that, with rows again.

    An older transaction holds the load back until a worker is there, which paces it.
    """
    with deployment.source() as source, deployment.sink() as sink, deployment.source() as older:
        with older.transaction():
            older.execute("SELECT pg_current_xact_id()")
            deployment.upwell("migrate")
            applying = subprocess.Popen(
                [sys.executable, "-m", deployment.cli, "connector", "apply"],
                cwd=deployment.directory,
                env={**deployment.environment, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            captured = "SELECT count(*) FROM upwell.topic WHERE collection IS NOT NULL"
            until(lambda: one(sink, captured) == 2, 90, "topics")
            worker = deployment.start_worker("first", **FAKE)  # type: ignore[arg-type]
            until(lambda: "embedding" in worker.tail(), 90, "the worker")
        until(lambda: one(sink, "SELECT count(*) FROM upwell.record_content") > 200, 60, "some of it")
        applying.kill()
        applying.wait()
        assert one(sink, DETAIL, "rows") is None
        with source.transaction():
            source.execute("TRUNCATE shop.content")
            source.execute(ROWS, (500, 600))
        until(lambda: one(sink, DETAIL, "reason") == "truncated", 60, "the truncate")
        assert one(sink, DETAIL, "from") is not None
        worker.kill()


def _dropped_column(deployment: Deployment) -> None:
    """A table is read while the connector is still behind a column that was dropped: it fails, however often it is
    restarted.
    """
    url = f"{deployment.environment['UPWELL_CONNECT_URL']}/connectors/upwell-{deployment.name}"
    scan = '{"type": "incremental", "data-collections": ["shop.content"]}'
    with deployment.source() as source:
        source.execute("ALTER TABLE shop.content ADD COLUMN note text")
        source.execute("UPDATE shop.content SET note = 'x' WHERE id = 500")
        equal(deployment)
        requests.put(f"{url}/stop", timeout=60).raise_for_status()
        source.execute("INSERT INTO upwell.signal VALUES ('repair-1', 'execute-snapshot', %s)", [scan])
        source.execute("INSERT INTO shop.content (id, title, note) VALUES (700, 'of before', 'y')")
        source.execute("ALTER TABLE shop.content DROP COLUMN note")
        source.execute("INSERT INTO shop.content (id, title) VALUES (701, 'of after')")
        requests.put(f"{url}/resume", timeout=60).raise_for_status()
    equal(deployment, 120)
    sees(deployment, "FRESH")


def _lost_slot(deployment: Deployment, alive: Callable[[], bool]) -> None:
    """The slot is dropped under a running connector, with changes that nobody captured."""
    with deployment.source() as source, deployment.sink() as sink:
        name = slots(deployment)[0]

        def dropped() -> bool:
            source.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
            source.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
                "WHERE slot_name = %s AND NOT active",
                [name],
            )
            return name not in slots(deployment)

        until(dropped, 30, "the slot dropped")
        source.execute("DELETE FROM shop.content WHERE id < 510")
        source.execute("UPDATE shop.content SET body = 'lost ' || id WHERE id < 520")
        until(lambda: one(sink, "SELECT max(number) FROM upwell.lineage") == 2, 60, "the rebuild")
        until(lambda: one(sink, COMPLETE) == 0, 90, "every table is read again")
        equal(deployment)
        assert alive()
        sees(deployment, "FRESH")
        assert slots(deployment) == [f"upwell_{deployment.name}_2"]
