"""A topic filled while no worker runs, and how fast it is taken in; changed texts, and how fast they are embedded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, Final, Literal

import psycopg

from streams import neighbours
from streams.benchmark.line import VECTORS, Deployment, NotMeasured, one, plain_environment, until

EventKind = Literal["unchanged", "metadata"]
CHANGES: Final = {
    "unchanged": "UPDATE bench.document SET updated_at = clock_timestamp() WHERE id <= %s",
    "metadata": "UPDATE bench.document SET note = 'round ' || %s, updated_at = clock_timestamp() WHERE id <= %s",
}
POSITIONS: Final = "SELECT partition, next_offset FROM upwell.position WHERE topic = %s"
CAPTURE_SECONDS: Final = 300.0
TAKEN_IN_SECONDS: Final = 600.0
EMBEDDED_SECONDS: Final = 600.0
LOOP_SECONDS: Final = 300.0
#: Part of the events before the clock starts: a worker that has just got its partitions loads the model, too. And the
#: part before which it ends: one worker is done before the other.
SKIPPED: Final = 0.25
ENDED: Final = 0.95


@dataclass(frozen=True, slots=True)
class Filled:
    """`end`: the sum of all end offsets. `events_per_second`: committed and captured; `wal_bytes`: of an event."""

    end: int
    events_per_second: float
    wal_bytes: float


def fill_topic(deployment: Deployment, kind: EventKind, events: int, rows: int) -> Filled:
    """So many events of the first `rows` documents, each as often as the others.

    All are in Kafka then, and the connector has nothing to do.
    """
    kafka = neighbours.kafka(deployment.settings)
    made = events // rows * rows
    wanted = sum(kafka.end_offsets([deployment.topic]).values()) + made
    begun = time.monotonic()
    with deployment.source() as source:
        lsn = one(source, "SELECT pg_current_wal_lsn()")
        for number in range(events // rows):
            source.execute(CHANGES[kind].encode(), (rows,) if kind == "unchanged" else (number, rows))
        written = float(one(source, "SELECT pg_current_wal_lsn() - %s::pg_lsn", lsn))

    def captured() -> bool:
        return sum(kafka.end_offsets([deployment.topic]).values()) >= wanted

    until(captured, CAPTURE_SECONDS, f"{events} events in Kafka", every=0.1)
    return Filled(wanted, made / (time.monotonic() - begun), written / made)


def take_in(deployment: Deployment, end: int, workers: int) -> float:
    """Events a second of so many worker processes while all read; `end` is the sum of positions when all is taken in.
    They are stopped afterwards."""
    kafka, group = neighbours.kafka(deployment.settings), deployment.settings.group_id
    with deployment.sink() as sink:
        begin = sum(_positions(sink, deployment).values())
        least = begin + (end - begin) * SKIPPED
        deployment.start_workers(workers)
        try:
            deployment.until(
                lambda: kafka.members(group) == workers, TAKEN_IN_SECONDS, f"{workers} workers that read"
            )
            since = _positions(sink, deployment)
            ends = {at.partition: offset for at, offset in kafka.end_offsets([deployment.topic]).items()}
            deployment.until(
                lambda: all(
                    at > since.get(partition, 0) or at >= ends[partition]
                    for partition, at in _positions(sink, deployment).items()
                ),
                TAKEN_IN_SECONDS,
                "each partition read",
            )
            first = deployment.until(
                lambda: _position(sink, deployment, least), TAKEN_IN_SECONDS, "intake under way"
            )
            begun = time.monotonic()
            last = deployment.until(
                lambda: _position(sink, deployment, begin + (end - begin) * ENDED),
                TAKEN_IN_SECONDS,
                "nearly all events taken in",
            )
            seconds = time.monotonic() - begun
            deployment.until(
                lambda: _position(sink, deployment, end), TAKEN_IN_SECONDS, "all events taken in"
            )
        finally:
            deployment.stop_workers()
    if last - first < 10:
        raise NotMeasured("all events were taken in at once: more are needed")
    return (last - first) / seconds


def _positions(sink: psycopg.Connection[Any], deployment: Deployment) -> dict[int, int]:
    """By partition."""
    return dict(sink.execute(POSITIONS.encode(), (deployment.topic,)).fetchall())


def _position(sink: psycopg.Connection[Any], deployment: Deployment, least: float) -> int:
    """The sum of positions if it is that far, else 0."""
    found = sum(_positions(sink, deployment).values())
    return found if found >= least else 0


def bare_loop(deployment: Deployment) -> float:
    """Messages a second of a Faust loop that reads the whole topic and does nothing with it."""
    from infra.stack.processes import tied_to

    kafka = neighbours.kafka(deployment.settings)
    ends, starts = kafka.end_offsets([deployment.topic]), kafka.log_starts([deployment.topic])
    count = sum(ends.values()) - sum(starts.values())
    command = [sys.executable, "-m", "streams.benchmark.faust_loop"]
    servers = deployment.settings.kafka.bootstrap_servers
    log = deployment.folder / "log" / "faust_loop.log"
    with log.open("ab") as out:
        done = subprocess.run(
            [*command, servers, deployment.topic, str(count), str(deployment.folder)],
            env=plain_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
            timeout=LOOP_SECONDS,
            check=False,
            preexec_fn=tied_to(os.getpid()),
        )
    if done.returncode:
        raise NotMeasured(f"the bare Faust loop ended with {done.returncode}; see {log}")
    found = json.loads(done.stdout)
    return float(found["messages"] / found["seconds"])


def embed(deployment: Deployment, rows: int, salt: str) -> float:
    """Documents a second when the first `rows` documents get other texts, from the first searchable one to the last.

    Workers run already.
    """
    # By key: to look through a million rows twenty times a second would take what is measured.
    query = f"SELECT count(*) FROM {VECTORS} WHERE key = ANY(%s) AND chunk_no = 0 AND chunk_text LIKE %s"
    keys = [f"[{number}]" for number in range(1, rows + 1)]
    with deployment.source() as source, deployment.sink() as sink:
        source.execute(
            "UPDATE bench.document SET body = %s || id || '. ' || regexp_replace(body, '^Turn [^.]*[.] ', '') "
            "WHERE id <= %s",
            (f"Turn {salt} ", rows),
        )
        wanted = f"Turn {salt} %"
        first = deployment.until(
            lambda: int(one(sink, query, keys, wanted)), EMBEDDED_SECONDS, "a changed text", every=0.05
        )
        begun = time.monotonic()
        deployment.until(
            lambda: int(one(sink, query, keys, wanted)) >= rows,
            EMBEDDED_SECONDS,
            "all changed texts",
            every=0.05,
        )
        if rows - first < 10:
            raise NotMeasured("all texts were embedded at once: more are needed")
        return (rows - first) / (time.monotonic() - begun)
