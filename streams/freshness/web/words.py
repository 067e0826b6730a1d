"""Numbers as a person reads them on the page. Pure. An absent number is a dash, never a zero."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

DASH: Final = "–"
_UNITS: Final = (("d", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
_BYTES: Final = (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))


def duration(value: float | None) -> str:
    """An age: `0.4 s`, `35 s`, `3 min 20 s`, `2 h 5 min`."""
    if value is None:
        return DASH
    value = max(value, 0.0)
    for (name, size), (smaller, smaller_size) in pairwise(_UNITS):
        if value >= size:
            whole, rest = divmod(value, size)
            return f"{whole:.0f} {name} {rest // smaller_size:.0f} {smaller}"
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def delay(value: float | None) -> str:
    """A delay; milliseconds matter below a second."""
    if value is None:
        return DASH
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if value < 10 else duration(value)


def count(value: Any) -> str:
    """`12,345`."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else DASH


def percent(value: float | None, digits: int = 1) -> str:
    return DASH if value is None else f"{value * 100:.{digits}f} %"


def ratio(value: float | None) -> str:
    """A burn rate: `0.8×`."""
    return DASH if value is None else f"{value:.1f}×"


def size(value: float | None) -> str:
    """Bytes: `12.3 MiB`."""
    if value is None:
        return DASH
    for name, unit in _BYTES:
        if value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value:.0f} B"


def clock(value: str | datetime | None) -> str:
    """Time of day in UTC of an ISO time; the day before it if it is not today's is not worth a column."""
    found = _time(value)
    return DASH if found is None else f"{found:%H:%M:%S}"


def moment(value: str | datetime | None) -> str:
    """Day and time in UTC."""
    found = _time(value)
    return DASH if found is None else f"{found:%Y-%m-%d %H:%M:%S}"


def _time(value: str | datetime | None) -> datetime | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    return None if value is None else value.astimezone(UTC)
