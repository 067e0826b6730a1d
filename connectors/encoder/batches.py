"""What both runtimes share: texts in small batches of like length, vectors checked and in the order of the texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from schemas.errors import DimensionMismatch, UnusableVector

#: Texts and padded tokens of one batch. On a CPU small batches win: bigger ones spill out of its caches.
BATCH_TEXTS: Final = 8
BATCH_TOKENS: Final = 512


class BatchingEncoder(ABC):
    """An `Encoder` whose runtime embeds one batch in `_embed`. Not thread-safe; runs off the event loop.

    `max_tokens` are text tokens: the model's limit less special tokens and default prompt.
    """

    def __init__(self, name: str, tokenizer_json: str, dimension: int) -> None:
        self._name = name
        self._dimension = dimension
        self._plain = Tokenizer.from_str(tokenizer_json)
        self._plain.no_truncation()
        self._plain.no_padding()
        self._batch_texts, self._batch_tokens = BATCH_TEXTS, BATCH_TOKENS

    @property
    def name(self) -> str:
        return self._name

    @property
    def dimension(self) -> int:
        return self._dimension

    @property
    @abstractmethod
    def max_tokens(self) -> int: ...

    @property
    @abstractmethod
    def identity(self) -> str:
        """SHA-256 over the names and contents of the model's weights and configuration."""

    @property
    @abstractmethod
    def runtime(self) -> str:
        """`onnx` or `torch`."""

    @property
    def tokenizer_json(self) -> str:
        """The model's tokenizer, without truncation and padding."""
        text: str = self._plain.to_str()
        return text

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Normalised float32 vectors, shape (len(texts), dimension), in the order of `texts`.

        Raises UnusableVector with the text's number as `index` when a vector is NaN, infinite or zero.
        """
        vectors = np.zeros((len(texts), self._dimension), dtype=np.float32)
        counts, prepared = self._prepared(texts)
        for batch in self._batches(counts):
            made = np.asarray(self._embed([prepared[i] for i in batch]), dtype=np.float32)
            if made.shape != (len(batch), self._dimension):
                raise DimensionMismatch(
                    f"model {self._name} says {self._dimension} dimensions, but its vectors have {made.shape[-1]}"
                )
            vectors[batch] = made
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        unusable = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
        if unusable.size:
            error = UnusableVector(
                f"model {self._name} makes no usable vector of text {unusable[0]} of {len(texts)}"
            )
            error.index = int(unusable[0])  # type: ignore[attr-defined]
            raise error
        return vectors

    def _prepared(self, texts: Sequence[str]) -> tuple[Sequence[int], Sequence[Any]]:
        """Tokens of each text, and what `_embed` takes of it: the text, unless the runtime says otherwise."""
        return [len(encoding) for encoding in self._plain.encode_batch_fast(list(texts))], texts

    @abstractmethod
    def _embed(self, prepared: list[Any]) -> npt.NDArray[np.float32]:
        """Normalised vectors of one batch; a zero, NaN or infinite one stays what it is."""

    def _batches(self, counts: Sequence[int]) -> Iterator[list[int]]:
        """Numbers of texts, short ones first, as many at once as the budget of padded tokens allows."""
        batch: list[int] = []
        for number in sorted(range(len(counts)), key=counts.__getitem__):
            full = len(batch) == self._batch_texts or (len(batch) + 1) * counts[number] > self._batch_tokens
            if batch and full:
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch
