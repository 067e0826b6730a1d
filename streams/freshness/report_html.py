"""The report as one HTML file: no script, no network, light and dark, printable. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from typing import Any, Final

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from schemas.freshness import SlowChange
from streams.freshness.charts import budget_bar, line_chart, quantity, stage_bars, verdict_strip
from streams.freshness.report import CollectionReport, Report
from streams.freshness.slow import why

#: Minutes without a row are gaps in a chart; older history is by the hour.
GAP: Final = timedelta(minutes=2)
MARKS: Final = {"FRESH": "✓", "STALE": "✗", "INCOMPLETE": "…", "UNKNOWN": "?"}


def as_html(report: Report, *, keys: bool = True) -> str:
    """The whole file. Without `keys` the slowest changes have none."""
    return _template().render(
        report=report,
        since=report.evaluated_at - timedelta(seconds=report.window_seconds),
        keys=keys,
        charts={name: _charts(report, each) for name, each in report.collections.items()},
    )


def _charts(report: Report, each: CollectionReport) -> dict[str, Markup]:
    begin = report.evaluated_at - timedelta(seconds=report.window_seconds)
    gap = max((timedelta(minutes=bucket.minutes) for bucket in each.history), default=GAP) * 1.5
    series = [(bucket.start, bucket.staleness_max_seconds) for bucket in each.history]
    stages = {name: (stage.delays.p50, stage.delays.p95) for name, stage in each.stages.items()}
    shares = {name: stage.share for name, stage in each.stages.items()}
    drawn = {
        "staleness": line_chart(
            series,
            threshold=each.threshold_seconds,
            title="Staleness, the worst of each minute",
            gap=max(gap, GAP),
        ),
        "verdicts": verdict_strip(each.history, since=begin, until=report.evaluated_at),
        "stages": stage_bars(stages, shares=shares),
        "budget": budget_bar(each.slo["budget_remaining_ratio"], title="Error budget of changes left"),
        "minutes": budget_bar(
            each.slo["time"]["budget_remaining_ratio"], title="Error budget of minutes left"
        ),
    }
    # Charts are escaped where they are made.
    return {name: Markup(chart) for name, chart in drawn.items()}


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(seconds=_seconds, share=_share, moment=_moment, why=_why)
    environment.globals["marks"] = MARKS
    source = resources.files("streams.freshness") / "report.html.j2"
    return environment.from_string(source.read_text(encoding="utf-8"))


def _seconds(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else quantity(value, "s")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.5g} %"


def _moment(at: datetime | None) -> Any:
    return "never" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _why(change: SlowChange) -> str:
    return why(change.seconds, change.stages)
