"""`benchmark.svg`: one page of charts of a run, of what was measured only. Pure; the drawing is that of the report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Final

from streams.benchmark.results import Figure, Results
from streams.freshness.charts import WIDTH, line_chart, quantity, stage_bars, value_bars

MARGIN: Final = 28
HEADING: Final = 26
COLUMNS: Final = 2
TOP: Final = 74
LINE_HEIGHT: Final = 16
_HEIGHT: Final = re.compile(r'viewBox="0 0 \d+ (\d+)"')
#: Panels of bars: title, unit, and the figures with their words.
BARS: Final[Sequence[tuple[str, str, Mapping[str, str]]]] = (
    *(
        (
            f"Documents a second, {kind} texts",
            "documents/s",
            {
                f"encoders.{kind}.torch": "SentenceTransformer.encode, its defaults",
                f"encoders.{kind}.onnx": "two bare ONNX processes",
                f"backfill.{kind}.rate": "upwell, source to searchable",
            },
        )
        for kind in ("mixed", "short")
    ),
    (
        "Changes that leave the text, events a second",
        "events/s",
        {
            "intake.bare": "a bare Faust loop, one process",
            "intake.unchanged": "unchanged, one worker",
            "intake.metadata": "metadata alone, one worker",
            "intake.two": "unchanged, two workers",
        },
    ),
    (
        "Records in the sink and events a second",
        "events/s",
        {"rows.few.events": "few records", "rows.many.events": "many records"},
    ),
    (
        "Records in the sink and documents a second",
        "documents/s",
        {
            "rows.few.documents": "few records",
            "rows.many.documents": "many records",
            "rows.few.documents_hnsw": "few records, with HNSW",
            "rows.many.documents_hnsw": "many records, with HNSW",
        },
    ),
    (
        "A search, p50",
        "s",
        {
            "search.table_p50": "bare table",
            "search.view_p50": "view",
            "search.function_p50": "search function",
        },
    ),
)
#: Panels of delays: title, and the figures whose samples they show.
DELAYS: Final[Sequence[tuple[str, Mapping[str, str]]]] = (
    (
        "Single changes on a quiet machine",
        {
            "idle.p50": "commit to searchable",
            "idle.from_kafka": "Kafka to searchable",
            "idle.encode": "one bare encode",
            "idle.commits": "two commits in the sink",
        },
    ),
    (
        "Live changes during a backfill",
        {"busy.change_p50": "change to searchable", "busy.delete_p50": "delete to gone"},
    ),
)
#: Panels of all figures whose name begins so.
GROUPS: Final = (
    ("Share of CPU in a backfill, mixed texts", "backfill.mixed.cpu.", "%"),
    ("Memory in a backfill, mixed texts", "backfill.mixed.rss.", "MiB"),
)


def page(results: Results) -> str:
    """A whole SVG document, black on white."""
    panels = [*_panels(results)]
    width = MARGIN + COLUMNS * (WIDTH + MARGIN)
    parts, bottoms = [], [TOP] * COLUMNS
    for title, chart in panels:
        column = bottoms.index(min(bottoms))
        x, y = MARGIN + column * (WIDTH + MARGIN), bottoms[column]
        height = _height(chart)
        parts.append(_words(x, y + 14, title, bold=True))
        parts.append(
            chart.replace("<svg ", f'<svg x="{x}" y="{y + HEADING}" width="{WIDTH}" height="{height}" ', 1)
        )
        bottoms[column] = y + HEADING + height + MARGIN
    y = max(bottoms)
    for number, line in enumerate(_targets(results)):
        parts.append(_words(MARGIN, y + number * LINE_HEIGHT, line, bold=number == 0))
        bottom = y + (number + 1) * LINE_HEIGHT
    machine = results.machine
    said = f"{machine.cores} cores of {machine.processor or 'an unknown processor'}; {results.started_at}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + MARGIN}" role="img" '
        'font-family="system-ui, sans-serif" font-size="12" color="#1d2329">'
        f"<title>upwell benchmark</title><desc>{escape(said)}</desc>"
        f'<rect width="100%" height="100%" fill="#ffffff"/>'
        f"{_words(MARGIN, 30, 'upwell benchmark', bold=True, size=18)}"
        f"{_words(MARGIN, 50, said + ('; quick' if results.quick else ''))}{''.join(parts)}</svg>\n"
    )


def _panels(results: Results) -> Iterator[tuple[str, str]]:
    """Title and chart of each."""
    figures = results.figures()
    for title, unit, wanted in BARS:
        values = {words: figures[name].value for name, words in wanted.items() if name in figures}
        if values:
            yield title, value_bars(values, title=title, unit=unit)
    for title, wanted in DELAYS:
        known = {words: figures[name].quantiles for name, words in wanted.items() if name in figures}
        if known:
            stages = {words: (found.get("p50"), found.get("p95")) for words, found in known.items()}
            yield title, stage_bars(stages, title=title)
    for title, begin, unit in GROUPS:
        values = {
            name.removeprefix(begin): each.value for name, each in figures.items() if name.startswith(begin)
        }
        if values:
            yield title, value_bars(values, title=title, unit=unit)
    for section in results.sections:
        for name, points in section.series.items():
            title = f"Memory over time, {name}, MiB"
            yield title, line_chart(_moments(results, points), threshold=None, title=title, unit="")


def _moments(results: Results, points: Sequence[tuple[float, float]]) -> list[tuple[datetime, float | None]]:
    try:
        begun = datetime.fromisoformat(results.started_at)
    except ValueError:
        begun = datetime(1970, 1, 1, tzinfo=UTC)
    return [(begun + timedelta(seconds=at), value) for at, value in points]


def _targets(results: Results) -> Iterator[str]:
    """One line a target, the first one a heading."""
    yield "Targets"
    for section in results.sections:
        for figure in section.figures:
            if figure.target is not None:
                holds = "holds" if figure.holds else "DOES NOT HOLD"
                yield f"{holds}: {figure.says}: {measured(figure)}, {wanted(figure)}"
        if section.problem:
            yield f"NOT MEASURED: {section.name}: {section.problem[:100]}"


def measured(figure: Figure) -> str:
    """Its value for a person."""
    return quantity(figure.value, figure.unit)


def wanted(figure: Figure) -> str:
    """Its target for a person, "" without one."""
    target = figure.target
    return "" if target is None else f"{target.bound} {quantity(target.value, figure.unit)}"


def _height(chart: str) -> int:
    found = _HEIGHT.search(chart)
    return int(found[1]) if found else 0


def _words(x: float, y: float, words: str, *, bold: bool = False, size: int = 0) -> str:
    style = (' font-weight="600"' if bold else "") + (f' font-size="{size}"' if size else "")
    return f'<text x="{x}" y="{y}" fill="currentColor"{style}>{escape(words)}</text>'
