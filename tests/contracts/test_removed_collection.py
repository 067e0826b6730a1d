"""A collection that the spec no longer has is removed with all that was made of it, and no other is touched."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from connectors.postgres.migrate import migrate_sink
from connectors.postgres.removed_collection import Removed, collection_names, remove_collection
from schemas.errors import MigrationNeeded
from tests.contracts.sinks import PostgresSink, layout
from tests.contracts.steps import change, embed_all, take_in, undecodable


@pytest.mark.parametrize("server", [16, 18], indirect=True)
async def test_all_of_one_collection_goes_and_its_audit_stays(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    await postgres.add_generation(2)
    connection.execute("UPDATE upwell.generation SET state = 'dropped' WHERE number = 2")
    connection.execute("DROP TABLE upwell.embedding_content_g2")
    await take_in(postgres.store, change(1, 1, "tea"), change(2, 2, "milk"), letters=[undecodable(3, 3)])
    await embed_all(postgres.store)
    await take_in(postgres.store, change(2, 5, None))
    await postgres.store.set_blocked("content", "gone")
    audited = await postgres.rows("SELECT count(*) FROM upwell.audit")

    assert remove_collection(connection, "content") == Removed(records=1, vectors=1, dead_letters=1)

    assert collection_names(connection) == ["customers"]
    left = (
        "SELECT relname FROM pg_class WHERE relnamespace = 'upwell'::regnamespace AND relname ~ '_?content'"
    )
    assert connection.execute(left).fetchall() == []
    assert connection.execute("SELECT to_regproc('upwell.search_content')").fetchone() == (None,)
    for table in ("pending", "dead_letter", "repair", "counter", "delay", "blocked", "generation"):
        query = f"SELECT count(*) FROM upwell.{table} WHERE collection = 'content'"
        assert connection.execute(query.encode()).fetchone() == (0,), table
    actions = await postgres.rows("SELECT action FROM upwell.audit ORDER BY at")
    assert len(actions) == audited[0][0] + 1
    assert actions[-1] == ("collection_removed",)
    assert migrate_sink(connection, [layout("customers")]) == []


async def test_positions_that_a_worker_set_after_its_topic_was_forgotten_go(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    """A topic of the name that is made anew begins at 0: with the old positions its rows were never taken in."""
    connection.execute(
        "INSERT INTO upwell.lineage (number, topic_prefix) VALUES (1, 'test_1') ON CONFLICT DO NOTHING"
    )
    connection.execute(
        "INSERT INTO upwell.topic (topic, topic_id, lineage, partitions, collection) "
        "VALUES ('kept', 'a', 1, 1, 'customers')"
    )
    connection.execute(
        "INSERT INTO upwell.position (topic, partition, next_offset) VALUES ('kept', 0, 7), ('forgotten', 0, 3)"
    )

    remove_collection(connection, "content")

    assert await postgres.rows("SELECT topic, next_offset FROM upwell.position") == [("kept", 7)]
    with pytest.raises(MigrationNeeded):
        await take_in(postgres.store, change(2, 2, "milk"))
    assert await postgres.rows("SELECT topic, next_offset FROM upwell.position") == [("kept", 7)]


def test_before_the_first_migration_there_is_none(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        assert collection_names(connection) == []
