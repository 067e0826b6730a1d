"""Commits single changes and waits for them in the sink: delays by one clock, that of this process."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Literal, Self

import psycopg

from streams.benchmark.line import VIEW, Deployment, until

ChangeKind = Literal["insert", "update", "delete"]
INSERT: Final = "INSERT INTO bench.document (id, body) VALUES (%s, %s)"
UPDATE: Final = "UPDATE bench.document SET body = %s WHERE id = %s"
DELETE: Final = "DELETE FROM bench.document WHERE id = %s"
VISIBLE: Final = f"SELECT 1 FROM {VIEW} WHERE id = %s AND chunk_text = %s"
THERE: Final = f"SELECT 1 FROM {VIEW} WHERE id = %s LIMIT 1"
POLL_SECONDS: Final = 0.002
VISIBLE_SECONDS: Final = 120.0
#: Keys of changes, beyond those of any backfill.
FIRST_KEY: Final = 1_000_000_000


class Probe:
    """Makes changes to rows of its own, one at a time."""

    def __init__(self, deployment: Deployment, text: Callable[[int], str]) -> None:
        """`text` makes a short document of a number."""
        self._deployment, self._text = deployment, text
        self._source, self._sink = deployment.source(), deployment.sink()
        self._sink.prepare_threshold = 5
        self._number = 0
        self.keys: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()
        self._sink.close()

    def insert(self) -> float:
        """Seconds until the new row is searchable."""
        text, key = self._next(), FIRST_KEY + self._number
        self.keys.append(key)
        return self._commit(INSERT, (key, text), VISIBLE, (key, text), gone=False)

    def update(self, key: int) -> float:
        """Seconds until the row's new text is searchable."""
        text = self._next()
        return self._commit(UPDATE, (text, key), VISIBLE, (key, text), gone=False)

    def delete(self, key: int) -> float:
        """Seconds until the row is gone from search."""
        self.keys.remove(key)
        return self._commit(DELETE, (key,), THERE, (key,), gone=True)

    def _next(self) -> str:
        self._number += 1
        return f"Change {self._number}. {self._text(self._number)}"

    def _commit(self, change: str, values: Any, query: str, wanted: Any, *, gone: bool) -> float:
        """The clock starts before the statement is sent, so the time of the commit itself counts, too."""
        begun = time.monotonic()
        self._source.execute(change.encode(), values)
        until(
            lambda: (self._sink.execute(query.encode(), wanted).fetchone() is None) == gone,
            VISIBLE_SECONDS,
            f"{change.split(maxsplit=1)[0]} of a row in the sink",
            every=POLL_SECONDS,
        )
        self._deployment.check()
        return time.monotonic() - begun


class Arrivals:
    """When another consumer of a topic was given its messages, by this process's clock."""

    def __init__(self, deployment: Deployment) -> None:
        from confluent_kafka import Consumer
        from confluent_kafka import TopicPartition as Place

        from connectors.kafka import client_config
        from streams import neighbours

        kafka = deployment.settings.kafka
        more = {"group.id": f"{deployment.name}-arrivals", "enable.auto.commit": False}
        self._consumer = Consumer(client_config(kafka.bootstrap_servers, kafka.security(), **more))
        ends = neighbours.kafka(deployment.settings).end_offsets([deployment.topic])
        self._consumer.assign([Place(at.topic, at.partition, end) for at, end in ends.items()])
        self._times: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._consumer.close()

    def since(self, begun: float) -> float | None:
        """The first at or after `begun`."""
        return next((at for at in self._times if at >= begun), None)

    def _read(self) -> None:
        while not self._ended.is_set():
            message = self._consumer.poll(0.2)
            if message is not None and message.error() is None:
                self._times.append(time.monotonic())


def commit_seconds(sink: psycopg.Connection[Any], count: int) -> list[float]:
    """What two commits in a row take, each of one row, so many times."""
    sink.execute("CREATE TABLE IF NOT EXISTS public.bench_commit (number integer)")
    found = []
    for number in range(count):
        begun = time.monotonic()
        for _ in range(2):
            sink.execute("INSERT INTO public.bench_commit VALUES (%s)", (number,))
        found.append(time.monotonic() - begun)
    return found


def pause(chance: random.Random, least: float, most: float) -> None:
    """Between changes, so that they do not keep step with anything that polls."""
    time.sleep(chance.uniform(least, most))
