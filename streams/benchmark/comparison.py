"""What has changed since an earlier run. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streams.benchmark.results import Figure, Results


@dataclass(frozen=True, slots=True)
class Change:
    """A figure of both runs; `after` is None where a section that ran did not come to measure it.

    `change`: the part by which it grew, None where it was 0. `lost`: it became worse by more than is allowed.
    """

    figure: Figure
    before: float
    after: float | None
    lost: bool

    @property
    def change(self) -> float | None:
        return None if self.after is None or self.before == 0 else self.after / self.before - 1


def compare(before: Results, after: Results, loss: float) -> list[Change]:
    """Figures of sections that both runs have, in the order of the earlier one. `loss`: the part that may be lost."""
    ran, now = {section.name for section in after.sections}, after.figures()
    found = []
    for section in before.sections:
        for figure in section.figures if section.name in ran else ():
            new = now.get(figure.name)
            value = None if new is None else new.value
            found.append(Change(figure, figure.value, value, _lost(figure, value, loss)))
    return found


def unlike(before: Results, after: Results) -> Sequence[str]:
    """Why the two may not be comparable, one line each."""
    said = []
    if before.quick != after.quick:
        said.append("one of the runs was quick")
    if (before.machine.processor, before.machine.cores) != (after.machine.processor, after.machine.cores):
        said.append(
            f"the earlier run was on {before.machine.cores} cores of {before.machine.processor or 'another machine'}"
        )
    if before.corpus != after.corpus:
        said.append("the texts are not the same: another seed, size or version of Python")
    return said


def _lost(figure: Figure, value: float | None, loss: float) -> bool:
    if not figure.better:
        return False
    if value is None:
        return True
    if figure.better == "more":
        return value < figure.value * (1 - loss)
    return value > figure.value * (1 + loss)
