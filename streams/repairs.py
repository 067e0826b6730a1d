"""Keys that a shift left in doubt are looked for at the source (H9).

In Kafka's order key 2 of `UPDATE t SET id = id + 1` is created and then deleted by the same transaction, and
whether the source still has it only the source knows. Once that transaction is visible there, a SELECT does not
find the key: it is gone, for whatever came since comes with a newer version. Or it finds it: then its row is
read once more through the connector, so that it has a place in the log like any other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from connectors.debezium.snapshot import re_read
from connectors.postgres.repairs import Repairs, ReReadable, Wanted
from connectors.postgres.source import Connection, connect_source, look_for
from streams.attend import attend

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Repairing:
    """A worker's service. `due` asks the sink cheaply whether there is anything to do."""

    source_dsn: str
    sink_dsn: str
    due: Callable[[], Awaitable[bool]]

    async def run(self, should_stop: Callable[[], bool]) -> None:
        """Look for what is wanted until told to stop."""
        await attend("keys in doubt wait", self.due, self.step, should_stop)

    def step(self) -> None:
        """Look for at most 100 keys of each collection, unless another process does. Raises SinkUnavailable,
        SourceUnavailable.
        """
        with Repairs.alone(self.sink_dsn) as repairs:
            if repairs is None:
                return
            with connect_source(self.source_dsn) as source:
                for collection in repairs.collections():
                    _look(repairs, source, collection, repairs.wanted(collection.name))


def _look(repairs: Repairs, source: Connection, at: ReReadable, wanted: Sequence[Wanted]) -> None:
    repairs.drop(at.name, [each for each in wanted if not each.current])
    open_keys = [each for each in wanted if each.current]
    if not open_keys:
        return
    keys = [at.key(each.key) for each in open_keys]
    found = look_for(source, at.table, keys, [each.transaction_id for each in open_keys])
    gone = [each for each, there in zip(open_keys, found, strict=True) if there is False]
    there = [(each, key) for each, key, there in zip(open_keys, keys, found, strict=True) if there]
    if gone:
        removed = repairs.remove(at.name, gone)
        log.info("read again", collection=at.name, absent=len(removed))
    if there:
        # The state first: a row that arrives before it would be taken for an overtaken one, and ignored.
        repairs.looked_at(at.name, [each for each, _ in there], asked=at.allowed)
    if there and at.allowed:
        re_read(source, at.table, [key for _, key in there])
        log.info("read again", collection=at.name, asked_for=len(there))
