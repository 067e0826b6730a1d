"""`connector rebuild`: the one way out of every lost position (DESIGN 3).

A source restored from a backup, a lost or moved slot, a topic that is gone or has another partition count, changes that
Kafka no longer holds: after any of them nobody knows which changes are missing. So a new lineage begins, with its own
slot and topics, and every table is read again:

    1. topics of the next lineage
    2. the lineage, in ONE transaction of the sink: from here on nothing of the old one is taken in, all tables are
       incomplete, and workers start again with the new topics
    3. the connector is stopped, its stored offsets are deleted, it starts with the new slot; the old slot is dropped
    4. loads; texts that did not change keep their vectors
    5. the sweep removes what the source no longer has; then the old topics are deleted

Killed anywhere it is run again, and goes on with the lineage that it has begun.
"""

from __future__ import annotations

from dataclasses import replace

from connectors.debezium.naming import Naming
from connectors.postgres.capture_state import COMPLETE
from streams.capture import Capture, Progress, bring_up, opened
from streams.settings import Settings


def rebuild(settings: Settings, progress: Progress, *, new_lineage: bool = False) -> None:
    """Until every table is read again. `new_lineage`: also if a rebuild is still under way.

    Raises what `connector apply` raises; then the lineage has begun, and the next run goes on.
    """
    with opened(settings, progress) as capture:
        rebuild_alone(capture.alone(), new_lineage=new_lineage)


def rebuild_alone(capture: Capture, *, new_lineage: bool = False) -> None:
    """As `rebuild`, of one that nobody else is at."""
    if capture.state.lineage() is None:
        capture.progress("nothing is captured yet: nothing can be lost")
        wanted = capture
    elif new_lineage or not _under_way(capture):
        wanted = begin(capture)
    else:
        capture.progress(f"lineage {capture.naming.lineage} is not complete yet: going on with it")
        wanted = capture
    bring_up(wanted, load=True)


def _under_way(capture: Capture) -> bool:
    """Whether the newest lineage is one that a rebuild began, is not complete, and has lost nothing itself."""
    loads = capture.state.loads(list(capture.settings.collections)).values()
    if capture.naming.lineage == 1 or all(load.state == COMPLETE for load in loads):
        return False
    return not capture.lost(begun=any(not load.rebuilding for load in loads))


def begin(capture: Capture) -> Capture:
    """The capture side in the next lineage, which has begun when this returns."""
    naming = Naming(capture.naming.name, capture.naming.lineage + 1)
    following = replace(capture, naming=naming)
    capture.progress(f"lineage {naming.lineage} begins: topics {naming.topic_prefix}.*, slot {naming.slot}")
    following.ensure_topics()
    return following
