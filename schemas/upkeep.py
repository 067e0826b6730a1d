"""What a sink's tables and indexes are like, and which of them need work. Pure: nothing is looked up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from schemas.spec import VectorIndex

#: Bytes of a page, and of them what pgvector can use.
PAGE: Final = 8192
USABLE: Final = 8160
#: Of a vector's number.
NUMBER: Final = {"vector": 4, "halfvec": 2}
#: Of pgvector's element: without the vector's numbers; a neighbour; what a tuple's place in its page takes.
ELEMENT: Final = 80
NEIGHBOUR: Final = 6
PLACE: Final = 4

#: An index this many times as large as its rows need is built anew, if that wins a few megabytes.
BLOATED: Final = 1.5
WORTH_BYTES: Final = 16 * 1024**2
#: This many dead rows, and this part of the living ones: autovacuum, which looks once a minute, is late. To build the
#: index anew then takes less than to take the dead ones out of it.
MANY_DEAD: Final = 10_000
DEAD_SHARE: Final = 0.2
#: Rows of `pending` live for seconds: there some are always dead.
MANY_DEAD_PENDING: Final = 100_000
#: Chunks beside the index: a search takes two milliseconds for each thousand of them (ADR 0023).
MANY_APART: Final = 20_000


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """An HNSW index. `valid`: it is complete, and searches use it."""

    name: str
    valid: bool
    m: int
    ef_construction: int
    bytes: int


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A table and its rows. `dead`: as the server's statistics have it."""

    name: str
    rows: int
    dead: int
    bytes: int

    @property
    def is_littered(self) -> bool:
        """Whether it is to be vacuumed by hand."""
        most = MANY_DEAD_PENDING if self.name == "pending" else MANY_DEAD
        return self.dead >= most and self.dead >= DEAD_SHARE * self.rows


@dataclass(frozen=True, slots=True)
class VectorFacts:
    """The vectors of a generation that is fed, and what they are indexed by.

    `wanted`: as the spec said at the last migrate. `filling`: rows wait for their first vector, in a first load or in a
    generation that nobody reads yet, so an index that is not there may wait, too. `index`: the one that bears the name,
    `spare`: a valid one that was built to take its place; `leftovers`: names of what dead builds have left.
    `apart`: chunks beside the index, since their text is there often; 0 if somebody has indexed them.
    """

    collection: str
    generation: int
    state: str
    dimension: int
    wanted: VectorIndex
    filling: bool
    table: TableFacts
    index: IndexFacts | None = None
    spare: IndexFacts | None = None
    leftovers: tuple[str, ...] = ()
    apart: int = 0

    @property
    def place(self) -> str:
        return f"{self.collection}, generation {self.generation}"

    @property
    def searchable(self) -> IndexFacts | None:
        """What searches use, whatever its name."""
        return next((each for each in (self.index, self.spare) if each is not None and each.valid), None)

    @property
    def is_indexed(self) -> bool:
        return self.index is not None and self.index.valid

    @property
    def bloat(self) -> float | None:
        """How many times as large the index is as its rows need; None without rows or index."""
        need = needed_bytes(self.table.rows, self.dimension, self.wanted)
        return None if self.searchable is None or not need else self.searchable.bytes / need

    @property
    def waits(self) -> bool:
        """Whether its index is not to be made yet."""
        return self.filling and self.searchable is None and not self.leftovers


def needed_bytes(rows: int, dimension: int, index: VectorIndex) -> int:
    """Of a fresh HNSW index over as many vectors, all different: pgvector keeps an element and its neighbours on one
    page where they fit (hnsw.h and hnswbuild.c of 0.8).
    """
    neighbours = 4 + round((2 + 1 / max(index.m - 1, 1)) * index.m * NEIGHBOUR)
    element = ELEMENT + NUMBER[index.type] * dimension
    together = element + neighbours + 2 * PLACE
    pages = 1 / (USABLE // together) if together <= USABLE else 2.0
    return round(rows * pages * PAGE)


def why_build(facts: VectorFacts) -> Iterator[str]:
    """Reasons to build an index anew, in words; none if it is as it should be, or not wanted yet."""
    index, wanted = facts.index, facts.wanted
    if facts.waits:
        return
    if facts.leftovers:
        yield "a build was interrupted"
    elif facts.spare is not None:
        yield "a build was not finished"
    if index is None and facts.spare is None:
        yield "the HNSW index is missing"
    elif index is not None and not index.valid:
        yield "the HNSW index is INVALID"
    used = facts.searchable
    if used is not None and (used.m, used.ef_construction) != (wanted.m, wanted.ef_construction):
        yield (
            f"m = {used.m}, ef_construction = {used.ef_construction}, the spec has {wanted.m} and "
            f"{wanted.ef_construction}"
        )
    if used is not None and is_bloated(facts):
        if facts.bloat is None:
            yield "the HNSW index is large, and has no rows"
        else:
            yield f"the HNSW index is {facts.bloat:.1f} times as large as its rows need"
    if used is not None and facts.table.is_littered:
        yield f"{facts.table.dead} dead rows"


def is_bloated(facts: VectorFacts) -> bool:
    need = needed_bytes(facts.table.rows, facts.dimension, facts.wanted)
    size = 0 if facts.searchable is None else facts.searchable.bytes
    return size - need > WORTH_BYTES and size > BLOATED * need
