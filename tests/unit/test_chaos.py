"""The judges of `make chaos`, on histories that are wrong: what they let pass, chaos lets pass."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from tests.chaos.claims import Change, Oracle
from tests.chaos.line import COMPONENTS, PROCESSES, Line
from tests.chaos.memory import growth
from tests.chaos.nemesis import FAULTS, SHORT, Nemesis
from tests.chaos.watcher import History
from tests.chaos.workload import SHIFTED


def at(seconds: float) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def seen(*looks: dict[str, str]) -> list[str]:
    history = History("content view")
    return [wrong for rows in looks for wrong in history.see(list(rows.items()))]


def test_a_key_may_go_forward_stay_and_go() -> None:
    assert seen({"[10]": "n5 a"}, {"[10]": "n5 a"}, {"[10]": "n9 b"}, {}, {"[10]": "n10 c"}) == []


def test_a_key_that_goes_back_is_told_with_its_numbers() -> None:
    assert seen({"10": "n9 b"}, {"10": "n5 a"}) == ["content view of key 10 went back from 9 to 5"]


def test_a_key_that_comes_back_is_told() -> None:
    assert seen({"10": "n9 b"}, {}, {"10": "n9 b"}) == [
        "content view of key 10 came back with 9 after it was gone"
    ]


def test_a_key_of_a_shift_may_come_back_but_never_go_back() -> None:
    key = str(SHIFTED.start)
    assert seen({key: "n9 b"}, {}, {key: "n9 b"}) == []
    assert seen({key: "n9 b"}, {}, {key: "n5 a"}) == [f"content view of key {key} went back from 9 to 5"]


def nemesis(done: int) -> Nemesis:
    return Nemesis(cast(Line, FakeLine()), 7, SHORT, done)


class FakeLine:
    """Nothing can be struck here."""

    gaps = False


def names(start: int, end: int) -> list[str]:
    found = []
    for done in range(start, end):
        each = nemesis(done)
        each.begin()
        found.append(each.name)
    return found


def test_the_first_faults_kill_everything_once() -> None:
    assert sorted(names(0, 8)) == sorted(f"kill {name}" for name in (*COMPONENTS, *PROCESSES))


def test_each_kind_comes_before_any_comes_twice() -> None:
    kinds = len(FAULTS) - 1  # changes are not lost here
    assert sorted(names(0, kinds)) == sorted(set(FAULTS) - {"slot dropped"})


def test_a_run_that_goes_on_has_the_faults_that_were_to_come() -> None:
    assert names(0, 90)[50:] == names(50, 90)
    assert "slot dropped" not in names(0, 300)


@pytest.mark.parametrize(("last", "ratio"), [(100.0, 1.0), (150.0, 1.5)])
def test_memory_is_the_most_of_the_first_and_the_last_quarter(last: float, ratio: float) -> None:
    most = {"worker": {0: 90.0, 10: 100.0, 30: 500.0, 50: last, 59: 80.0}, "monitor": {2: 70.0}}
    ((first, found),) = growth(most, 60).values()
    assert found / first == ratio


def test_an_oracle_contradicts_what_claims_too_much() -> None:
    oracle = Oracle(cast("object", None), 8.0)  # type: ignore[arg-type]
    oracle.changes = [Change(number, at(10.0 * number), at(10.0 * number + 1)) for number in (1, 2, 3)]
    oldest = oracle._oldest_missing(shown=1, done=3)
    assert oldest is not None
    assert oldest.number == 2
    assert oracle._oldest_missing(shown=3, done=3) is None
    oracle._judge(("FRESH", at(20.5)), oldest, at(28.0))
    assert oracle.wrong == []
    oracle._judge(("FRESH", at(21.0)), oldest, at(30.0))
    assert [wrong.split()[0] for wrong in oracle.wrong] == ["FRESH", "watermark"]
