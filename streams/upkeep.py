"""`upwell maintain`: which indexes and tables of the sink need work, and in what order it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from connectors.postgres.capture_state import connect_sink
from connectors.postgres.migrate import check_schema
from connectors.postgres.upkeep import Upkeep, read_pending, read_record, read_vectors
from schemas.errors import MigrationNeeded, SettingsError
from schemas.freshness import CANARY
from schemas.upkeep import TableFacts, VectorFacts, why_build
from streams.settings import Settings

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Stock:
    """What was found: vectors with their index by generation, and the other tables."""

    vectors: Sequence[VectorFacts]
    tables: Sequence[TableFacts]

    @property
    def due(self) -> list[str]:
        """What is to be done, a line each."""
        builds = [
            f"{each.place}: {', '.join(why)}" for each in self.vectors if (why := list(why_build(each)))
        ]
        return builds + [f"{each.name}: {each.dead} dead rows" for each in self.tables if each.is_littered]


def look(settings: Settings, names: Collection[str] = ()) -> Stock:
    """Of some collections, or of all. Writes nothing. Raises SettingsError for one that the spec does not have."""
    wanted = _wanted(settings, names)
    with connect_sink(settings.sink.dsn) as connection:
        check_schema(connection)
        return _look(connection, wanted)


def maintain(
    settings: Settings, names: Collection[str], progress: Progress, memory: str | None = None
) -> Stock:
    """Indexes first: taking dead rows out of one takes longer than building it anew. Returns how it is afterwards.

    Beside workers and readers; killed, the next run goes on. `progress` tells what is done.
    """
    wanted = _wanted(settings, names)
    with Upkeep.open(settings.sink.dsn, memory) as upkeep:
        found = _look(upkeep.connection, wanted)
        for each in found.vectors:
            why = list(why_build(each))
            if why:
                progress(f"index of {each.place}: {', '.join(why)}")
                began = time.monotonic()
                upkeep.build(each, progress)
                upkeep.vacuum(each.table.name)
                progress(f"index of {each.place}: built and vacuumed in {time.monotonic() - began:.0f} s")
        for table in found.tables:
            if table.is_littered:
                upkeep.vacuum(table.name)
                progress(f"{table.name}: vacuumed")
        return _look(upkeep.connection, wanted)


def _wanted(settings: Settings, names: Collection[str]) -> list[str]:
    unknown = sorted(set(names) - set(settings.served))
    if unknown:
        raise SettingsError(
            f"no collection {unknown[0]!r} in the spec: it has {', '.join(settings.collections)}"
        )
    return sorted(names or settings.served)


def _look(connection: psycopg.Connection[Any], names: Sequence[str]) -> Stock:
    vectors = [each for each in read_vectors(connection) if each.collection in names]
    missing = sorted(set(names) - {each.collection for each in vectors} - {CANARY})
    if missing:
        raise MigrationNeeded(f"collection {missing[0]} is not in the sink yet: run `upwell migrate` first")
    records = [read_record(connection, name) for name in dict.fromkeys(each.collection for each in vectors)]
    return Stock(vectors, [*records, read_pending(connection)])
