"""I2 and I3 while everything happens: what the sink shows of a key never goes backwards, and nothing comes back."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

from tests.chaos.background import Background
from tests.chaos.workload import KEYS
from tests.deployment import Deployment

NUMBER: Final = re.compile(r"n(\d+) ")
#: What is shown, and what is stored. Each is read in one statement.
SHOWN: Final = {
    ("content", "view"): "SELECT id::text, chunk_text FROM upwell.content WHERE chunk_no = 0",
    ("content", "record"): "SELECT _key, _row ->> 'title' FROM upwell.record_content WHERE NOT _deleted",
    ("customers", "view"): "SELECT id::text, chunk_text FROM upwell.customers WHERE chunk_no = 0",
    ("customers", "record"): (
        "SELECT _key, _row ->> 'full_name' FROM upwell.record_customers WHERE NOT _deleted"
    ),
}


@dataclass
class History:
    """The greatest number that a place ever showed of each key, and which keys it does not show now.

    A key of a shift may be in doubt, and then be shown once more for a moment (README); what is shown is still never
    older than before. A negative key exists within transactions of swaps only.
    """

    place: str
    greatest: dict[int, int] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    def see(self, rows: list[tuple[Any, ...]]) -> list[str]:
        """What is wrong with what is shown now."""
        wrong = []
        there = set()
        for raw, text in rows:
            key, found = int(raw.strip("[]")), NUMBER.match((text or "") + " ")
            there.add(key)
            if found is None:
                continue
            number, before = int(found.group(1)), self.greatest.get(key, 0)
            if number < before:
                wrong.append(f"{self.place} of key {key} went back from {before} to {number}")
            if number == before and key in self.gone and key in KEYS:
                wrong.append(f"{self.place} of key {key} came back with {number} after it was gone")
            self.greatest[key] = max(number, before)
        self.gone = self.greatest.keys() - there
        return wrong


@dataclass
class Watcher(Background):
    """Looks about three times a second. `wrong`: what it saw."""

    deployment: Deployment
    wrong: list[str] = field(default_factory=list)
    looks: int = 0

    def __enter__(self) -> Watcher:
        self._histories = {place: History(" ".join(place)) for place in SHOWN}
        return super().__enter__()

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            with contextlib.suppress(psycopg.Error), self.deployment.sink() as sink:
                while not self._stop.wait(0.3):
                    for place, query in SHOWN.items():
                        self.wrong += self._histories[place].see(sink.execute(query.encode()).fetchall())
                    self.looks += 1
