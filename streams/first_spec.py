"""A first `upwell.toml` from what the source's catalog says, to be read and changed by a person."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from connectors.postgres.layout import SYSTEM_COLUMNS
from connectors.postgres.source import SourceColumn, TableInfo
from schemas.names import IDENTIFIER, RESERVED_COLLECTIONS, RESERVED_COLUMNS
from schemas.spec import ModelSpec

#: Names of columns that say something of a person, or let somebody in.
_SUSPICIOUS: Final = re.compile(
    r"e_?mail|phone|mobile|passw|pwd|secret|token|api_?key|ssn|social_sec|tax_id|iban|card|birth|salary"
)
_TEXTS: Final = re.compile(r"(text|character varying|character)(\(\d+\))?(\[\])?")
#: Large, or nothing that a filter asks for.
_LEFT_OUT: Final = re.compile(r"bytea|xml|tsvector|tsquery")
_JSON: Final = re.compile(r"jsonb?")


@dataclass(slots=True)
class _Columns:
    template: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def first_spec(name: str, tables: Sequence[TableInfo], refused: Iterable[str] = ()) -> str:
    """The spec's text. A table without a text column, and what was `refused`, is only mentioned, in a comment."""
    parts = [
        "# Made by `upwell init` from the source's catalog: read it, change it, then run `upwell migrate`.\n"
        "# Every key is explained in the README, The spec.",
        "# Names slot, topics, connector and consumer group; it cannot change later.\n"
        f"name = {_quoted(name)}",
        "[model]\n"
        '# Or "path:/models/mine", or "hub:sentence-transformers/all-MiniLM-L6-v2"; another makes all vectors anew.\n'
        f"name = {_quoted(ModelSpec().name)}",
    ]
    taken: set[str] = set()
    for info in tables:
        columns = _sorted_out(info)
        if not columns.template:
            parts.append(f"# {info.table} has no column with text to embed.")
            continue
        collection = _collection(info.table, taken)
        taken.add(collection)
        parts.append(_section(collection, info, columns))
    parts += [f"# Left out: {why}." for why in refused]
    return "\n\n".join(parts) + "\n"


def identity_statements(tables: Iterable[TableInfo]) -> list[str]:
    """What the tables' owner has to run before `upwell migrate` takes the spec as it is."""
    return [_full(info) for info in tables if _needs_full(info, _sorted_out(info))]


def _needs_full(info: TableInfo, columns: _Columns) -> bool:
    return bool(columns.template and info.unsafe(columns.template + columns.metadata))


def _full(info: TableInfo) -> str:
    return f"ALTER TABLE {info.table} REPLICA IDENTITY FULL;"


def _sorted_out(info: TableInfo) -> _Columns:
    """Text into the template, the rest into metadata, what is suspicious is excluded. Keys are columns anyway."""
    found = _Columns()
    key = {column.name for column in info.key}
    for column in info.columns:
        if column.name in key:
            continue
        if _SUSPICIOUS.search(column.name):
            found.exclude.append(column.name)
        elif (
            column.why_not_streamed
            or not _usable(column.name)
            or _LEFT_OUT.fullmatch(column.type.removesuffix("[]"))
        ):
            found.left_out.append(column.name)
        elif _is_text(column):
            found.template.append(column.name)
        else:
            found.metadata.append(column.name)
    return found


def _is_text(column: SourceColumn) -> bool:
    """Enums are text in the sink, too, but they are words of a list."""
    return _TEXTS.fullmatch(column.type) is not None and not column.enum


def _usable(name: str) -> bool:
    return (
        IDENTIFIER.fullmatch(name) is not None and name not in RESERVED_COLUMNS and name not in SYSTEM_COLUMNS
    )


def _collection(table: str, taken: Iterable[str]) -> str:
    """The table's name, with its schema where that is taken or ours."""
    schema, name = table.split(".")
    free = name not in {*taken, *RESERVED_COLLECTIONS}
    return name if free else f"{schema}_{name}"


def _section(collection: str, info: TableInfo, columns: _Columns) -> str:
    types = {column.name: column.type for column in info.columns}
    json = [name for name in columns.metadata if _JSON.fullmatch(types[name])]
    lines = [
        f"[collections.{collection}]",
        f"table = {_quoted(info.table)}",
        f"# Key: {', '.join(column.name for column in info.key)}. What is embedded; a change of it is encoded anew.",
        *(f'# A piece of {name}: {{{{ {name}.piece | default("") }}}}' for name in json[:1]),
        'template = """',
        "\n\n".join(f"{{{{ {name} }}}}" for name in columns.template),
        '"""',
        "# Columns for filters, beside the key; a change of them encodes nothing.",
        f"metadata = {_listed(columns.metadata)}",
    ]
    if columns.exclude:
        lines += [
            "# These never leave Kafka Connect. They were put here for their names; look whether more belong here.",
            f"exclude = {_listed(columns.exclude)}",
        ]
    if columns.left_out:
        lines.append(f"# Left out: {', '.join(columns.left_out)}")
    if _needs_full(info, columns):
        lines += [
            "# An update does not send long values that it leaves as they are. The table's owner must have them sent:",
            f"#   {_full(info)}",
        ]
    lines += [
        "# Longer texts are cut into chunks of at most so many tokens; 0 is the most that the model reads.",
        "chunk = { max_tokens = 0, overlap_tokens = 0 }",
        "# 99 of 100 changes searchable within 30 s.",
        "slo = { threshold_seconds = 30, objective = 0.99, window_days = 30 }",
    ]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return json.dumps(text)


def _listed(names: Iterable[str]) -> str:
    return "[" + ", ".join(map(_quoted, names)) + "]"
