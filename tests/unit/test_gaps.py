"""Which places in the source's log are lost (H26-H28, H32)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from connectors.debezium.connect import Connect
from connectors.debezium.naming import Naming
from connectors.postgres.source import Connection
from schemas.errors import SettingsError
from streams import gaps

FINE: dict[str, Any] = {"there": True, "wal_status": "reserved", "confirmed": 100, "wal_end": 200}
STORED = {"lsn": 150, "lsn_commit": 120}


class Stored:
    """Connect's stored offsets, in turn; the last one stays."""

    def __init__(self, *answers: dict[str, int]) -> None:
        self.answers = list(answers)

    def offsets(self, name: str, topic_prefix: str) -> dict[str, int]:
        assert (name, topic_prefix) == ("upwell-shop", "shop_2")
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def seen(*answers: dict[str, Any], canary: int | None = 57) -> Callable[..., dict[str, Any] | None]:
    """What the source says, in turn; the last answer stays."""
    left = list(answers)

    def first(source: Connection, query: str, of: object = None) -> dict[str, Any] | None:
        if query == "canary_number":
            return {"number": canary}
        return left.pop(0) if len(left) > 1 else left[0]

    return first


@pytest.mark.parametrize(
    ("changed", "stored", "begun", "said"),
    [
        ({}, STORED, True, ""),
        ({"there": False, "confirmed": None}, {}, False, ""),
        ({"there": False, "confirmed": None}, {}, True, "slot upwell_shop_2 is gone"),
        ({"there": False, "confirmed": None}, STORED, False, "slot upwell_shop_2 is gone"),
        ({"wal_status": "lost"}, STORED, True, "slot upwell_shop_2 is lost"),
        ({"wal_end": 149}, STORED, True, "restored from an older copy"),
        ({"confirmed": 121}, STORED, True, "was moved past"),
        ({"confirmed": 121}, {"lsn": 150}, True, ""),
        ({"confirmed": None}, STORED, True, ""),
    ],
)
def test_what_is_a_gap(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], stored: dict[str, int], begun: bool, said: str
) -> None:
    """H26, H27, H28."""
    monkeypatch.setattr(gaps, "first", seen({**FINE, **changed}))
    monkeypatch.setattr(gaps, "FLUSH_SECONDS", 0.0)
    found = gaps.find_gap(
        cast(Connection, None), cast(Connect, Stored(stored)), Naming("shop", 2), begun=begun
    )
    assert said in found
    assert bool(found) is bool(said)


def test_h32_a_slot_ahead_of_what_is_stored_is_normal_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaps, "first", seen({**FINE, "confirmed": 121}))
    monkeypatch.setattr(gaps, "POLL_SECONDS", 0.001)
    connect = Stored(STORED, STORED, {"lsn": 150, "lsn_commit": 121})
    assert gaps.find_gap(cast(Connection, None), cast(Connect, connect), Naming("shop", 2), begun=True) == ""


def find(stored: dict[str, int] = STORED, canary: int | None = None) -> str:
    connect = cast(Connect, Stored(stored))
    return gaps.find_gap(cast(Connection, None), connect, Naming("shop", 2), begun=True, canary=canary)


@pytest.mark.parametrize("before", [{"wal_end": 149}, {"there": False, "confirmed": None}])
def test_what_is_committed_while_connect_is_asked_is_no_gap(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, Any]
) -> None:
    """Connect may take seconds to answer, and then tells of what came after the first look at the source."""
    monkeypatch.setattr(gaps, "first", seen({**FINE, **before}, FINE))
    connect = cast(Connect, Stored(STORED))
    assert gaps.find_gap(cast(Connection, None), connect, Naming("shop", 2), begun=False) == ""


def test_h26_a_restored_source_that_has_written_more_than_was_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its log is past what the connector has stored again: only the canary shows it."""
    monkeypatch.setattr(gaps, "first", seen(FINE, canary=41))
    said = "the source's canary fell back from 57 to 41: it was restored from an older copy"
    assert find(canary=57) == said
    assert (find(canary=41), find(canary=None)) == ("", "")


def test_a_source_without_a_canary_is_not_restored_by_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaps, "first", seen(FINE, canary=None))
    assert find(canary=57) == ""

    def first(source: Connection, query: str, of: object = None) -> dict[str, Any]:
        if query == "canary_number":
            raise SettingsError("relation upwell.canary does not exist")
        return FINE

    monkeypatch.setattr(gaps, "first", first)
    assert find(canary=57) == ""
