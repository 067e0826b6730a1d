"""What `upwell uninstall` finds and drops in real databases, and what it must not drop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from connectors.postgres.source_schema import migrate_source
from connectors.postgres.store import PostgresStore
from connectors.postgres.uninstall import SinkParts, SourceParts
from schemas.errors import SettingsError
from streams.settings import Settings
from streams.uninstall import _refuse
from tests.contracts.steps import change, embed_all, take_in
from tests.deployment import until

pytestmark = pytest.mark.parametrize("server", [16, 18], indirect=True)
SETTINGS = Settings(name="shop")


@pytest.fixture
def both(connection: psycopg.Connection[Any]) -> Iterator[psycopg.Connection[Any]]:
    """A migrated sink that is the source, too."""
    connection.execute("CREATE SCHEMA shop; CREATE TABLE shop.content (id int PRIMARY KEY)")
    migrate_source(connection, "shop", ["shop.content"])
    yield connection
    connection.execute("DROP PUBLICATION IF EXISTS upwell_shop")


def silent(line: str) -> None:
    pytest.fail(f"it waited: {line}")


async def test_a_worker_that_holds_its_slot_lives_however_long_it_was_silent(
    dsn: str, connection: psycopg.Connection[Any]
) -> None:
    store = await PostgresStore.open(dsn, writer="w")
    await store.register_worker("w", "here", 7)
    connection.execute("UPDATE upwell.worker SET seen_at = now() - interval '1 day'")
    sink = SinkParts(connection)
    assert sink.live_workers(10.0) == ["w on here, pid 7"]
    with pytest.raises(SettingsError, match=r"^workers live: w on here, pid 7: stop them first"):
        _refuse(sink, SETTINGS, ["sink"], silent)
    await store.close()
    until(lambda: not sink.live_workers(10.0), 10, "its backend has ended")
    connection.execute("UPDATE upwell.worker SET seen_at = now()")
    assert sink.live_workers(10.0) == ["w on here, pid 7"]


def test_the_sink_of_another_deployment_is_refused(connection: psycopg.Connection[Any]) -> None:
    connection.execute("INSERT INTO upwell.lineage (number, topic_prefix) VALUES (1, 'mall_1')")
    with pytest.raises(SettingsError, match=r"belongs to topics mall_1\.\*, not to deployment shop"):
        _refuse(SinkParts(connection), SETTINGS, ["sink"], silent)
    connection.execute("UPDATE upwell.lineage SET topic_prefix = 'shop_12'")
    _refuse(SinkParts(connection), SETTINGS, ["sink"], silent)


def test_one_database_for_both_is_not_half_dropped(both: psycopg.Connection[Any]) -> None:
    source, sink = SourceParts(both, "shop"), SinkParts(both)
    with pytest.raises(SettingsError, match="one database"):
        _refuse(sink, SETTINGS, ["sink"], silent)
    source.drop_schema()
    assert source.others() is None
    assert sink.there()
    sink.drop_schema()
    assert not sink.there()
    assert both.execute("SELECT to_regclass('shop.content') IS NOT NULL").fetchone() == (True,)


def test_every_drop_may_be_repeated(both: psycopg.Connection[Any]) -> None:
    both.execute("SELECT pg_create_logical_replication_slot('upwell_shop_1', 'pgoutput')")
    both.execute("SELECT pg_create_logical_replication_slot('upwell_shop_1_1', 'pgoutput')")
    source = SourceParts(both, "shop")
    assert (source.slots(), source.publication()) == (["upwell_shop_1"], "upwell_shop")
    for _ in range(2):
        source.drop_slot("upwell_shop_1")
        source.drop_publication()
        source.forget() if source.known() else None
    assert (source.slots(), source.publication(), source.known()) == ([], None, False)
    assert SourceParts(both, "shop_1").slots() == ["upwell_shop_1_1"]
    SourceParts(both, "shop_1").drop_slot("upwell_shop_1_1")


async def test_what_goes_is_counted_and_the_users_views_are_named(
    dsn: str, connection: psycopg.Connection[Any]
) -> None:
    store = await PostgresStore.open(dsn, writer="w")
    await take_in(store, change(1, 1, "tea"), change(2, 2, "milk"), upto=3)
    await embed_all(store)
    await store.close()
    connection.execute("CREATE VIEW public.mine AS SELECT id FROM upwell.content")
    sink = SinkParts(connection)
    counts = sink.counts()
    assert counts["records of content"] == counts["vectors of content, generation 1"] == 2
    assert counts["records of customers"] == counts["dead letters"] == 0
    assert counts["audit rows"] > 0
    assert sink.dependents() == ["mine"]
    sink.drop_schema()
    assert sink.counts() == {}
