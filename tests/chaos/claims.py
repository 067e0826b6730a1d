"""Whether FRESH or a watermark ever claims too much. Shares no code with the pipeline."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from tests.acceptance.plain import one
from tests.deployment import Deployment


@dataclass
class Change:
    """One committed update. `before` and `after`: the source's clock around its commit."""

    number: int
    before: datetime
    after: datetime


@dataclass
class Oracle:
    """Changes one row all the time and contradicts whatever claims too much; away databases are waited for.

    The row has the id 1 and is changed in `column`, with which the collection's texts begin.
    """

    deployment: Deployment
    threshold_seconds: float
    collection: str = "content"
    column: str = "title"
    write_seconds: float = 0.2
    watch_seconds: float = 0.05
    changes: list[Change] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    samples: int = 0
    least: float | None = None
    most: float | None = None
    _number: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _go_on: threading.Event = field(default_factory=threading.Event)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Oracle:
        self._go_on.set()
        self._threads = [
            threading.Thread(target=self._again, args=(run,), daemon=True)
            for run in (self._write, self._watch)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def pause(self) -> None:
        """No further change, when this returns, until `go_on`."""
        self._go_on.clear()
        with self._writing:
            pass

    def go_on(self) -> None:
        self._go_on.set()

    def _again(self, run: Any) -> None:
        while not self._stop.wait(0.1):
            with contextlib.suppress(psycopg.Error):
                run()

    def _write(self) -> None:
        update = sql.SQL("UPDATE {} SET {} = %s WHERE id = 1").format(
            sql.Identifier("shop", self.collection), sql.Identifier(self.column)
        )
        told = sql.SQL("SELECT split_part({}, ' ', 2)::int FROM {} WHERE id = 1").format(
            sql.Identifier(self.column), sql.Identifier("shop", self.collection)
        )
        with self.deployment.source() as source:
            row = source.execute(told).fetchone()
            self._number = max(self._number, row[0] if row else 0)
            while not self._stop.wait(self.write_seconds):
                with self._writing:
                    if not self._go_on.is_set():
                        continue
                    self._number += 1  # also of one whose commit nobody knows of: it claims nothing
                    before = one(source, "SELECT clock_timestamp()")
                    source.execute(update, [f"number {self._number}"])
                    after = one(source, "SELECT clock_timestamp()")
                    self.changes.append(Change(self._number, before, after))

    def _watch(self) -> None:
        shown_text = f"SELECT max(chunk_text) FROM upwell.{self.collection} WHERE id = 1"
        with self.deployment.source() as source, self.deployment.sink() as sink:
            while not self._stop.wait(self.watch_seconds):
                done = len(self.changes)
                now = one(source, "SELECT clock_timestamp()")
                row = sink.execute(
                    "SELECT verdict, watermark FROM upwell.freshness WHERE collection = %s", [self.collection]
                ).fetchone()
                shown = int((one(sink, shown_text) or "number 0").split()[1])
                self._judge(row or ("UNKNOWN", None), self._oldest_missing(shown, done), now)

    def _oldest_missing(self, shown: int, done: int) -> Change | None:
        """The first of `done` changes that is newer than what is shown; they are in the order of their numbers."""
        oldest = None
        for at in range(done - 1, -1, -1):
            if self.changes[at].number <= shown:
                break
            oldest = self.changes[at]
        return oldest

    def _judge(self, row: tuple[Any, ...], oldest: Change | None, now: datetime) -> None:
        """What is missing after the verdict was given was missing when it was given."""
        self.samples += 1
        verdict, watermark = row
        if oldest is None:
            return
        age = (now - oldest.after).total_seconds()
        if verdict == "FRESH" and age > self.threshold_seconds:
            self.wrong.append(f"FRESH while change {oldest.number} of {age:.1f} s ago is missing")
        if watermark is None:
            return
        if watermark >= oldest.after:
            self.wrong.append(
                f"watermark {watermark} while change {oldest.number} is missing: {oldest.after}"
            )
        ahead = (oldest.before - watermark).total_seconds()
        self.least = ahead if self.least is None else min(self.least, ahead)
        self.most = ahead if self.most is None else max(self.most, ahead)
