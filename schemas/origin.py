"""`source` of an envelope: where in the log a change comes from, and when it was committed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from schemas.change import Operation, Origin
from schemas.errors import MalformedEnvelope
from schemas.times import instant

#: As Debezium writes it, nearly always.
_PAIR: Final = re.compile(r'\["([0-9]{1,20})","([0-9]{1,20})"\]\Z')


def origin(source: Mapping[str, Any], operation: Operation) -> Origin:
    """Read what orders and dates a change. Raises MalformedEnvelope for a missing or odd field."""
    snapshot = operation is Operation.READ or source.get("snapshot") not in {None, "false"}
    last_commit, lsn = sequence(source.get("sequence"))
    return Origin(
        lsn=source.get("lsn"),
        sequence_last_commit=last_commit,
        sequence_lsn=lsn,
        transaction_id=source.get("txId"),
        committed_at=None if snapshot else _committed_at(source),
        snapshot=snapshot,
    )


def sequence(text: str | None) -> tuple[int | None, int | None]:
    """`["123","456"]` or `[null,"456"]`: last commit and this event. Raises MalformedEnvelope."""
    if text is None:
        return None, None
    numbers = _PAIR.match(text)
    if numbers is not None:
        return int(numbers[1]), int(numbers[2])
    try:
        last_commit, lsn = json.loads(text)
        return _integer(last_commit), _integer(lsn)
    except (ValueError, TypeError, RecursionError):
        raise MalformedEnvelope("source.sequence is not a pair of positions") from None


def instant_of_seconds(seconds: float | None) -> datetime | None:
    """A Kafka timestamp; None if the record has none, or one that is no date."""
    try:
        return None if seconds is None or seconds < 0 else instant(round(seconds * 1_000_000))
    except (OverflowError, ValueError):
        return None


def _integer(value: object) -> int | None:
    if value is None or value == "null":
        return None
    if not isinstance(value, str | int):
        raise ValueError("not a number")
    return int(value)


def _committed_at(source: Mapping[str, Any]) -> datetime:
    """The source's clock at commit: `ts_us`, or `ts_ms` from before Debezium had it."""
    micros, millis = source.get("ts_us"), source.get("ts_ms")
    if micros is None and millis is None:
        raise MalformedEnvelope("source has neither ts_us nor ts_ms")
    try:
        return instant(micros if micros is not None else millis * 1000)  # type: ignore[operator]
    except (OverflowError, TypeError):
        raise MalformedEnvelope("the commit time is no date") from None
