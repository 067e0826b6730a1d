"""First loads: what is written before what is sent, and what counts as read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, cast

import pytest

from connectors.debezium.connect import Connect, ConnectorStatus
from connectors.debezium.naming import Naming
from connectors.debezium.notifications import Notification
from connectors.kafka import Kafka, TopicFacts
from connectors.postgres.capture_state import COMPLETE, INCOMPLETE, LOADING, CaptureState, Load
from connectors.postgres.source import Connection, key_condition
from connectors.postgres.sweep import Scan
from schemas.change import TopicPartition
from schemas.errors import ConnectUnavailable, LineageMismatch, SourceUnavailable
from streams import loads
from streams.capture import check_topics
from streams.completion import Completion
from streams.loads import Loading

#: What asking for a load does, in order.
ASKED = ["signals locked", "state loading", "signal ['shop.content']", "signals free"]


class FakeState:
    """The sink's tables as dicts; `events` is shared with the fake source, for the order of things."""

    def __init__(self, events: list[str]) -> None:
        self.rows = {"content": Load("content", INCOMPLETE)}
        self.taken: dict[int, int] = {}
        self.pending = 0
        self.under_way: list[str] = []
        self.events = events
        self.swept = FakeSweep()
        self.ended: list[str] = []
        self.newest = 1

    def loads(self, names: Collection[str]) -> dict[str, Load]:
        return {name: load for name, load in self.rows.items() if name in names}

    def set_load(self, name: str, state: str, detail: Mapping[str, Any]) -> Load:
        self.events.append(f"state {state}")
        self.rows[name] = Load(name, state, dict(detail))
        return self.rows[name]

    def positions(self, topic: str) -> dict[int, int]:
        return self.taken

    def re_reading(self, names: Collection[str]) -> list[str]:
        return [self.under_way.pop()] if self.under_way else []

    @contextlib.contextmanager
    def signalling(self) -> Iterator[None]:
        self.events.append("signals locked")
        yield
        self.events.append("signals free")

    def backfill_pending(self, collection: str) -> int:
        return self.pending

    def sweep(self, scan: Scan) -> FakeSweep:
        self.swept.scan = scan
        return self.swept

    def lineage(self) -> tuple[int, str]:
        return self.newest, f"shop_{self.newest}"

    def ended_topics(self, lineage: int) -> list[str]:
        return self.ended

    def forget_topics(self, topics: Collection[str]) -> None:
        self.events.append(f"forgotten {list(topics)}")
        self.ended = []


class FakeSweep:
    """`ghosts` are removed when there is no letter without a key."""

    def __init__(self) -> None:
        self.ghosts, self.letters, self.scan = 0, 0, Scan("", 0, {})

    def unseen(self) -> int:
        return self.ghosts

    def unknown_letters(self) -> int:
        return self.letters

    def run(self, tell: Callable[[int], None]) -> int:
        removed, self.ghosts = self.ghosts, 0
        return removed


class FakeKafka:
    deleted: list[str]

    def delete_topics(self, topics: Collection[str]) -> None:
        self.deleted = list(topics)

    def end_offsets(self, topics: Collection[str]) -> dict[TopicPartition, int]:
        return {TopicPartition(topic, partition): 7 for topic in topics for partition in range(2)}

    def log_starts(self, topics: Collection[str]) -> dict[TopicPartition, int]:
        return {TopicPartition(topic, partition): 7 for topic in topics for partition in range(2)}


class FakeConnect:
    state = "RUNNING"
    stored: int | None = 1

    def offsets(self, name: str, topic_prefix: str) -> dict[str, int]:
        return {} if self.stored is None else {"lsn_commit": self.stored}

    def __init__(self) -> None:
        self.restarted: list[str] = []

    def restart(self, name: str, *, only_failed: bool) -> None:
        self.restarted.append(name)

    def status(self, name: str) -> ConnectorStatus:
        return ConnectorStatus(name, "RUNNING", self.state, "slot is gone" if self.state == "FAILED" else "")


class Line:
    """A Loading with fakes around it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.said: list[str] = []
        self.state, self.connect = FakeState(self.events), FakeConnect()
        self.unsettled = [["shop.content"], []]
        monkeypatch.setattr(loads, "unsettled", lambda *_: self.unsettled.pop(0) if self.unsettled else [])
        monkeypatch.setattr(loads, "first", lambda *_: None)
        monkeypatch.setattr(
            loads, "request", lambda _, signal, tables: self.events.append(f"signal {tables}")
        )
        monkeypatch.setattr(loads, "POLL_SECONDS", 0.001)
        self.loading = Loading(
            naming=Naming("shop", 1),
            tables={"content": "shop.content"},
            source=cast(Connection, None),
            state=cast(CaptureState, self.state),
            kafka=cast(Kafka, FakeKafka()),
            connect=cast(Connect, self.connect),
            read_notifications=cast(Any, None),
            chunk_rows=512,
            progress=self.said.append,
        )
        self.completion = Completion(
            naming=self.loading.naming,
            tables=self.loading.tables,
            state=self.loading.state,
            kafka=self.loading.kafka,
            connect=self.loading.connect,
            progress=self.said.append,
        )

    def done(self) -> bool:
        """Whether all is complete, after a look that may take a step on the way."""
        self.completion.step()
        return self.completion.wait(0.0)

    def ended(self, status: str, *, offset: int = 9, signal: str = "load-1") -> None:
        self.loading.take(Notification(offset, signal, "TABLE_SCAN_COMPLETED", "shop.content", status, 300))

    @property
    def load(self) -> Load:
        return self.state.rows["content"]


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    return Line(monkeypatch)


def test_older_transactions_first_then_the_state_then_the_signal(line: Line) -> None:
    """H25."""
    line.loading.request(["content"])
    assert line.unsettled == []
    assert "waits for an older transaction" in line.said[0]
    assert line.events == ASKED
    assert line.load.detail["from"] == 7


def test_a_load_waits_for_single_rows_under_way(line: Line) -> None:
    """The end of their scan would carry the load's id, and be taken for the load's."""
    line.state.under_way = ["content", "content"]
    line.loading.request(["content"])
    assert line.state.under_way == []
    assert line.said[-2] == "content waits until single rows of it are read again"


def test_a_scan_that_succeeded_is_read_but_not_complete(line: Line) -> None:
    line.loading.request(["content"])
    line.ended("SUCCEEDED")
    assert line.load.state == LOADING
    assert line.load.scanned
    assert line.load.detail["ends"] == {"0": 7, "1": 7}


def test_a_scan_that_failed_is_asked_for_again_and_at_last_given_up(line: Line) -> None:
    """H24."""
    line.loading.request(["content"])
    line.events.clear()
    line.ended("SQL_EXCEPTION")
    assert line.events == ["state incomplete", *ASKED]
    for _ in range(loads.ATTEMPTS - 2):
        line.ended("SQL_EXCEPTION")
    with pytest.raises(SourceUnavailable, match="SQL_EXCEPTION"):
        line.ended("SQL_EXCEPTION")


def test_an_older_scan_and_a_repair_do_not_count(line: Line) -> None:
    line.loading.request(["content"])
    line.ended("SUCCEEDED", offset=6)
    line.ended("SUCCEEDED", signal="repair-1")
    assert not line.load.scanned


def test_progress_is_a_line_a_second(line: Line) -> None:
    line.loading.request(["content"])
    line.said.clear()
    for chunk in (1, 2, 3):
        line.loading.take(
            Notification(8, "load-1", "IN_PROGRESS", "shop.content", chunk=chunk, chunks=3, total_rows=1500)
        )
    assert line.said == ["content 512 rows of about 1500 ..."]


def test_a_failed_connector_ends_the_following(line: Line) -> None:
    line.connect.state = "FAILED"
    with pytest.raises(ConnectUnavailable, match="slot is gone"):
        line.loading._check_connector()


def test_complete_needs_everything_taken_in_swept_and_embedded(line: Line) -> None:
    """H29, H30."""
    assert not line.done()
    line.loading.request(["content"])
    assert not line.done()
    line.ended("SUCCEEDED")
    line.state.taken = {0: 5}
    line.connect.stored = None
    assert not line.done()
    assert line.said[-1] == "content: waits until the connector has stored that all of it is in Kafka"
    line.connect.stored = 1
    assert not line.done()
    assert line.said[-1] == "content: 2 changes to take in"
    line.state.taken, line.state.pending = {0: 7}, 3
    line.state.swept.ghosts, line.state.swept.letters = 2, 1
    assert not line.done()
    assert "1 dead letters without a key" in line.said[-1]
    line.state.swept.letters = 0
    assert not line.done()
    assert "content: 2 rows that the source no longer has removed" in line.said
    assert line.state.swept.scan == Scan("content", 1, {"0": 7, "1": 7})
    assert line.said[-1] == "content: 3 texts to embed"
    line.state.pending = 0
    assert line.done()
    assert line.load.state == COMPLETE


def test_nothing_is_completed_of_a_lineage_that_is_over(line: Line) -> None:
    line.state.rows["content"] = Load("content", LOADING, {"ends": {}, "settled": True})
    line.state.newest = 2
    assert not line.done()
    assert line.load.state == LOADING
    line.state.newest = 1
    assert line.done()


def test_topics_of_ended_lineages_are_deleted_when_all_is_complete(line: Line) -> None:
    line.state.ended = ["shop_0.shop.content"]
    assert not line.done()
    assert line.state.ended
    line.state.rows["content"] = Load("content", COMPLETE)
    assert line.done()
    assert line.state.events[-1] == "forgotten ['shop_0.shop.content']"


def test_topics_must_be_those_that_were_created() -> None:
    """H11."""
    recorded = {"shop_1.shop.content": TopicFacts("abc", 4)}
    check_topics(recorded, {"shop_1.shop.content": TopicFacts("abc", 4)})
    for found in (TopicFacts("abd", 4), TopicFacts("abc", 5), None):
        with pytest.raises(
            LineageMismatch, match=r"shop_1\.shop\.content .*; run `upwell connector rebuild`"
        ):
            check_topics(recorded, {"shop_1.shop.content": found})


def test_a_key_condition_is_quoted() -> None:
    assert key_condition({"id": 42}).as_string() == "\"id\" = '42'"
    assert (
        key_condition({"a": "x' OR 1=1 --", "b": 'y"'}).as_string()
        == "\"a\" = 'x'' OR 1=1 --' AND \"b\" = 'y\"'"
    )


def test_a_truncate_during_the_scan_keeps_a_collection_incomplete(line: Line) -> None:
    """H8: rows read before it are sent after it, with a sequence above its lsn; no fence removes them."""
    detail = {
        "signal": "load-1",
        "from": 0,
        "asked_lsn": 100,
        "scanned_lsn": 200,
        "ends": {},
        "settled": True,
    }
    for fence, complete in ((100, True), (150, False), (200, False), (201, True)):
        line.state.rows["content"] = Load("content", LOADING, detail, fence_lineage=1, fence_lsn=fence)
        assert line.done() is complete
        assert line.load.state == (COMPLETE if complete else INCOMPLETE)
    line.state.rows["content"] = Load("content", LOADING, detail, fence_lineage=0, fence_lsn=150)
    assert line.done()


def test_a_truncate_during_the_scan_has_it_read_again_once_it_has_ended(line: Line) -> None:
    """H8: the end of the spoilt scan must not be taken for that of the next one."""
    line.loading.request(["content"])
    line.state.rows["content"] = Load("content", INCOMPLETE, {"reason": "truncated", "from": 7})
    line.events.clear()
    line.loading._request_incomplete()
    line.ended("SUCCEEDED", offset=6)
    assert line.events == []
    line.ended("SUCCEEDED", offset=8)
    assert line.load == Load("content", INCOMPLETE, {"reason": "truncated"})
    assert line.said[-1] == "content was truncated while it was being read: it is read again"
    line.events.clear()
    line.loading._request_incomplete()
    assert line.events == ASKED
    assert line.load.state == LOADING


def test_a_load_that_is_to_be_asked_for_heeds_no_scan(line: Line) -> None:
    line.state.rows["content"] = Load("content", INCOMPLETE, {"reason": "truncated"})
    line.ended("SUCCEEDED")
    assert line.load == Load("content", INCOMPLETE, {"reason": "truncated"})


def test_a_silent_scan_is_woken_then_asked_for_again(line: Line) -> None:
    line.loading.request(["content"])
    line.events.clear()
    line.loading._wake(0)
    assert line.connect.restarted == ["upwell-shop"]
    assert line.events == []
    line.loading._wake(1)
    assert line.events == ASKED
