"""`upwell reconcile --repair`: what is wrong goes through the line once more, what is too much becomes a marker.

1. vectors without a record are removed
2. ghosts become markers, each only in the version that the source was proven not to have
3. what is missing or stale is read again by the connector, 100 keys at a time, for the version that is stored
4. missing and wrong vectors are pending again
5. all of it is compared once more; what is still wrong is said
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from connectors.debezium.snapshot import re_read
from connectors.postgres.comparison import batches
from connectors.postgres.repairs import Repairs
from connectors.postgres.source import connect_source
from schemas.errors import RoundIncomplete, SettingsError
from schemas.reconcile import Difference, Kind
from streams.reconcile.core import verify
from streams.reconcile.run import Comparison
from streams.reconcile.vectors import needs_vector

#: Keys of one signal: its condition is a text of them.
RE_READ: Final = 100
POLL_SECONDS: Final = 0.1
#: How a note of one begins (connectors/postgres/queries/reconcile.sql).
DEAD_LETTER: Final = "open dead letter"


@dataclass(frozen=True, slots=True)
class Repair:
    """Repairs what a comparison has found, and verifies it."""

    comparison: Comparison
    source_dsn: str
    sink_dsn: str

    def run(self) -> None:
        """Sets `repaired` and `left` of the report. Raises as `reconcile`."""
        report, mending = self.comparison.report, self.comparison.mending
        report.repaired = {}
        if not any(report.found.values()):
            return
        self._did(
            Kind.EXTRA_VECTOR, mending.remove_orphans([each.key for each in self._of(Kind.EXTRA_VECTOR)])
        )
        self._did(Kind.EXTRA, mending.remove_ghosts(self._of(Kind.EXTRA)))
        for kind in (Kind.MISSING, Kind.STALE):
            self._did(kind, self._read_again(self._of(kind)))
        for kind in (Kind.MISSING_VECTOR, Kind.WRONG_VECTOR):
            self._did(kind, mending.embed_again(self._of(kind)))
        self._look_again()
        counts = {kind.value: len(found) for kind, found in report.found.items()}
        left = {kind.value: len(found) for kind, found in report.left.items()}
        done = {kind.value: count for kind, count in report.repaired.items()}
        mending.audit(sum(done.values()), {"found": counts, "repaired": done, "left": left})

    def _of(self, kind: Kind) -> list[Difference]:
        return self.comparison.report.found.get(kind, [])

    def _did(self, kind: Kind, count: int) -> None:
        assert self.comparison.report.repaired is not None
        self.comparison.report.repaired[kind] = count

    def _read_again(self, differences: Sequence[Difference]) -> int:
        """How many were answered: taken in again, or overtaken by a change."""
        done = 0
        for batch in batches(differences, RE_READ):
            self._ask(batch)
            moved, heard = self._answered(batch)
            self.comparison.mending.forget(heard)
            done += len(moved)
            self.comparison.progress(f"{done} of {len(differences)} keys are taken in again")
            if len(heard) < len(batch):
                break
        return done

    def _ask(self, batch: Sequence[Difference]) -> None:
        """Under the lock of all who send signals, and not beside a load (connectors/debezium/snapshot.py)."""
        deadline = time.monotonic() + self.comparison.options.wait_seconds
        while True:
            with Repairs.alone(self.sink_dsn) as repairs:
                if repairs is not None:
                    self._ask_alone(repairs, batch)
                    return
            if time.monotonic() > deadline:
                raise RoundIncomplete(
                    "another process sends signals to the connector all the time: try it again"
                )
            time.sleep(POLL_SECONDS)

    def _ask_alone(self, repairs: Repairs, batch: Sequence[Difference]) -> None:
        """The rows first: what arrives before them would be taken for overtaken, and ignored."""
        name = self.comparison.collection
        self.comparison.mending.ask(batch)
        at = next(each for each in repairs.collections() if each.name == name)
        if not at.allowed:
            self.comparison.mending.forget(batch)
            raise SettingsError("a load has begun meanwhile: run it again when that is complete")
        with connect_source(self.source_dsn) as source:
            re_read(source, at.table, [at.key(each.key) for each in batch])

    def _answered(self, batch: Sequence[Difference]) -> tuple[list[Difference], list[Difference]]:
        """Those that are in another version before the deadline, and with them those of which only a new dead letter
        came.
        """
        keys, sink = [each.key for each in batch], self.comparison.sink
        known = {each.key: set(each.notes) for each in batch}
        moved: list[Difference] = []

        def heard() -> list[Difference]:
            now = sink.read(keys)
            moved[:] = [each for each in batch if not now[each.key].is_still(each.stored)]
            failed = {key for key, notes in sink.notes(keys).items() if _letters(notes) - known[key]}
            return [each for each in batch if each in moved or each.key in failed]

        return moved, self._until(heard, lambda found: len(found) == len(batch))

    def _until(
        self, look: Callable[[], list[Difference]], done: Callable[[list[Difference]], bool]
    ) -> list[Difference]:
        deadline = time.monotonic() + self.comparison.options.wait_seconds
        while True:
            found = look()
            if done(found) or time.monotonic() > deadline:
                return found
            time.sleep(POLL_SECONDS)

    def _look_again(self) -> None:
        """What is still wrong, by the same rules."""
        rows = [each.key for kind in (Kind.MISSING, Kind.STALE, Kind.EXTRA) for each in self._of(kind)]
        comparison = self.comparison
        if rows:
            self._leave(verify(rows, comparison.sink, comparison.source, comparison.round.complete).different)
        vectors = [*self._of(Kind.MISSING_VECTOR), *self._of(Kind.WRONG_VECTOR)]
        if vectors:
            comparison.progress(f"{len(vectors)} documents are embedded again by the workers")
            self._leave(self._until(lambda: self._not_embedded(vectors), lambda left: not left))
        wrong = {
            each.document.key for each in comparison.wrong([each.key for each in self._of(Kind.WRONG_VECTOR)])
        }
        self._leave(each for each in self._of(Kind.WRONG_VECTOR) if each.key in wrong)
        gone = set(comparison.documents.orphans()) if self._of(Kind.EXTRA_VECTOR) else set()
        self._leave(each for each in self._of(Kind.EXTRA_VECTOR) if each.key in gone)

    def _not_embedded(self, vectors: Sequence[Difference]) -> list[Difference]:
        """Of records that live: what is pending still, or has no vector."""
        comparison = self.comparison
        keys = [each.key for each in vectors]
        settled = {each.key: each for each in comparison.documents.read(keys)}
        stored = comparison.sink.read(keys)
        return [
            each
            for each in vectors
            if stored[each.key].digest is not None
            and (
                (document := settled.get(each.key)) is None
                or (not document.texts and needs_vector(document, comparison.template))
            )
        ]

    def _leave(self, differences: Iterable[Difference]) -> None:
        """With what is known to be open of each: a dead letter may be why it stays."""
        left, listed = self.comparison.report.left, list(differences)
        notes = self.comparison.sink.notes([each.key for each in listed]) if listed else {}
        for each in listed:
            if each.key not in {other.key for other in left.get(each.kind, [])}:
                left.setdefault(each.kind, []).append(replace(each, notes=tuple(notes.get(each.key, ()))))


def _letters(notes: Iterable[str]) -> set[str]:
    return {note for note in notes if note.startswith(DEAD_LETTER)}
