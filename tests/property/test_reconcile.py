"""No false alarm beside live changes, and no damage that is missed, whatever happens between two reads (ADR 0013)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.change import Version
from schemas.reconcile import Checksum, Keyed, Kind, Seen, Stored
from streams.reconcile.core import candidates, differing, verify

KEYS = ["[1]", "[2]", "[3]"]
DAMAGED = "[9]"


@dataclass
class World:
    """A key's commits in order, None for a deletion. The sink has taken in `taken` of them, the source shows `shown`:
    a commit may be in the stream before it is visible. `choices` says what happens between any two reads.
    """

    choices: st.DataObject
    commits: dict[str, list[str | None]] = field(default_factory=lambda: {key: ["a"] for key in KEYS})
    taken: dict[str, int] = field(default_factory=dict)
    shown: dict[str, int] = field(default_factory=dict)
    damage: dict[str, Stored] = field(default_factory=dict)
    steps: int = 0

    def happen(self) -> None:
        """Anything, to the keys that live."""
        for _ in range(self.choices.draw(st.integers(0, 3))):
            key = self.choices.draw(st.sampled_from(KEYS))
            what = self.choices.draw(st.sampled_from(["commit", "take", "show"]))
            if what == "commit":
                self.steps += 1
                self.commits[key].append(self.choices.draw(st.sampled_from([None, f"v{self.steps}", "same"])))
            elif what == "take":
                self.taken[key] = min(self.taken.get(key, 1) + 1, len(self.commits[key]))
            else:
                self.shown[key] = min(self.shown.get(key, 1) + 1, len(self.commits[key]))

    def settle(self) -> None:
        """What was visible when it began is taken in; more may be."""
        visible = dict(self.shown)
        self.happen()
        for key, shown in visible.items():
            self.taken[key] = max(self.taken.get(key, 1), shown)
        self.happen()


@dataclass
class Sink:
    world: World

    def read(self, keys: Collection[str]) -> Mapping[str, Stored]:
        self.world.happen()
        return {key: self._one(key) for key in keys}

    def _one(self, key: str) -> Stored:
        if key in self.world.damage:
            return self.world.damage[key]
        taken = self.world.taken.get(key, 1)
        digest = self.world.commits[key][taken - 1]
        return Stored(Version(1, taken), digest is None, digest, transaction_id=taken)


@dataclass
class Source:
    world: World

    def read(self, keys: Mapping[str, int | None]) -> Mapping[str, Seen]:
        self.world.happen()
        return {key: self._one(key, transaction) for key, transaction in keys.items()}

    def _one(self, key: str, transaction: int | None) -> Seen:
        shown = self.world.shown.get(key, 1)
        return Seen(self.world.commits[key][shown - 1], transaction is None or transaction <= shown)


DAMAGES: dict[str, tuple[list[str | None], Stored, Kind]] = {
    "a record that is lost": (["a"], Stored(), Kind.MISSING),
    "a marker of what lives": (["a"], Stored(Version(1, 1), True, None, 1), Kind.MISSING),
    "a ghost": ([None], Stored(Version(1, 1), False, "a", 1), Kind.EXTRA),
    "a row that stayed behind": (["a"], Stored(Version(1, 1), False, "old", 1), Kind.STALE),
    "one that nobody knows who wrote": (["a"], Stored(Version(1, 1), False, "old"), Kind.STALE),
}


@given(choices=st.data(), damage=st.sampled_from([None, *DAMAGES]))
@settings(max_examples=200, deadline=None)
def test_what_is_in_flight_is_no_difference_and_what_is_damaged_is_found(
    choices: st.DataObject, damage: str | None
) -> None:
    world = World(choices)
    keys = list(KEYS)
    if damage is not None:
        world.commits[DAMAGED], world.damage[DAMAGED], _ = DAMAGES[damage]
        keys.append(DAMAGED)
    found = verify(keys, Sink(world), Source(world), world.settle)
    assert [(each.key, each.kind) for each in found.different] == (
        [] if damage is None else [(DAMAGED, DAMAGES[damage][2])]
    )
    assert set(found.in_flight) <= set(KEYS)


@given(st.integers(1, 4))
def test_a_key_in_doubt_is_given_time_and_then_named(passes: int) -> None:
    class Doubtful:
        reads = 0

        def read(self, keys: Collection[str]) -> Mapping[str, Stored]:
            self.reads += 1
            return {key: Stored(Version(1, 1), False, "a", in_doubt=True) for key in keys}

    class Empty:
        def read(self, keys: Mapping[str, int | None]) -> Mapping[str, Seen]:
            return dict.fromkeys(keys, Seen())

    sink = Doubtful()
    found = verify(["[1]"], sink, Empty(), lambda: None, passes=passes)
    assert [(each.key, each.kind) for each in found.different] == [("[1]", Kind.EXTRA)]
    assert sink.reads == passes + 1


def test_a_key_that_changes_in_every_pass_is_in_flight() -> None:
    class Busy:
        reads = 0

        def read(self, keys: Collection[str]) -> Mapping[str, Stored]:
            self.reads += 1
            return {key: Stored(Version(1, self.reads), False, f"{self.reads}") for key in keys}

    class Ahead:
        def read(self, keys: Mapping[str, int | None]) -> Mapping[str, Seen]:
            return dict.fromkeys(keys, Seen("ahead"))

    found = verify(["[1]"], Busy(), Ahead(), lambda: None)
    assert found.different == []
    assert found.in_flight == ["[1]"]


def rows(side: Mapping[str, str]) -> list[Keyed]:
    """Keys are their own places."""
    return [Keyed(key, key, digest) for key, digest in sorted(side.items())]


SIDES = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("xy"))


@given(SIDES, SIDES)
def test_merging_finds_what_differs(sink: Mapping[str, str], source: Mapping[str, str]) -> None:
    expected = sorted(key for key in {*sink, *source} if sink.get(key) != source.get(key))
    assert list(candidates(iter(rows(sink)), iter(rows(source)))) == expected


def test_two_records_of_one_key_are_looked_at_both() -> None:
    sink = [Keyed("a", "[1]", "x"), Keyed("a", '["1"]', "x")]
    assert list(candidates(sink, [Keyed("a", "[1]", "x")])) == ['["1"]', "[1]"]


@given(st.dictionaries(st.integers(0, 9), st.builds(Checksum, st.integers(1, 2), st.integers(0, 1))))
def test_ranges_that_differ(sink: dict[int, Checksum]) -> None:
    assert differing(sink, dict(sink)) == []
    assert differing(sink, {}) == sorted(sink)
    assert differing({}, {**sink, 10: Checksum(1, 1)}) == sorted([*sink, 10])
