"""A monitor's memory and a sink for the page, without either: what they say is what a test sets."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.errors import SettingsError, UpwellError
from schemas.freshness import Bucket

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
#: Texts of a row: where keys and texts are withheld, neither may be found anywhere.
SECRET_KEY = '["order-4711"]'
SECRET_TEXT = "a lantern for <b>winter</b> walks"


def collection(verdict: str = "FRESH", reason: str = "", **changed: Any) -> dict[str, Any]:
    """One collection as `live` has it."""
    return {
        "verdict": verdict,
        "reason": reason or "every change up to 1.4 s ago is searchable",
        "watermark": AT.isoformat(),
        "staleness_seconds": 1.4,
        "threshold_seconds": 30.0,
        "pending": {"live": 3, "backfill": 0},
        "oldest_pending_seconds": 0.4,
        "dead_letters": 0,
        "load": {"state": "complete", "rows": 12_345, "searchable": 1.0},
        "eta_seconds": 0.2,
        **changed,
    }


def live(**changed: Any) -> dict[str, Any]:
    """A healthy deployment."""
    return {
        "evaluated_at": AT.isoformat(),
        "age_seconds": 0.4,
        "name": "shop",
        "lineage": 3,
        "round_seconds": 5,
        "collections": {"content": collection(), "customers": collection(staleness_seconds=2.0)},
        "neighbours": {
            name: {"ok": True, "error": "", "age_seconds": 0.3}
            for name in ("source", "kafka", "connect", "registry", "sink")
        },
        "connector": {
            "name": "shop-3",
            "connector": "RUNNING",
            "task": "RUNNING",
            "cause": "",
            "since_seconds": 86_500.0,
            "restarts": 0,
        },
        "slot": {"name": "upwell_shop_3", "active": True, "wal_status": "reserved", "behind_bytes": 2048},
        "gap": "",
        "workers": [
            {
                "slot": f"host-{number}",
                "host": "host",
                "pid": 100 + number,
                "seen_seconds": 1.2,
                "problems": [],
            }
            for number in range(2)
        ],
        "blocked": [],
        "rounds": [
            {"number": 812, "age_seconds": 0.7, "step": "committed", "waits_for": "its event in Kafka"},
            {"number": 811, "age_seconds": 5.7, "step": "done", "waits_for": ""},
        ],
        "canary": {"number": 811, "delay_seconds": 0.21, "cosine": 0.9999, "error": ""},
        "clock": {"source_ahead_seconds": 0.012},
        "events": [{"at": AT.isoformat(), "text": "content is FRESH"}],
        **changed,
    }


def stale(**changed: Any) -> dict[str, Any]:
    """Connect's task has failed: every collection is STALE."""
    reason = "Connect task 0 FAILED 92 s ago: password authentication failed; see RUNBOOK: connector"
    found = live()
    connector = {
        **found["connector"],
        "task": "FAILED",
        "cause": "password authentication failed",
        "since_seconds": 92.0,
    }
    collections = {name: collection("STALE", reason, staleness_seconds=95.0) for name in found["collections"]}
    return {**found, "connector": connector, "collections": collections, **changed}


def incomplete(**changed: Any) -> dict[str, Any]:
    """A first load goes on."""
    reason = "the first load goes on: 41.0 % of 12,345 rows are searchable, about 4 min 10 s left"
    loading = collection(
        "INCOMPLETE",
        reason,
        pending={"live": 3, "backfill": 7284},
        eta_seconds=250.0,
        load={"state": "loading", "rows": 12_345, "searchable": 0.41},
    )
    return {**live(), "collections": {"content": loading, "customers": collection()}, **changed}


def unknown(**changed: Any) -> dict[str, Any]:
    """The source does not answer."""
    reason = "the source does not answer for 21 s: connection refused; see RUNBOOK: monitor"
    found = live()
    away = {"ok": False, "error": "connection refused", "age_seconds": 21.0}
    return {
        **found,
        "neighbours": {**found["neighbours"], "source": away},
        "collections": {
            name: collection("UNKNOWN", reason, staleness_seconds=24.0) for name in found["collections"]
        },
        **changed,
    }


class FakeBoard:
    """`said` is what `live` returns; set it from any thread. `asked` counts."""

    def __init__(self, said: Mapping[str, Any] | None = None) -> None:
        self.said: Mapping[str, Any] = live() if said is None else said
        self.asked = 0

    def live(self) -> Mapping[str, Any]:
        self.asked += 1
        return self.said


def delays(scale: float = 1.0) -> dict[str, Any]:
    return {
        "p50": 0.08 * scale,
        "p95": 0.11 * scale,
        "p99": 0.9 * scale,
        "max": 2.4 * scale,
        "mean": 0.1 * scale,
        "count": 4321,
    }


def report(names: Sequence[str] = ("content", "customers")) -> dict[str, Any]:
    """As `upwell report --json`, the canary's collection among them, which nobody is to see."""
    share = {"capture": 0.3, "queue": 0.1, "wait": 0.2, "embed": 0.35, "write": 0.05}
    each = {
        "pending": {"live": 3, "backfill": 0},
        "dead_letters": 0,
        "delay_seconds": delays(),
        "stages": {
            stage: {**delays(part), "share": part, "approximate": stage in {"capture", "queue"}}
            for stage, part in share.items()
        },
        "slo": {
            "threshold_seconds": 30.0,
            "objective": 0.99,
            "window_days": 30,
            "sli": 0.9987,
            "budget_remaining_ratio": 0.87,
            "burn_rates": {"5m": 0.0, "30m": 0.1, "1h": 0.4, "6h": 0.2, "3d": 0.1},
            "time": {
                "objective": 0.995,
                "sli": 0.999,
                "budget_remaining_ratio": 0.8,
                "burn_rates": {"5m": 0.0, "1h": 0.0},
            },
        },
        "worst": [
            {
                "key": SECRET_KEY,
                "seconds": 2.4,
                "committed_at": AT.isoformat(),
                "why": "2.1 s of it in embed",
            }
        ],
    }
    return {
        "evaluated_at": AT.isoformat(),
        "window_seconds": 3600.0,
        "collections": {**dict.fromkeys(names, each), "canary": each},
        "workers": [],
    }


def record(collection_name: str, key: str) -> dict[str, Any]:
    """As `upwell explain --json`."""
    row = {"id": "order-4711", "title": SECRET_TEXT}
    return {
        "at": AT.isoformat(),
        "collection": collection_name,
        "table": f"shop.{collection_name}",
        "key": SECRET_KEY,
        "record": {
            "deleted": False,
            "row": row,
            "text_hash": "ab" * 32,
            "lineage": 3,
            "offset": 42,
            "streamed": True,
            "lsn": 4711,
            "transaction_id": 9,
            "committed_at": AT.isoformat(),
            "taken_in_at": AT.isoformat(),
        },
        "generations": [
            {
                "number": 1,
                "state": "live",
                "model": "package:fake",
                "template": "{{ title }}",
                "created_at": AT.isoformat(),
                "chunks": [
                    {
                        "chunk_no": 0,
                        "chunk_text": SECRET_TEXT,
                        "chunk_hash": "cd" * 32,
                        "embedded_at": AT.isoformat(),
                    }
                ],
            }
        ],
        "pending": [],
        "dead_letters": [],
        "in_doubt": None,
        "audit": [
            {
                "at": AT.isoformat(),
                "action": "applied",
                "topic": "shop.shop.content",
                "partition": 0,
                "offset": 42,
                "lsn": 4711,
                "generation": None,
                "chunks": None,
            }
        ],
        "audit_rows": 1,
        "vacuumed": {},
        "state": "live",
        "deleted_at": None,
        "text": SECRET_TEXT,
        "remains": [],
    }


class FakeReads:
    """`error` is raised by every question; while `answers` is clear none returns. `asked` lists the questions."""

    def __init__(self) -> None:
        self.error: UpwellError | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.asked: list[str] = []

    def report(self, window: timedelta) -> Mapping[str, Any]:
        self._ask("report")
        return report()

    def history(self, collection: str, window: timedelta) -> Sequence[Bucket]:
        self._ask("history")
        begin = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=180)
        minutes = [begin + timedelta(minutes=minute) for minute in range(180)]
        return [
            Bucket(
                start=at,
                fresh=int(not 60 <= number < 70),
                stale=int(60 <= number < 70),
                staleness_max_seconds=48.0 if 60 <= number < 70 else 2.0 + number % 7 / 3,
            )
            for number, at in enumerate(minutes)
        ]

    def explain(self, collection: str, key: str) -> Mapping[str, Any]:
        self._ask("explain")
        if key == "seven":
            raise SettingsError("key column id is bigint, 'seven' is none")
        if key == "7":
            nothing = {**record(collection, key), "record": None, "text": None, "state": "unknown"}
            return {**nothing, "generations": [], "audit": [], "audit_rows": 0}
        return record(collection, key)

    def _ask(self, question: str) -> None:
        self.asked.append(question)
        self.answers.wait(30)
        if self.error is not None:
            raise self.error
