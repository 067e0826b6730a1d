"""The canary's topic: which numbers the connector has written, and where in the write-ahead log they were.

A number that is missing is a lost change (DESIGN 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from connectors.debezium.topic import OwnTopic


@dataclass(frozen=True, slots=True)
class CanaryEvent:
    """One event of the canary's row. `lsn`: its place in the write-ahead log in bytes, None for a snapshot row."""

    offset: int
    number: int
    lsn: int | None


def parse(offset: int, record: dict[str, Any]) -> CanaryEvent | None:
    """The event; None of a deletion, or of a row that somebody else has written."""
    nonce = str((record.get("after") or {}).get("nonce") or "")
    lsn = (record.get("source") or {}).get("lsn")
    return CanaryEvent(offset, int(nonce), None if lsn is None else int(lsn)) if nonce.isdecimal() else None


#: A reader of one such topic.
CanaryTopic = OwnTopic[CanaryEvent]
