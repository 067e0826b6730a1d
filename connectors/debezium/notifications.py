"""Debezium's own account of an incremental snapshot, read from the notifications topic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from connectors.debezium.topic import OwnTopic

#: A scan that ended with one of these has read the whole table; any other status is a failure (H24).
SCANNED: Final = frozenset({"SUCCEEDED", "EMPTY"})
_AGGREGATE: Final = "Incremental Snapshot"


@dataclass(frozen=True, slots=True)
class Notification:
    """One notification about an incremental snapshot. `signal` is the id of the signal that asked for it.

    `table` is empty where the notification is about no single one; `status` and `scanned_rows` are given when a
    table's scan has ended (`kind` TABLE_SCAN_COMPLETED), `chunk`, `chunks` and `total_rows` while it is IN_PROGRESS.
    """

    offset: int
    signal: str
    kind: str
    table: str = ""
    status: str = ""
    scanned_rows: int | None = None
    chunk: int | None = None
    chunks: int | None = None
    total_rows: int | None = None

    @property
    def ended(self) -> bool:
        return self.kind == "TABLE_SCAN_COMPLETED"

    @property
    def succeeded(self) -> bool:
        return self.ended and self.status in SCANNED


def parse(offset: int, record: dict[str, Any]) -> Notification | None:
    """The notification, or None if it is about something else than an incremental snapshot."""
    if record.get("aggregate_type") != _AGGREGATE:
        return None
    more: dict[str, str] = record.get("additional_data") or {}
    return Notification(
        offset=offset,
        signal=str(record.get("id") or ""),
        kind=str(record.get("type") or ""),
        table=more.get("scanned_collection") or more.get("current_collection_in_progress") or "",
        status=more.get("status") or "",
        scanned_rows=_number(more.get("total_rows_scanned")),
        chunk=_number(more.get("chunk_index")),
        chunks=_number(more.get("total_chunks")),
        total_rows=_number(more.get("total_rows")),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


#: A reader of one such topic.
Notifications = OwnTopic[Notification]
