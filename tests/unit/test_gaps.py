"""Which places in the source's log are lost (H26-H28, H32)."""

from __future__ import annotations

from typing import Any, cast

import pytest

from connectors.debezium.connect import Connect
from connectors.debezium.naming import Naming
from connectors.postgres.source import Connection
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
    monkeypatch.setattr(gaps, "first", lambda *_: {**FINE, **changed})
    monkeypatch.setattr(gaps, "FLUSH_SECONDS", 0.0)
    found = gaps.find_gap(
        cast(Connection, None), cast(Connect, Stored(stored)), Naming("shop", 2), begun=begun
    )
    assert said in found
    assert bool(found) is bool(said)


def test_h32_a_slot_ahead_of_what_is_stored_is_normal_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaps, "first", lambda *_: {**FINE, "confirmed": 121})
    monkeypatch.setattr(gaps, "POLL_SECONDS", 0.001)
    connect = Stored(STORED, STORED, {"lsn": 150, "lsn_commit": 121})
    assert gaps.find_gap(cast(Connection, None), cast(Connect, connect), Naming("shop", 2), begun=True) == ""
