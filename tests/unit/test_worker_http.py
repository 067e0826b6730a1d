"""A worker's vitals, its series and its three pages, without a stack."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from schemas.change import TopicPartition
from schemas.errors import ColumnMissing, SinkUnavailable
from schemas.freshness import CANARY
from streams import metrics
from streams.freshness.measures import Measures
from streams.vitals import (
    EMBED,
    EMBED_STUCK_SECONDS,
    EXPLAINS_SECONDS,
    SINK_SECONDS,
    STUCK_SECONDS,
    Vitals,
)
from streams.worker_http import make_http, port_of, start_http
from streams.worker_metrics import WorkerMetrics

AT = TopicPartition("shop.content", 0)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass
class Turned:
    """Vitals of a worker whose clock the test turns; long past its start, a member, with an answering sink."""

    now: float = 1000.0
    group: tuple[bool, bool] = (True, False)
    stopping: bool = False
    vitals: Vitals = field(init=False)

    def __post_init__(self) -> None:
        self.vitals = Vitals(lambda: self.now)
        self.vitals.group = lambda: self.group
        self.vitals.stopping = lambda: self.stopping
        self.vitals.collections = {AT.topic: "content"}
        self.vitals.sink_answered()
        self.now += STUCK_SECONDS

    def look(self, position: int, end: int | None, after: float = 0.0) -> str:
        """What `stuck` says, `after` seconds, once Kafka was asked; `end` None: it did not say."""
        self.now += after
        self.vitals.looked({AT: position}, None if end is None else {AT: end})
        return self.vitals.stuck()


@pytest.fixture
def worker() -> Turned:
    return Turned()


# Ready


def test_a_member_whose_sink_answers_is_ready(worker: Turned) -> None:
    worker.vitals.sink_answered()
    assert worker.vitals.not_ready() == ""
    worker.now += SINK_SECONDS
    assert worker.vitals.not_ready() == ""
    worker.now += 1
    assert worker.vitals.not_ready() == "the sink has not answered for 11 s"


def test_a_new_worker_is_not_ready() -> None:
    vitals = Vitals()
    assert "not a member" in vitals.not_ready()
    vitals.group = lambda: (True, False)
    assert "has not answered yet" in vitals.not_ready()


def test_rebalancing_and_stopping_are_not_ready(worker: Turned) -> None:
    worker.vitals.sink_answered()
    worker.group = (True, True)
    assert worker.vitals.not_ready() == "rebalancing"
    worker.stopping = True
    assert worker.vitals.not_ready() == "stopping"


# Stuck


def test_changes_that_wait_without_a_reason_are_stuck(worker: Turned) -> None:
    assert worker.look(10, 12) == ""
    assert worker.look(10, 12, after=STUCK_SECONDS) == ""
    said = worker.look(10, 15, after=1)
    assert said == f"5 changes wait in shop.content/0, none was taken in for {STUCK_SECONDS + 1:.0f} s"


def test_an_idle_partition_is_not_stuck_and_its_wait_begins_with_a_change(worker: Turned) -> None:
    worker.look(10, 10)
    assert worker.look(10, 10, after=10 * STUCK_SECONDS) == ""
    assert worker.look(10, 11, after=STUCK_SECONDS) == ""
    assert worker.look(10, 11, after=STUCK_SECONDS + 1) != ""


def test_progress_is_not_stuck_however_much_waits(worker: Turned) -> None:
    for position in range(5):
        assert worker.look(position, 1_000_000, after=STUCK_SECONDS - 1) == ""


def test_a_partition_that_was_given_away_is_forgotten(worker: Turned) -> None:
    worker.look(10, 12)
    worker.now += STUCK_SECONDS + 1
    worker.vitals.looked({}, {AT: 12})
    assert worker.vitals.stuck() == ""
    assert worker.look(10, 12) == "", "it came back just now"


def test_a_silent_kafka_explains_it(worker: Turned) -> None:
    worker.look(10, 12)
    assert worker.look(10, None, after=STUCK_SECONDS + 1) == ""
    assert worker.look(10, 12, after=1) == "", "the wait begins anew"


def test_a_neighbour_that_is_away_explains_it_as_long_as_attempts_fail(worker: Turned) -> None:
    worker.look(10, 12)
    worker.now += STUCK_SECONDS
    worker.vitals.trouble("content", SinkUnavailable("sink database: away"))
    assert worker.look(10, 12, after=EXPLAINS_SECONDS - 1) == ""
    assert worker.look(10, 12, after=2) != "", "nobody has tried for long"
    worker.vitals.trouble("customers", SinkUnavailable("sink database: away"))
    assert worker.vitals.stuck() != "", "that is another collection's"
    assert worker.vitals.retries == {"intake": 2, "embed": 0}


def test_a_blocked_collection_is_not_stuck_until_it_is_mended(worker: Turned) -> None:
    worker.look(10, 12)
    worker.vitals.trouble("content", ColumnMissing("column 'title' is gone"))
    assert worker.look(10, 12, after=10 * STUCK_SECONDS) == ""
    assert worker.vitals.blocked == {"content": "column 'title' is gone"}
    assert worker.vitals.retries["intake"] == 0
    worker.vitals.mended("content")
    assert worker.vitals.blocked == {}
    assert worker.vitals.stuck() != ""


def test_a_rebalance_explains_it(worker: Turned) -> None:
    worker.look(10, 12)
    worker.group = (True, True)
    worker.look(10, 12, after=STUCK_SECONDS + 1)
    worker.group = (True, False)
    assert worker.look(10, 12, after=STUCK_SECONDS - 1) == ""
    assert worker.look(10, 12, after=2) != ""


def test_a_batch_that_stays_with_the_model_is_stuck(worker: Turned) -> None:
    worker.vitals.embedding(True)
    worker.now += EMBED_STUCK_SECONDS
    assert worker.vitals.stuck() == ""
    worker.now += 1
    assert "with the embedder for 1801 s" in worker.vitals.stuck()
    worker.vitals.embedding(False)
    assert worker.vitals.stuck() == ""


# Series


def samples(of: WorkerMetrics) -> dict[tuple[str, ...], float]:
    """By name and label values, `le` last; each of a metric that is a worker's."""
    found = {}
    for family in text_string_to_metric_families(of.text().decode()):
        for sample in family.samples:
            spec = metrics.BY_NAME[sample.name]
            assert spec.of in {"worker", "both"}
            assert set(sample.labels) - {"le"} == set(spec.labels)
            le = [sample.labels["le"]] if "le" in sample.labels else []
            found[sample.name, *(sample.labels[label] for label in spec.labels), *le] = sample.value
    return found


def test_what_is_measured_becomes_series(worker: Turned) -> None:
    measures = Measures()
    observed = measures.observer = WorkerMetrics(worker.vitals)
    measures.count("content", NOW, "outcome_applied", 3)
    measures.count("content", NOW, "outcome_applied", 2)
    measures.count("content", NOW, "chunks_kept", 4)
    measures.count("content", NOW, "embed_written")
    measures.count("content", NOW, "backfilled", 6)
    measures.count("content", NOW, "fill_written", 6)
    measures.worked("content", NOW, 3, 1.5)
    measures.delay("content", NOW, "total", 0.01)
    measures.delay("content", NOW, "total", 0.2, 4)
    measures.delay("content", NOW, "total", 4000.0)
    measures.delay("content", NOW, "queue", -1.0)
    measures.encoded("content", 0.3)
    measures.count(CANARY, NOW, "outcome_applied")
    measures.delay(CANARY, NOW, "total", 0.1)
    worker.vitals.trouble(EMBED, SinkUnavailable("away"))
    worker.vitals.trouble("content", ColumnMissing("gone"))
    found = samples(observed)
    assert found["upwell_outcomes_total", "content", "applied"] == 5
    assert found["upwell_chunks_total", "content", "kept"] == 4
    assert found["upwell_documents_total", "content", "written"] == 1
    assert found["upwell_embed_busy_seconds_total", "content"] == 1.5
    documents = [place for place in found if place[0] == "upwell_documents_total"]
    assert len(documents) == 1, "only what became of a document"
    assert found["upwell_backfilled_total", "content"] == 6
    assert found["upwell_negative_delays_total", "content"] == 1
    total = {
        place[3]: value for place, value in found.items() if place[1:3] == ("content", "total") and place[3:]
    }
    assert (total["0.01"], total["0.1"], total["0.25"], total["3600.0"], total["+Inf"]) == (1, 1, 5, 5, 6)
    assert len(total) == len(metrics.DELAY_BUCKETS) + 1
    assert found["upwell_propagation_delay_seconds_count", "content", "total"] == 6
    assert found["upwell_propagation_delay_seconds_sum", "content", "total"] == pytest.approx(4000.81)
    assert found["upwell_propagation_delay_seconds_sum", "content", "queue"] == 0
    assert found["upwell_encode_seconds_count", "content"] == 1
    assert found["upwell_retries_total", "embed"] == 1
    assert found["upwell_worker_blocked", "content"] == 1
    assert found["upwell_worker_live",] == 1
    assert not [place for place in found if CANARY in place]
    drained = measures.drain()
    assert drained.counters, "what is observed is flushed as before"


def test_a_new_worker_has_valid_series() -> None:
    found = samples(WorkerMetrics(Vitals()))
    assert found["upwell_worker_ready",] == 0
    assert found["upwell_retries_total", "intake"] == found["upwell_retries_total", "embed"] == 0


# Pages


@pytest.fixture
async def client(worker: Turned) -> AsyncIterator[TestClient]:  # type: ignore[type-arg]
    async with TestClient(TestServer(make_http(worker.vitals, WorkerMetrics(worker.vitals)))) as client:
        yield client


async def test_the_three_pages(worker: Turned, client: TestClient) -> None:  # type: ignore[type-arg]
    shown = await client.get("/metrics")
    assert shown.status == 200
    assert shown.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "upwell_build_info" in await shown.text()
    worker.vitals.sink_answered()
    for path in ("/healthz", "/readyz"):
        answer = await client.get(path)
        assert (answer.status, await answer.text()) == (200, "ok\n")
    worker.stopping = True
    answer = await client.get("/readyz")
    assert (answer.status, await answer.text()) == (503, "stopping\n")
    worker.vitals.embedding(True)
    worker.now += EMBED_STUCK_SECONDS + 1
    assert (await client.get("/healthz")).status == 503
    assert (await client.get("/")).status == 404
    assert (await client.post("/healthz")).status == 405


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


async def test_any_free_port_is_served_and_said(worker: Turned) -> None:
    app = make_http(worker.vitals, WorkerMetrics(worker.vitals))
    runner, url = await start_http(app, "127.0.0.1", 0)
    assert runner is not None
    try:
        assert urlsplit(url).port
        async with ClientSession() as session, session.get(f"{url}/metrics") as answer:
            assert answer.status == 200
    finally:
        await runner.cleanup()


async def test_a_port_that_is_taken_is_one_line_and_no_error(worker: Turned, taken: int) -> None:
    app = make_http(worker.vitals, WorkerMetrics(worker.vitals))
    with capture_logs() as said:
        assert await start_http(app, "127.0.0.1", taken) == (None, "")
    (line,) = said
    assert line["event"] == "no metrics of this worker"
    assert line["port"] == taken
    assert "\n" not in line["error"]


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("no.such.host.invalid", 0)])
async def test_what_cannot_be_served_is_no_error(worker: Turned, host: str, port: int) -> None:
    app = make_http(worker.vitals, WorkerMetrics(worker.vitals))
    assert await start_http(app, host, port) == (None, "")


@pytest.mark.parametrize(
    ("base", "slot", "port"),
    [
        (8100, "host-0", 8100),
        (8100, "host-1-12", 8112),
        (8100, "blue", 8100),
        (0, "host-3", 0),
        (8100, "", 8100),
    ],
)
def test_a_slot_has_a_port_of_its_own(base: int, slot: str, port: int) -> None:
    assert port_of(base, slot) == port
