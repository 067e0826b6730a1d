"""Texts whose vectors a step of this process is about to store, so that a step beside it does not encode them, too.

A step takes its texts before it asks the sink which of them are there, and has them until its write is committed: what
is not on the way any more when another step takes its own is in the sink when that one asks.

No two steps can wait for each other: what a step has taken is settled, by the sink's answer or by the model, before it
waits for what another one has.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Vector = Sequence[float]
#: Collection, generation, hash.
Place = tuple[str, int, bytes]


@dataclass(eq=False, slots=True)
class _Text:
    """`vector`, or that it is in the sink, once `settled`; with neither, whoever took it has failed."""

    settled: asyncio.Event = field(default_factory=asyncio.Event)
    vector: Vector | None = None
    is_stored: bool = False


class OnTheWay:
    """Not thread-safe: lives on the event loop."""

    def __init__(self) -> None:
        self._texts: dict[Place, _Text] = {}

    @contextlib.contextmanager
    def share(self, collection: str, generation: int) -> Iterator[Share]:
        """What one step takes of a generation, until it has written."""
        share = Share(self._texts, collection, generation)
        try:
            yield share
        finally:
            share.end()


class Share:
    """Hashes that one step has taken, and those that it found taken."""

    def __init__(self, texts: dict[Place, _Text], collection: str, generation: int) -> None:
        self._texts, self._collection, self._generation = texts, collection, generation
        self._mine: dict[bytes, _Text] = {}
        self._theirs: dict[bytes, _Text] = {}

    def take(self, hashes: Collection[bytes]) -> frozenset[bytes]:
        """Those that nobody has are this step's, to be settled before anything is waited for."""
        self._theirs = {}
        free = set()
        for digest in hashes:
            taken = self._texts.get(self._place(digest))
            if taken is None:
                self._texts[self._place(digest)] = self._mine[digest] = _Text()
                free.add(digest)
            else:
                self._theirs[digest] = taken
        return frozenset(free)

    def settle(self, vectors: Mapping[bytes, Vector | None]) -> None:
        """Vectors of what was taken; None says that the sink has it."""
        for digest, vector in vectors.items():
            mine = self._mine[digest]
            mine.vector, mine.is_stored = vector, vector is None
            mine.settled.set()

    async def theirs(self) -> dict[bytes, Vector | None]:
        """What the last `take` found taken, as `settle` has it; without what the other step has failed at."""
        for text in self._theirs.values():
            await text.settled.wait()
        return {
            digest: text.vector
            for digest, text in self._theirs.items()
            if text.is_stored or text.vector is not None
        }

    def end(self) -> None:
        """Whoever waits for what was not settled has to make it."""
        for digest, mine in self._mine.items():
            mine.settled.set()
            del self._texts[self._place(digest)]

    def _place(self, digest: bytes) -> Place:
        return self._collection, self._generation, digest
