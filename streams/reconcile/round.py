"""A round that begins now: all that the source has committed is in Kafka, and all that is in Kafka is taken in.

The same steps as those of a load (streams/completion.py): nothing of them rests on a clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from connectors.debezium.connect import Connect
from connectors.debezium.naming import Naming
from connectors.kafka import Kafka
from connectors.postgres.capture_state import CaptureState
from schemas.errors import ConnectUnavailable, RoundIncomplete
from streams.loads import ends_of, records_ahead

POLL_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Round:
    """`inserted_lsn` reads the end of the source's log; `check` raises when rounds mean nothing any more."""

    naming: Naming
    topic: str
    state: CaptureState
    kafka: Kafka
    connect: Connect
    inserted_lsn: Callable[[], int]
    check: Callable[[], None]
    wait_seconds: float

    def complete(self) -> None:
        """Returns when it is complete. Raises RoundIncomplete at the deadline, naming what it waits for."""
        deadline = time.monotonic() + self.wait_seconds
        lsn = self.inserted_lsn()
        self._until(lambda: "" if self._stored() > lsn else self._why(), deadline)
        ends = {int(partition): end for partition, end in ends_of(self.kafka, self.topic).items()}
        self._until(lambda: self._behind(ends), deadline)
        self.check()

    def _stored(self) -> int:
        found = self.connect.offsets(self.naming.connector, self.naming.topic_prefix).get("lsn_commit")
        return -1 if found is None else int(found)

    def _why(self) -> str:
        return (
            f"connector {self.naming.connector} has not stored that all of the source's changes are in Kafka"
        )

    def _behind(self, ends: dict[int, int]) -> str:
        behind = records_ahead(self.state, self.kafka, self.topic, ends)
        return f"{behind} changes wait for a worker to take them in" if behind else ""

    def _until(self, waiting: Callable[[], str], deadline: float) -> None:
        while line := waiting():
            if time.monotonic() > deadline:
                raise RoundIncomplete(
                    f"nothing is certain: {line}, after {self.wait_seconds:g} s{self._cause()}"
                )
            time.sleep(POLL_SECONDS)

    def _cause(self) -> str:
        """The connector's, where it has one."""
        try:
            status = self.connect.status(self.naming.connector)
        except ConnectUnavailable as error:
            return f": {error}"
        return (
            ""
            if status.running
            else f"; the connector is {status.connector}, its task {status.task} {status.cause}"
        )
