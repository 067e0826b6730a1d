"""What the monitor mends with nobody present: loads that nobody follows and, where the settings allow it, lost changes.

A load that was asked for goes on whoever was killed meanwhile, and a table that was truncated while it was being read
is read again. A connector that a scan keeps from reading on in the log reads on without it. `connector rebuild` reads
every table again, so it is run only with `monitor.rebuild`. One process at a time does any of it: who runs `connector
apply` or `rebuild`, or another monitor, is left alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from connectors.debezium.config import scans
from connectors.postgres.capture_state import Load
from schemas.errors import UpwellError
from streams import neighbours
from streams.capture import Capture, loading, opened, tables_of
from streams.freshness.evaluation import Evaluated
from streams.freshness.probes import Sights
from streams.rebuild import rebuild_alone
from streams.settings import Settings

#: A gap is looked at twice before a rebuild: what ends by itself needs none.
SURE_SECONDS: Final = 5.0
FIRST_PAUSE_SECONDS: Final = 60.0
LONGEST_PAUSE_SECONDS: Final = 3600.0
#: How Debezium fails on records that do not fit the columns that their table has now (ADR 0017).
UNFIT: Final = "IndexOutOfBoundsException"
#: An evaluation of before says nothing.
OLD_SECONDS: Final = 10.0


@dataclass(slots=True)
class Pauses:
    """When a rebuild is due. Times are the monitor's own seconds. Pure."""

    _since: float | None = None
    _again_at: float = 0.0
    _pause: float = FIRST_PAUSE_SECONDS

    def due(self, gap: str, now: float) -> bool:
        """Whether to rebuild now; asking counts as having done it. The pause doubles while changes are lost again.

        `gap`: what is lost, "" if nothing is.
        """
        if not gap:
            self._since = None
            if now > self._again_at + LONGEST_PAUSE_SECONDS:
                self._pause = FIRST_PAUSE_SECONDS
            return False
        if self._since is None:
            self._since = now
        if now - self._since < SURE_SECONDS or now < self._again_at:
            return False
        self._since, self._again_at = None, now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return True


class Healing:
    """`last`: the last evaluation, None before the first. `sights`: what the probes see, and who hears what is done."""

    def __init__(self, settings: Settings, last: Callable[[], Evaluated | None], sights: Sights) -> None:
        self._settings, self._last, self._sights, self._tell = settings, last, sights, sights.tell
        self._pauses = Pauses()
        self._checked = False

    def look(self) -> None:
        """Mend what there is to mend, however long it takes. Raises UpwellError; the next look tries again."""
        now, last = time.monotonic(), self._last()
        if last is None or now - last.at > OLD_SECONDS:
            return
        gap = next((each.gap for each in last.judged.values() if each.gap), "")
        rebuild = self._pauses.due(gap, now) and self._settings.monitor.rebuild
        if gap:
            if rebuild:
                self._rebuild(last.sink.lineage, f"changes are lost: {gap}", new_lineage=True)
            return
        if self._is_stuck():
            self._read_on()
        seen = [Load(name, each.seen.load_state, each.seen.load_detail) for name, each in last.judged.items()]
        begun = [load for load in seen if load.begun and not load.scanned]
        if any(load.rebuilding for load in begun):
            if self._settings.monitor.rebuild:
                self._rebuild(last.sink.lineage, "a rebuild was not finished", new_lineage=False)
        elif begun:
            self._follow()

    def _is_stuck(self) -> bool:
        """Whether a scan keeps the connector from reading on, or whoever had it read on without one was killed."""
        connector, naming = self._sights.connector, self._sights.naming
        if connector is None or naming is None:
            return False
        if connector.state == "FAILED":
            return UNFIT in connector.cause
        if not self._checked and connector.state == "RUNNING":
            config = neighbours.connect(self._settings).config(naming.connector)
            self._checked = True
            return config is not None and not scans(config)
        return False

    def _read_on(self) -> None:
        with opened(self._settings, self._progress) as capture:
            if capture.state.try_capturing():
                self._tell(
                    "the connector cannot read records of before a column was dropped: it reads on without scans"
                )
                capture.alone().pass_without_scans()
                self._tell("the connector has read on; scans go on")

    def _rebuild(self, lineage: int, why: str, *, new_lineage: bool) -> None:
        with opened(self._settings, self._progress) as capture:
            # Whoever was at it before has begun another lineage, in which nothing is lost yet.
            if not capture.state.try_capturing() or capture.alone().naming.lineage != lineage:
                return
            self._tell(f"{why}: the monitor rebuilds")
            try:
                rebuild_alone(capture, new_lineage=new_lineage)
            except UpwellError as error:
                self._tell(f"the rebuild did not end: {error}")
                raise
            self._tell("rebuilt: every table is read again")

    def _follow(self) -> None:
        with opened(self._settings, self._progress) as capture:
            if capture.state.try_capturing():
                follow_begun(capture)

    def _progress(self, line: str) -> None:
        self._tell(f"capture: {line}")


def follow_begun(capture: Capture) -> None:
    """Follow every load that was asked for to the end of its scan, and have read again what a truncate spoilt."""
    tables = tables_of(capture.settings)
    begun = [
        load.name for load in capture.state.loads(list(tables)).values() if load.begun and not load.scanned
    ]
    if begun:
        capture.progress(f"nobody follows the load of {', '.join(sorted(begun))}: going on with it")
        following = loading(capture)
        following.tables = {name: tables[name] for name in begun}
        following.run()
