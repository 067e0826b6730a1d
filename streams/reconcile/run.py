"""`upwell reconcile`: reads both sides, has the core decide, repairs if it is told to (ADR 0013)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, TypeVar

import psycopg

from connectors.debezium.naming import Naming
from connectors.postgres.capture_state import COMPLETE, CaptureState, connect_sink
from connectors.postgres.comparison import Compared, SinkRows, SourceRows, compared
from connectors.postgres.mending import Documents, Mending, standing, workers
from connectors.postgres.source import connect_source, inspect_tables
from schemas.errors import RoundIncomplete, SettingsError
from schemas.reconcile import RANGES, Checksum, Difference, Document, Kind, Stored
from schemas.sink import GenerationInfo
from schemas.spec import CollectionSpec
from schemas.template import Template
from streams import neighbours
from streams.embed.stage import Recipe
from streams.generations import spec_of
from streams.reconcile.core import candidates, differing, verify
from streams.reconcile.report import Report
from streams.reconcile.round import Round
from streams.reconcile.vectors import WrongVectors, needs_vector, wrong_vectors
from streams.settings import Settings

#: Differences beyond are counted only.
LISTED: Final = 100_000
TICK_SECONDS: Final = 5.0

T = TypeVar("T")
Progress = Callable[[str], None]
#: How documents of a generation are made: loads its model.
MakeRecipe = Callable[[GenerationInfo], Recipe]


@dataclass(frozen=True, slots=True)
class Options:
    """`sample`: keys whose vectors are recomputed. `wait_seconds`: for a round, and for what was repaired to arrive."""

    repair: bool
    sample: int
    wait_seconds: float


@dataclass(slots=True)
class Comparison:
    """One collection with everything that is asked about it. `recipe` loads the model when it is first needed."""

    collection: str
    source: SourceRows
    sink: SinkRows
    documents: Documents
    mending: Mending
    template: Template
    round: Round
    recipe: Callable[[], Recipe]
    options: Options
    progress: Progress
    report: Report

    def run(self) -> Report:
        """What is wrong, certain and still so."""
        self._rows()
        self._missing_vectors()
        self._orphans()
        if self.options.sample:
            self._sampled()
        return self.report

    def _rows(self) -> None:
        """Checksums, then the ranges that differ, then the keys that do."""
        with ThreadPoolExecutor(2) as pool:
            sink = pool.submit(self._checksums, "sink", self.sink.checksums)
            source = pool.submit(self._checksums, "source", self.source.checksums)
            mine, others = self._awaited(sink, source)
        self.report.sink_rows = sum(each.rows for each in mine.values())
        self.report.source_rows = sum(each.rows for each in others.values())
        ranges = differing(mine, others)
        self.report.ranges_differ = len(ranges)
        if not ranges:
            return
        self.progress(f"{len(ranges)} of {RANGES} ranges differ, narrowing them down")
        with (
            contextlib.closing(self.sink.rows(ranges)) as stored,
            contextlib.closing(self.source.rows(ranges)) as seen,
        ):
            keys, self.report.beyond = _listed(candidates(stored, seen))
        self._verify(keys)

    def _checksums(self, name: str, read: Callable[[], dict[int, Checksum]]) -> dict[int, Checksum]:
        started = time.monotonic()
        found = read()
        rows, seconds = sum(each.rows for each in found.values()), time.monotonic() - started
        self.progress(f"{name}: {rows} rows read in {seconds:.1f} s")
        return found

    def _awaited(self, *sides: Future[T]) -> list[T]:
        """What both have read; said every few seconds that they still do."""
        started = time.monotonic()
        while wait(sides, TICK_SECONDS).not_done:
            self.progress(f"reading ... {time.monotonic() - started:.0f} s")
        return [side.result() for side in sides]

    def _verify(self, keys: Sequence[str]) -> None:
        found = verify(keys, self.sink, self.source, self.round.complete, tell=self._pass)
        self.report.in_flight = found.in_flight
        self._add(found.different)

    def _pass(self, number: int, left: int) -> None:
        self.progress(f"pass {number}: {left} keys differ, waiting until what is in flight is taken in")

    def _add(self, differences: Iterable[Difference]) -> None:
        """With what is known to be open of each."""
        listed = list(differences)
        notes = self.sink.notes([each.key for each in listed]) if listed else {}
        for each in listed:
            noted = replace(each, notes=tuple(notes.get(each.key, ())))
            self.report.found.setdefault(each.kind, []).append(noted)

    def _missing_vectors(self) -> None:
        """Read once more: what is pending meanwhile, or has moved on, is no matter."""
        lacking = (each for each in self.documents.without_vector() if needs_vector(each, self.template))
        first, beyond = _listed(_bare(lacking))
        self.report.beyond += beyond
        versions = {each.key: each.version for each in first}
        again = self.documents.read(list(versions))
        still = (each for each in again if each.version == versions[each.key] and not each.texts)
        self._add(_vectorless(still, Kind.MISSING_VECTOR))

    def _orphans(self) -> None:
        keys, beyond = _listed(self.documents.orphans())
        self.report.beyond += beyond
        self._add(Difference(Kind.EXTRA_VECTOR, key) for key in keys)

    def _sampled(self) -> None:
        keys = self.documents.sample(self.options.sample)
        self.report.sampled = len(keys)
        if not keys:
            return
        self.progress(f"{len(keys)} documents are embedded again")
        self._add(_vectorless((each.document for each in self.wrong(keys)), Kind.WRONG_VECTOR))

    def wrong(self, keys: Sequence[str]) -> list[WrongVectors]:
        """Those of these keys with wrong vectors, and the keys that have the same chunks, from which the embedder would
        take a wrong vector again. Each is read twice, and counts if it has not moved on.
        """
        first = self._wrong(keys)
        if not first:
            return []
        hashes = {digest for each in first for digest in each.hashes}
        alike = set(self.documents.alike(hashes)) | {each.document.key for each in first}
        versions = {each.document.key: each.document.version for each in first}
        return [
            each
            for each in self._wrong(sorted(alike))
            if versions.get(each.document.key, each.document.version) == each.document.version
        ]

    def _wrong(self, keys: Sequence[str]) -> list[WrongVectors]:
        recipe = self.recipe()
        found = wrong_vectors(self.documents.read(keys), self.template, recipe.chunker, recipe.encoder)
        return list(found)


def _bare(documents: Iterable[Document]) -> Iterator[Document]:
    """Without their rows, which need not be kept."""
    return (Document(each.key, each.version, {}) for each in documents)


def _vectorless(documents: Iterable[Document], kind: Kind) -> Iterator[Difference]:
    return (Difference(kind, each.key, Stored(each.version)) for each in documents)


def _listed(found: Iterable[T]) -> tuple[list[T], int]:
    """The first LISTED, and how many more there are."""
    remaining = iter(found)
    return list(islice(remaining, LISTED)), sum(1 for _ in remaining)


@dataclass(frozen=True, slots=True)
class Reached:
    """The databases of a deployment, while a collection of it is compared."""

    settings: Settings
    collection: str
    spec: CollectionSpec
    state: CaptureState
    sink: psycopg.Connection[Any]
    source: psycopg.Connection[Any]
    options: Options

    def comparison(self, progress: Progress, make_recipe: MakeRecipe) -> Comparison:
        """After a look at whether it can be compared. Raises as `reconcile`."""
        self.state.check_schema()
        lineage = self.complete_lineage()
        if self.options.repair and not workers(self.sink):
            raise RoundIncomplete("no worker runs, so nothing would be taken in again: start `upwell worker`")
        live = next(each for each in self.state.generations()[self.collection] if each.is_live)
        template = Template(live.template)
        what = self._compared(template)
        for name, why in what.left_out.items():
            progress(f"column {name} is not compared: {why}")
        rows = SourceRows(self.source, what)
        made: list[Recipe] = []

        def recipe() -> Recipe:
            if not made:
                made.append(make_recipe(live))
            return made[0]

        return Comparison(
            collection=self.collection,
            source=rows,
            sink=SinkRows(self.sink, self.collection, what, self.spec.metadata),
            documents=Documents(self.sink, self.collection, live.number),
            mending=Mending(self.sink, self.collection, live.number),
            template=template,
            round=self._round(lineage, rows),
            recipe=recipe,
            options=self.options,
            progress=progress,
            report=Report(self.collection, ranges=RANGES, left_out=what.left_out),
        )

    def _compared(self, template: Template) -> Compared:
        table = self.spec.table
        needed = template.columns | self.spec.template_columns | set(self.spec.metadata)
        return compared(self.source, inspect_tables(self.source, [table], server=False)[table], needed)

    def _round(self, lineage: int, rows: SourceRows) -> Round:
        naming = Naming(self.settings.name, lineage)

        def check() -> None:
            if self.complete_lineage() != lineage:
                raise SettingsError(f"lineage {lineage} has ended meanwhile: run it again once all is read")

        return Round(
            naming,
            naming.topic(self.spec.table),
            self.state,
            neighbours.kafka(self.settings),
            neighbours.connect(self.settings),
            rows.inserted_lsn,
            check,
            self.options.wait_seconds,
        )

    def complete_lineage(self) -> int:
        """Raises SettingsError unless the collection is complete: beside a load nothing can be told apart."""
        found = standing(self.sink, self.collection)
        if found is None:
            raise SettingsError(f"the sink has no collection {self.collection!r}: run `upwell migrate` first")
        if found.load_state != COMPLETE or found.lineage is None:
            raise SettingsError(
                f"{self.collection} is not loaded yet ({found.load_state}): nothing is compared beside a load; run it "
                "again when `upwell connector apply --wait 600` has returned"
            )
        return found.lineage


def reconcile(
    settings: Settings, collection: str, options: Options, *, progress: Progress, make_recipe: MakeRecipe
) -> Report:
    """Compare a collection, and with `options.repair` mend it.

    Raises SettingsError for an unknown collection or one that is being loaded, RoundIncomplete where the source's
    changes do not arrive in time, and whatever says that a neighbour is away.
    """
    from streams.reconcile.repair import Repair

    started = time.monotonic()
    spec = spec_of(settings, collection)
    with (
        CaptureState.open(settings.sink.dsn) as state,
        connect_sink(settings.sink.dsn) as sink,
        connect_source(settings.source.dsn) as source,
    ):
        reached = Reached(settings, collection, spec, state, sink, source, options)
        comparison = reached.comparison(progress, make_recipe)
        report = comparison.run()
        if options.repair:
            Repair(comparison, settings.source.dsn, settings.sink.dsn).run()
    report.seconds = time.monotonic() - started
    return report
