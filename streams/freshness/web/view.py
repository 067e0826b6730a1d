"""What the page shows, as words: the template prints it, and its script puts the same words in later. Pure.

`texts` by the id of their place, `states` by the id of a badge, `meters` the part of the threshold that is used up, and
`rows` by the id of a table's body. A page that cannot be told of a change any more says so by itself (`page.js`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from schemas.freshness import State
from streams.freshness.web.board import believable, honest
from streams.freshness.web.words import DASH, clock, count, delay, duration, moment, percent, ratio, size

#: Worst first: the page as a whole is as bad as its worst collection.
ORDER: Final = (State.UNKNOWN, State.STALE, State.INCOMPLETE, State.FRESH)
#: A worker says every five seconds that it lives.
SILENT_SECONDS: Final = 20.0
EVENTS: Final = 20
RUNNING: Final = "RUNNING"

View = dict[str, Any]


def view(live: Mapping[str, Any], report: Mapping[str, Any] | None) -> View:
    """`report`: the last one that could be read, None if the sink did not answer."""
    now = honest(live)
    collections = now.get("collections") or {}
    texts = dict(_texts(now))
    for name, each in collections.items():
        texts |= _collection_texts(name, each, ((report or {}).get("collections") or {}).get(name))
    return {
        "evaluated_age_seconds": live.get("age_seconds"),
        "overall": overall(now),
        "broken": list(broken(now)),
        "texts": texts,
        "states": {name: each["verdict"] for name, each in collections.items()},
        "meters": {name: _used(each) for name, each in collections.items()},
        "rows": {
            "neighbours": _neighbours(now),
            "workers": _workers(now),
            "rounds": _rounds(now),
            "events": _events(now),
        },
    }


def overall(live: Mapping[str, Any]) -> str:
    """The worst verdict of all; UNKNOWN if there is none."""
    found = {each["verdict"] for each in (live.get("collections") or {}).values()}
    return next((state.value for state in ORDER if state.value in found), State.UNKNOWN.value)


def broken(live: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """One sentence for each thing that is wrong, the gravest first."""
    if live.get("gap"):
        yield {"what": "GAP", "text": str(live["gap"])}
    if not live.get("collections"):
        yield {
            "what": "Monitor",
            "text": "nothing was evaluated yet; the first evaluation takes a few seconds",
        }
    for state in ORDER[:-1]:
        names: dict[str, list[str]] = {}
        for name, each in (live.get("collections") or {}).items():
            if each["verdict"] == state.value:
                names.setdefault(each["reason"], []).append(name)
        yield from (
            {"what": ", ".join(whose), "text": f"{state.value}: {reason}"} for reason, whose in names.items()
        )
    yield from _broken_parts(live)


def _broken_parts(live: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for name, each in (live.get("neighbours") or {}).items():
        if not each["ok"]:
            yield {"what": name, "text": each["error"] or f"no answer for {duration(each['age_seconds'])}"}
    connector = live.get("connector")
    if connector and {connector["connector"], connector["task"]} != {RUNNING}:
        since = duration(connector["since_seconds"])
        cause = f": {connector['cause']}" if connector["cause"] else ""
        yield {"what": "connector", "text": f"{_connector_state(connector)} for {since}{cause}"}
    slot = live.get("slot")
    if slot and (not slot.get("active") or slot.get("wal_status") in {"unreserved", "lost"}):
        yield {"what": "slot", "text": f"{slot['name']}: {_slot_state(slot)}"}
    yield from _broken_work(live)


def _broken_work(live: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for each in live.get("blocked") or []:
        yield {"what": each["collection"], "text": f"BLOCKED: {each['reason']}"}
    if live.get("collections") and not live.get("workers"):
        yield {"what": "workers", "text": "no worker has ever run; start `upwell worker`"}
    for each in live.get("workers") or []:
        if each["seen_seconds"] > SILENT_SECONDS:
            yield {"what": f"worker {each['slot']}", "text": f"not seen for {duration(each['seen_seconds'])}"}
        for problem in each.get("problems") or []:
            yield {"what": f"worker {each['slot']}", "text": str(problem)}
    canary = live.get("canary") or {}
    if canary.get("error"):
        yield {"what": "canary", "text": canary["error"]}


def _texts(live: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "evaluated", clock(live.get("evaluated_at"))
    age = live.get("age_seconds")
    yield "evaluated-age", "never" if age is None else f"{duration(age)} ago"
    yield "lineage", count(live.get("lineage"))
    connector = live.get("connector")
    yield "connector-name", DASH if not connector else connector["name"]
    yield "connector-state", "not known" if not connector else _connector_state(connector)
    yield "connector-since", DASH if not connector else duration(connector["since_seconds"])
    yield "connector-restarts", DASH if not connector else count(connector["restarts"])
    slot = live.get("slot")
    yield "slot-name", DASH if not slot else str(slot["name"])
    yield "slot-state", "not known" if not slot else _slot_state(slot)
    yield "slot-behind", DASH if not slot else size(slot.get("behind_bytes"))
    canary = live.get("canary") or {}
    yield "canary-number", count(canary.get("number"))
    yield "canary-delay", delay(canary.get("delay_seconds"))
    cosine = canary.get("cosine")
    yield "canary-cosine", DASH if cosine is None else f"{cosine:.4f}"
    yield "clock-ahead", delay_signed((live.get("clock") or {}).get("source_ahead_seconds"))


def delay_signed(value: float | None) -> str:
    """A difference of clocks: `+12 ms`."""
    return DASH if value is None else f"{'-' if value < 0 else '+'}{delay(abs(value))}"


def _connector_state(connector: Mapping[str, Any]) -> str:
    if connector["connector"] == connector["task"]:
        return str(connector["connector"])
    return f"{connector['connector']}, task {connector['task']}"


def _slot_state(slot: Mapping[str, Any]) -> str:
    log = slot.get("wal_status") or "not known"
    return f"{'active' if slot.get('active') else 'not active'}, WAL {log}"


def _collection_texts(name: str, each: Mapping[str, Any], report: Mapping[str, Any] | None) -> dict[str, str]:
    load, pending = each.get("load") or {}, each.get("pending") or {}
    found = {
        "reason": each["reason"],
        "staleness": duration(each.get("staleness_seconds")),
        "threshold": duration(each.get("threshold_seconds")),
        "watermark": moment(each.get("watermark")),
        "pending": count(pending.get("live")),
        "backfill": count(pending.get("backfill")),
        "oldest": duration(each.get("oldest_pending_seconds")),
        "eta": duration(each.get("eta_seconds")),
        "dead-letters": count(each.get("dead_letters")),
        "load": _load(load),
        **_report_texts(report or {}),
    }
    return {f"{name}.{place}": text for place, text in found.items()}


def _load(load: Mapping[str, Any]) -> str:
    state = str(load.get("state") or DASH)
    if load.get("rows") is None or state == "complete":
        return state
    return f"{state}: {percent(load.get('searchable'))} of {count(load['rows'])} rows"


def _report_texts(report: Mapping[str, Any]) -> dict[str, str]:
    delays, slo = report.get("delay_seconds") or {}, report.get("slo") or {}
    burn, time = slo.get("burn_rates") or {}, slo.get("time") or {}
    return {
        **{place: delay(delays.get(place)) for place in ("p50", "p95", "p99", "max")},
        "changes": count(delays.get("count")),
        "sli": percent(slo.get("sli"), 2),
        "objective": percent(slo.get("objective"), 2),
        "budget": percent(slo.get("budget_remaining_ratio")),
        "burn": ratio(burn.get("1h")),
        "time-sli": percent(time.get("sli"), 2),
        "time-objective": percent(time.get("objective"), 2),
        "time-budget": percent(time.get("budget_remaining_ratio")),
        "alerts": ", ".join(slo.get("alerts") or []) or ("none" if slo else DASH),
    }


def _used(each: Mapping[str, Any]) -> float | None:
    """The part of the threshold that the staleness has used up, at most 1."""
    staleness, threshold = each.get("staleness_seconds"), each.get("threshold_seconds")
    return None if staleness is None or not threshold else round(min(max(staleness / threshold, 0.0), 1.0), 3)


def _neighbours(live: Mapping[str, Any]) -> list[list[str]]:
    return [
        [name, "answers" if each["ok"] else "DOES NOT ANSWER", duration(each["age_seconds"]), each["error"]]
        for name, each in (live.get("neighbours") or {}).items()
    ]


def _workers(live: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            each["slot"],
            "SILENT" if each["seen_seconds"] > SILENT_SECONDS else "lives",
            duration(each["seen_seconds"]),
            f"{each['host']}, pid {each['pid']}",
            "; ".join(str(problem) for problem in each.get("problems") or []),
        ]
        for each in live.get("workers") or []
    ]


def _rounds(live: Mapping[str, Any]) -> list[list[str]]:
    return [
        [f"{each['number']}", duration(each["age_seconds"]), each["step"], each["waits_for"]]
        for each in live.get("rounds") or []
    ]


def _events(live: Mapping[str, Any]) -> list[list[str]]:
    return [[moment(each["at"]), str(each["text"])] for each in list(live.get("events") or [])[-EVENTS:]][
        ::-1
    ]


def stale_page(live: Mapping[str, Any]) -> bool:
    """Whether what is printed now is out of date already as it is printed."""
    return not believable(live)
