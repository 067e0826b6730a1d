"""Mergeable quantile sketches of delays in seconds (`ddsketch`, 1 % relative accuracy), and their JSON form.

One sketch a collection, minute and stage; any window is a merge of its minutes (DESIGN 7).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ddsketch import DDSketch

RELATIVE_ACCURACY: Final = 0.01
QUANTILES: Final = (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))


def new_sketch() -> Any:
    """An empty sketch; all of ours have the same accuracy, so that any two can be merged."""
    return DDSketch(relative_accuracy=RELATIVE_ACCURACY)


def freeze(sketch: Any) -> dict[str, Any]:
    """A sketch of non-negative values as JSON: bins by key, and the exact count, sum, minimum and maximum."""
    store = sketch._store
    bins = {str(store.offset + index): weight for index, weight in enumerate(store.bins) if weight}
    return {
        "bins": bins,
        "zero": sketch._zero_count,
        "sum": sketch._sum,
        "min": sketch._min if sketch.count else None,
        "max": sketch._max if sketch.count else None,
    }


def thaw(frozen: Mapping[str, Any]) -> Any:
    """The sketch that `freeze` wrote."""
    sketch = new_sketch()
    for key, weight in frozen["bins"].items():
        sketch._store.add(int(key), weight)
    sketch._zero_count = frozen["zero"]
    sketch._count = sketch._store.count + frozen["zero"]
    sketch._sum = frozen["sum"]
    if frozen["min"] is not None:
        sketch._min, sketch._max = frozen["min"], frozen["max"]
    return sketch


def merged(frozen: Iterable[Mapping[str, Any]]) -> Any:
    """All of them as one sketch."""
    total = new_sketch()
    for one in frozen:
        total.merge(thaw(one))
    return total


def summary(sketch: Any) -> dict[str, float | None]:
    """p50, p95, p99, max and mean in seconds (None when empty), and the count."""
    found: dict[str, float | None] = {name: None for name, _ in QUANTILES}
    if not sketch.count:
        return {**found, "max": None, "mean": None, "count": 0}
    worst = float(sketch._max)
    for name, quantile in QUANTILES:
        found[name] = min(float(sketch.get_quantile_value(quantile)), worst)
    return {**found, "max": worst, "mean": float(sketch._sum / sketch.count), "count": round(sketch.count)}
