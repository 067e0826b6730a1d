"""What was measured, as it is kept in `benchmark.json`. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

#: Of the file; another one is not compared with.
FORMAT: Final = 1
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}

Better = Literal["more", "less", ""]
Bound = Literal["at least", "at most", "under"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure has to be, in the figure's unit."""

    bound: Bound
    value: float

    def holds(self, measured: float) -> bool:
        if not math.isfinite(measured):
            return False
        if self.bound == "at least":
            return measured >= self.value
        return measured <= self.value if self.bound == "at most" else measured < self.value


@dataclass(frozen=True, slots=True)
class Figure:
    """One number. `name` is unique in a run; `better` says which way a loss lies, "" for what is only told.

    `quantiles`: of the raw samples that it was made of, in the same unit.
    """

    name: str
    says: str
    value: float
    unit: str
    better: Better = ""
    target: Target | None = None
    quantiles: Mapping[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        """None where nothing is asked of it."""
        return None if self.target is None else self.target.holds(self.value)


@dataclass(frozen=True, slots=True)
class Section:
    """`problem`: why it could not be measured, "" if it was. `series`: values over seconds, for the chart."""

    name: str
    figures: Sequence[Figure] = ()
    problem: str = ""
    notes: Sequence[str] = ()
    series: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Measured, and every target is met."""
        return not self.problem and all(figure.holds is not False for figure in self.figures)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it ran. `commit`: of the checkout, "" if it is none; `load`: of the minute before the run, in cores."""

    processor: str
    cores: int
    memory_mib: int
    load: float
    versions: Mapping[str, str]
    commit: str = ""


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run. `corpus`: SHA-256 of its texts: another Python has other ones."""

    started_at: str
    seed: int
    quick: bool
    corpus: str
    machine: Machine
    sections: Sequence[Section]

    @property
    def holds(self) -> bool:
        return all(section.holds for section in self.sections)

    def figures(self) -> dict[str, Figure]:
        return {figure.name: figure for section in self.sections for figure in section.figures}

    def to_json(self) -> str:
        """What `from_json` reads."""
        made = {"format": FORMAT, **asdict(self), "holds": self.holds}
        for kept, section in zip(made["sections"], self.sections, strict=True):
            kept["holds"] = section.holds
            for each, figure in zip(kept["figures"], section.figures, strict=True):
                each["holds"] = figure.holds
        return json.dumps(made, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Raises ValueError saying what is wrong if it is no result of a benchmark."""
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"it is no result of this benchmark (format {FORMAT})")
        try:
            return cls(
                started_at=str(found["started_at"]),
                seed=int(found["seed"]),
                quick=bool(found["quick"]),
                corpus=str(found["corpus"]),
                machine=Machine(**found["machine"]),
                sections=tuple(_section(each) for each in found["sections"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no whole result of this benchmark: {error}") from error


def quantile(samples: Sequence[float], part: float) -> float:
    """The smallest sample that at least `part` (0 to 1) of all do not exceed; NaN without any."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else math.nan


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """The usual ones, and how many there were."""
    return {**{name: quantile(samples, part) for name, part in QUANTILES.items()}, "count": len(samples)}


def _section(found: Mapping[str, Any]) -> Section:
    return Section(
        name=str(found["name"]),
        figures=tuple(_figure(each) for each in found["figures"]),
        problem=str(found["problem"]),
        notes=tuple(found["notes"]),
        series={name: [(at, value) for at, value in points] for name, points in found["series"].items()},
        seconds=float(found["seconds"]),
    )


def _figure(found: Mapping[str, Any]) -> Figure:
    kept = {name: value for name, value in found.items() if name != "holds"}
    target = kept.pop("target")
    return Figure(**kept, target=None if target is None else Target(**target))
