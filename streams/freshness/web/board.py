"""What the monitor knows right now, as the page is given it, and what of it may still be believed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from schemas.freshness import EVALUATION_SECONDS, State


class Board(Protocol):
    """The monitor's memory."""

    def live(self) -> Mapping[str, Any]:
        """JSON-ready, called from any thread; never waits. `streams.freshness.live` says what is in it."""
        ...


def believable(live: Mapping[str, Any]) -> bool:
    """Whether there is an evaluation, and it is not too old to say anything."""
    age = live.get("age_seconds")
    return age is not None and age <= EVALUATION_SECONDS


def honest(live: Mapping[str, Any]) -> dict[str, Any]:
    """`live`, in which an evaluation that is itself old gives no verdict but UNKNOWN."""
    if believable(live):
        return dict(live)
    age = live.get("age_seconds")
    reason = "not evaluated yet" if age is None else f"not evaluated for {age:.0f} s; see the monitor's log"
    known = {State.UNKNOWN.value}
    collections = {
        name: each
        if each.get("verdict") in known
        else {**each, "verdict": State.UNKNOWN.value, "reason": reason}
        for name, each in (live.get("collections") or {}).items()
    }
    return {**live, "collections": collections}


def withheld(value: Any) -> Any:
    """The same without keys and texts, for whoever may not see them; the names stay, so that the shape does."""
    if isinstance(value, Mapping):
        return {
            name: None
            if name in {"key", "keys", "text", "texts"} and not isinstance(each, Mapping)
            else withheld(each)
            for name, each in value.items()
        }
    return [withheld(each) for each in value] if isinstance(value, list | tuple) else value


def judged(report: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """The report with the verdicts of now. A collection that nobody evaluated is UNKNOWN, not absent."""
    now = honest(live)
    fields = ("verdict", "reason", "watermark", "staleness_seconds")
    unknown = {
        "verdict": State.UNKNOWN.value,
        "reason": "not evaluated yet",
        "watermark": None,
        "staleness_seconds": None,
    }
    collections = {}
    for name, each in report.get("collections", {}).items():
        seen = now.get("collections", {}).get(name)
        verdict = unknown if seen is None else {field: seen.get(field) for field in fields}
        collections[name] = {**each, **verdict}
    return {**report, "evaluated_at": now.get("evaluated_at"), "collections": collections}
