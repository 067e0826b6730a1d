"""A published table with a generated column and REPLICA IDENTITY FULL must stay one that its application can update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from connectors.postgres.source import inspect_tables
from connectors.postgres.source_schema import fresh_plan, migrate_source
from schemas.errors import SettingsError
from tests.contracts.conftest import NUMBERS
from tests.contracts.server import Server

TABLES = """
CREATE SCHEMA shop;
CREATE TABLE shop.content (id bigint PRIMARY KEY, price numeric, total numeric GENERATED ALWAYS AS (price * 2) STORED);
ALTER TABLE shop.content REPLICA IDENTITY FULL;
INSERT INTO shop.content VALUES (1, 2);
"""


@pytest.fixture
def source(server: Server) -> Iterator[psycopg.Connection[Any]]:
    with (
        server.source(f"generated{next(NUMBERS)}", TABLES) as dsn,
        psycopg.connect(dsn, autocommit=True) as made,
    ):
        yield made


@pytest.mark.parametrize("server", [16, 18], indirect=True)
def test_the_applications_update_goes_on(source: psycopg.Connection[Any]) -> None:
    migrate_source(source, "shop", ["shop.content"])
    source.execute("UPDATE shop.content SET price = 3")
    assert migrate_source(source, "shop", ["shop.content"]) == []


@pytest.mark.parametrize("server", [16, 18], indirect=True)
def test_with_the_administrators_script_too(source: psycopg.Connection[Any]) -> None:
    for step in fresh_plan("shop", ["shop.content"]):
        source.execute(step.statement.encode())
    source.execute("UPDATE shop.content SET price = 3")
    assert all("generated" not in line for line in migrate_source(source, "shop", ["shop.content"]))


@pytest.mark.parametrize("server", [18], indirect=True)
def test_a_publication_of_before_is_mended(source: psycopg.Connection[Any]) -> None:
    migrate_source(source, "shop", ["shop.content"])
    source.execute("ALTER PUBLICATION upwell_shop SET (publish_generated_columns = none)")
    with pytest.raises(psycopg.errors.InvalidColumnReference, match="cannot update"):
        source.execute("UPDATE shop.content SET price = 3")
    assert migrate_source(source, "shop", ["shop.content"]) == ["publication upwell_shop: generated columns"]
    source.execute("UPDATE shop.content SET price = 3")


@pytest.mark.parametrize("server", [18], indirect=True)
def test_a_virtual_one_is_refused(source: psycopg.Connection[Any]) -> None:
    """Postgres publishes no virtual column at all."""
    source.execute("ALTER TABLE shop.content ADD gross numeric GENERATED ALWAYS AS (price * 3) VIRTUAL")
    with pytest.raises(SettingsError, match="the virtual generated column 'gross'"):
        inspect_tables(source, ["shop.content"], server=False)
