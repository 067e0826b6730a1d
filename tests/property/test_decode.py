"""Random rows come back as they were written; random bytes are never more than a dead letter."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from schemas.change import Change, TopicPartition, Undecodable
from schemas.envelope import Decoder, RawMessage
from schemas.spec import CollectionSpec
from schemas.values import json_value
from tests.fixtures.envelope import COLUMNS, Made, envelope_message

AT = TopicPartition("src.public.content", 0)
SPEC = CollectionSpec(
    table="public.content", template="{{ title }} {{ tags }} {{ details }}", exclude=("secret",)
)
KEYS: dict[str, Any] = {**COLUMNS, "a": "string", "b": "string"}

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(-1e15, 1e15) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ROWS = st.fixed_dictionaries(
    {
        "id": st.integers(-(2**63), 2**63 - 1),
        "title": TEXT,
        "body": st.none() | TEXT,
        "tags": st.none() | st.lists(st.none() | TEXT, max_size=4),
        "price": st.none() | st.decimals(allow_nan=False, allow_infinity=False).map(str),
        "published": st.booleans(),
        "secret": TEXT,
    }
)


def decoder(made: Made, *key: str) -> Decoder:
    using = Decoder("content", SPEC, key or ["id"], 1, "__hole_5f3a__")
    for schema_id, schema in made.schemas.items():
        using.learn(schema_id, schema)
    return using


MADE = envelope_message({"id": 1, "title": "x"})
KNOWING = decoder(MADE)


@given(ROWS, JSON)
def test_rows_decode_back(row: dict[str, Any], details: Any) -> None:
    made = envelope_message({**row, "details": json.dumps(details)}, before=row, op="u")
    decoded = KNOWING.decode(RawMessage(AT, 1, made.key, made.value))
    assert isinstance(decoded, Change)
    assert decoded.row is not None
    expected = {**{name: row[name] for name in row if name != "secret"}, "updated_at": None}
    assert {name: decoded.row[name] for name in decoded.row if name != "details"} == expected
    assert decoded.row["details"] == json_value(json.dumps(details))
    assert decoded.key == f"[{row['id']}]"
    assert decoded.text == decoded.text.strip()
    assert "\0" not in decoded.text


@given(JSON)
def test_json_keeps_its_value_and_survives_being_stored(value: Any) -> None:
    converted = json_value(json.dumps(value))
    assert converted == value
    assert json.dumps(json_value(json.dumps(converted))) == json.dumps(converted)


@given(st.none() | st.binary(max_size=80), st.none() | st.binary(max_size=200), st.booleans())
def test_random_bytes_are_dead_letters(key: bytes | None, value: bytes | None, framed: bool) -> None:
    """With the frame of a known schema the random bytes reach the Avro decoder."""
    framed_key = b"\0\0\0\0\1" + key if framed and key is not None else key
    framed_value = b"\0\0\0\0\2" + value if framed and value is not None else value
    for schema_id in KNOWING.needs_schema(framed_key, framed_value):
        KNOWING.learn(schema_id, None)
    decoded = KNOWING.decode(RawMessage(AT, 1, framed_key, framed_value))
    assert isinstance(decoded, Undecodable) or decoded.row is None


@given(ROWS, st.data())
def test_damaged_messages_never_raise(row: dict[str, Any], data: st.DataObject) -> None:
    made = envelope_message(row)
    assert made.value
    body = bytearray(made.value)
    for position in data.draw(st.lists(st.integers(5, len(body) - 1), min_size=1, max_size=4)):
        body[position] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(5, len(body)))
    decoded = KNOWING.decode(RawMessage(AT, 1, made.key, bytes(body[:end])))
    assert isinstance(decoded, Change | Undecodable)


@given(TEXT, TEXT, TEXT, TEXT)
def test_keys_are_injective(a: str, b: str, c: str, d: str) -> None:
    keys = []
    for first, second in ((a, b), (c, d)):
        row = {"id": 1, "title": "x", "a": first, "b": second}
        made = envelope_message(row, columns=KEYS, key=["a", "b"])
        decoded = decoder(made, "b", "a").decode(RawMessage(AT, 1, made.key, made.value))
        assert decoded.key is not None
        assert json.loads(decoded.key) == [second, first]
        keys.append(decoded.key)
    assert (keys[0] == keys[1]) == ((a, b) == (c, d))
