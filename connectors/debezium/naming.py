"""What everything of one lineage is called at the source, in Connect and in Kafka (DESIGN 3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from schemas.names import check_identifier

#: Tables of schema `upwell` at the source that are captured beside the collections' tables.
SERVICE_TABLES: Final = ("upwell.heartbeat", "upwell.signal", "upwell.canary")
SIGNAL_TABLE: Final = "upwell.signal"


@dataclass(frozen=True, slots=True)
class Naming:
    """Names of a deployment's lineage. A rebuild takes the next lineage: new slot, new topics, same
    connector.
    """

    name: str
    lineage: int

    def __post_init__(self) -> None:
        check_identifier(self.name, "name")
        check_identifier(self.slot, "slot")

    @property
    def topic_prefix(self) -> str:
        return f"{self.name}_{self.lineage}"

    @property
    def slot(self) -> str:
        return f"upwell_{self.name}_{self.lineage}"

    @property
    def publication(self) -> str:
        return publication_name(self.name)

    @property
    def connector(self) -> str:
        return f"upwell-{self.name}"

    @property
    def notifications_topic(self) -> str:
        return f"{self.topic_prefix}.notifications"

    def topic(self, table: str) -> str:
        """Topic of `schema.table`."""
        return f"{self.topic_prefix}.{table}"

    def service_topics(self) -> tuple[str, ...]:
        """Topics with one partition: heartbeat, signal, canary, Debezium's own heartbeat, notifications."""
        tables = tuple(self.topic(table) for table in SERVICE_TABLES)
        return (*tables, f"__debezium-heartbeat.{self.topic_prefix}", self.notifications_topic)


def publication_name(name: str) -> str:
    """The publication outlives lineages: it only says which tables are captured."""
    return check_identifier(f"upwell_{name}", "publication")


def check_tables(tables: Iterable[str]) -> tuple[str, ...]:
    """`schema.table` names whose every part is an identifier. Raises SettingsError: they reach Debezium
    raw.
    """
    checked = []
    for table in tables:
        schema, _, relation = table.partition(".")
        check_identifier(schema, f"schema of table {table!r}:")
        check_identifier(relation, f"table {table!r}:")
        checked.append(table)
    return tuple(checked)
