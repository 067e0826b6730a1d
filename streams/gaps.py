"""Whether the connector's place in the source's log is lost: changes that no retry brings (DESIGN 6, GAP).

A connector that starts after one of these looks healthy, and what was committed in between is in no event. So it is
looked for before each start, by `upwell status` and by the monitor, which writes down what it finds: most of these can
be seen for a while only. The one way out is `upwell connector rebuild`.

The order of reading decides: the slot's place before what Connect has stored, the end of the log and the canary's
number after what they are compared with. Else a change that is committed in between looks like a loss.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final

from connectors.debezium.connect import Connect
from connectors.debezium.naming import Naming
from connectors.postgres.capture_state import CaptureState
from connectors.postgres.source import Connection, first
from schemas.errors import SettingsError
from streams.settings import FLUSH_SECONDS

POLL_SECONDS: Final = 0.5
#: Flushes for which a slot may be ahead of Connect's stored position without meaning anything (H32).
FLUSHES: Final = 3


def find_gap(
    source: Connection, connect: Connect, naming: Naming, *, begun: bool, canary: int | None = None
) -> str:
    """What is lost, in one line, "" if nothing is. `begun`: whether a table was read in this lineage, so that a slot
    must exist; `canary`: a number that was seen in the canary's topic. Raises SourceUnavailable, ConnectUnavailable.
    """
    return _find_gap(source, connect, naming, begun=begun) or fallen_back(canary, _canary(source))


def lineage_gap(
    source: Connection, connect: Connect, state: CaptureState, naming: Naming, *, begun: bool
) -> str:
    """As `find_gap`, and what a monitor has written down of a lineage, which can no longer be seen. Raises also
    SinkUnavailable.
    """
    known, canary = state.gaps(naming.lineage), state.canary_read(naming.lineage)
    return find_gap(source, connect, naming, begun=begun, canary=canary) or next(iter(known), "")


def fallen_back(seen: int | None, now: int | None) -> str:
    """What it means if the source's canary, read later, is below one that was seen; "" if it is not.

    Unlike the end of the log it also shows once the restored source has written more than was taken back (H26).
    """
    if seen is None or now is None or now >= seen:
        return ""
    return f"the source's canary fell back from {seen} to {now}: it was restored from an older copy"


def _canary(source: Connection) -> int | None:
    """The source's number; None if there is none, or no such table: that is no loss by itself."""
    with contextlib.suppress(SettingsError):
        row = first(source, "canary_number")
        return None if row is None else row["number"]
    return None


def _find_gap(source: Connection, connect: Connect, naming: Naming, *, begun: bool) -> str:
    deadline = time.monotonic() + FLUSHES * FLUSH_SECONDS
    while True:
        found = first(source, "lost_position", {"slot": naming.slot})
        assert found is not None
        if found["wal_status"] == "lost":
            return f"slot {naming.slot} is lost: the source has removed write-ahead log that it needed"
        if not found["there"] and begun:
            return f"slot {naming.slot} is gone: what was committed since is lost"
        stored = connect.offsets(naming.connector, naming.topic_prefix)
        if not stored:
            return ""
        if not found["there"] or found["wal_end"] < int(stored.get("lsn") or 0):
            lost = _lost_since(source, naming, stored)
            if lost:
                return lost
        moved = _is_moved(found, stored)
        if not moved or time.monotonic() > deadline:
            return f"slot {naming.slot} was moved past what the connector has stored" if moved else ""
        time.sleep(POLL_SECONDS)


def _lost_since(source: Connection, naming: Naming, stored: dict[str, Any]) -> str:
    """The same looked at again, after what Connect has stored: meanwhile a slot was made, or the log went on."""
    found = first(source, "lost_position", {"slot": naming.slot})
    assert found is not None
    if not found["there"]:
        return f"slot {naming.slot} is gone, but the connector has read from it: what was committed since is lost"
    if found["wal_end"] < int(stored.get("lsn") or 0):
        return "the source is behind what the connector has read: it was restored from an older copy"
    return ""


def _is_moved(found: dict[str, Any], stored: dict[str, Any]) -> bool:
    commit = stored.get("lsn_commit")
    return commit is not None and found["confirmed"] is not None and bool(found["confirmed"] > int(commit))
