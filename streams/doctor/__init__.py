"""`upwell doctor`: every neighbour is looked at, and for each thing that is wrong it is said what to do.

Each module asks one neighbour and judges what it says; `core.py` is what they share. Nothing is written anywhere.
"""

from __future__ import annotations

from streams.doctor.core import Check, State, bad
from streams.doctor.examine import examine

__all__ = ["Check", "State", "bad", "examine"]
