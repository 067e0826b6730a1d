"""How both databases print a column, so that equal values have equal texts (ADR 0013).

A value is brought into the type that the sink has it in (`declared`), and printed from there by the same expression on
both sides. Types of which that is not certain are left out, and said so: no difference is better than a false one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from psycopg import sql

from connectors.postgres.source import SourceColumn

_TEXT: Final = "{}::text"
#: As schemas/values.py has it: numbers that no float holds are text, zeros at the end of a fraction are not kept, and
#: what is nested too deeply is a text as a whole.
_JSON: Final = (
    "(SELECT CASE WHEN strpos(j.t, '.') = 0 AND length(j.t) <= 1000 THEN j.t ELSE"
    r" regexp_replace(regexp_replace(regexp_replace(j.t, '\"(-?\d+(\.\d+)?)\"', '\1', 'g'),"
    r" '(\.\d*[1-9])0+(?!\d)', '\1', 'g'), '\.0+(?!\d)', '', 'g') END"
    " FROM (SELECT CASE jsonb_typeof({0}) WHEN 'string' THEN {0} #>> ARRAY[]::text[] ELSE {0}::text END) AS j(t))"
)

#: Printed by their own output function, the same in every Postgres.
_PLAIN: Final = frozenset(
    {
        *("smallint", "integer", "bigint", "numeric", "boolean", "text", "character varying", "character"),
        *(
            "uuid",
            "date",
            "time without time zone",
            "timestamp without time zone",
            "timestamp with time zone",
        ),
        *("bytea", "bit", "inet", "cidr", "macaddr", "macaddr8", "interval"),
    }
)
_ELEMENTS: Final = frozenset(
    {
        *("smallint", "integer", "bigint", "numeric", "boolean", "text", "character varying", "uuid", "date"),
        *("timestamp without time zone", "timestamp with time zone"),
    }
)
#: Types of extensions that are sent as the text that they print.
_TEXT_LIKE: Final = frozenset({"citext", "ltree"})
#: Types whose canonical key is `to_jsonb` of the value, or its text for a number with a fraction.
_KEYS: Final = _PLAIN - {"bit", "interval"}


@dataclass(frozen=True, slots=True)
class Printed:
    """One column. `convert` and `show` are SQL with `{}` for a value: to the declared type, and from it to text."""

    name: str
    declared: str
    convert: str
    show: str

    def of(self, value: sql.Composable) -> sql.Composed:
        """The text of a value that has the column's own type."""
        return _filled(self.show, _filled(f"({self.convert})", value))

    def of_declared(self, value: sql.Composable) -> sql.Composed:
        """The text of a value that has the declared type already."""
        return _filled(self.show, sql.SQL("({})").format(value))


def printed(column: SourceColumn, foreign_type: str | None) -> Printed | None:
    """None for a type of which it is not certain. `foreign_type`: its name, if it is none of Postgres itself."""
    declared = column.type
    if foreign_type is not None and not column.enum and foreign_type not in _TEXT_LIKE:
        return None
    base = re.sub(r"\(.*?\)", "", declared)
    cast = "{}::" + declared
    if declared == "bit(1)":  # sent as a boolean
        return Printed(column.name, "boolean", "{} = B'1'", _TEXT)
    if base in _PLAIN or (base.endswith("[]") and base.removesuffix("[]") in _ELEMENTS):
        return Printed(column.name, declared, cast, _TEXT)
    special: Mapping[str, tuple[str, str, str]] = {
        "real": (declared, cast, "({} + '0')::text"),  # there is no -0 in JSON
        "double precision": (declared, cast, "({} + '0')::text"),
        "money": ("numeric", "{}::numeric", "trim_scale({})::text"),  # whatever lc_monetary says
        "time with time zone": (declared, cast, "({} AT TIME ZONE 'UTC')::text"),
        "json": ("jsonb", "{}::jsonb", _JSON),
        "jsonb": (declared, cast, _JSON),
    }
    return Printed(column.name, *special[base]) if base in special else None


def names_key(column: SourceColumn) -> bool:
    """Whether the canonical key of such a column is known."""
    return re.sub(r"\(.*?\)", "", column.type) in _KEYS


def key_json(column: SourceColumn, value: sql.Composable) -> sql.Composed:
    """What the canonical key has for a value: a decimal is its text (schemas/values.py)."""
    typed = _filled(f"({{}}::{column.type})", value)
    text = sql.SQL("{}::text").format(typed) if column.type.startswith("numeric") else typed
    return sql.SQL("to_jsonb({})").format(text)


def _filled(text: str, value: sql.Composable) -> sql.Composed:
    """Of what stands in this file, and of types that stand in it."""
    return sql.SQL(text).format(value)


def row_text(parts: Iterable[sql.Composable]) -> sql.Composed:
    """One text of several: a NULL is none of the others' texts."""
    return sql.SQL("ROW({})::text").format(sql.SQL(", ").join(parts))
