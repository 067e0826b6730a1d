"""sentence-transformers itself as the runtime. torch is imported by `load_torch`, not by this module."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from connectors.encoder.batches import BATCH_TEXTS, BATCH_TOKENS, BatchingEncoder
from connectors.encoder.directory import model_directory, model_identity, quiet
from schemas.errors import ModelUnavailable
from schemas.names import ModelName

#: An accelerator wants larger batches.
ACCELERATOR_FACTOR: Final = 32


def load_torch(
    name: str, threads: int | None = None, device: str | None = None
) -> SentenceTransformersEncoder:
    """A model with sentence-transformers; a hub model that is not in its cache is downloaded.

    `threads`: torch's threads in this process. `device`: torch's name of it; None takes the best there is.
    Raises ModelUnavailable saying what was looked for.
    """
    which = ModelName.parse(name)
    local = None if which.scheme == "hub" else model_directory(name)
    quiet(offline=local is not None)
    try:
        model = _load(str(local or which.place), local is not None, threads, device)
    except Exception as error:  # whatever transformers, torch or the network raise: the model is not there
        looked_for = f"in {local}" if local else f"{which.place} on the Hugging Face hub or in its cache"
        reason = str(error).strip().split("\n", 1)[0][:200]
        raise ModelUnavailable(f"model {name} cannot be loaded ({looked_for}): {reason}") from error
    return SentenceTransformersEncoder(name, model, local or model_directory(name))


class SentenceTransformersEncoder(BatchingEncoder):
    """A model loaded by sentence-transformers."""

    def __init__(self, name: str, model: Any, directory: Path | None = None) -> None:
        super().__init__(name, model.tokenizer.backend_tokenizer.to_str(), _dimension(name, model))
        self._model = model
        self._directory = directory
        self._max_tokens = self._limit()
        factor = 1 if str(model.device) == "cpu" else ACCELERATOR_FACTOR
        self._batch_texts, self._batch_tokens = BATCH_TEXTS * factor, BATCH_TOKENS * factor

    @property
    def runtime(self) -> str:
        return "torch"

    @property
    def max_tokens(self) -> int:
        """Text tokens that fit: sentence-transformers' `max_seq_length` less special tokens and default prompt."""
        return self._max_tokens

    @property
    def prompt(self) -> str:
        """What the model puts before every text; mostly nothing."""
        return (self._model.prompts or {}).get(self._model.default_prompt_name) or ""

    @cached_property
    def identity(self) -> str:
        """SHA-256 over the names and contents of the model's weights and configuration."""
        if self._directory is None:
            raise ModelUnavailable(f"model {self._name}: its files were not found, so it has no identity")
        return model_identity(self._directory)

    def _embed(self, prepared: list[str]) -> npt.NDArray[np.float32]:
        made = self._model.encode(
            prepared,
            batch_size=len(prepared),
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(made, dtype=np.float32)

    def _limit(self) -> int:
        length = self._model.max_seq_length
        if not length:
            raise ModelUnavailable(
                f"model {self._name} does not say how many tokens it reads (max_seq_length)"
            )
        special = self._model.tokenizer.num_special_tokens_to_add()
        prompt_tokens = len(self._plain.encode(self.prompt, add_special_tokens=False)) if self.prompt else 0
        return int(length) - int(special) - prompt_tokens


def _load(source: str, local: bool, threads: int | None, device: str | None) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    model = SentenceTransformer(source, device=device, local_files_only=local)
    model.eval()
    return model


def _dimension(name: str, model: Any) -> int:
    say = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    dimension = say()
    if not dimension:
        raise ModelUnavailable(f"model {name} does not say how many dimensions its vectors have")
    return int(dimension)
