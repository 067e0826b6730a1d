"""Which runtime a model gets, and what happens when there is no export. Loads no model."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from connectors.encoder import export, model
from connectors.encoder.directory import model_identity
from connectors.encoder.export import ExportFailed, cached, exported, place
from connectors.encoder.model import choose, choose_for, load_encoder
from connectors.encoder.onnx import GRAPH, MANIFEST, Manifest
from schemas.errors import ModelUnavailable, SettingsError
from streams.models import model_state
from streams.settings import load
from tests.deployment import ROOT
from tests.fixtures.model import tokenizer_json

NAME = "path:x"
WHOLE = Manifest(
    model=NAME,
    identity="1" * 64,
    dimension=384,
    max_tokens=254,
    prompt="",
    inputs=("input_ids", "attention_mask"),
    tokenizer_json="{}",
    versions={},
    files={GRAPH: 5},
    parity=1.0,
)


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(model, "_torch_version", lambda: "2.15.0")
    made = tmp_path / "dev"
    made.mkdir()
    return made


@pytest.mark.parametrize("name", ["nvidia0", "kfd", "dxg"])
def test_an_accelerator_is_torchs(devices: Path, name: str) -> None:
    (devices / name).touch()
    found = choose("auto", devices=devices)
    assert (found.runtime, found.why) == ("torch", f"an accelerator, {devices / name}")


@pytest.mark.parametrize("name", ["null", "nvidiactl", "nvidia-uvm"])
def test_other_devices_are_none(devices: Path, name: str) -> None:
    (devices / name).touch()
    assert choose("auto", devices=devices).runtime == "onnx"


@pytest.mark.parametrize("value", ["", "-1"])
def test_a_hidden_accelerator(devices: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    (devices / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert choose("auto", devices=devices).runtime == "onnx"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert choose("auto", devices=devices).runtime == "torch"


def test_a_torch_without_cuda(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (devices / "nvidia0").touch()
    monkeypatch.setattr(model, "_torch_version", lambda: "2.15.0+cpu")
    assert choose("auto", devices=devices).runtime == "onnx"


def test_what_is_set_wins(devices: Path) -> None:
    assert choose("torch", devices=devices).runtime == "torch"
    assert choose("auto", "cuda", devices).runtime == "torch"
    (devices / "nvidia0").touch()
    assert choose("onnx", devices=devices).runtime == "onnx"
    assert choose("auto", "cpu", devices).runtime == "onnx"


# The cache


def in_cache(directory: Path, manifest: Manifest, content: bytes = b"graph") -> None:
    directory.mkdir(parents=True)
    (directory / GRAPH).write_bytes(content)
    manifest.write(directory)


def test_a_whole_export_is_found(tmp_path: Path) -> None:
    in_cache(tmp_path / "a", WHOLE)
    assert cached(tmp_path / "a") == WHOLE


def test_what_is_not_whole_is_made_anew(tmp_path: Path) -> None:
    assert cached(tmp_path / "none") is None
    in_cache(tmp_path / "short", WHOLE, b"grap")
    assert cached(tmp_path / "short") is None
    in_cache(tmp_path / "no graph", WHOLE)
    (tmp_path / "no graph" / GRAPH).unlink()
    assert cached(tmp_path / "no graph") is None
    for number, text in enumerate(["", "{}", "[]", '{"inputs": []}']):
        in_cache(tmp_path / str(number), WHOLE)
        (tmp_path / str(number) / MANIFEST).write_text(text)
        assert cached(tmp_path / str(number)) is None, text


def test_the_place_is_of_files_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = place(tmp_path, NAME, "1")
    assert first == place(tmp_path, NAME, "1")
    assert first != place(tmp_path, NAME, "2")
    assert {"torch", "onnxruntime", "sentence-transformers", "tokenizers"} <= set(export.versions())
    assert "none" not in export.versions().values()
    assert first != place(tmp_path, f"int8:{NAME}", "1")
    monkeypatch.setattr(export, "version", lambda package: "0")
    assert first != place(tmp_path, NAME, "1")


def test_what_nobody_loads_goes_after_a_month(tmp_path: Path) -> None:
    """Only of the same model, and only when a new one of it has been made."""
    old, used, other, new = (tmp_path / name for name in ("old", "used", "other", "new"))
    for directory, name in ((old, NAME), (used, NAME), (other, "path:other"), (new, NAME)):
        in_cache(directory, dataclasses.replace(WHOLE, model=name))
        long_ago = time.time() - export.UNUSED_SECONDS - 60
        os.utime(directory / MANIFEST, (long_ago, long_ago))
    export.used(used)
    export._remove_unused(NAME, new)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "other", "used"]


def test_int8_runs_with_onnx_or_not_at_all(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another runtime would make other vectors under the same name."""
    name = f"int8:path:{source}"
    assert choose_for(name, "auto", "cuda").runtime == "onnx"
    with pytest.raises(SettingsError, match=r"int8 runs with ONNX only; set model\.runtime to auto or onnx"):
        load_encoder(name, cache=tmp_path, runtime="torch")
    ends(monkeypatch, -9)
    with pytest.raises(ModelUnavailable, match=r"was killed by signal 9; write its name without int8:"):
        load_encoder(name, cache=tmp_path / "cache", progress=lambda line: None)


# Torch where there is no export


class ByTorch:
    """Stands for sentence-transformers."""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(model, "load_torch", lambda *_: ByTorch())
    monkeypatch.setattr(model, "choose", lambda runtime, device: choose(runtime, "cpu"))
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


def loaded(source: Path, cache: Path, **options: Any) -> tuple[object, list[str]]:
    """What is loaded, and the lines that tell of it."""
    lines: list[str] = []
    found = load_encoder(f"path:{source}", cache=cache, progress=lines.append, **options)
    return found, lines


def ends(monkeypatch: pytest.MonkeyPatch, code: int, says: str = "") -> list[object]:
    """The exporting child ends so; returns the list of its starts."""
    started: list[object] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        started.append(command)
        return subprocess.CompletedProcess(command, code, "", says)

    monkeypatch.setattr("connectors.encoder.export.subprocess.run", run)
    return started


def test_a_remembered_failure(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = ends(monkeypatch, 0)
    cache = tmp_path / "cache"
    directory = place(cache, f"path:{source}", model_identity(source))
    directory.mkdir(parents=True)
    dataclasses.replace(WHOLE, files={}, problem="it sings").write(directory)
    found, lines = loaded(source, cache)
    assert isinstance(found, ByTorch)
    assert lines == [f"model path:{source} runs with torch, not ONNX: it sings"]
    assert not started
    with pytest.raises(ModelUnavailable, match=r"it sings; set model\.runtime to auto or torch"):
        loaded(source, cache, runtime="onnx")


def test_a_killed_export_is_tried_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = ends(monkeypatch, -9)
    for _ in range(2):
        found, lines = loaded(source, tmp_path / "cache")
        assert isinstance(found, ByTorch)
        assert "was killed by signal 9" in lines[-1]
        assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]
    assert len(started) == 2


def test_a_model_that_nobody_can_load(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends(
        monkeypatch,
        export.MODEL_UNAVAILABLE,
        "warning\nmodel path:x cannot be loaded (in x): nothing there\n",
    )
    with pytest.raises(ModelUnavailable, match=r"^model path:x cannot be loaded"):
        loaded(source, tmp_path / "cache")


def test_a_cache_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found, lines = loaded(source, tmp_path / "file")
    assert isinstance(found, ByTorch)
    assert f"{tmp_path / 'file'}" in lines[-1]
    assert "Not a directory" in lines[-1]
    with pytest.raises(ExportFailed):
        exported("path:x", source, tmp_path / "file", lines.append)


def test_a_graph_that_is_none(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    whole = dataclasses.replace(WHOLE, tokenizer_json=tokenizer_json().read_text())
    in_cache(place(cache, f"path:{source}", model_identity(source)), whole)
    found, lines = loaded(source, cache)
    assert isinstance(found, ByTorch)
    assert "`upwell model export --force` makes it anew" in lines[-1]


def test_what_is_shown_is_what_a_worker_would_do(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch stands in for a model that does not export, but not for its int8 variant."""
    monkeypatch.setenv("UPWELL_CACHE", str(tmp_path))
    for name, runtime in ((f"path:{source}", "torch"), (f"int8:path:{source}", "onnx")):
        directory = place(tmp_path, name, model_identity(source))
        directory.mkdir(parents=True)
        dataclasses.replace(WHOLE, files={}, problem="it sings").write(directory)
        found = model_state(load(environment={"UPWELL_MODEL_NAME": name, "UPWELL_CACHE": str(tmp_path)}))
        assert (found.runtime, found.export is not None) == (runtime, True)


# Models of the hub


def hub_cache(root: Path) -> Path:
    """As huggingface_hub lays it out; returns the snapshot."""
    repository = root / "models--somebody--small"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    for directory in (repository / "refs", repository / "blobs", snapshot):
        directory.mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    (repository / "blobs" / "1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    return snapshot


def test_a_downloaded_hub_model_is_its_snapshot(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path / "hub")
    same = tmp_path / "same"
    same.mkdir()
    (same / "config.json").write_text("{}")
    (tmp_path / "upwell.toml").write_text("")

    def show(name: str) -> Any:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("UPWELL_")}
        own = {"UPWELL_MODEL_NAME": name, "HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "tests.without_torch", "model", "show", "--json"],
            cwd=tmp_path,
            env={**kept, **own},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    found = show("hub:somebody/small")
    assert found["source"] == str(snapshot)
    assert found["identity"] == show(f"path:{same}")["identity"]
    assert found["export"] is None
    other = show("hub:somebody/else")
    assert (other["source"], other["identity"], other["export_path"]) == (None, None, None)
