"""All that is known of one key as JSON: what `upwell explain` prints and the page shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.errors import TemplateError
from schemas.readings import Explanation
from schemas.template import Template
from streams.remains import deleted_at, remains


def explanation(found: Explanation, kafka_retention: timedelta, audit_retention: timedelta) -> dict[str, Any]:
    """`state`: live, deleted, gone (truncated away) or unknown. Texts are whole."""
    left = remains(found, kafka_retention, audit_retention)
    state = "unknown" if not found.known else "gone" if found.record is None else "live"
    if found.record is not None and found.record["deleted"]:
        state = "deleted"
    plain: dict[str, Any] = _plain(
        {
            **asdict(found),
            "state": state,
            "deleted_at": deleted_at(found),
            "text": _text(found),
            "remains": [asdict(each) for each in left] if found.known else [],
        }
    )
    return plain


def _text(found: Explanation) -> str | None:
    """The document that the live generation's vectors are made of."""
    row = None if found.record is None else found.record["row"]
    live = next((each for each in found.generations if each.state == "live"), None)
    if row is None or live is None:
        return None
    try:
        return Template(live.template).render(row)
    except TemplateError as error:
        return f"({error})"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
