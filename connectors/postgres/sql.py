"""Named, commented SQL blocks from `.sql` package files: `-- name: words`, a comment, the statement."""

from __future__ import annotations

import re
from importlib.resources import files

from psycopg import sql


class Queries:
    """The blocks of one file by name. Table and column names are filled in as quoted identifiers."""

    def __init__(self, blocks: dict[str, str]) -> None:
        self._blocks = blocks

    @classmethod
    def load(cls, name: str) -> Queries:
        """Read `queries/{name}.sql` of this package."""
        text = (files("connectors.postgres") / "queries" / f"{name}.sql").read_text(encoding="utf-8")
        parts = re.split(r"^-- name: (\w+)$", text, flags=re.M)[1:]
        return cls(dict(zip(parts[::2], parts[1::2], strict=True)))

    def __getitem__(self, name: str) -> sql.SQL:
        return sql.SQL(self._blocks[name].strip().rstrip(";"))

    def filled(self, name: str, **parts: sql.Composable) -> sql.Composed:
        """A block with its `{placeholders}` filled in; doubled braces become single ones."""
        return self[name].format(**parts)
