"""Charts of the report and the page: self-contained SVG that says the same without its colours. Pure.

Every chart is `role="img"` with a title and a sentence of what it shows. Its unit is the CSS pixel of a small screen:
`width` of the viewBox is meant for 320 pixels and more. Colours are custom properties with a fallback that can be read
on white and on black: `--fresh`, `--stale`, `--incomplete`, `--unknown`, `--line`, `--grid`; text has `currentColor`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Final

from schemas.freshness import Bucket, State

WIDTH: Final = 360
FONT: Final = 11
#: Room for the numbers of the y axis, and right of the plot.
LEFT: Final = 44
RIGHT: Final = 6
#: Verdicts of a strip, the worst first: what a cell of several minutes shows.
WORST_FIRST: Final = (State.STALE, State.UNKNOWN, State.INCOMPLETE, State.FRESH)
#: How high a verdict stands in its strip (1 is all of it); UNKNOWN is hollow besides.
HEIGHTS: Final = {State.FRESH: 0.35, State.INCOMPLETE: 0.65, State.STALE: 1.0, State.UNKNOWN: 1.0}
COLOURS: Final = {
    State.FRESH: "var(--fresh, #2e9e5b)",
    State.STALE: "var(--stale, #d64545)",
    State.INCOMPLETE: "var(--incomplete, #b7791f)",
    State.UNKNOWN: "var(--unknown, #8a7fd0)",
}
LINE: Final = "var(--line, #3d84d6)"
GRID: Final = "var(--grid, #8888)"
_STEPS: Final = (
    *(60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0),
    *(7200.0, 14_400.0, 21_600.0, 43_200.0, 86_400.0, 172_800.0, 604_800.0),
)
_CELLS: Final = 96


def line_chart(
    series: Sequence[tuple[datetime, float | None]],
    *,
    threshold: float | None,
    title: str,
    unit: str = "s",
    gap: timedelta | None = None,
    width: int = WIDTH,
    height: int = 150,
) -> str:
    """A value over time, in order of time, from zero up, with the threshold as a dashed line.

    Nothing is drawn through a None, nor between two points further apart than `gap`. Of points that would share a
    pixel the greatest is drawn. With the unit "s" the axis has minutes, hours and days where they are easier to read.
    """
    points = [(at, _finite(value)) for at, value in series]
    values = [value for _, value in points if value is not None]
    if not values:
        return _empty(title, width, 44)
    top = _ceiling(max(*values, threshold or 0.0, 0.0) or 1.0, unit)
    begin, end = points[0][0], points[-1][0]
    plot = _Plot(begin, max((end - begin).total_seconds(), 1.0), top, width, height)
    runs = list(_runs(points, gap, plot))
    parts = [*_grid(plot, unit), *_time_axis(plot, end)]
    if threshold is not None:
        y = plot.y(threshold)
        parts += [
            f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{COLOURS[State.STALE]}" '
            'stroke-width="1.5" stroke-dasharray="5 3"/>',
            _text(width - RIGHT, y - 3, f"threshold {quantity(threshold, unit)}", "end"),
        ]
    parts += [_drawn(run) for run in runs]
    last = (
        "nothing at the end"
        if points[-1][1] is None
        else f"{quantity(points[-1][1] or 0.0, unit)} at the end"
    )
    said = (
        f"{_span(begin, end)}: between {quantity(min(values), unit)} and {quantity(max(values), unit)}, {last}"
        + ("" if threshold is None else f"; the threshold is {quantity(threshold, unit)}")
        + (f"; gaps without a value: {len(runs) - 1}" if len(runs) > 1 else "")
        + "."
    )
    return _svg(title, said, width, height, parts)


def stage_bars(
    stages: Mapping[str, tuple[float | None, float | None]],
    *,
    shares: Mapping[str, float | None] | None = None,
    title: str = "Delay by stage",
    width: int = WIDTH,
) -> str:
    """For each stage a bar up to p50 and a thin one up to p95, in seconds, and its share of all seconds (0 to 1)."""
    known = {name: (_finite(p50), _finite(p95)) for name, (p50, p95) in stages.items()}
    top = max((value for pair in known.values() for value in pair if value is not None), default=None)
    if top is None:
        return _empty(title, width, 44)
    parts, said = [], []
    for row, (name, (p50, p95)) in enumerate(known.items()):
        y = row * 34
        share = _finite((shares or {}).get(name))
        figures = (
            "no changes" if p50 is None else f"p50 {quantity(p50, 's')}, p95 {quantity(p95 or p50, 's')}"
        )
        label = name if share is None else f"{name} · {share * 100:.0f} %"
        parts += [
            _text(0, y + 12, label, "start"),
            _text(width, y + 12, figures, "end"),
            _bar(0, y + 18, width, 9, GRID, opacity=0.25),
            _bar(0, y + 21, width * (p95 or 0.0) / (top or 1.0), 3, LINE, opacity=0.75),
            _bar(0, y + 18, width * (p50 or 0.0) / (top or 1.0), 9, LINE),
        ]
        said.append(f"{name} {figures}" + ("" if share is None else f" ({share * 100:.0f} % of the time)"))
    return _svg(title, "; ".join(said) + ".", width, len(known) * 34, parts)


def value_bars(
    values: Mapping[str, float | None],
    *,
    title: str,
    unit: str = "",
    width: int = WIDTH,
) -> str:
    """For each name a bar from 0 to its value, all to one scale; what is not known has none."""
    known = {name: _finite(value) for name, value in values.items()}
    top = max((value for value in known.values() if value is not None), default=None)
    if top is None:
        return _empty(title, width, 44)
    parts, said = [], []
    for row, (name, value) in enumerate(known.items()):
        y, told = row * 34, "not measured" if value is None else quantity(value, unit)
        parts += [
            _text(0, y + 12, name, "start"),
            _text(width, y + 12, told, "end"),
            _bar(0, y + 18, width, 9, GRID, opacity=0.25),
            _bar(0, y + 18, width * max(value or 0.0, 0.0) / (top if top > 0 else 1.0), 9, LINE),
        ]
        said.append(f"{name} {told}")
    return _svg(title, "; ".join(said) + ".", width, len(known) * 34, parts)


def verdict_strip(
    buckets: Sequence[Bucket],
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    title: str = "Verdicts",
    width: int = WIDTH,
) -> str:
    """Verdicts over time from `since` to `until` (else of the buckets), in order of time.

    The worse the higher, UNKNOWN hollow: it can be read without colour. A cell of several buckets has the worst of
    them; time without an evaluation is a gap.
    """
    if not buckets:
        return _empty(title, width, 44)
    begin = since or buckets[0].start
    end = max(until or begin, buckets[-1].start + timedelta(minutes=buckets[-1].minutes))
    span = max((end - begin).total_seconds(), 60.0)
    cells: list[State | None] = [None] * max(min(_CELLS, math.ceil(span / 60)), 1)
    for bucket in buckets:
        state = _state_of(bucket)
        first = (bucket.start - begin).total_seconds() / span * len(cells)
        last = first + bucket.minutes * 60 / span * len(cells)
        for cell in range(max(int(first), 0), min(max(math.ceil(last - 1e-9), int(first) + 1), len(cells))):
            cells[cell] = _worse(cells[cell], state)
    parts = list(_strip(cells, width))
    minutes = {state: sum(_minutes(bucket)[state] for bucket in buckets) for state in WORST_FIRST}
    counts = [f"{state.value} {_minutes_text(number)}" for state, number in minutes.items() if number]
    told = ", ".join(counts)
    parts += [
        f'<line x1="0" x2="{width}" y1="36" y2="36" stroke="{GRID}"/>',
        _text(0, 49, _moment(begin, end), "start"),
        _text(width, 49, f"{_moment(end, begin)} UTC", "end"),
        _text(0, 64, ", ".join(counts[:2]) or "not evaluated", "start"),
        _text(0, 79, ", ".join(counts[2:]), "start"),
    ]
    return _svg(title, f"{_span(begin, end)}: {told or 'not evaluated'}.", width, 84, parts)


def budget_bar(remaining_ratio: float | None, *, title: str = "Error budget left", width: int = WIDTH) -> str:
    """What is left of an error budget: 1 all of it, 0 none, below 0 overspent, None not known."""
    left = _finite(remaining_ratio)
    if left is None:
        return _empty(title, width, 40, "not known yet")
    spent = left <= 0
    told = f"{left * 100:.0f} % left" if not spent else "used up"
    if left < 0:
        told += f", overspent by {-left * 100:.0f} %"
    colour = COLOURS[State.STALE if spent else State.FRESH]
    parts = [
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="15" rx="3" fill="none" stroke="{colour}"/>',
        _bar(0, 0, width * min(max(left, 0.0), 1.0), 16, colour),
        _text(0, 32, told, "start"),
    ]
    return _svg(title, f"{told}.", width, 40, parts)


def quantity(value: float, unit: str) -> str:
    """A number with its unit; seconds as milliseconds, minutes, hours or days where that is easier to read."""
    if unit == "s":
        for name, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
            if value >= 2 * size:
                return f"{_short(value / size)} {name}"
        if 0 < value < 0.1:
            return f"{_short(value * 1000)} ms"
    return f"{_short(value)} {unit}".rstrip()


class _Plot:
    """Where moments and values lie."""

    def __init__(self, begin: datetime, seconds: float, top: float, width: int, height: int) -> None:
        self.begin, self.seconds, self.top, self.width, self.height = begin, seconds, top, width, height
        self.bottom = height - 18

    def x(self, at: datetime) -> float:
        return LEFT + (at - self.begin).total_seconds() / self.seconds * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self.bottom - max(value, 0.0) / self.top * (self.bottom - 16)


Place = tuple[float, float]


def _runs(
    points: Iterable[tuple[datetime, float | None]], gap: timedelta | None, plot: _Plot
) -> Iterator[list[Place]]:
    """Stretches without a gap, at most one place a pixel: its greatest value."""
    run: list[Place] = []
    before: datetime | None = None
    for at, value in points:
        if run and (value is None or (gap is not None and before is not None and at - before > gap)):
            yield run
            run = []
        if value is None:
            continue
        before, x, y = at, round(plot.x(at)), plot.y(value)
        if run and run[-1][0] == x:
            run[-1] = (x, min(run[-1][1], y))
        else:
            run.append((x, y))
    if run:
        yield run


def _drawn(run: Sequence[Place]) -> str:
    if len(run) == 1:
        return f'<circle cx="{run[0][0]:.1f}" cy="{run[0][1]:.1f}" r="2" fill="{LINE}"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
    return (
        f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="1.8" stroke-linejoin="round"/>'
    )


def _grid(plot: _Plot, unit: str) -> Iterator[str]:
    for part in (0.0, 0.5, 1.0):
        y = plot.y(plot.top * part)
        ends = f'x1="{LEFT}" x2="{plot.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
        yield f'<line {ends} stroke="{GRID}" stroke-width="0.6"/>'
        yield _text(LEFT - 5, y + 4, quantity(plot.top * part, unit) if part else "0", "end")


def _time_axis(plot: _Plot, end: datetime) -> Iterator[str]:
    yield _text(LEFT, plot.height - 3, _moment(plot.begin, end), "start")
    yield _text(plot.width - RIGHT, plot.height - 3, f"{_moment(end, plot.begin)} UTC", "end")


def _strip(cells: Sequence[State | None], width: int) -> Iterator[str]:
    """One rectangle for each run of the same verdict."""
    size, start = width / len(cells), 0
    for index in range(1, len(cells) + 1):
        if index < len(cells) and cells[index] == cells[start]:
            continue
        state = cells[start]
        if state is not None:
            x, wide, high = start * size, (index - start) * size, 34 * HEIGHTS[state]
            if state is State.UNKNOWN:
                yield (
                    f'<rect x="{x + 0.75:.2f}" y="{36 - high + 0.75:.2f}" width="{max(wide - 1.5, 0.5):.2f}" '
                    f'height="{high - 1.5:.2f}" fill="none" stroke="{COLOURS[state]}" stroke-width="1.5"/>'
                )
            else:
                yield _bar(x, 36 - high, wide, high, COLOURS[state])
        start = index


def _minutes(bucket: Bucket) -> dict[State, int]:
    return {
        State.STALE: bucket.stale,
        State.UNKNOWN: bucket.unknown,
        State.INCOMPLETE: bucket.incomplete,
        State.FRESH: bucket.fresh,
    }


def _state_of(bucket: Bucket) -> State | None:
    return next((state for state, number in _minutes(bucket).items() if number), None)


def _worse(one: State | None, other: State | None) -> State | None:
    return next((state for state in WORST_FIRST if state in (one, other)), None)


def _minutes_text(number: int) -> str:
    return f"{number} min" if number < 120 else f"{_short(number / 60)} h"


def _ceiling(value: float, unit: str) -> float:
    """The next round number above: 1, 2 or 5 times a power of ten, or whole minutes and hours."""
    if unit == "s" and 50 < value <= _STEPS[-1]:
        return next(step for step in _STEPS if step >= value)
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= value * 0.999999)


def _short(value: float) -> str:
    """Two or three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _moment(at: datetime, other: datetime) -> str:
    """The time of day, with the date if `other` has another one."""
    at, other = at.astimezone(UTC), other.astimezone(UTC)
    return f"{at:%H:%M}" if at.date() == other.date() else f"{at:%d %b %H:%M}"


def _span(begin: datetime, end: datetime) -> str:
    return f"{_moment(begin, end)} to {_moment(end, begin)} UTC"


def _bar(x: float, y: float, width: float, height: float, fill: str, *, opacity: float = 1.0) -> str:
    faded = "" if opacity == 1.0 else f' opacity="{opacity}"'
    return f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0.0):.2f}" height="{height:.2f}" fill="{fill}"{faded}/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{_escaped(words)}</text>'
    )


def _empty(title: str, width: int, height: int, words: str = "nothing was measured") -> str:
    return _svg(title, f"{words}.", width, height, [_text(0, height / 2, words, "start")])


def _svg(title: str, said: str, width: int, height: int, parts: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" class="chart" '
        f'font-family="system-ui, sans-serif" font-size="{FONT}">'
        f"<title>{_escaped(title)}</title><desc>{_escaped(said)}</desc>{''.join(parts)}</svg>"
    )


def _escaped(words: str) -> str:
    """Text that XML may hold: its special letters escaped, what it cannot hold at all replaced."""
    return escape("".join(letter if _in_xml(letter) else "\N{REPLACEMENT CHARACTER}" for letter in words))


def _in_xml(letter: str) -> bool:
    code = ord(letter)
    return (
        (code >= 0x20 or letter in "\t\n\r") and not 0xD800 <= code <= 0xDFFF and code not in (0xFFFE, 0xFFFF)
    )
