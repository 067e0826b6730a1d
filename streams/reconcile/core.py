"""Which keys are truly wrong: the pure part of `upwell reconcile` (ADR 0013).

    1. sink     the version and the row of each key
    2. source   the same keys, of a snapshot that is taken after that
    3. round    all that the source had committed until then is taken in
    4. sink     once more: a key that is still in the version of 1 has not got what the source says: it is wrong

Whatever is in flight moves the version between 1 and 4, and its key is looked at again. The order is what makes it
exact, and nothing in it is a time: there is no false alarm beside live changes, and no difference that stays is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, Protocol

from schemas.reconcile import Checksum, Difference, Keyed, Kind, Seen, Stored

#: A key that has moved on this often is no difference: whatever was wrong with it is overwritten.
PASSES: Final = 5


class SinkKeys(Protocol):
    """Single keys of the sink."""

    def read(self, keys: Collection[str]) -> Mapping[str, Stored]:
        """Each of them, as it is now."""
        ...


class SourceKeys(Protocol):
    """Single keys of the source."""

    def read(self, keys: Mapping[str, int | None]) -> Mapping[str, Seen]:
        """Each of them, with whether the snapshot sees the transaction given with it."""
        ...


@dataclass(frozen=True, slots=True)
class Verified:
    """`in_flight`: keys that changed in every pass."""

    different: list[Difference] = field(default_factory=list)
    in_flight: list[str] = field(default_factory=list)


def differing(sink: Mapping[int, Checksum], source: Mapping[int, Checksum]) -> list[int]:
    """Ranges that are not the same on both sides."""
    return sorted(number for number in {*sink, *source} if sink.get(number) != source.get(number))


def candidates(sink: Iterable[Keyed], source: Iterable[Keyed]) -> Iterator[str]:
    """Keys that one side lacks or has otherwise; both sides in the order of places. Memory for one place."""
    for rows in _together(groupby(sink, _place), groupby(source, _place)):
        mine, others = rows
        same = len(mine) == len(others) == 1 and mine[0].digest == others[0].digest
        if not same:
            yield from sorted({row.key for row in (*mine, *others)})


def _place(row: Keyed) -> str:
    return row.place


def _together(
    sink: Iterator[tuple[str, Iterator[Keyed]]], source: Iterator[tuple[str, Iterator[Keyed]]]
) -> Iterator[tuple[list[Keyed], list[Keyed]]]:
    """The rows of each place, of both sides."""
    mine, other = _next(sink), _next(source)
    while mine is not None or other is not None:
        if other is None or (mine is not None and mine[0] < other[0]):
            assert mine is not None
            yield mine[1], []
            mine = _next(sink)
        elif mine is None or other[0] < mine[0]:
            yield [], other[1]
            other = _next(source)
        else:
            yield mine[1], other[1]
            mine, other = _next(sink), _next(source)


def _next(groups: Iterator[tuple[str, Iterator[Keyed]]]) -> tuple[str, list[Keyed]] | None:
    found = next(groups, None)
    return None if found is None else (found[0], list(found[1]))


def kind_of(stored: Stored, seen: Seen) -> Kind | None:
    """What is wrong if both stay as they are; None if nothing is. A marker is as good as no record."""
    if stored.digest == seen.digest:
        return None
    if stored.digest is None:
        return Kind.MISSING
    return Kind.EXTRA if seen.digest is None else Kind.STALE


def verify(
    keys: Iterable[str],
    sink: SinkKeys,
    source: SourceKeys,
    settle: Callable[[], None],
    *,
    passes: int = PASSES,
    tell: Callable[[int, int], None] = lambda number, left: None,
) -> Verified:
    """Which of these keys are wrong. `settle` returns when all that the source has committed until it was called is
    taken in; `tell` hears of each pass that needs it, with the number of keys.
    """
    found = Verified()
    before = dict(sink.read(list(dict.fromkeys(keys))))
    for number in range(1, passes + 1):
        if not before:
            break
        seen = source.read({key: stored.transaction_id for key, stored in before.items()})
        before = {key: stored for key, stored in before.items() if kind_of(stored, seen[key])}
        if not before:
            break
        tell(number, len(before))
        settle()
        now = sink.read(list(before))
        before = {key: now[key] for key in _moving(found, before, now, seen, last=number == passes)}
    found.in_flight.extend(sorted(before))
    return found


def _moving(
    found: Verified,
    before: Mapping[str, Stored],
    now: Mapping[str, Stored],
    seen: Mapping[str, Seen],
    *,
    last: bool,
) -> Iterator[str]:
    """Keys to be looked at again; the differences that are certain go to `found`."""
    for key, stored in before.items():
        kind = kind_of(now[key], seen[key])
        if kind is None:
            continue
        # What is to be looked for at the source is mended by itself, unless it stays so (H9).
        certain = now[key].is_still(stored) and seen[key].visible and (last or not now[key].in_doubt)
        if certain:
            found.different.append(Difference(kind, key, now[key]))
        else:
            yield key
