"""A first load goes no faster than it is taken in.

Debezium reads a table several times faster than rows can be stored, and a deletion is behind every row that was
sent before it. So a worker looks how many records wait in Kafka, and has the load paused and resumed by signals.
Without a worker nothing is paused: nobody waits. Debezium keeps the pause in memory only, so a restarted connector
goes on, and is paused again.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from connectors.debezium.snapshot import pause, resume
from connectors.kafka import Kafka
from connectors.postgres.capture_state import CaptureState
from connectors.postgres.source import Connection, connect_source
from streams.attend import attend
from streams.loads import records_ahead

POLL_SECONDS: Final = 0.05
#: A pause that had no effect, because the connector was restarted meanwhile, is asked for again.
AGAIN_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Pacing:
    """A worker's service; one worker of a deployment at a time does it. `topics`: those that are taken in.

    `is_loading` asks the sink cheaply whether there is anything to do.
    """

    source_dsn: str
    sink_dsn: str
    kafka: Kafka
    topics: Sequence[str]
    most_rows_ahead: int
    is_loading: Callable[[], Awaitable[bool]]

    async def run(self, should_stop: Callable[[], bool]) -> None:
        """Watch first loads until told to stop."""
        await attend(
            "a first load is not paced", self.is_loading, partial(self._watch, should_stop), should_stop
        )

    def _watch(self, should_stop: Callable[[], bool]) -> None:
        """Return at once while nothing is loaded, or another worker does this."""
        with CaptureState.open(self.sink_dsn) as state:
            if not state.is_loading() or not state.try_pacing():
                return
            with connect_source(self.source_dsn) as source:
                try:
                    self._pace(state, source, should_stop)
                finally:
                    resume(source)

    def _pace(self, state: CaptureState, source: Connection, should_stop: Callable[[], bool]) -> None:
        """A load that somebody left paused goes on, too."""
        paused, asked_at = True, 0.0
        while not should_stop() and state.is_loading():
            ahead = sum(records_ahead(state, self.kafka, topic) for topic in self.topics)
            if paused and ahead < self.most_rows_ahead / 4:
                resume(source)
                paused = False
            elif ahead > self.most_rows_ahead and (not paused or time.monotonic() - asked_at > AGAIN_SECONDS):
                pause(source)
                paused, asked_at = True, time.monotonic()
            time.sleep(POLL_SECONDS)
