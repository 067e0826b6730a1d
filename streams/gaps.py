"""Whether the connector's place in the source's log is lost: changes that no retry brings (DESIGN 6, GAP).

A connector that starts after one of these looks healthy, and what was committed in between is in no event. So it is
looked for before each start, and by `upwell status`; the one way out is `upwell connector rebuild`.
"""

from __future__ import annotations

import time
from typing import Any, Final

from connectors.debezium.connect import Connect
from connectors.debezium.naming import Naming
from connectors.postgres.source import Connection, first
from streams.settings import FLUSH_SECONDS

POLL_SECONDS: Final = 0.5
#: Flushes for which a slot may be ahead of Connect's stored position without meaning anything (H32).
FLUSHES: Final = 3


def find_gap(source: Connection, connect: Connect, naming: Naming, *, begun: bool) -> str:
    """What is lost, in one line, "" if nothing is. `begun`: whether a table was read in this lineage, so that a slot
    must exist. Raises SourceUnavailable, ConnectUnavailable.
    """
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
        if not found["there"]:
            return f"slot {naming.slot} is gone, but the connector has read from it: what was committed since is lost"
        if found["wal_end"] < int(stored.get("lsn") or 0):
            return "the source is behind what the connector has read: it was restored from an older copy"
        moved = _is_moved(found, stored)
        if not moved or time.monotonic() > deadline:
            return f"slot {naming.slot} was moved past what the connector has stored" if moved else ""
        time.sleep(POLL_SECONDS)


def _is_moved(found: dict[str, Any], stored: dict[str, Any]) -> bool:
    commit = stored.get("lsn_commit")
    return commit is not None and found["confirmed"] is not None and bool(found["confirmed"] > int(commit))
