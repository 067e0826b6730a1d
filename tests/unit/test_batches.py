"""What both runtimes of an encoder share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from connectors.encoder.batches import BatchingEncoder
from schemas.errors import DimensionMismatch, UnusableVector

WORDS = {"tea": 0, "milk": 1, "odd": 2}


class Encoder(BatchingEncoder):
    """A vector of its own for each word; `odd` is what the test says."""

    max_tokens, identity, runtime = 8, "", "onnx"

    def __init__(self, odd: list[float]) -> None:
        tokenizer = Tokenizer(WordLevel(WORDS, unk_token="odd"))
        tokenizer.pre_tokenizer = Whitespace()
        super().__init__("fake", tokenizer.to_str(), 2)
        self._batch_texts = 2
        self._vectors = {"tea": [1.0, 0.0], "milk": [0.0, 1.0], "odd": odd}

    def _embed(self, prepared: list[str]) -> npt.NDArray[np.float32]:
        return np.array([self._vectors[text.split()[0]] for text in prepared], dtype=np.float32)


@pytest.mark.parametrize("odd", [[float("nan"), 1.0], [float("inf"), 0.0], [0.0, 0.0]])
def test_vectors_that_say_nothing_are_refused(odd: list[float]) -> None:
    with pytest.raises(UnusableVector, match="text 2 of 3"):
        Encoder(odd).encode(["milk", "tea", "odd"])


def test_vectors_are_in_the_order_of_the_texts() -> None:
    """They are encoded in that of their lengths."""
    encoder = Encoder([0.6, 0.8])
    texts = ["tea tea tea tea", "milk", "odd odd", "tea"]
    expected = np.array([[1, 0], [0, 1], [0.6, 0.8], [1, 0]])
    assert np.allclose(encoder.encode(texts), expected)


def test_another_dimension_is_refused() -> None:
    with pytest.raises(DimensionMismatch, match="says 2 dimensions, but its vectors have 3"):
        Encoder([1.0, 0.0, 0.0]).encode(["odd"])
