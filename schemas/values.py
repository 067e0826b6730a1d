"""Column values: from Avro with Connect's logical names to JSON values as Postgres' `to_jsonb` prints them.

A converter is made once per column of a writer schema; None stands for "as it is". Decimals stay strings, so
that no digit is lost; NaN and the infinities are strings, as JSON has no other way.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any, Final, TypeAlias

from schemas.change import JsonValue
from schemas.times import date_text, time_text, timestamp_text, zoned_time_text, zoned_timestamp_text

Converter: TypeAlias = Callable[[Any], JsonValue]

#: Nested deeper than this, a JSON column stays the text it is: no reader of the row may run out of stack.
_DEEPEST_JSON: Final = 100
_LONGEST_INTEGER: Final = 1000
#: What stands for each row of a text array of several dimensions.
_JAVA_ARRAY: Final = re.compile(r"\[+L[\w.$]+;@[0-9a-f]{1,8}")


def converter(schema: Any) -> Converter | None:
    """The converter of one column of an inlined Avro schema (no named references to containers)."""
    if isinstance(schema, list):
        return _of_union(schema)
    if isinstance(schema, str):
        return _BY_TYPE.get(schema)
    named = schema.get("connect.name")
    if named in _BY_NAME:
        return _BY_NAME[named]
    parameters: Mapping[str, str] = schema.get("connect.parameters", {})
    if named == "io.debezium.data.Bits":
        return _of_bits(int(parameters.get("length", "1")))
    if named == "org.apache.kafka.connect.data.Decimal":
        return _of_decimal(int(parameters.get("scale", "0")))
    return _of_container(schema)


def _of_union(branches: list[Any]) -> Converter | None:
    """`null` passes; where several real branches are, each value converts by its Python type."""
    real = [branch for branch in branches if branch != "null"]
    inner = converter(real[0]) if len(real) == 1 else _by_python_type
    if inner is None or len(real) == len(branches):
        return inner
    return partial(_nullable, inner)


def _nullable(inner: Converter, value: Any) -> JsonValue:
    return None if value is None else inner(value)


def _of_container(schema: Mapping[str, Any]) -> Converter | None:
    kind = schema.get("type")
    if kind == "array":
        inner = converter(schema["items"])
        if inner is not None:
            return partial(_list, inner)
        return _flat if "string" in _branches(schema["items"]) else None
    if kind == "map":
        return partial(_map, converter(schema["values"]) or _same)
    if kind == "record":
        return _of_record({field["name"]: converter(field["type"]) for field in schema["fields"]})
    if isinstance(kind, str):
        return _BY_TYPE.get(kind)
    return converter(kind)


def _branches(schema: Any) -> list[Any]:
    return schema if isinstance(schema, list) else [schema]


def _same(value: Any) -> JsonValue:
    known: JsonValue = value
    return known


def in_jsonb_order(value: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Keys as jsonb keeps them, shorter ones first: a row prints the same before and after it was stored."""
    return dict(sorted(value.items(), key=_jsonb_rank))


def _jsonb_rank(item: tuple[str, JsonValue]) -> tuple[int, bytes]:
    name = item[0].encode("utf-8", "surrogatepass")
    return len(name), name


def _flat(values: list[Any]) -> JsonValue:
    """Raises ValueError for an array of several dimensions: Debezium sends the names of Java's objects instead."""
    if any(isinstance(value, str) and _JAVA_ARRAY.fullmatch(value) for value in values):
        raise ValueError("several dimensions")
    return values


def _list(inner: Converter, values: list[Any]) -> JsonValue:
    return [inner(value) for value in values]


def _map(inner: Converter, values: Mapping[str, Any]) -> JsonValue:
    return in_jsonb_order({key: inner(value) for key, value in values.items()})


def _of_record(fields: Mapping[str, Converter | None]) -> Converter:
    def convert(value: Mapping[str, Any]) -> JsonValue:
        row = {name: inner(value[name]) if inner else value[name] for name, inner in fields.items()}
        return in_jsonb_order(row)

    return convert


def _of_bits(length: int) -> Converter:
    """`bit(n)`: little-endian bytes of a bit set, printed as Postgres does, the highest bit first."""
    return lambda value: format(int.from_bytes(value, "little"), f"0{length}b")


def _of_decimal(scale: int) -> Converter:
    return lambda value: _decimal(value, scale)


def _decimal(unscaled: bytes, scale: int) -> str:
    """An exact decimal, however many digits it has."""
    number = int.from_bytes(unscaled, "big", signed=True)
    return format(Decimal((int(number < 0), tuple(map(int, str(abs(number)))), -scale)), "f")


def _variable_scale_decimal(value: Mapping[str, Any]) -> JsonValue:
    return _decimal(value["value"], value["scale"])


def _double(value: float) -> JsonValue:
    if math.isfinite(value):
        return int(Decimal(repr(value))) if abs(value) >= 1e16 else value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _real(value: float) -> JsonValue:
    """A 4-byte float by its own shortest digits: 0.1, not 0.10000000149011612."""
    if not math.isfinite(value):
        return _double(value)
    texts = (f"{value:.{digits}g}" for digits in range(6, 10))
    return next((float(text) for text in texts if _as_real(float(text)) == value), value)


def _as_real(value: float) -> float | None:
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return None


def _point(value: Mapping[str, Any]) -> JsonValue:
    """A point's two numbers, by their shortest digits."""
    return "({},{})".format(*(repr(value[axis]).removesuffix(".0") for axis in ("x", "y")))


def _hex(value: bytes) -> JsonValue:
    return "\\x" + value.hex()


def json_value(text: str) -> JsonValue:
    """Parsed JSON with every number exact, a number that a float cannot hold as its text.

    What cannot be kept so (not JSON, nested too deeply, NUL or half a surrogate in it) stays the text it is.
    """
    try:
        value = _JSON.decode(text)
    except (ValueError, RecursionError):
        return text
    troubled = "\\u" in text and (_NUL.search(text) is not None or not _encodable(value))
    deep = text.count("[") + text.count("{") > _DEEPEST_JSON and _depth(value) > _DEEPEST_JSON
    return text if troubled or deep else value


def _exact_float(text: str) -> float | int | str:
    value = float(text)
    exact = Decimal(text)
    if not math.isfinite(value) or exact != Decimal(repr(value)):
        return text
    whole = "e" in text.lower() and "." not in format(exact, "f")
    return int(exact) if whole else value


def _exact_int(text: str) -> int | str:
    return int(text) if len(text) <= _LONGEST_INTEGER else text


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


_JSON: Final = json.JSONDecoder(
    parse_float=_exact_float,
    parse_int=_exact_int,
    parse_constant=_no_constant,
    object_pairs_hook=lambda pairs: in_jsonb_order(dict(pairs)),
)


#: An escaped NUL; after an odd number of backslashes it is a backslash and `u0000`.
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def _encodable(value: JsonValue) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _depth(value: JsonValue) -> int:
    """How deeply it is nested, level by level: no recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [child for item in level for child in _children(item)]
    return depth


def _children(value: JsonValue) -> Iterable[JsonValue]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _by_python_type(value: Any) -> JsonValue:
    if isinstance(value, bytes):
        return _hex(value)
    if isinstance(value, float):
        return _double(value)
    if isinstance(value, list):
        return [_by_python_type(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _by_python_type(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool | int | str) else str(value)


_BY_TYPE: Final[Mapping[str, Converter]] = {"bytes": _hex, "fixed": _hex, "double": _double, "float": _real}

#: By Connect's logical name. Names that are not here keep the value of their Avro type.
_BY_NAME: Final[Mapping[str, Converter]] = {
    "io.debezium.data.Json": json_value,
    "io.debezium.data.geometry.Point": _point,
    "io.debezium.data.VariableScaleDecimal": _variable_scale_decimal,
    "io.debezium.time.Date": date_text,
    "io.debezium.time.MicroDuration": lambda value: f"{value} microseconds",
    "io.debezium.time.MicroTime": time_text,
    "io.debezium.time.MicroTimestamp": timestamp_text,
    "io.debezium.time.NanoTime": lambda value: time_text(value // 1000),
    "io.debezium.time.NanoTimestamp": lambda value: timestamp_text(value // 1000),
    "io.debezium.time.Time": lambda value: time_text(value * 1000),
    "io.debezium.time.Timestamp": lambda value: timestamp_text(value * 1000),
    "io.debezium.time.ZonedTime": zoned_time_text,
    "io.debezium.time.ZonedTimestamp": zoned_timestamp_text,
    "org.apache.kafka.connect.data.Date": date_text,
    "org.apache.kafka.connect.data.Time": lambda value: time_text(value * 1000),
    "org.apache.kafka.connect.data.Timestamp": lambda value: timestamp_text(value * 1000),
}
