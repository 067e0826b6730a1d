"""From Kafka's bytes to a Change, and what becomes of bytes that are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

import pytest

from schemas.change import Change, Operation, TopicPartition, Undecodable, Version
from schemas.envelope import Decoder, RawMessage
from schemas.errors import IncompatibleSchema, RegistryUnavailable, UnresolvedPlaceholder
from schemas.spec import CollectionSpec
from schemas.template import text_hash
from tests.fixtures.envelope import COLUMNS, Made, encode, envelope_message, key_schema, logical

HOLE = "__upwell_0123456789abcdef__"
Header: TypeAlias = tuple[str, bytes | None]

AT = TopicPartition("src.public.content", 3)
ROW = {"id": 42, "title": "Tea", "body": "Green", "tags": ["a", None], "secret": "password"}
COMMITTED = datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)


def spec(**fields: Any) -> CollectionSpec:
    given = {"table": "public.content", "template": "{{ title }}\n{{ body }}", "exclude": ("secret",)}
    return CollectionSpec(**{**given, **fields})


def decoder(**fields: Any) -> Decoder:
    return Decoder("content", spec(**fields), ["id"], lineage=2, placeholder=HOLE)


def raw(
    made: Made, *headers: tuple[str, bytes | None], timestamp: float | None = 1_767_323_046.5
) -> RawMessage:
    return RawMessage(AT, 900, made.key, made.value, headers, timestamp)


def outcome(made: Made, *headers: Header, using: Decoder | None = None) -> Change | Undecodable:
    using = using or decoder()
    for schema_id, schema in made.schemas.items():
        using.learn(schema_id, schema)
    return using.decode(raw(made, *headers))


def change(made: Made, *headers: Header, using: Decoder | None = None) -> Change:
    decoded = outcome(made, *headers, using=using)
    assert isinstance(decoded, Change), decoded
    return decoded


def undecodable(made: Made, using: Decoder | None = None) -> Undecodable:
    decoded = outcome(made, using=using)
    assert isinstance(decoded, Undecodable), decoded
    return decoded


def test_a_streamed_update() -> None:
    made = envelope_message(ROW, op="u", before=ROW, lsn=77, sequence='["55","77"]', txId=9)
    decoded = change(made)
    assert decoded.operation is Operation.UPDATE
    assert (decoded.at, decoded.version, decoded.key) == (AT, Version(2, 900), "[42]")
    assert decoded.origin.lsn == decoded.origin.fence_lsn == decoded.origin.sequence_lsn == 77
    assert (decoded.origin.sequence_last_commit, decoded.origin.transaction_id) == (55, 9)
    assert (decoded.origin.committed_at, decoded.origin.snapshot) == (COMMITTED, False)
    assert decoded.kafka_at == datetime(2026, 1, 2, 3, 4, 6, 500000, tzinfo=UTC)
    assert decoded.row
    assert decoded.row["title"] == "Tea"
    assert decoded.row["tags"] == ["a", None]
    assert decoded.text == "Tea\nGreen"
    assert decoded.text_hash == text_hash("Tea\nGreen", "{{ title }}\n{{ body }}")
    assert decoded.unavailable == frozenset()


def test_excluded_columns_never_appear() -> None:
    decoded = change(envelope_message(ROW, before=ROW))
    assert decoded.row
    assert "secret" not in decoded.row
    assert "password" not in repr(decoded)


@pytest.mark.parametrize("snapshot", ["incremental", "true", "first", "last", "first_in_data_collection"])
def test_snapshot_rows_have_no_commit_time(snapshot: str) -> None:
    made = envelope_message(ROW, op="r", snapshot=snapshot, lsn=None, txId=None, sequence='[null,"456"]')
    origin = change(made).origin
    assert origin.snapshot
    assert (origin.committed_at, origin.lsn, origin.transaction_id) == (None, None, None)
    assert (origin.sequence_last_commit, origin.fence_lsn) == (None, 456)


def test_commit_time_in_milliseconds_where_there_is_no_better() -> None:
    assert change(envelope_message(ROW, ts_us=None)).origin.committed_at == COMMITTED.replace(
        microsecond=123000
    )


def test_a_delete_and_its_tombstone() -> None:
    deleted = change(envelope_message(None, op="d", before={"id": 42}))
    assert (deleted.operation, deleted.key, deleted.row, deleted.text) == (Operation.DELETE, "[42]", None, "")
    assert not deleted.moved_to
    tombstone = change(envelope_message(None, tombstone=True, key_values={"id": 42}))
    assert (tombstone.operation, tombstone.key, tombstone.row) == (Operation.TOMBSTONE, "[42]", None)


def test_half_a_key_change_is_marked() -> None:
    made = envelope_message(None, op="d", before={"id": 42})
    assert change(made, ("__debezium.newkey", b"\0\0\0\0\1\x56")).moved_to
    created = envelope_message(ROW)
    assert not change(created, ("__debezium.oldkey", b"x")).moved_to


def test_a_truncate_has_no_key() -> None:
    decoded = change(envelope_message(None, op="t", key_values={}, lsn=150))
    assert (decoded.operation, decoded.key, decoded.origin.lsn) == (Operation.TRUNCATE, None, 150)


def test_logical_messages_are_passed_on() -> None:
    assert change(envelope_message(None, op="m", key_values={}, table="")).operation is Operation.MESSAGE


def test_keys_of_several_columns_are_in_key_order() -> None:
    columns = {**COLUMNS, "day": logical("int", "io.debezium.time.Date"), "code": "string"}
    using = Decoder("content", spec(), ["code", "day"], 1, HOLE)
    made = envelope_message({"code": 'ü,"', "day": 1, "title": "x"}, columns=columns, key=["day", "code"])
    assert change(made, using=using).key == '["ü,\\"","1970-01-02"]'


def test_asks_for_the_schemas_it_lacks() -> None:
    made, using = envelope_message(ROW), decoder()
    assert using.needs_schema(made.key, made.value) == {1, 2}
    with pytest.raises(RegistryUnavailable):
        using.decode(raw(made))
    for schema_id, schema in made.schemas.items():
        using.learn(schema_id, schema)
    assert using.needs_schema(made.key, made.value) == using.needs_schema(b"\1junk!", None) == set()


def test_a_schema_that_does_not_exist_is_a_dead_letter() -> None:
    made, using = envelope_message(ROW), decoder()
    using.learn(1, made.schemas[1])
    using.learn(2, None)
    decoded = using.decode(raw(made))
    assert isinstance(decoded, Undecodable)
    assert (decoded.error_class, decoded.key) == ("DecodeError", "[42]")


@pytest.mark.parametrize(
    ("made", "error_class", "key"),
    [
        (replace(envelope_message(ROW), value=b"\1bytes"), "BadMagicByte", "[42]"),
        (replace(envelope_message(ROW), value=b"\0\0\0\0\2junk"), "DecodeError", "[42]"),
        (
            replace(envelope_message(ROW), value=encode(1, key_schema(), {"id": 1})),
            "MalformedEnvelope",
            "[42]",
        ),
        (envelope_message(ROW, op="x"), "MalformedEnvelope", "[42]"),
        (envelope_message(None, op="u", before=ROW), "MalformedEnvelope", "[42]"),
        (envelope_message(ROW, table="other"), "MalformedEnvelope", "[42]"),
        (envelope_message(ROW, sequence="[1]"), "MalformedEnvelope", "[42]"),
        (envelope_message(ROW, ts_us=9 * 10**18, ts_ns=None), "MalformedEnvelope", "[42]"),
        (envelope_message(ROW, key_values={}), "MalformedEnvelope", None),
        (envelope_message(None, tombstone=True, key_values={}), "MalformedEnvelope", None),
        (replace(envelope_message(ROW), key=b"\0\0\0\0\1"), "DecodeError", None),
        (
            envelope_message(
                ROW, columns={**COLUMNS, "body": logical("string", "io.debezium.time.ZonedTimestamp")}
            ),
            "DecodeError",
            "[42]",
        ),
    ],
)
def test_bad_records_become_dead_letters(made: Made, error_class: str, key: str | None) -> None:
    failed = undecodable(made)
    assert (failed.error_class, failed.key) == (error_class, key)
    assert (failed.key_bytes, failed.value_bytes) == (made.key, made.value)
    assert (failed.at, failed.version) == (AT, Version(2, 900))


def test_the_commit_time_is_kept_where_it_can_be_read() -> None:
    assert undecodable(replace(envelope_message(ROW), key=b"junk")).committed_at == COMMITTED
    assert undecodable(replace(envelope_message(ROW), value=b"junk")).committed_at is None


def test_a_row_that_the_template_cannot_render() -> None:
    made = envelope_message({**ROW, "details": '{"a": 1}'})
    failed = undecodable(made, decoder(template="{{ details.origin }}"))
    assert (failed.error_class, failed.key, failed.committed_at) == ("TemplateError", "[42]", COMMITTED)
    assert "details" in failed.error


def test_a_column_that_cannot_be_read_matters_only_where_it_is_needed() -> None:
    made = envelope_message({**ROW, "tags": ["[Ljava.lang.String;@124ad206"]})
    assert undecodable(made, decoder(metadata=("tags",))).error == "column 'tags' cannot be read: ValueError"
    assert (change(made).row or {}).keys() == COLUMNS.keys() - {"tags", "secret"}


def test_a_document_over_the_limit_by_bytes() -> None:
    made = envelope_message({**ROW, "title": "ä" * 5, "body": None})
    assert isinstance(outcome(made, using=decoder(max_document_bytes=10)), Change)
    failed = undecodable(made, decoder(max_document_bytes=9))
    assert failed.error_class == "DocumentTooLarge"
    assert "ä" not in failed.error


def test_a_dropped_column_blocks() -> None:
    columns = {name: kind for name, kind in COLUMNS.items() if name != "body"}
    made = envelope_message(ROW, columns=columns)
    for _ in range(2):
        with pytest.raises(
            IncompatibleSchema, match="column 'body' that collection 'content' needs is missing"
        ):
            outcome(made)


def test_a_metadata_column_is_needed_too() -> None:
    with pytest.raises(IncompatibleSchema, match="'shelf'"):
        outcome(envelope_message(ROW), using=decoder(metadata=("shelf",)))


def test_a_delete_needs_no_columns() -> None:
    columns = {name: kind for name, kind in COLUMNS.items() if name != "body"}
    assert change(envelope_message(None, op="d", before=ROW, columns=columns)).operation is Operation.DELETE


def test_another_primary_key_blocks() -> None:
    with pytest.raises(IncompatibleSchema, match="the key of collection 'content'"):
        outcome(envelope_message(ROW, key=["id", "title"]))


def test_what_cannot_be_used_as_it_was_sent_is_doubted() -> None:
    made = envelope_message({"id": 42, "title": "Tea"}, columns={"id": "long", "title": "string"}, op="u")
    using = decoder()
    with pytest.raises(IncompatibleSchema, match="'body'"):
        outcome(made, using=using)
    doubted = using.doubt(raw(made))
    assert (doubted.key, doubted.operation, doubted.doubtful) == ("[42]", Operation.UPDATE, True)
    assert (doubted.row, doubted.origin.committed_at) == (None, COMMITTED)


def test_another_primary_key_cannot_be_doubted() -> None:
    made, using = envelope_message(ROW, key=["id", "title"]), decoder()
    with pytest.raises(IncompatibleSchema):
        outcome(made, using=using)
    with pytest.raises(IncompatibleSchema):
        using.doubt(raw(made))


def test_what_is_no_avro_blocks() -> None:
    with pytest.raises(IncompatibleSchema):
        outcome(replace(envelope_message(ROW), schemas={1: envelope_message(ROW).schemas[1], 2: "{"}))


BLOB = {
    **COLUMNS,
    "extra": ["null", "bytes"],
    "numbers": ["null", {"type": "array", "items": ["null", "int"]}],
    "pairs": ["null", {"type": "map", "values": ["null", "string"]}],
}


@pytest.mark.parametrize(
    "hole",
    [
        {"body": HOLE},
        {"tags": [HOLE]},
        {"tags": ["a", HOLE]},
        {"details": HOLE},
        {"details": f'"{HOLE}"'},
        {"details": f'{{"a": ["{HOLE}"]}}'},
        {"extra": HOLE.encode()},
        {"numbers": list(HOLE.encode())},
        {"pairs": {HOLE: HOLE}},
    ],
)
def test_unavailable_columns_are_named_and_left_out(hole: Mapping[str, Any]) -> None:
    decoded = change(envelope_message({**ROW, **hole}, op="u", columns=BLOB))
    assert decoded.unavailable == set(hole)
    assert decoded.row is not None
    assert not set(hole) & set(decoded.row)
    assert (decoded.text, decoded.text_hash) == ("", b"")
    assert HOLE not in repr(decoded)


@pytest.mark.parametrize(
    "spoilt", [{"title": f"x{HOLE}"}, {"price": f"x{HOLE}"}, {"details": f'{{"a": "x{HOLE}"}}'}]
)
def test_a_placeholder_within_a_value_blocks(spoilt: Mapping[str, Any]) -> None:
    with pytest.raises(UnresolvedPlaceholder) as blocked:
        outcome(envelope_message({**ROW, **spoilt}))
    assert HOLE not in str(blocked.value)


def test_unavailable_columns_are_filled_from_the_stored_row() -> None:
    using = decoder()
    change_ = change(envelope_message({**ROW, "title": "New", "body": HOLE}, op="u"), using=using)
    completed = using.complete(change_, {"title": "Old", "body": "Stored"})
    assert isinstance(completed, Change)
    assert completed.row
    assert (completed.row["body"], completed.text, completed.unavailable) == (
        "Stored",
        "New\nStored",
        frozenset(),
    )
    assert completed.text_hash == text_hash("New\nStored", "{{ title }}\n{{ body }}")


@pytest.mark.parametrize("stored", [None, {}, {"title": "x"}])
def test_a_needed_column_that_is_not_stored_blocks(stored: Mapping[str, Any] | None) -> None:
    using = decoder()
    change_ = change(envelope_message({**ROW, "body": HOLE}, op="u"), using=using)
    with pytest.raises(UnresolvedPlaceholder, match="'body'"):
        using.complete(change_, stored)


def test_a_column_that_nobody_needs_may_stay_unavailable() -> None:
    using = decoder()
    completed = using.complete(change(envelope_message({**ROW, "price": HOLE}, op="u"), using=using), None)
    assert isinstance(completed, Change)
    assert completed.row
    assert "price" not in completed.row
    assert completed.text == "Tea\nGreen"


def test_a_stored_placeholder_never_becomes_text() -> None:
    using = decoder()
    change_ = change(envelope_message({**ROW, "body": HOLE}, op="u"), using=using)
    with pytest.raises(UnresolvedPlaceholder):
        using.complete(change_, {"body": f"x{HOLE}"})


def test_completing_can_fail_for_one_row() -> None:
    using = decoder(max_document_bytes=5)
    made = envelope_message({**ROW, "body": HOLE}, op="u")
    change_ = change(made, using=using)
    failed = using.complete(change_, {"body": "far too long"}, raw(made))
    assert isinstance(failed, Undecodable)
    assert (failed.error_class, failed.value_bytes, failed.key) == ("DocumentTooLarge", made.value, "[42]")


def test_a_complete_change_stays_as_it_is() -> None:
    using = decoder()
    decoded = change(envelope_message(ROW), using=using)
    assert using.complete(decoded, None) is decoded


def contents(made: Made, **fields: Any) -> dict[str, Any]:
    using = decoder(**fields)
    for schema_id, schema in made.schemas.items():
        using.learn(schema_id, schema)
    return dict(using.contents(raw(made)))


def test_a_person_sees_the_row_without_what_is_excluded_or_a_placeholder() -> None:
    seen = contents(envelope_message({**ROW, "price": HOLE, "details": f'{{"a": "x{HOLE}"}}'}, op="u"))
    assert (seen["operation"], seen["text"], seen["row"]["title"]) == ("u", "Tea\nGreen", "Tea")
    assert not {"secret", "price", "details"} & set(seen["row"])
    assert HOLE not in repr(seen)


def test_a_person_sees_the_row_that_the_template_cannot_render() -> None:
    seen = contents(envelope_message(ROW), template="{{ details.colour }}")
    assert (seen["text"], seen["row"]["body"]) == (None, "Green")
    gone = contents(envelope_message(None, op="d", before=ROW))
    assert gone == {"operation": "d", "row": None, "text": None}


def test_an_empty_placeholder_is_refused() -> None:
    with pytest.raises(ValueError, match="placeholder"):
        Decoder("content", spec(), ["id"], 1, "")
