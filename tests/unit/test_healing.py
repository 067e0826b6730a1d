"""What the monitor does unasked: when a rebuild is due, and which loads it follows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from connectors.debezium.naming import Naming
from connectors.postgres.freshness import CanaryFound, CollectionSeen, SinkSeen
from schemas.errors import SourceUnavailable
from schemas.freshness import State, Verdict
from streams.freshness import healing
from streams.freshness.evaluation import Evaluated, Judged
from streams.freshness.healing import FIRST_PAUSE_SECONDS, OLD_SECONDS, SURE_SECONDS, Healing, Pauses
from streams.freshness.probes import Sights
from streams.freshness.verdict import Connector, Standing
from streams.settings import Settings
from tests.unit.test_evaluation import AT, SEEN

SURE = SURE_SECONDS


def test_a_gap_that_lasts_is_rebuilt_once_and_later_again_with_pauses_that_grow() -> None:
    pauses = Pauses()
    assert not pauses.due("slot s is gone", 0)
    assert not pauses.due("slot s is gone", SURE - 1)
    assert pauses.due("slot s is gone", SURE)
    for now, due in ((SURE + 1, False), (2 * SURE, False), (SURE + FIRST_PAUSE_SECONDS, True)):
        assert pauses.due("slot s is gone", now) is due
    second = SURE + FIRST_PAUSE_SECONDS
    assert not pauses.due("slot s is gone", second + SURE)
    assert not pauses.due("slot s is gone", second + 2 * FIRST_PAUSE_SECONDS - 1)
    assert pauses.due("slot s is gone", second + 2 * FIRST_PAUSE_SECONDS)


def test_a_gap_that_goes_by_itself_is_not_rebuilt() -> None:
    pauses = Pauses()
    for now in range(0, 100, 2):
        assert not pauses.due("moved" if now % 4 else "", now)


@dataclass
class Around:
    """A monitor's memory and a capture side that says what was done to it."""

    settings: Settings
    last: Evaluated | None = None
    others: bool = False
    lineage: int = 1
    done: list[str] = field(default_factory=list)
    failure: Exception | None = None
    connector: Connector | None = None
    config: Mapping[str, str] = field(default_factory=lambda: {"signal.data.collection": "upwell.signal"})

    def sights(self, told: list[str]) -> Sights:
        seen = SimpleNamespace(tell=told.append, connector=self.connector, naming=Naming("shop", 1))
        return cast(Sights, seen)

    def opened(self, settings: Settings, progress: Any) -> contextlib.AbstractContextManager[Any]:
        state = SimpleNamespace(try_capturing=lambda: not self.others)
        capture = SimpleNamespace(state=state, naming=SimpleNamespace(lineage=self.lineage))
        capture.alone = lambda: capture
        capture.pass_without_scans = lambda: self.done.append("read on")
        return contextlib.nullcontext(capture)

    def rebuild(self, capture: Any, *, new_lineage: bool) -> None:
        self.done.append("new lineage" if new_lineage else "going on")
        if self.failure is not None:
            raise self.failure

    def see(self, seen: CollectionSeen = SEEN, gap: str = "", at: float | None = None) -> None:
        judged: Mapping[str, Judged] = {
            "content": Judged(Verdict(State.FRESH, ""), Standing("content", 30.0), seen, None, gap)
        }
        sink = SinkSeen(AT, 1, {"content": seen}, {}, ())
        self.last = Evaluated(
            time.monotonic() if at is None else at, AT, sink, CanaryFound(1, 1.0), judged, 0.0
        )


@pytest.fixture
def around(monkeypatch: pytest.MonkeyPatch) -> Around:
    made = Around(cast(Settings, SimpleNamespace(monitor=SimpleNamespace(rebuild=True))))
    monkeypatch.setattr(healing, "opened", made.opened)
    monkeypatch.setattr(healing, "rebuild_alone", made.rebuild)
    monkeypatch.setattr(healing, "follow_begun", lambda capture: made.done.append("followed"))
    monkeypatch.setattr(healing, "SURE_SECONDS", 0.0)
    connect = SimpleNamespace(config=lambda name: made.config)
    monkeypatch.setattr("streams.neighbours.connect", lambda settings: connect)
    return made


def mend(around: Around) -> tuple[list[str], list[str]]:
    """What is done and what is told in two looks."""
    told: list[str] = []
    made = Healing(around.settings, lambda: around.last, around.sights(told))
    made.look()
    made.look()
    return around.done, told


def test_lost_changes_are_rebuilt_where_the_settings_allow_it(around: Around) -> None:
    around.see(gap="slot s is gone")
    done, told = mend(around)
    assert done == ["new lineage"]
    assert told == [
        "changes are lost: slot s is gone: the monitor rebuilds",
        "rebuilt: every table is read again",
    ]


def test_without_the_setting_nothing_is_rebuilt(around: Around) -> None:
    around.settings = cast(Settings, SimpleNamespace(monitor=SimpleNamespace(rebuild=False)))
    around.see(gap="slot s is gone")
    assert mend(around) == ([], [])
    around.see(replace(SEEN, load_state="incomplete", load_detail={"reason": "rebuild"}))
    assert mend(around) == ([], [])


@pytest.mark.parametrize(("others", "lineage"), [(True, 1), (False, 2)])
def test_whoever_is_at_it_or_was_is_left_alone(around: Around, others: bool, lineage: int) -> None:
    """After another's rebuild the newest lineage is one in which nothing is lost yet."""
    around.others, around.lineage = others, lineage
    around.see(gap="slot s is gone")
    assert mend(around) == ([], [])


def test_a_rebuild_that_was_killed_goes_on_and_says_why_it_cannot(around: Around) -> None:
    around.see(replace(SEEN, load_state="incomplete", load_detail={"reason": "rebuild"}))
    around.failure = SourceUnavailable("source database: no answer")
    told: list[str] = []
    with pytest.raises(SourceUnavailable):
        Healing(around.settings, lambda: around.last, around.sights(told)).look()
    assert around.done == ["going on"]
    assert told[-1] == "the rebuild did not end: source database: no answer"


@pytest.mark.parametrize(
    ("state", "detail", "followed"),
    [
        ("loading", {"signal": "load-1", "from": 3}, True),
        ("incomplete", {"reason": "truncated"}, True),
        ("incomplete", {"reason": "truncated", "from": 3}, True),
        ("incomplete", {"last_status": "SQL_EXCEPTION"}, True),
        ("incomplete", {}, False),
        ("loading", {"signal": "load-1", "from": 3, "ends": {}}, False),
        ("complete", {"signal": "load-1", "from": 3, "ends": {}}, False),
    ],
)
def test_a_load_that_was_asked_for_is_followed(
    around: Around, state: str, detail: Mapping[str, Any], followed: bool
) -> None:
    """The first load of a table is asked for by whoever captures it, not by the monitor."""
    around.see(replace(SEEN, load_state=state, load_detail=detail))
    assert mend(around)[0] == (["followed"] * 2 if followed else [])


def test_an_old_evaluation_says_nothing(around: Around) -> None:
    around.see(gap="slot s is gone", at=time.monotonic() - OLD_SECONDS - 1)
    assert mend(around) == ([], [])
    around.last = None
    assert mend(around) == ([], [])


@pytest.mark.parametrize(
    ("connector", "config", "done"),
    [
        (
            Connector("FAILED", 3.0, "java.lang.IndexOutOfBoundsException: Index 10 out of"),
            {},
            ["read on"] * 2,
        ),
        (Connector("FAILED", 3.0, "org.postgresql.util.PSQLException: FATAL"), {}, []),
        (Connector("RUNNING"), {"name": "upwell-shop"}, ["read on"]),
        (Connector("RUNNING"), {"signal.data.collection": "upwell.signal"}, []),
        (None, {}, []),
    ],
)
def test_a_connector_that_a_scan_stops_reads_on_without_it(
    around: Around, connector: Connector | None, config: Mapping[str, str], done: list[str]
) -> None:
    """Also where another monitor was killed before it gave the connector its settings again."""
    around.see()
    around.connector, around.config = connector, config
    assert mend(around)[0] == done
