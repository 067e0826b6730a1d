"""Violated: an invariant does not hold."""

from __future__ import annotations


class Violated(AssertionError):
    """`invariant`: which one. `details`: keys and numbers."""

    def __init__(self, invariant: str, details: str) -> None:
        super().__init__(f"{invariant}: {details}")
        self.invariant, self.details = invariant, details
