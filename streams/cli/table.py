"""Tables of the command line: as wide as the terminal, 100 where there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from itertools import pairwise
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH: Final = 100
LONGEST: Final = 1000
_UNITS: Final = (("d", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))


def console() -> Console:
    """Prints text as it is: a `[42]` is a key, no markup."""
    terminal = sys.stdout.isatty()
    width = None if terminal or os.environ.get("COLUMNS") else WIDTH
    return Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def print_whole(screen: Console, made: Table) -> None:
    """Print a table of numbers: where the width is short its lines run over, but no digit is cut off."""
    needed = screen.measure(made, options=screen.options.update(max_width=LONGEST)).maximum
    screen.width = max(screen.width, needed)
    screen.print(made)


def table(title: str | None, *columns: str, left: Collection[str], wrap: str = "") -> Table:
    """Columns are numbers, flush right, but for those of `left`; where the width is short, `wrap` gives way."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in columns:
        made.add_column(column, justify="left" if column in left else "right", no_wrap=column != wrap)
    return made


def seconds(value: float | None) -> str:
    """A delay: milliseconds matter below ten seconds only."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.1f} %"


def duration(value: float | None) -> str:
    """An age for a person: `0.4 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if value is None:
        return "-"
    for (name, size), (smaller, smaller_size) in pairwise(_UNITS):
        if value >= size:
            whole, rest = divmod(value, size)
            return f"{whole:.0f} {name} {rest // smaller_size:.0f} {smaller}"
    return f"{value:.1f} s"


def one_line(text: str, length: int) -> str:
    """An excerpt without line breaks and control characters, at most `length` letters."""
    flat = " ".join(text.split())
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in flat)
    return clean if len(clean) <= length else clean[: length - 1].rstrip() + "…"
