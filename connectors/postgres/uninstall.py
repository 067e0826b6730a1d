"""What upwell made at source and sink, counted and dropped. Each drop may be repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from connectors.debezium.naming import publication_name
from connectors.postgres.layout import embedding_table, record_table
from connectors.postgres.source import source_errors
from connectors.postgres.source_schema import TABLES
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from schemas.errors import SourceUnavailable

SQL: Final = Queries.load("uninstall")
#: A sender lets its slot go a moment after its connector has ended.
SLOT_SECONDS: Final = 30.0

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Database:
    """One of the two, with its own errors."""

    connection: Connection
    errors: Callable[[], AbstractContextManager[None]]

    def rows(
        self, query: sql.SQL | sql.Composed, parameters: Mapping[str, object] | None = None
    ) -> list[dict[str, Any]]:
        with self.errors(), self.connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def has(self, table: str) -> tuple[bool, bool]:
        """Whether schema `upwell` is there, and this table of it."""
        found = self.rows(SQL["schema_there"], {"table": table})[0]
        return bool(found["schema"]), bool(found["table"])

    def run(self, statement: sql.Composed | sql.SQL) -> None:
        """Other sessions have ten seconds to let go of what is dropped."""
        with self.errors(), self.connection.transaction():
            self.connection.execute("SET LOCAL lock_timeout = '10s'")
            self.connection.execute(statement)


class SourceParts:
    """What is at the source of one deployment."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._db, self._name = Database(connection, source_errors), name

    def slots(self) -> list[str]:
        """Slots of all its lineages."""
        pattern = f"^upwell_{self._name}_[0-9]+$"
        return [row["name"] for row in self._db.rows(SQL["slots"], {"pattern": pattern})]

    def publication(self) -> str | None:
        name = publication_name(self._name)
        query = sql.SQL("SELECT 1 AS there FROM pg_catalog.pg_publication WHERE pubname = {}")
        return name if self._db.rows(query.format(sql.Literal(name))) else None

    def others(self) -> list[str] | None:
        """Other deployments that live in the source's schema `upwell`; None if none of its tables is there."""
        if not any(self._db.has(f"upwell.{table}")[1] for table in TABLES):
            return None
        known = self._db.has("upwell.deployment")[1]
        found = [row["name"] for row in self._db.rows(SQL["deployments"])] if known else []
        return [name for name in found if name != self._name]

    def known(self) -> bool:
        """Whether the schema has rows of this deployment."""
        table = self._db.has("upwell.deployment")[1]
        return table and self._name in {row["name"] for row in self._db.rows(SQL["deployments"])}

    def drop_slot(self, slot: str) -> None:
        """Raises SourceUnavailable if somebody goes on reading it."""
        deadline = time.monotonic() + SLOT_SECONDS
        while slot in self.slots():
            self._db.rows(SQL["drop_slot"], {"slot": slot})
            if slot in self.slots() and time.monotonic() > deadline:
                raise SourceUnavailable(
                    f"source database: slot {slot} is still read by somebody; run it again"
                )
            time.sleep(0.1 if slot in self.slots() else 0)

    def drop_publication(self) -> None:
        name = sql.Identifier(publication_name(self._name))
        self._db.run(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(name))

    def drop_schema(self) -> None:
        """The source's own tables, and the schema unless something else is in it: the sink may be the same database."""
        for table in TABLES:
            self._db.run(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier("upwell", table)))
        if not self._db.rows(SQL["left_in_schema"])[0]["anything"]:
            self._db.run(sql.SQL("DROP SCHEMA IF EXISTS upwell"))

    def forget(self) -> None:
        """This deployment's rows only."""
        self._db.rows(SQL["forget_published"], {"publication": publication_name(self._name)})
        self._db.rows(SQL["forget_deployment"], {"name": self._name})


class SinkParts:
    """What is in the sink."""

    def __init__(self, connection: Connection) -> None:
        self._db = Database(connection, sink_errors)

    def there(self) -> bool:
        return self._db.has("upwell.migration")[1]

    def is_source(self) -> bool:
        """Whether the source's tables are in this database, too."""
        return self._db.has("upwell.published")[1]

    def dependents(self) -> list[str]:
        """Views outside the schema that use it, and go with it."""
        return [row["name"] for row in self._db.rows(SQL["dependents"])]

    def counts(self) -> dict[str, int]:
        """Rows that go: records, vectors by generation, dead letters, audit."""
        if not self._db.has("upwell.collection")[1]:
            return {}
        tables: dict[str, sql.Identifier] = {}
        for row in self._db.rows(SQL["collections"]):
            tables[f"records of {row['name']}"] = record_table(row["name"])
        for row in self._db.rows(SQL["generations"]):
            label = f"vectors of {row['collection']}, generation {row['number']}"
            tables[label] = embedding_table(row["collection"], row["number"])
        tables["dead letters"] = sql.Identifier("upwell", "dead_letter")
        tables["audit rows"] = sql.Identifier("upwell", "audit")
        return {label: self._count(table) for label, table in tables.items()}

    def _count(self, table: sql.Identifier) -> int:
        """0 of a table that is not there: a drop may have been interrupted by hand."""
        name = table.as_string(None)
        if not self._db.has(name)[1]:
            return 0
        return int(self._db.rows(SQL.filled("count", table=table))[0]["rows"])

    def topic_prefix(self) -> str | None:
        """Of the newest lineage; None before `connector apply`."""
        if not self._db.has("upwell.lineage")[1]:
            return None
        found = self._db.rows(SQL["topic_prefix"])
        return str(found[0]["topic_prefix"]) if found else None

    def live_workers(self, within_seconds: float) -> list[str]:
        """`slot on host, pid N` of those that live."""
        if not self._db.has("upwell.worker")[1]:
            return []
        found: Iterable[dict[str, Any]] = self._db.rows(
            SQL["live_workers"], {"within_seconds": within_seconds}
        )
        return [f"{row['slot']} on {row['host']}, pid {row['pid']}" for row in found]

    def drop_schema(self) -> None:
        self._db.run(sql.SQL("DROP SCHEMA IF EXISTS upwell CASCADE"))
