"""The registry as workers see it: whatever it answers but a schema is "not now", and is asked again."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from connectors.registry import Registry
from schemas.avro import is_of_topic
from schemas.errors import RegistryUnavailable
from tests.fixtures.envelope import envelope_message
from tests.fixtures.wrong_registry import WrongRegistry

SCHEMA = (200, json.dumps({"schema": '"long"'}).encode())


@pytest.fixture
async def wrong() -> AsyncIterator[tuple[WrongRegistry, Registry]]:
    with WrongRegistry("") as server:
        server.passing = False
        registry = Registry(server.url, timeout_seconds=0.5)
        yield server, registry
        await registry.close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, b"{}"), "does not give schema 7 (status 404)"),
        ((500, b"oh"), "does not give schema 7 (status 500)"),
        ((200, b"<html>"), "JSONDecodeError"),
        ((200, b"[]"), "does not give schema 7 (status 200)"),
        ((200, b'{"schema": 1}'), "does not give schema 7 (status 200)"),
        ((200, b"\xff\xfe"), "Error"),
    ],
)
async def test_what_is_no_schema_is_asked_for_again(
    wrong: tuple[WrongRegistry, Registry], answer: tuple[int, bytes], said: str
) -> None:
    server, registry = wrong
    server.answer = answer
    with pytest.raises(RegistryUnavailable, match=server.url) as raised:
        await registry.schema(7)
    assert said in str(raised.value)
    server.answer = SCHEMA
    assert await registry.schema(7) == '"long"'


async def test_a_slow_one_is_asked_again(wrong: tuple[WrongRegistry, Registry]) -> None:
    server, registry = wrong
    server.answer, server.delay_seconds = SCHEMA, 1.0
    with pytest.raises(RegistryUnavailable, match="TimeoutError"):
        await registry.schema(7)


async def test_one_that_knows_no_schema_of_the_topic_is_another(
    wrong: tuple[WrongRegistry, Registry],
) -> None:
    server, registry = wrong
    server.answer, server.subjects = SCHEMA, (200, b"[1]")
    await registry.schema(7)
    await registry.check_topic("shop_1.shop.content")
    server.answer = server.subjects = (404, b"{}")
    said = "has no schema of topic shop_1.shop.content .* it is not the one that Connect writes to"
    with pytest.raises(RegistryUnavailable, match=said):
        await registry.check_topic("shop_1.shop.content")
    with pytest.raises(RegistryUnavailable, match="schema 7"):
        await registry.schema(7)


def test_the_schemas_of_a_topic_have_its_name() -> None:
    made = envelope_message({"id": 1, "title": "tea"})
    (topic,) = {json.loads(schema)["namespace"] for schema in made.schemas.values()}
    assert all(is_of_topic(schema, topic) for schema in made.schemas.values())
    for other in ('"long"', "no schema", "[]", '{"type": "record", "name": "other.Key", "fields": []}'):
        assert not is_of_topic(other, topic)
