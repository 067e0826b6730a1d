"""Writer schemas: what is read of them, and what a collection refuses."""

from __future__ import annotations

import json
from typing import Any

import fastavro
import pytest

from schemas.avro import check_compatible, key_reader, projection
from schemas.errors import BadMagicByte, DecodeError, IncompatibleSchema, MalformedEnvelope
from schemas.wire import join, split
from tests.fixtures.envelope import COLUMNS, envelope_message, envelope_schema, key_schema

POINT = {"type": "record", "name": "Point", "namespace": "io.debezium.data.geometry",
         "fields": [{"name": "x", "type": "double"}]}  # fmt: skip


def test_wire_format_round_trip() -> None:
    assert split(join(258, b"body")) == (258, b"body")


@pytest.mark.parametrize("message", [b"", b"\0\0\0\0", b"\1\0\0\0\1body"])
def test_other_bytes_have_no_schema_id(message: bytes) -> None:
    with pytest.raises(BadMagicByte):
        split(message)


def test_reads_only_what_is_needed() -> None:
    reader = projection(json.dumps(envelope_schema()), exclude={"secret"})
    row = {"id": 1, "title": "Tea", "secret": "x"}
    made = envelope_message(row, before=row, op="u")
    assert made.value
    decoded = reader.decode(split(made.value)[1])
    assert set(decoded) == {"op", "source", "after"}
    fields = {"lsn", "sequence", "txId", "ts_us", "ts_ms", "snapshot", "schema", "table"}
    assert set(decoded["source"]) == fields
    assert set(decoded["after"]) == set(COLUMNS) - {"secret"} == set(reader.columns)


def test_a_type_defined_in_an_excluded_column_is_still_known() -> None:
    point = "io.debezium.data.geometry.Point"
    columns: dict[str, Any] = {"id": "long", "hidden": ["null", POINT], "shown": ["null", point]}
    reader = projection(json.dumps(envelope_schema(columns)), exclude={"hidden"})
    made = envelope_message({"id": 1, "hidden": {"x": 1.0}, "shown": {"x": 2.0}}, columns=columns)
    assert made.value
    decoded = reader.decode(split(made.value)[1])
    assert decoded["after"] == {"id": 1, "shown": {"x": 2.0}}
    convert = reader.columns["shown"]
    assert convert
    assert convert({"x": 2.0}) == {"x": 2.0}


def test_avros_own_logical_types_are_left_to_us() -> None:
    date = {"type": "int", "logicalType": "date", "connect.name": "org.apache.kafka.connect.data.Date"}
    columns: dict[str, Any] = {"id": "long", "day": date}
    made = envelope_message({"id": 1, "day": 3}, columns=columns)
    assert made.value
    reader = projection(made.schemas[2], ())
    assert reader.decode(split(made.value)[1])["after"]["day"] == 3
    assert reader.columns["day"](3) == "1970-01-04"  # type: ignore[misc]


@pytest.mark.parametrize(
    "spoil", [lambda body: body + b"\0", lambda body: body[:-4], lambda body: b"\xff" * 40]
)
def test_other_bodies_are_decode_errors(spoil: Any) -> None:
    made = envelope_message({"id": 1, "title": "x"})
    assert made.value
    with pytest.raises(DecodeError):
        projection(made.schemas[2], ()).decode(spoil(split(made.value)[1]))


@pytest.mark.parametrize("schema", ["{", '"nonsense"', '{"type": "record"}', "[]x"])
def test_what_is_no_avro_blocks(schema: str) -> None:
    with pytest.raises(IncompatibleSchema):
        projection(schema, ())


def test_another_record_is_no_envelope() -> None:
    with pytest.raises(MalformedEnvelope):
        projection(json.dumps(key_schema()), ())


def test_a_key_must_be_a_record() -> None:
    with pytest.raises(IncompatibleSchema, match="primary key"):
        key_reader('"string"')


def test_all_needed_columns_there() -> None:
    schema = json.dumps(envelope_schema())
    check_compatible(schema, {"title", "body"}, "content", 17)
    check_compatible(schema, {"title": "string", "body": ["null", "string"], "id": "long"}, "content", 17)
    check_compatible(schema, {"tags": {"type": "array", "items": ["null", "string"]}}, "content", 17)


def test_a_missing_column_is_named() -> None:
    columns = {name: kind for name, kind in COLUMNS.items() if name != "body"}
    with pytest.raises(IncompatibleSchema) as refused:
        check_compatible(json.dumps(envelope_schema(columns)), {"title", "body"}, "content", 17)
    assert str(refused.value) == "column 'body' that collection 'content' needs is missing in schema id 17"


@pytest.mark.parametrize("kind", ["long", ["null", "boolean"], {"type": "array", "items": "string"}])
def test_a_changed_type_is_named(kind: Any) -> None:
    schema = json.dumps(envelope_schema({**COLUMNS, "body": kind}))
    check_compatible(schema, {"body"}, "content", 17)
    with pytest.raises(IncompatibleSchema) as refused:
        check_compatible(schema, {"body": "string"}, "content", 17)
    assert str(refused.value) == "column 'body' that collection 'content' needs changed type in schema id 17"


def test_a_wider_type_is_no_change() -> None:
    check_compatible(json.dumps(envelope_schema({**COLUMNS, "id": "int"})), {"id": "long"}, "content", 17)


def test_the_fixture_is_valid_avro() -> None:
    assert fastavro.parse_schema(envelope_schema())["name"] == "src.public.content.Envelope"
