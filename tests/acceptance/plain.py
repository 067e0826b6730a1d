"""Two plain tables and a deterministic fake model, for tests that are about everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from tests.deployment import Deployment
from tests.fakes.encoder import FakeEncoder

FAKE = {"module": "tests.fake_worker", "arguments": ()}
TABLES = """
CREATE SCHEMA shop;
CREATE TABLE shop.content (id bigint PRIMARY KEY, title text, body text, tags text[], locale text, published boolean,
                           price numeric(10,2), updated_at timestamptz);
CREATE TABLE shop.customers (id bigint PRIMARY KEY, full_name text, email text, segment text, interests text[],
                             notes text, marketing_consent boolean, updated_at timestamptz);
ALTER TABLE shop.content REPLICA IDENTITY FULL;
ALTER TABLE shop.customers REPLICA IDENTITY FULL;
"""
ROWS = (
    "INSERT INTO shop.content SELECT i, 'Piece ' || i, 'Body number ' || i, '{a,b}', 'en', true, i, now() "
    "FROM generate_series(%s::int, %s::int) AS i"
)


def fake_encode(texts: Sequence[str]) -> Any:
    return FakeEncoder(dimension=384).encode(texts)


def one(connection: psycopg.Connection[Any], query: str, *parameters: Any) -> Any:
    """First column of the first row."""
    row = connection.execute(query, parameters).fetchone()
    return None if row is None else row[0]


def all_searchable(deployment: Deployment) -> bool:
    with deployment.source() as source, deployment.sink() as sink:
        wanted = one(source, "SELECT count(*) FROM shop.content")
        there = one(sink, "SELECT count(DISTINCT id) FROM upwell.content")
        return bool(wanted == there and one(sink, "SELECT count(*) = 0 FROM upwell.pending"))
