"""Values: from Avro with Connect's logical names to what `to_jsonb` prints."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from schemas.values import converter, json_value
from tests.fixtures.envelope import logical

TIME = "io.debezium.time."
CONNECT = "org.apache.kafka.connect.data."


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        (logical("int", TIME + "Date"), 20_455, "2026-01-02"),
        (logical("int", TIME + "Date"), -1, "1969-12-31"),
        (logical("int", TIME + "Date"), -735_522, "0045-03-18 BC"),
        (logical("int", TIME + "Date"), 4_000_000, "12921-08-18"),
        (logical("int", TIME + "Date"), -2_147_472_692, "infinity"),
        (logical("int", TIME + "Date"), -2_147_472_691, "-infinity"),
        (logical("int", TIME + "Date"), 2_146_033_979, "infinity"),
        (logical("int", TIME + "Date"), 2_145_042_905, "5874897-12-31"),
        (logical("int", TIME + "Date"), -622_191_234, "infinity"),
        (logical("int", TIME + "Date"), -625_821_272, "-infinity"),
        (logical("long", TIME + "MicroTimestamp"), 1_767_323_045_123_456, "2026-01-02T03:04:05.123456"),
        (logical("long", TIME + "MicroTimestamp"), 1_767_323_045_100_000, "2026-01-02T03:04:05.1"),
        (logical("long", TIME + "MicroTimestamp"), -1, "1969-12-31T23:59:59.999999"),
        (logical("long", TIME + "MicroTimestamp"), 253_402_300_800_000_000, "10000-01-01T00:00:00"),
        (logical("long", TIME + "MicroTimestamp"), 9223372036825200000, "infinity"),
        (logical("long", TIME + "MicroTimestamp"), -9223372036832400000, "-infinity"),
        (logical("long", TIME + "Timestamp"), 1_767_323_045_123, "2026-01-02T03:04:05.123"),
        (logical("long", TIME + "NanoTimestamp"), 1_767_323_045_123_456_789, "2026-01-02T03:04:05.123456"),
        (logical("long", TIME + "MicroTime"), 11_045_120_000, "03:04:05.12"),
        (logical("long", TIME + "MicroTime"), 86_400_000_000, "24:00:00"),
        (logical("int", TIME + "Time"), 11_045_120, "03:04:05.12"),
        (logical("string", TIME + "ZonedTime"), "03:04:05.120Z", "03:04:05.12+00"),
        (
            logical("string", TIME + "ZonedTimestamp"),
            "2026-01-02T03:04:05.123456Z",
            "2026-01-02T03:04:05.123456+00:00",
        ),
        (
            logical("string", TIME + "ZonedTimestamp"),
            "2026-01-02T03:04:05.120000Z",
            "2026-01-02T03:04:05.12+00:00",
        ),
        (logical("string", TIME + "ZonedTimestamp"), "2026-01-02T03:04:05Z", "2026-01-02T03:04:05+00:00"),
        (logical("string", TIME + "ZonedTimestamp"), "2026-01-02T03:04Z", "2026-01-02T03:04:00+00:00"),
        (
            logical("string", TIME + "ZonedTimestamp"),
            "2026-01-02T05:04:05+02:00",
            "2026-01-02T03:04:05+00:00",
        ),
        (logical("string", TIME + "ZonedTimestamp"), "+12345-01-02T03:04:05Z", "12345-01-02T03:04:05+00:00"),
        (logical("string", TIME + "ZonedTimestamp"), "-0043-03-15T00:00:00Z", "0044-03-15T00:00:00+00:00 BC"),
        (logical("string", TIME + "ZonedTimestamp"), "infinity", "infinity"),
        (logical("string", TIME + "ZonedTimestamp"), "-infinity", "-infinity"),
        (logical("string", TIME + "ZonedTimestamp"), "+292269055-12-02T23:00:00.000000Z", "-infinity"),
        (logical("string", TIME + "Interval"), "P1Y2M3DT4H5M6.78S", "P1Y2M3DT4H5M6.78S"),
        (logical("long", TIME + "MicroDuration"), 1_500_000, "1500000 microseconds"),
        (
            logical("string", "io.debezium.data.Uuid"),
            "0b5c3e1c-0000-4000-8000-000000000000",
            "0b5c3e1c-0000-4000-8000-000000000000",
        ),
        (logical("string", "io.debezium.data.Xml"), "<a/>", "<a/>"),
        (logical("string", "io.debezium.data.Enum", allowed="new,old"), "new", "new"),
        (logical("string", "io.debezium.data.Json"), '{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
        (logical("bytes", "io.debezium.data.Bits", length="10"), b"\x05\x02", "1000000101"),
        (logical("bytes", CONNECT + "Decimal", scale="2"), b"\x3a\x98", "150.00"),
        (logical("bytes", CONNECT + "Decimal", scale="2"), b"\xff", "-0.01"),
        (logical("int", CONNECT + "Date"), 0, "1970-01-01"),
        (logical("long", CONNECT + "Timestamp"), 1, "1970-01-01T00:00:00.001"),
        (logical("int", CONNECT + "Time"), 1, "00:00:00.001"),
        ("bytes", b"\x00\xff", "\\x00ff"),
        ({"type": "fixed", "name": "f", "size": 2}, b"ab", "\\x6162"),
        ("double", 0.1, 0.1),
        ("double", 1.5e300, 15 * 10**299),
        ("double", float("nan"), "NaN"),
        ("double", float("-inf"), "-Infinity"),
        ({"type": "float"}, struct.unpack("f", struct.pack("f", 0.1))[0], 0.1),
        ({"type": "float"}, float("inf"), "Infinity"),
        (["null", "bytes"], None, None),
        (["null", "bytes"], b"a", "\\x61"),
        (
            {"type": "array", "items": ["null", logical("int", TIME + "Date")]},
            [0, None],
            ["1970-01-01", None],
        ),
        ({"type": "map", "values": ["null", "bytes"]}, {"a": b"a", "b": None}, {"a": "\\x61", "b": None}),
        (["null", "string", "bytes"], [b"a", 1.5, {"b": None}], ["\\x61", 1.5, {"b": None}]),
    ],
)
def test_converts_to_what_postgres_prints(schema: Any, value: Any, expected: Any) -> None:
    convert = converter(schema)
    assert (convert(value) if convert else value) == expected


@pytest.mark.parametrize(
    "schema",
    ["string", "long", "int", "boolean", ["null", "string"], {"type": "array", "items": ["null", "long"]}],
)
def test_plain_types_need_no_converter(schema: Any) -> None:
    assert converter(schema) is None


def test_arrays_of_several_dimensions_are_no_text() -> None:
    """Debezium sends what Java prints of an array; text that only begins like it is text."""
    convert = converter({"type": "array", "items": ["null", "string"]})
    assert convert is not None
    assert convert(["a", None, "[Ljava", "[Ljava.lang.String;@"]) == [
        "a",
        None,
        "[Ljava",
        "[Ljava.lang.String;@",
    ]
    with pytest.raises(ValueError, match="dimensions"):
        convert(["[Ljava.lang.String;@124ad206", None])


@pytest.mark.parametrize(("value", "text"), [((1.5, 2.0), "(1.5,2)"), ((-0.25, 1e300), "(-0.25,1e+300)")])
def test_points(value: tuple[float, float], text: str) -> None:
    fields = [{"name": name, "type": "double"} for name in ("x", "y")]
    name = "io.debezium.data.geometry.Point"
    convert = converter({"type": "record", "name": name, "fields": fields, "connect.name": name})
    assert convert is not None
    assert convert({"x": value[0], "y": value[1], "wkb": b"", "srid": None}) == text


def test_variable_scale_decimals_are_exact() -> None:
    fields = [{"name": "scale", "type": "int"}, {"name": "value", "type": "bytes"}]
    name = "io.debezium.data.VariableScaleDecimal"
    convert = converter({"type": "record", "name": name, "fields": fields, "connect.name": name})
    assert convert
    assert convert({"scale": 3, "value": (12345).to_bytes(2, "big")}) == "12.345"
    digits = 7 * 10**50 + 1
    assert convert({"scale": 0, "value": digits.to_bytes(30, "big")}) == str(digits)


def test_records_convert_by_field() -> None:
    fields = [{"name": "x", "type": "double"}, {"name": "wkb", "type": ["null", "bytes"]}]
    convert = converter({"type": "record", "name": "Point", "fields": fields})
    assert convert
    assert convert({"x": 1.5, "wkb": b"\x01"}) == {"x": 1.5, "wkb": "\\x01"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12345678901234567890123", 12345678901234567890123),
        ("1.10", 1.1),
        ("0.1234567890123456789", "0.1234567890123456789"),
        ("1e400", "1e400"),
        ("1e16", 10**16),
        ("1.5e1", 15.0),
        ("[1" + "0" * 5000 + "]", ["1" + "0" * 5000]),
        ("not json", "not json"),
        ("NaN", "NaN"),
        ('"\\ud800"', '"\\ud800"'),
        ('"a\\u0000"', '"a\\u0000"'),
        ('"a\\\\u0000"', "a\\u0000"),
        ('"\\u00e4"', "ä"),
        ("[" * 5000 + "]" * 5000, "[" * 5000 + "]" * 5000),
        ("[" * 200 + "]" * 200, "[" * 200 + "]" * 200),
        ("[" + "[]," * 200 + "[]]", [[]] * 201),
    ],
)
def test_json_is_exact_or_stays_text(text: str, expected: Any) -> None:
    assert json_value(text) == expected


@pytest.mark.parametrize("text", ["yesterday", "2026-13", ""])
def test_other_text_is_no_timestamp(text: str) -> None:
    convert = converter(logical("string", TIME + "ZonedTimestamp"))
    assert convert
    with pytest.raises(ValueError):
        convert(text)


def test_keys_are_in_the_order_of_jsonb() -> None:
    assert list(json_value('{"ba": 1, "a": 2, "aa": 3, "b": {"z": 1, "y": 2}}')) == ["a", "b", "aa", "ba"]  # type: ignore[arg-type]
    convert = converter({"type": "map", "values": "string"})
    assert convert
    assert list(convert({"bb": "1", "a": "2"})) == ["a", "bb"]  # type: ignore[arg-type]
