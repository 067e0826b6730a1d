"""Since when a collection is blocked, whose word counts, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from connectors.postgres.read import read_blocked
from connectors.postgres.store import PostgresStore
from streams.settings import load
from streams.status import look
from tests.contracts.sinks import PostgresSink

pytestmark = pytest.mark.parametrize("server", [16, 18], indirect=True)


async def age(postgres: PostgresSink, since: int, seen: int) -> None:
    """As if it had been said first `since` seconds ago and last `seen` seconds ago."""
    await postgres.rows(
        "UPDATE upwell.blocked SET since = clock_timestamp() - %s * interval '1 s', "
        "seen_at = clock_timestamp() - %s * interval '1 s'",
        since,
        seen,
    )


async def test_since_when_is_kept_while_it_lasts(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    await postgres.store.set_blocked("content", "gone")
    await age(postgres, 90, 15)
    await postgres.store.set_blocked("content", "still gone")
    (found,) = read_blocked(connection)
    assert (found.collection, found.slot, found.reason) == ("content", "test", "still gone")
    assert 90 <= found.seconds < 100
    await age(postgres, 90, 0)
    assert len(read_blocked(connection)) == 1


async def test_what_nobody_says_any_more_is_over_and_begins_anew(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    await postgres.store.set_blocked("content", "gone")
    await age(postgres, 90, 21)
    assert read_blocked(connection) == []
    await postgres.store.set_blocked("content", "gone again")
    assert read_blocked(connection)[0].seconds < 10


async def test_status_sees_it(postgres: PostgresSink, tmp_path: Path) -> None:
    """With the rights of a worker, and all other neighbours away."""
    spec = tmp_path / "upwell.toml"
    spec.write_text('[collections.content]\ntable = "shop.content"\ntemplate = "{{ title }}"\n')
    sink = make_conninfo(postgres.dsn, options="-c role=upwell_worker")
    nowhere = {
        "UPWELL_SOURCE_DSN": "host=127.0.0.1 port=1",
        "UPWELL_REGISTRY_URL": "http://127.0.0.1:1",
        "UPWELL_CONNECT_URL": "http://127.0.0.1:1",
    }
    await postgres.store.set_blocked("content", "column 'title' is gone")
    facts = look(load(spec, environment={"UPWELL_SINK_DSN": sink, "UPWELL_HOME": str(tmp_path), **nowhere}))
    assert "sink" not in facts.errors
    assert [each.reason for each in facts.blocked] == ["column 'title' is gone"]
    assert facts.forecasts["content"].eta_seconds == 0


async def test_a_worker_that_starts_forgets_its_own_only(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    await postgres.store.set_blocked("content", "gone")
    as_worker = make_conninfo(postgres.dsn, options="-c role=upwell_worker")
    other = await PostgresStore.open(as_worker, writer="other")
    await other.set_blocked("content", "gone there")
    assert [each.collection for each in read_blocked(connection)] == ["content"]
    await postgres.store.register_worker("test", "vm", 1)
    assert [each.slot for each in read_blocked(connection)] == ["other"]
    await other.clear_blocked("content")
    await other.close()
    assert read_blocked(connection) == []
