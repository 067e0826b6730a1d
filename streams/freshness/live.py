"""What the monitor knows right now, as JSON: for the page, its metrics, and whoever asks `/api/v1/live`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from schemas.freshness import EVALUATION_SECONDS, State
from streams.freshness.evaluation import Evaluated, Judged
from streams.freshness.monitor import Monitor
from streams.freshness.rounds import Round
from streams.freshness.summaries import Summary
from streams.freshness.verdict import Neighbour

#: Rounds that are shown, newest first.
SHOWN = 12


def live(monitor: Monitor) -> dict[str, Any]:
    """Never waits for a neighbour. An evaluation that is too old is no verdict any more, and says so."""
    now = time.monotonic()
    sights, last = monitor.sights, monitor.last
    age = None if last is None else now - last.at
    neighbours = monitor.neighbours()
    with sights.lock:
        naming, connector, slot = sights.naming, sights.connector, sights.slot
        rounds = [_round(each, last, now) for each in reversed(sights.rounds.waiting[-SHOWN:])]
        events, restarts = list(sights.events), sights.restarts
        gap = next(
            (gap for gap in (sights.gap, sights.missing, *(last.sink.gaps if last else ())) if gap), ""
        )
    return {
        "evaluated_at": None if last is None else last.evaluated_at.isoformat(),
        "age_seconds": None if age is None else round(age, 3),
        "name": monitor.settings.name,
        "lineage": None if naming is None else naming.lineage,
        "round_seconds": monitor.settings.monitor.round_seconds,
        "collections": {}
        if last is None
        else _collections(last, monitor.summaries.last, age or 0.0, neighbours["sink"]),
        "neighbours": {
            name: {
                "ok": each.reached and not each.error,
                "error": each.error,
                "age_seconds": round(each.silent_seconds, 3),
            }
            for name, each in neighbours.items()
        },
        "connector": None
        if naming is None or connector is None
        else {
            "name": naming.connector,
            "connector": connector.state,
            "task": connector.state,
            "cause": connector.cause,
            "since_seconds": round(connector.since_seconds, 3),
            "restarts": restarts,
        },
        "slot": None if slot is None else dict(slot),
        "gap": gap,
        "workers": [] if last is None else [_worker(each) for each in last.sink.workers],
        "blocked": [] if last is None else _blocked(last),
        "rounds": rounds,
        "canary": None if last is None else _canary(last, age or 0.0),
        "clock": {"source_ahead_seconds": None if last is None else round(last.ahead_seconds, 6)},
        "events": events,
    }


def _collections(last: Evaluated, summary: Summary, age: float, sink: Neighbour) -> dict[str, Any]:
    found = {}
    for name, each in last.judged.items():
        state, reason = each.verdict.state, each.verdict.reason
        if age > EVALUATION_SECONDS:
            state, reason = State.UNKNOWN, f"not evaluated for {age:.0f} s; sink: {sink.why}"
        backfill, forecast = summary.backfill.get(name, 0), summary.forecasts.get(name)
        found[name] = {
            "verdict": state.value,
            "reason": reason,
            **_standing(each, age),
            "load": _load(each, backfill),
            "eta_seconds": None if forecast is None else forecast.eta_seconds,
            "forecast": "" if forecast is None or forecast.missed_in_seconds is None else forecast.sentence,
            "slo": summary.slos.get(name, {}),
            "pending": {"live": each.seen.pending, "backfill": backfill},
            "violations": each.seen.violations,
        }
    return found


def _standing(each: Judged, age: float) -> dict[str, Any]:
    standing = each.standing

    def aged(seconds: float | None) -> float | None:
        return None if seconds is None else round(seconds + age, 3)

    return {
        "watermark": None if each.watermark is None else each.watermark.isoformat(),
        "staleness_seconds": aged(standing.staleness_seconds),
        "threshold_seconds": standing.threshold_seconds,
        "oldest_pending_seconds": aged(standing.oldest_pending_seconds),
        "dead_letters": standing.dead_letters,
        "behind": standing.behind,
    }


def _load(each: Judged, backfill: int) -> dict[str, Any]:
    rows = each.seen.load_detail.get("rows")
    searchable = None if not isinstance(rows, int) else max(0.0, 1 - backfill / rows) if rows else 1.0
    return {"state": each.seen.load_state, "rows": rows, "searchable": searchable}


def _worker(each: Any) -> dict[str, Any]:
    return {
        "slot": each.slot,
        "host": each.host,
        "pid": each.pid,
        "seen_seconds": round(each.seen_seconds, 3),
        "alive": each.alive,
        "problems": list(each.problems),
    }


def _blocked(last: Evaluated) -> list[Mapping[str, Any]]:
    return [
        {
            "collection": name,
            "slot": blocked.slot,
            "reason": blocked.reason,
            "since": blocked.since.isoformat(),
        }
        for name, each in last.judged.items()
        for blocked in each.seen.blocked
    ]


def _round(each: Round, last: Evaluated | None, now: float) -> dict[str, Any]:
    canary = 0 if last is None else last.canary.number
    waits = {
        "committed": "its event in Kafka",
        "in Kafka": "the connector's stored position",
        "settled": "end offsets",
    }.get(each.step)
    if waits is None:
        names = () if last is None else last.judged
        waits = "the canary to be found by a search" if each.number > canary else ""
        left = sorted(set(names) - each.done)
        waits = waits or (f"{', '.join(left)} to be taken in" if left else "")
    return {
        "number": each.number,
        "age_seconds": round(now - each.begun, 3),
        "step": "done" if not waits else each.step,
        "waits_for": waits,
    }


def _canary(last: Evaluated, age: float) -> dict[str, Any]:
    found = last.canary
    return {
        "number": found.number,
        "cosine": None if found.cosine is None else round(found.cosine, 4),
        "error": found.error,
        "delay_seconds": None if found.delay_seconds is None else round(found.delay_seconds, 3),
        "age_seconds": None if found.age_seconds is None else round(found.age_seconds + age, 3),
    }
