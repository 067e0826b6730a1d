"""From a Kafka message to a Change: the one place that knows Debezium's envelope.

`Decoder` never does I/O: it says which schema ids it lacks, is taught them, and decodes. What it cannot
decode is an Undecodable; what would fail for every record of a schema is raised, and blocks the collection.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from schemas.avro import Reader, check_compatible, key_reader, projection
from schemas.change import Change, JsonValue, Operation, Origin, TopicPartition, Undecodable, Version
from schemas.errors import (
    DeadLetter,
    DecodeError,
    DocumentTooLarge,
    IncompatibleSchema,
    MalformedEnvelope,
    RegistryUnavailable,
    TemplateError,
    UnresolvedPlaceholder,
)
from schemas.names import canonical_key
from schemas.origin import instant_of_seconds, origin
from schemas.placeholder import Placeholder
from schemas.spec import CollectionSpec
from schemas.template import Template, text_hash
from schemas.wire import split

#: Keys that change come again soon.
MOST_KNOWN_KEYS: Final = 10_000
_NEW_KEY_HEADER = "__debezium.newkey"
_WITH_ROW = frozenset({Operation.CREATE, Operation.UPDATE, Operation.READ})
_WITHOUT_KEY = frozenset({Operation.TRUNCATE, Operation.MESSAGE})


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A Kafka record as it was consumed. `timestamp_seconds` is the record's own, None if it has none."""

    at: TopicPartition
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp_seconds: float | None = None


@dataclass(slots=True)
class _Envelope:
    """What a value says. `row` are the columns as Avro has them, `reader` converts them."""

    operation: Operation
    origin: Origin
    row: Mapping[str, Any] | None = None
    reader: Reader | None = None
    schema_id: int = 0
    suspicious: bool = False


class Decoder:
    """Decodes the messages of one collection's topic. Not thread-safe; one per agent."""

    def __init__(
        self,
        collection: str,
        spec: CollectionSpec,
        key_columns: Sequence[str],
        lineage: int,
        placeholder: str,
        *,
        types: Mapping[str, Any] | None = None,
    ) -> None:
        """`types`: the Avro schema expected of a column, if known. Raises ValueError for a bad template."""
        self.collection = collection
        self._spec = spec
        self._key_columns = tuple(key_columns)
        self._lineage = lineage
        self._placeholder = Placeholder(placeholder)
        self._template = Template(spec.template)
        self._needed = self._template.columns | set(spec.metadata)
        self._needs = {column: (types or {}).get(column) for column in self._needed}
        self._schemas: dict[int, str | None] = {}
        self._envelopes: dict[int, Reader] = {}
        self._keys: dict[int, Reader] = {}
        self._compatible: set[int] = set()
        self._known_keys: dict[bytes, str] = {}

    def needs_schema(self, key: bytes | None, value: bytes | None) -> set[int]:
        """Schema ids of this message that must be learnt before it is decoded; bad bytes need none."""
        ids = set()
        for part in (key, value):
            if part is not None and len(part) >= 5 and part[0] == 0:
                ids.add(int.from_bytes(part[1:5], "big"))
        return ids - self._schemas.keys()

    def learn(self, schema_id: int, schema_json: str | None) -> None:
        """Take in a writer schema; None says that the registry is certain to have none of this id."""
        self._schemas[schema_id] = schema_json

    def decode(self, message: RawMessage) -> Change | Undecodable:
        """Decode one message.

        Raises IncompatibleSchema and UnresolvedPlaceholder, which block the collection, and
        RegistryUnavailable if a schema was not learnt.
        """
        key: str | None = None
        envelope: _Envelope | None = None
        try:
            failure: DeadLetter | None = None
            try:
                key = self._key(message)
            except DeadLetter as error:
                failure = error
            envelope = self._envelope(message.value)
            if envelope.operation in _WITHOUT_KEY:
                key = None
            elif failure is not None:
                raise failure
            return self._change(message, key, envelope)
        except DeadLetter as error:
            return Undecodable(
                at=message.at,
                version=Version(self._lineage, message.offset),
                key=key,
                key_bytes=message.key,
                value_bytes=message.value,
                headers=message.headers,
                error_class=type(error).__name__,
                error=str(error),
                committed_at=envelope.origin.committed_at if envelope else None,
            )

    def doubt(self, message: RawMessage) -> Change:
        """A change of which only the key can be used: what the row is now, the source has to say.

        Raises Blocked, RegistryUnavailable and DeadLetter like `decode`.
        """
        envelope = self._envelope(message.value)
        key = self._key(message)
        _check_key(key, envelope.operation)
        return self._bare(message, key, envelope, doubtful=envelope.operation in _WITH_ROW)

    def contents(self, message: RawMessage) -> dict[str, JsonValue]:
        """What a person may see of a message that could not be taken in: `operation`, `row` and `text`.

        Excluded columns, unavailable values and columns that cannot be read are not in `row`. `text` is None where
        the template does not render it. Raises DecodeError, IncompatibleSchema, RegistryUnavailable.
        """
        envelope = self._envelope(message.value)
        found: dict[str, JsonValue] = {"operation": envelope.operation.value, "row": None, "text": None}
        if envelope.row is None or envelope.reader is None:
            return found
        row: dict[str, JsonValue] = {}
        unavailable = self._unavailable(envelope.row, envelope.suspicious)
        for column in [column for column in envelope.row if column not in unavailable]:
            with contextlib.suppress(DecodeError):
                value = _converted(envelope.row, envelope.reader, [column])
                row |= {} if self._placeholder.is_within(value[column]) else value
        found["row"] = row
        with contextlib.suppress(TemplateError):
            found["text"] = self._template.render(row)
        return found

    def complete(
        self, change: Change, stored_row: Mapping[str, JsonValue] | None, message: RawMessage | None = None
    ) -> Change | Undecodable:
        """Fill the unavailable columns from the stored row and render the text.

        `message` is what an Undecodable keeps. Raises UnresolvedPlaceholder if a column that the collection
        needs is not stored either; one that it does not need is left out.
        """
        if not change.unavailable or change.row is None:
            return change
        stored = stored_row or {}
        lacking = sorted(column for column in change.unavailable & self._needed if column not in stored)
        if lacking:
            raise UnresolvedPlaceholder(self._unresolved(lacking[0]))
        found = {column: stored[column] for column in sorted(change.unavailable) if column in stored}
        try:
            row = {**change.row, **found}
            text, digest = self._text(row)
            return replace(change, row=row, unavailable=frozenset(), text=text, text_hash=digest)
        except DeadLetter as error:
            return Undecodable(
                at=change.at,
                version=change.version,
                key=change.key,
                key_bytes=message.key if message else None,
                value_bytes=message.value if message else None,
                headers=message.headers if message else (),
                error_class=type(error).__name__,
                error=str(error),
                committed_at=change.origin.committed_at,
            )

    def render(self, template: str, change: Change) -> tuple[str, bytes] | None:
        """Text and hash of a complete change by the template of a generation; None if it cannot render this row.

        Another generation's template may differ from the spec's: it fails for its own generation only.
        """
        if template == self._template.source:
            return change.text, change.text_hash
        try:
            text = Template(template).render(change.row or {})
        except TemplateError:
            return None
        return text, text_hash(text, template)

    def _key(self, message: RawMessage) -> str | None:
        """The canonical key. Raises DecodeError, and IncompatibleSchema if the key has other columns."""
        if message.key is None:
            return None
        known = self._known_keys.get(message.key)
        if known is None:
            if len(self._known_keys) >= MOST_KNOWN_KEYS:
                self._known_keys.clear()
            known = self._known_keys[message.key] = self._read_key(message.key)
        return known

    def _read_key(self, key: bytes) -> str:
        schema_id, body = split(key)
        reader = self._keys.get(schema_id)
        if reader is None:
            reader = key_reader(self._schema(schema_id))
            if set(reader.columns) != set(self._key_columns):
                raise IncompatibleSchema(
                    f"the key of collection {self.collection!r} is no longer "
                    f"{', '.join(self._key_columns)} in schema id {schema_id}"
                )
            self._keys[schema_id] = reader
        row = _converted(reader.decode(body), reader, self._key_columns)
        return canonical_key([row[column] for column in self._key_columns])

    def _schema(self, schema_id: int) -> str:
        """Raises RegistryUnavailable for a schema not learnt, DecodeError for one that does not exist."""
        if schema_id not in self._schemas:
            raise RegistryUnavailable(f"schema id {schema_id} is not known yet")
        schema = self._schemas[schema_id]
        if schema is None:
            raise DecodeError(f"the registry has no schema id {schema_id}")
        return schema

    def _envelope(self, value: bytes | None) -> _Envelope:
        """Raises DecodeError, or MalformedEnvelope for what is Avro but no change of this table."""
        if value is None:
            return _Envelope(Operation.TOMBSTONE, Origin())
        schema_id, body = split(value)
        reader = self._envelopes.get(schema_id)
        if reader is None:
            reader = projection(self._schema(schema_id), self._spec.exclude)
            self._envelopes[schema_id] = reader
        decoded = reader.decode(body)
        try:
            operation = Operation(decoded["op"])
        except ValueError:
            raise MalformedEnvelope("the envelope's op is none that Debezium has") from None
        source = decoded["source"]
        if not isinstance(source, dict):
            raise MalformedEnvelope("the envelope has no source")
        named = f"{source.get('schema')}.{source.get('table')}"
        if operation is not Operation.MESSAGE and named != self._spec.table:
            raise MalformedEnvelope(f"the envelope is not of table {self._spec.table}")
        where = origin(source, operation)
        row = decoded.get("after") if operation in _WITH_ROW else None
        return _Envelope(operation, where, row, reader, schema_id, self._placeholder.is_in_bytes(body))

    def _change(self, message: RawMessage, key: str | None, envelope: _Envelope) -> Change:
        _check_key(key, envelope.operation)
        row, unavailable, text, digest = None, frozenset[str](), "", b""
        if envelope.operation in _WITH_ROW:
            row, unavailable = self._row(envelope)
            if not unavailable:
                text, digest = self._text(row)
        of_row = {"row": row, "unavailable": unavailable, "text": text, "text_hash": digest}
        return self._bare(message, key, envelope, **of_row)

    def _bare(self, message: RawMessage, key: str | None, envelope: _Envelope, **of_row: Any) -> Change:
        """A change with what its row adds, `of_row`."""
        operation = envelope.operation
        moved = operation is Operation.DELETE and any(name == _NEW_KEY_HEADER for name, _ in message.headers)
        return Change(
            operation=operation,
            at=message.at,
            version=Version(self._lineage, message.offset),
            key=key,
            origin=envelope.origin,
            moved_to=moved,
            kafka_at=instant_of_seconds(message.timestamp_seconds),
            **of_row,
        )

    def _row(self, envelope: _Envelope) -> tuple[dict[str, JsonValue], frozenset[str]]:
        """The row, converted, and what of it is unavailable."""
        reader, raw = envelope.reader, envelope.row
        if reader is None or raw is None:
            raise MalformedEnvelope(f"a message of operation {envelope.operation.value} has no row")
        self._check_compatible(envelope.schema_id)
        unavailable = frozenset(self._unavailable(raw, envelope.suspicious))
        row = self._readable(raw, reader, [column for column in raw if column not in unavailable])
        if envelope.suspicious:
            for column, value in row.items():
                if self._placeholder.is_within(value):
                    raise UnresolvedPlaceholder(self._unresolved(column))
        return row, unavailable

    def _readable(
        self, raw: Mapping[str, Any], reader: Reader, columns: Sequence[str]
    ) -> dict[str, JsonValue]:
        """A column that cannot be read and that nobody needs is left out. Raises DecodeError for one that is needed."""
        try:
            return _converted(raw, reader, columns)
        except DecodeError:
            row = _converted(raw, reader, [column for column in columns if column in self._needed])
            for column in [column for column in columns if column not in row]:
                with contextlib.suppress(DecodeError):
                    row |= _converted(raw, reader, [column])
            return row

    def _unavailable(self, raw: Mapping[str, Any], suspicious: bool) -> list[str]:
        """Columns that are the placeholder. Arrays may spell it as numbers or uuids: always looked at."""
        return [
            column
            for column, value in raw.items()
            if (suspicious or isinstance(value, list)) and self._placeholder.stands_for(value)
        ]

    def _check_compatible(self, schema_id: int) -> None:
        """Once per schema id, and again while it is not: a restart with another spec is what mends it."""
        if schema_id not in self._compatible:
            check_compatible(self._schema(schema_id), self._needs, self.collection, schema_id)
            self._compatible.add(schema_id)

    def _text(self, row: Mapping[str, JsonValue]) -> tuple[str, bytes]:
        """Text and hash. Raises TemplateError, DocumentTooLarge, UnresolvedPlaceholder if it holds the placeholder."""
        text = self._template.render(row)
        if self._placeholder.is_within(text):
            raise UnresolvedPlaceholder(f"the text of collection {self.collection!r} holds the placeholder")
        size, limit = len(text.encode()), self._spec.max_document_bytes
        if size > limit:
            raise DocumentTooLarge(f"the document has {size} bytes, max_document_bytes is {limit}")
        return text, text_hash(text, self._template.source)

    def _unresolved(self, column: str) -> str:
        return (
            f"column {column!r} of collection {self.collection!r} is unavailable and not stored: "
            f"set REPLICA IDENTITY FULL on {self._spec.table}"
        )


def _check_key(key: str | None, operation: Operation) -> None:
    if key is None and operation not in _WITHOUT_KEY:
        raise MalformedEnvelope(f"a message of operation {operation.value} has no key")


def _converted(values: Mapping[str, Any], reader: Reader, columns: Sequence[str]) -> dict[str, JsonValue]:
    """Raises DecodeError, which names the column, if a value is not what its logical name promises."""
    row: dict[str, JsonValue] = {}
    for column in columns:
        convert = reader.columns[column]
        try:
            row[column] = convert(values[column]) if convert else values[column]
        except Exception as error:
            raise DecodeError(f"column {column!r} cannot be read: {type(error).__name__}") from None
    return row
