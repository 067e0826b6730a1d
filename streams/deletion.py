"""`connector delete`: the connector alone, or with its place in the source's log."""

from __future__ import annotations

from collections.abc import Iterator

from connectors.postgres.source import drop_slot
from streams.capture import Progress, opened
from streams.settings import Settings


def consequences(settings: Settings, *, offsets: bool, slot: bool) -> Iterator[str]:
    """What a deletion means, a line each."""
    yield "The connector is deleted: nothing new is captured. What is in Kafka is still taken in."
    if slot:
        yield "Its replication slot is dropped: whatever the source commits from now on is lost to it."
        yield "The way back is `upwell connector rebuild`, which reads every table again."
    else:
        yield (
            "Its replication slot stays: the source keeps its write-ahead log, more and more of it, until "
            "`upwell connector apply` makes the connector anew, which then goes on where it was."
        )
    if offsets and not slot:
        yield (
            "Its stored position is deleted: it begins at the slot's, and sends again what it had not confirmed, "
            "which is known as such and applied once."
        )


def delete(settings: Settings, progress: Progress, *, offsets: bool, slot: bool) -> None:
    """Idempotent. Raises ConnectUnavailable, SourceUnavailable."""
    with opened(settings, progress) as capture:
        name = capture.naming.connector
        if capture.connect.config(name) is None:
            progress(f"connector {name} is not there")
        else:
            capture.stop()
            if offsets:
                capture.connect.delete_offsets(name)
                progress("stored position deleted")
            capture.connect.delete(name)
            progress(f"connector {name} deleted")
        if slot and drop_slot(capture.source, capture.naming.slot):
            progress(f"slot {capture.naming.slot} dropped")
