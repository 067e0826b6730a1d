"""What is left of a deleted key, where, and until when: what a data owner has to be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from schemas.readings import Explanation


@dataclass(frozen=True, slots=True)
class Remain:
    """`until` is None where no time can be given; `how` says what ends it."""

    place: str
    what: str
    until: datetime | None
    how: str


def deleted_at(found: Explanation) -> datetime | None:
    """When the deletion was taken in, by the sink's clock; None for a live key, or if the audit no longer knows."""
    if found.record is not None and not found.record["deleted"]:
        return None
    return next((row["at"] for row in found.audit if _deletes(row)), None)


def _deletes(audited: Mapping[str, Any]) -> bool:
    """Also a deletion that was a dead letter first."""
    action: str = audited["action"]
    return action == "deleted" or (action == "replayed" and audited["detail"]["outcome"] == "deleted")


def remains(found: Explanation, kafka_retention: timedelta, audit_retention: timedelta) -> Iterator[Remain]:
    """Nothing for a live key. Backups and replicas of the databases are outside of what upwell knows."""
    if found.record is not None and not found.record["deleted"]:
        return
    if found.record is not None:
        yield Remain(
            "record", "the marker: key and version, no text", None, "stays, so that nothing old comes back"
        )
    for each in found.generations:
        if each.chunks:
            what = f"{len(each.chunks)} chunks with text and vector"
            yield Remain(f"generation {each.number} ({each.state})", what, None, "must not be: report it")
    for letter in found.dead_letters:
        what = "the whole record as it came" if letter["holds_bytes"] else "key and error, no bytes"
        how = "the key's next accepted change empties it, or `upwell dead-letters waive`"
        yield Remain(f"dead letter {letter['id']}", what, None, how if letter["holds_bytes"] else "stays")
    if found.audit:
        yield Remain(
            "audit",
            f"{found.audit_rows} rows: key, offsets, times, hashes, no text",
            found.audit[0]["at"] + audit_retention,
            "the newest day's partition is dropped",
        )
    newest = next((row for row in found.audit if row["topic_there"]), None)
    if newest is not None:
        yield Remain(
            f"Kafka, {newest['topic']}/{newest['partition']}",
            "earlier changes with their texts",
            newest["at"] + kafka_retention,
            "not before: the broker deletes whole segments",
        )
    yield from _dead_tuples(found)


def _dead_tuples(found: Explanation) -> Iterator[Remain]:
    since = deleted_at(found)
    for name, vacuumed in sorted(found.vacuumed.items()):
        if since is None or vacuumed is None or vacuumed < since:
            last = (
                "never vacuumed yet" if vacuumed is None else f"last vacuumed {vacuumed:%Y-%m-%d %H:%M} UTC"
            )
            yield Remain(f"file of upwell.{name}", "the row's old version", None, f"until a vacuum; {last}")
