"""Charts: valid XML whatever the numbers, gaps that stay gaps, and nothing that only a colour says."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import pytest

from schemas.freshness import Bucket
from streams.freshness.charts import budget_bar, line_chart, quantity, stage_bars, verdict_strip

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
NAMESPACE = "{http://www.w3.org/2000/svg}"


def minute(number: float) -> datetime:
    return NOON + timedelta(minutes=number)


def parsed(svg: str) -> ElementTree.Element:
    """The chart as XML, with what every chart must hold checked."""
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{NAMESPACE}svg"
    assert root.get("role") == "img"
    assert [child.tag for child in root][:2] == [f"{NAMESPACE}title", f"{NAMESPACE}desc"]
    assert root[1].text
    assert not re.search(r"\b(nan|inf)\b", svg, re.IGNORECASE)
    assert "<script" not in svg
    return root


def drawn(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return list(root.iter(f"{NAMESPACE}{name}"))


def words(root: ElementTree.Element) -> str:
    return " | ".join(text.text or "" for text in drawn(root, "text"))


def chart(*values: float | None, threshold: float | None = 30.0, gap: timedelta | None = None) -> str:
    series = [(minute(number), value) for number, value in enumerate(values)]
    return line_chart(series, threshold=threshold, title="Staleness", unit="s", gap=gap)


def test_none_and_what_is_no_number_are_gaps() -> None:
    for missing in (None, math.nan, math.inf):
        root = parsed(chart(1, 2, missing, 3, 4, missing, 5))
        assert len(drawn(root, "polyline")) == 2
        assert len(drawn(root, "circle")) == 1
        assert "gaps without a value: 2" in (root[1].text or "")


def test_points_too_far_apart_are_not_joined() -> None:
    series = [(minute(at), 1.0) for at in (0, 1, 2, 30, 31)]
    joined = parsed(line_chart(series, threshold=None, title="t"))
    apart = parsed(line_chart(series, threshold=None, title="t", gap=timedelta(minutes=2)))
    assert (len(drawn(joined, "polyline")), len(drawn(apart, "polyline"))) == (1, 2)


def test_the_worst_of_many_points_is_drawn() -> None:
    values = [1.0] * 10_000
    values[5_001] = 100.0
    root = parsed(chart(*values))
    points = [point.split(",") for point in (drawn(root, "polyline")[0].get("points") or "").split()]
    assert len(points) < 400
    assert min(float(y) for _, y in points) == pytest.approx(10 + (132 - 10) * (1 - 100 / 120), abs=0.1)


def test_the_threshold_is_in_the_picture_and_said() -> None:
    root = parsed(chart(1, 2))
    dashed = [line for line in drawn(root, "line") if line.get("stroke-dasharray")]
    assert len(dashed) == 1
    assert 0 < float(dashed[0].get("y1") or 0) < 132
    assert "threshold 30 s" in words(root)
    assert not [
        line for line in drawn(parsed(chart(1, 2, threshold=None)), "line") if line.get("stroke-dasharray")
    ]


@pytest.mark.parametrize("values", [(), (None, None), (0.0,), (0.0, 0.0), (-1.0, 2.0), (1e9, 1e-9)])
def test_odd_series_are_charts_too(values: tuple[float | None, ...]) -> None:
    parsed(chart(*values))
    parsed(chart(*values, threshold=None))


@pytest.mark.parametrize("title", ['<script>alert("1")</script> & so', "nul\x00 and \ud800 lone"])
def test_titles_and_names_are_escaped(title: str) -> None:
    series = [(NOON, 1.0)]
    for svg in (
        line_chart(series, threshold=1, title=title, unit=title),
        stage_bars({title: (1.0, 2.0)}, title=title),
        verdict_strip([Bucket(NOON, fresh=1)], title=title),
        budget_bar(0.5, title=title),
        budget_bar(None, title=title),
    ):
        svg.encode()
        parsed(svg)


def test_stages_say_their_figures_and_shares() -> None:
    stages = {"wait": (1.0, 4.0), "embed": (0.05, 0.1), "write": (None, None)}
    root = parsed(stage_bars(stages, shares={"wait": 0.8, "embed": 0.2, "write": None}))
    assert "wait · 80 %" in words(root)
    assert "p50 50 ms, p95 0.1 s" in words(root)
    assert "no changes" in words(root)
    widths = [float(bar.get("width") or 0) for bar in drawn(root, "rect")]
    assert widths[1:3] == [360.0, 90.0]
    assert "wait p50 1 s" in (root[1].text or "")
    parsed(stage_bars({}))
    parsed(stage_bars({"wait": (0.0, 0.0)}))


def test_verdicts_differ_in_shape_and_not_in_colour_alone() -> None:
    shapes = set()
    for name in ("fresh", "stale", "incomplete", "unknown"):
        root = parsed(verdict_strip([Bucket(NOON, **{name: 1})]))
        (shape,) = drawn(root, "rect")
        shapes.add((shape.get("height"), shape.get("fill") == "none"))
        assert f"{name.upper()} 1 min" in words(root)
    assert len(shapes) == 4


def test_a_strip_has_gaps_where_nobody_evaluated_and_the_worst_where_many_share_a_cell() -> None:
    apart = [Bucket(minute(at), fresh=1) for at in (0, 1, 2, 10, 11)]
    assert len(drawn(parsed(verdict_strip(apart)), "rect")) == 2
    week = [Bucket(minute(at), fresh=1) for at in range(7 * 24 * 60)]
    week[5_000] = Bucket(minute(5_000), stale=1)
    root = parsed(verdict_strip(week))
    assert len(drawn(root, "rect")) == 3
    assert "STALE 1 min, FRESH 168 h" in words(root)


def test_a_strip_fills_the_window_that_was_asked_for() -> None:
    svg = verdict_strip([Bucket(minute(50), fresh=10, minutes=10)], since=NOON, until=minute(60))
    (bar,) = drawn(parsed(svg), "rect")
    assert float(bar.get("x") or 0) == pytest.approx(300)
    assert float(bar.get("width") or 0) == pytest.approx(60)
    parsed(verdict_strip([]))
    parsed(verdict_strip([Bucket(NOON, minutes=60)]))


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (1.0, "100 % left"),
        (0.254, "25 % left"),
        (0.0, "used up"),
        (-0.5, "used up, overspent by 50 %"),
        (None, "not known yet"),
        (math.nan, "not known yet"),
    ],
)
def test_a_budget_says_what_is_left(ratio: float | None, said: str) -> None:
    assert said in words(parsed(budget_bar(ratio)))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0 s"),
        (0.0123, "12.3 ms"),
        (30.0, "30 s"),
        (90.0, "90 s"),
        (600.0, "10 min"),
        (90_000.0, "25 h"),
    ],
)
def test_seconds_are_said_as_people_do(value: float, said: str) -> None:
    assert quantity(value, "s") == said
