"""From a scan that has succeeded to `complete` (DESIGN 6).

    1. settled    the connector has stored a position that is past the scan's end: each of its rows is in Kafka
    2. taken in   the sink's positions are past the end offsets read after that
    3. swept      what the scan did not bring again is no longer in the source: it is removed
    4. searchable no text of a load is pending
    5. complete   and when every collection is: topics of ended lineages are deleted

Each step looks first and does what is missing, so it may be killed anywhere, and more than one may do it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from connectors.debezium.connect import Connect
from connectors.debezium.naming import Naming
from connectors.kafka import Kafka
from connectors.postgres.capture_state import COMPLETE, INCOMPLETE, LOADING, CaptureState, Load
from connectors.postgres.sweep import Scan
from streams.attend import attend
from streams.loads import ends_of, records_ahead

POLL_SECONDS: Final = 0.2
#: Of a worker: nobody waits for its answer.
WORKER_POLL_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Completion:
    """The loads of one lineage. `tables`: `schema.table` by collection."""

    naming: Naming
    tables: Mapping[str, str]
    state: CaptureState
    kafka: Kafka
    connect: Connect
    progress: Callable[[str], None]

    def wait(self, deadline: float) -> bool:
        """Until every table is complete; what it waits for is told. False at the deadline (`time.monotonic()`)."""
        told = ""
        while waiting := self.step():
            if waiting[0] != told:
                told = waiting[0]
                self.progress(told)
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def step(self) -> list[str]:
        """Bring each load as far as it can be now; what keeps the others from being complete, a line each."""
        newest = self.state.lineage()
        if newest is not None and newest[0] != self.naming.lineage:
            return [f"lineage {newest[0]} has begun: this one is over"]
        waiting = [line for name in self.tables if (line := self._still(name))]
        if not waiting:
            self._forget_ended()
        return waiting

    def _still(self, name: str) -> str:
        load = self.state.loads([name]).get(name, Load(name, INCOMPLETE))
        if load.state == COMPLETE:
            return ""
        for step in (self._read, self._settle, self._take_in, self._sweep, self._embed):
            waiting = step(load)
            if waiting:
                return f"{name}: {waiting}"
        self.state.set_load(name, COMPLETE, load.detail)
        self.progress(f"{name} is complete")
        return ""

    def _read(self, load: Load) -> str:
        return "" if load.scanned else "its table is not read to the end yet"

    def _settle(self, load: Load) -> str:
        """Connect stores positions only of what Kafka has confirmed without a gap, so past the scan's end all of it is
        there (H30); then the end offsets are read once more.
        """
        if load.detail.get("settled"):
            return ""
        stored = self.connect.offsets(self.naming.connector, self.naming.topic_prefix).get("lsn_commit")
        if stored is None or int(stored) <= int(load.detail["scanned_lsn"]):
            return "waits until the connector has stored that all of it is in Kafka"
        ends = ends_of(self.kafka, self.naming.topic(self.tables[load.name]))
        self.state.set_load(load.name, LOADING, {**load.detail, "ends": ends, "settled": True})
        return "to be taken in"

    def _take_in(self, load: Load) -> str:
        ends = {int(partition): int(end) for partition, end in load.detail["ends"].items()}
        topic = self.naming.topic(self.tables[load.name])
        behind = records_ahead(self.state, self.kafka, topic, ends)
        if not behind and load.truncated_meanwhile(self.naming.lineage):
            self.state.set_load(load.name, INCOMPLETE, {"reason": "truncated"})
            return "truncated while it was being read; the monitor or `upwell connector apply` reads it again"
        return f"{behind} changes to take in" if behind else ""

    def _sweep(self, load: Load) -> str:
        """What keeps it from being swept, "" when it is."""
        scan = Scan(load.name, self.naming.lineage, load.detail.get("starts", {}))
        sweep = self.state.sweep(scan)
        if not sweep.unseen():
            return ""
        letters = sweep.unknown_letters()
        if letters:
            return (
                f"{letters} dead letters without a key, one may be any row's: see `upwell dead-letters list "
                f"{load.name}`, replay or waive them, then what the source no longer has is removed"
            )
        removed = sweep.run(lambda rows: self.progress(f"{load.name}: {rows} rows swept ..."))
        self.progress(f"{load.name}: {removed} rows that the source no longer has removed")
        return ""

    def _embed(self, load: Load) -> str:
        pending = self.state.backfill_pending(load.name)
        return f"{pending} texts to embed" if pending else ""

    def _forget_ended(self) -> None:
        """Nothing of an ended lineage is needed any more; its topics hold texts."""
        ended = self.state.ended_topics(self.naming.lineage)
        if ended:
            self.kafka.delete_topics(ended)
            self.state.forget_topics(ended)
            self.progress(f"{len(ended)} topics of ended lineages deleted")


@dataclass(frozen=True, slots=True)
class Completing:
    """A worker's service: nobody need wait at a command line for a load to become complete.

    `is_due` asks the sink cheaply; `completion` opens the worker's own connections, one process at a time.
    """

    sink_dsn: str
    completion: Callable[[CaptureState], Completion]
    is_due: Callable[[], Awaitable[bool]]

    async def run(self, should_stop: Callable[[], bool]) -> None:
        """Until told to stop."""

        def work() -> None:
            with CaptureState.open(self.sink_dsn) as state:
                mine = state.try_completing()
                completion = self.completion(state)
                while not should_stop() and state.is_scanned(list(completion.tables)):
                    if mine:
                        completion.step()
                    time.sleep(WORKER_POLL_SECONDS)
                    mine = mine or state.try_completing()

        await attend("a load does not become complete", self.is_due, work, should_stop)
