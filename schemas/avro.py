"""Writer schemas: what of an envelope is read, and whether a collection can live with it.

Debezium's envelope carries the row twice and a dozen fields that nobody reads; a reader schema with only
`after`, `op` and some of `source` makes decoding quicker, and excluded columns are never even built.
Everything is prepared once per schema id.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from json import dumps, loads
from typing import Any, Final

import fastavro
from avro.compatibility import ReaderWriterCompatibilityChecker as Checker
from avro.compatibility import SchemaCompatibilityType, SchemaIncompatibilityType
from avro.errors import AvroException
from avro.schema import parse as apache_parse

from schemas.errors import DecodeError, IncompatibleSchema, MalformedEnvelope
from schemas.values import Converter, converter

_PRIMITIVES: Final = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
_NAMED: Final = frozenset({"record", "enum", "fixed"})
_KINDS: Final = _PRIMITIVES | _NAMED | {"array", "map"}
_DROPPED: Final = frozenset({"doc", "aliases", "logicalType", "precision", "scale", "namespace"})

#: What is read of `source`, where the writer has it.
_SOURCE: Final = frozenset({"lsn", "sequence", "txId", "ts_us", "ts_ms", "snapshot", "schema", "table"})


@dataclass(frozen=True, slots=True)
class Reader:
    """Decodes the bodies of one schema id. `columns` converts the values of the row, or of the key."""

    writer: Any
    reader: Any
    columns: Mapping[str, Converter | None]

    def decode(self, body: bytes) -> dict[str, Any]:
        """Raises DecodeError if the bytes are not this schema's, or more than it."""
        stream = BytesIO(body)
        try:
            value = fastavro.schemaless_reader(stream, self.writer, self.reader)
        except Exception as error:
            raise DecodeError(f"the Avro body cannot be read: {type(error).__name__}") from None
        if stream.tell() != len(body) or not isinstance(value, dict):
            raise DecodeError("the Avro body is longer than its schema says")
        return value


def projection(schema_json: str, exclude: Collection[str]) -> Reader:
    """Read only `after` less the excluded columns, `op`, and what is needed of `source`.

    Raises IncompatibleSchema if it is no Avro schema, MalformedEnvelope if it is no envelope.
    """
    envelope, known = _parsed(schema_json)
    fields = _fields(envelope)
    if "op" not in fields or "source" not in fields:
        raise MalformedEnvelope("the value's schema is no Debezium envelope: it has no op or no source")
    row, source = _record(fields.get("after", {"type": "null"}), known), _record(fields["source"], known)
    kept = [field for field in row["fields"] if field["name"] not in exclude] if row else []
    wanted: list[dict[str, Any]] = [{"name": "op", "type": fields["op"]["type"]}]
    if source:
        slim = [field for field in source["fields"] if field["name"] in _SOURCE]
        wanted.append({"name": "source", "type": source | {"fields": slim}})
    if row:
        wanted.append({"name": "after", "type": ["null", row | {"fields": kept}]})
    reader = _inlined(envelope | {"fields": wanted}, "", known, set())
    return Reader(fastavro.parse_schema(envelope), fastavro.parse_schema(reader), _converters(kept, known))


def is_of_topic(schema_json: str, topic: str) -> bool:
    """Whether a schema has the name that Debezium gives the keys and values of a topic. Not of what is no schema."""
    try:
        schema = loads(schema_json)
        name = _full_name(schema["name"], schema.get("namespace", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return name in {f"{topic}.Key", f"{topic}.Value", f"{topic}.Envelope"}


def key_reader(schema_json: str) -> Reader:
    """Read a message key. Raises IncompatibleSchema if it is no Avro schema or no record."""
    key, known = _parsed(schema_json)
    if not _fields(key):
        raise IncompatibleSchema("the key's schema is no record: the table needs a primary key")
    return Reader(fastavro.parse_schema(key), None, _converters(key["fields"], known))


def check_compatible(
    schema_json: str, needs: Mapping[str, Any] | Collection[str], collection: str, schema_id: int
) -> None:
    """Check that a writer schema has what a collection needs: once per new schema, by Avro's own rules.

    `needs` maps column names to the Avro schema expected of them (`"string"`, nullable or not), None or a
    plain collection of names where presence is enough. Raises IncompatibleSchema, which names the column.
    """
    envelope, known = _parsed(schema_json)
    row = _record(_fields(envelope).get("after", {"type": "null"}), known)
    if row is None:
        return
    for column in sorted(needs):
        expected = needs[column] if isinstance(needs, Mapping) else None
        why = _incompatibility(row, column, expected, known)
        if why:
            needed = f"column {column!r} that collection {collection!r} needs"
            raise IncompatibleSchema(f"{needed} {why} in schema id {schema_id}")


def _incompatibility(row: Mapping[str, Any], column: str, expected: Any, known: dict[str, Any]) -> str | None:
    """What is wrong with one column of the writer's row, None if nothing is."""
    written = [field["type"] for field in row["fields"] if field["name"] == column]
    wanted = expected if expected is not None else next(iter(written), "string")
    if expected is not None:
        wanted = ["null", *(branch for branch in _branches(expected) if branch != "null")]
    try:
        found = Checker().get_compatibility(
            reader=_row_of(column, [wanted], known), writer=_row_of(column, written, known)
        )
    except AvroException as error:
        return f"cannot be read ({type(error).__name__})"
    if found.compatibility is SchemaCompatibilityType.compatible:
        return None
    missing = SchemaIncompatibilityType.reader_field_missing_default_value in found.incompatibilities
    return "is missing" if missing else "changed type"


def _row_of(column: str, types: list[Any], known: dict[str, Any]) -> Any:
    """Apache Avro's schema of a record with this one column, or with none. Raises AvroException."""
    fields = [{"name": column, "type": _inlined(kind, "", known, set())} for kind in types]
    return apache_parse(dumps({"type": "record", "name": "Row", "fields": fields}), validate_names=False)


def _branches(schema: Any) -> list[Any]:
    return schema if isinstance(schema, list) else [schema]


def _parsed(schema_json: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema with full names, without Avro's own logical types, and all named types by full name.

    Raises IncompatibleSchema if it is no Avro schema.
    """
    known: dict[str, Any] = {}
    try:
        schema = _inlined(loads(schema_json), "", known, set())
        fastavro.parse_schema(schema)
    except Exception as error:
        raise IncompatibleSchema(f"a writer schema is not valid Avro: {type(error).__name__}") from None
    return schema if isinstance(schema, dict) else {"type": schema}, known


def _fields(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {field["name"]: field for field in schema.get("fields", ())}


def _record(field: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any] | None:
    """The record that a field holds, alone or beside null, defined here or elsewhere."""
    for branch in _branches(field["type"]):
        inlined = _inlined(branch, "", known, set())
        if isinstance(inlined, dict) and inlined["type"] == "record":
            return inlined
    return None


def _converters(fields: list[dict[str, Any]], known: dict[str, Any]) -> dict[str, Converter | None]:
    """Each column is inlined anew, so that its converter finds every definition."""
    return {field["name"]: converter(_inlined(field["type"], "", known, set())) for field in fields}


def _inlined(schema: Any, namespace: str, known: dict[str, Any], emitted: set[str]) -> Any:
    """A copy in which every name is full; a type of `known` is written out at its first use."""
    inner = partial(_inlined, known=known, emitted=emitted)
    if isinstance(schema, list):
        return [inner(branch, namespace) for branch in schema]
    if isinstance(schema, str):
        return schema if schema in _PRIMITIVES else _reference(schema, namespace, known, emitted)
    kind = schema["type"]
    if not isinstance(kind, str) or kind not in _KINDS:
        return inner(kind, namespace)
    copy = {key: value for key, value in schema.items() if key not in _DROPPED}
    if kind in _NAMED:
        copy["name"] = _full_name(schema["name"], schema.get("namespace", namespace))
        if copy["name"] in emitted:
            return copy["name"]
        namespace = copy["name"].rpartition(".")[0]
        known.setdefault(copy["name"], schema | {"name": copy["name"]})
        emitted.add(copy["name"])
    if kind == "array":
        copy["items"] = inner(schema["items"], namespace)
    if kind == "map":
        copy["values"] = inner(schema["values"], namespace)
    if kind == "record":
        copy["fields"] = [field | {"type": inner(field["type"], namespace)} for field in schema["fields"]]
    return copy


def _reference(name: str, namespace: str, known: dict[str, Any], emitted: set[str]) -> Any:
    full = _full_name(name, namespace)
    return full if full in emitted or full not in known else _inlined(known[full], "", known, emitted)


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"
