"""What `upwell reconcile` has found and done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from schemas.reconcile import Difference, Kind

WORDS: Final[Mapping[Kind, str]] = {
    Kind.MISSING: "missing in the sink",
    Kind.EXTRA: "extra in the sink",
    Kind.STALE: "stale in the sink",
    Kind.MISSING_VECTOR: "without a vector",
    Kind.EXTRA_VECTOR: "vectors without a record",
    Kind.WRONG_VECTOR: "with a wrong vector",
}

Found = dict[Kind, list[Difference]]


@dataclass(slots=True)
class Report:
    """`beyond`: differing keys that are too many to be looked at. `repaired` None: nothing was to be repaired; else
    `left` is what is still wrong afterwards. `left_out`: columns that are not compared, with the reason.
    """

    collection: str
    source_rows: int = 0
    sink_rows: int = 0
    ranges: int = 0
    ranges_differ: int = 0
    found: Found = field(default_factory=dict)
    in_flight: list[str] = field(default_factory=list)
    beyond: int = 0
    sampled: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    repaired: dict[Kind, int] | None = None
    left: Found = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def is_fine(self) -> bool:
        """Nothing was wrong, or nothing is any more."""
        wrong = self.found if self.repaired is None else self.left
        return not self.beyond and not any(wrong.values())

    def answer(self) -> dict[str, Any]:
        """For a machine. Keys are canonical; no texts and no values of other columns."""
        kinds = {kind.value: _listed(self.found.get(kind, [])) for kind in Kind}
        return {
            "collection": self.collection,
            "rows": {"source": self.source_rows, "sink": self.sink_rows},
            "ranges": {"all": self.ranges, "differ": self.ranges_differ},
            **kinds,
            "in_flight": {"count": len(self.in_flight), "keys": self.in_flight},
            "beyond": self.beyond,
            "not_compared": dict(self.left_out),
            "sampled": self.sampled,
            "repaired": self._repaired(),
            "seconds": round(self.seconds, 3),
        }

    def _repaired(self) -> dict[str, Any] | None:
        if self.repaired is None:
            return None
        left = {kind.value: _listed(self.left[kind]) for kind in Kind if self.left.get(kind)}
        return {**{kind.value: self.repaired.get(kind, 0) for kind in Kind}, "left": left}


def _listed(differences: Sequence[Difference]) -> dict[str, Any]:
    keys = [{"key": each.key, **({"notes": list(each.notes)} if each.notes else {})} for each in differences]
    return {"count": len(differences), "keys": keys}
