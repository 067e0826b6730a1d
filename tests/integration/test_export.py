"""Exports by the real exporter, of small models with random weights."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from connectors.encoder import OnnxEncoder, SentenceTransformersEncoder, load_encoder
from connectors.encoder.export import cached, place
from connectors.encoder.exporter import LEAST_COSINE, LEAST_COSINE_INT8, corpus, export
from connectors.encoder.onnx import GRAPH
from connectors.encoder.torch import load_torch
from schemas.errors import ModelUnavailable, UnusableVector
from tests.deployment import ROOT, until
from tests.fixtures.model import tokenizer_json

pytestmark = pytest.mark.integration

LENGTH: Final = 40
Make = Callable[..., str]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Save a model of two layers, and return its name. `last`: modules behind pooling; `options` of the model."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast, DistilBertConfig, DistilBertModel

    sizes = {"vocab_size": 30522, "max_position_embeddings": 64}
    shapes: dict[str, Any] = {
        "bert": lambda: BertModel(
            BertConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, **sizes
            )
        ),
        "distilbert": lambda: DistilBertModel(
            DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=48, **sizes)
        ),
    }

    def made(shape: str = "bert", pooling: str = "mean", last: tuple[Any, ...] = (), **options: Any) -> str:
        torch.manual_seed(5)
        directory: Path = tmp_path_factory.mktemp("model")
        shapes[shape]().save_pretrained(directory / "bare")
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if shape == "bert" else [])]
        BertTokenizerFast(
            str(tokenizer_json().with_name("vocab.txt")), model_input_names=names
        ).save_pretrained(directory / "bare")
        transformer = Transformer(str(directory / "bare"), max_seq_length=LENGTH)
        include = options.pop("include_prompt", True)
        pool = Pooling(32, pooling_mode=pooling, include_prompt=include)
        model = SentenceTransformer(modules=[transformer, pool, *last], device="cpu", **options)
        model.save(str(directory / "whole"))
        return f"path:{directory / 'whole'}"

    return made


def made_here(name: str, part: Path) -> tuple[SentenceTransformersEncoder, OnnxEncoder]:
    """The model with both runtimes, exported in this process."""
    part.mkdir()
    by_torch = load_torch(name, device="cpu")
    manifest = export(name, by_torch, by_torch.identity, part)
    assert manifest.problem is None
    assert manifest.parity is not None
    assert manifest.parity >= LEAST_COSINE
    return by_torch, OnnxEncoder(name, part, manifest)


def test_all_modules_are_in_the_graph(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from sentence_transformers.models import Dense, Normalize

    dense = Dense(32, 12, activation_function=torch.nn.Tanh())
    by_torch, by_onnx = made_here(make(pooling="cls", last=(dense, Normalize())), tmp_path / "part")
    assert by_onnx.dimension == by_torch.dimension == 12
    assert by_onnx.max_tokens == by_torch.max_tokens == LENGTH - 2
    assert by_onnx.tokenizer_json == by_torch.tokenizer_json
    texts = corpus(by_torch)
    assert np.allclose(by_onnx.encode(texts), by_torch.encode(texts), atol=1e-5)
    for value in (0.0, np.nan, np.inf):  # of one dimension or all: normalising must not hide it
        monkeypatch.setattr(by_onnx, "_session", Session(value))
        with pytest.raises(UnusableVector, match="text 0 of 1"):
            by_onnx.encode(["text"])


class Session:
    """A graph that computes nothing of use."""

    def __init__(self, value: float) -> None:
        self._value = value

    def run(self, names: None, feed: dict[str, Any]) -> list[Any]:
        return [np.full((len(feed["input_ids"]), 12), self._value, dtype=np.float32)]


def test_a_prompt_and_no_token_types(make: Make, tmp_path: Path) -> None:
    name = make("distilbert", prompts={"document": "title: "}, default_prompt_name="document")
    by_torch, by_onnx = made_here(name, tmp_path / "part")
    assert by_onnx.max_tokens == by_torch.max_tokens == LENGTH - 2 - 2, "the prompt takes two tokens"
    texts = corpus(by_torch)
    assert np.allclose(by_onnx.encode(texts), by_torch.encode(texts), atol=1e-5)
    without = load_torch(make("distilbert"), device="cpu")
    assert not np.allclose(by_onnx.encode(["text"]), without.encode(["text"]), atol=1e-2), "the prompt counts"


def test_vectors_that_are_others_are_no_export(make: Make, tmp_path: Path) -> None:
    """As of a model whose encode does something that its modules do not say."""

    class Forgetful(SentenceTransformersEncoder):
        prompt = ""

    name = make(prompts={"document": "title: "}, default_prompt_name="document")
    by_torch = load_torch(name, device="cpu")
    manifest = export(name, Forgetful(name, by_torch._model), "1", tmp_path)
    assert manifest.problem is not None
    assert manifest.problem.startswith("its vectors are not those of sentence-transformers: cosine 0.")
    assert (manifest.files, list(tmp_path.iterdir())) == ({}, [])


def test_a_model_that_does_not_export_runs_with_torch(make: Make, tmp_path: Path) -> None:
    """What a prompt that is left out of pooling needs depends on values, which a graph cannot."""
    name = make(include_prompt=False, prompts={"document": "a title: "}, default_prompt_name="document")
    by_torch = load_torch(name, device="cpu")
    directory = place(tmp_path, name, by_torch.identity)
    directory.mkdir(parents=True)
    export(name, by_torch, by_torch.identity, directory).write(directory)
    assert [path.name for path in directory.iterdir()] == ["manifest.json"]
    lines: list[str] = []
    encoder = load_encoder(name, device="cpu", cache=tmp_path, progress=lines.append)
    assert encoder.runtime == "torch"
    assert encoder.encode(["text"]).shape == (1, 32)
    assert len(lines) == 1
    assert lines[0].startswith(f"model {name} runs with torch, not ONNX: ")
    with pytest.raises(ModelUnavailable, match=r"set model\.runtime to auto or torch"):
        load_encoder(name, cache=tmp_path, runtime="onnx")


def test_int8_is_another_model(make: Make, tmp_path: Path) -> None:
    """Its vectors are near, and the same in any company: each text is a batch of its own."""
    import onnx

    name = f"int8:{make()}"
    by_torch = load_torch(name, device="cpu")
    part = tmp_path / "part"
    part.mkdir()
    manifest = export(name, by_torch, by_torch.identity, part)
    assert manifest.problem is None
    assert sorted(manifest.files) == sorted(path.name for path in part.iterdir())
    assert manifest.parity is not None
    assert manifest.parity >= LEAST_COSINE_INT8
    assert "MatMulInteger" in {node.op_type for node in onnx.load(part / GRAPH).graph.node}
    encoder = OnnxEncoder(name, part, manifest)
    texts = corpus(by_torch)
    together = encoder.encode(texts)
    assert all(
        np.array_equal(encoder.encode([text])[0], vector)
        for text, vector in zip(texts, together, strict=True)
    )


def test_killed_and_then_two_at_once(make: Make, tmp_path: Path) -> None:
    """`upwell model export` with kill -9 while it exports, and then twice at the same time."""
    name = make()
    (tmp_path / "upwell.toml").write_text(f'[model]\nname = "{name}"\n')
    kept = {key: value for key, value in os.environ.items() if not key.startswith("UPWELL_")}
    environment = {**kept, "PYTHONPATH": str(ROOT), "UPWELL_CACHE": str(tmp_path / "cache")}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "streams.cli", "model", "export"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    models = tmp_path / "cache" / "models"
    killed = start()
    until(lambda: is_exporting(killed.pid), 120, "the export begun")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    until(lambda: is_free(next(models.glob("*.lock"))), 60, "its child is gone, too")
    (part,) = models.glob("*.part")
    assert not (part / "manifest.json").exists(), "it has not gone on alone"
    assert cached(part.with_suffix("")) is None
    (part / "left by the killed one").touch()
    both = [start(), start()]
    said = [each.communicate(timeout=200)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert sum("is exported to ONNX, once" in each for each in said) == 1, said
    assert sum("another process exports the model: waiting for it" in each for each in said) == 1, said
    assert sorted(path.suffix for path in models.iterdir()) == ["", ".lock"]
    (directory,) = (path for path in models.iterdir() if path.is_dir())
    found = cached(directory)
    assert found is not None
    assert set(found.files) == {path.name for path in directory.iterdir()} - {"manifest.json"}


def is_exporting(pid: int) -> bool:
    """Whether the process has a child that has come as far as torch."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return any("libtorch" in Path(f"/proc/{child}/maps").read_text() for child in children)


def is_free(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
