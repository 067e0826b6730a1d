"""sentence-transformers models behind the `Encoder` port. torch is imported by `load_encoder`, not by this module."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from schemas.errors import DimensionMismatch, ModelUnavailable, SettingsError, UnusableVector

#: Texts and padded tokens of one batch. On a CPU small batches win: bigger ones spill out of its caches.
BATCH_TEXTS: Final = 8
BATCH_TOKENS: Final = 512
#: An accelerator wants larger ones.
ACCELERATOR_FACTOR: Final = 32
#: Files that say what a model computes; not its documentation, nor exports of it for other runtimes.
MODEL_SUFFIXES: Final = frozenset({".json", ".safetensors", ".bin", ".pt", ".txt", ".model", ".py", ".npz"})
OTHER_RUNTIMES: Final = frozenset({"onnx", "openvino"})


def load_encoder(
    name: str, threads: int | None = None, device: str | None = None
) -> SentenceTransformersEncoder:
    """Load `path:DIR`, `package:MODULE` (with a `MODEL_DIR`) or `hub:NAME`; the first two without any network.

    `threads`: torch's threads in this process. `device`: torch's name of it; None takes the best there is.
    Raises ModelUnavailable saying what was looked for.
    """
    scheme, _, rest = name.partition(":")
    if scheme not in {"path", "package", "hub"} or not rest:
        raise SettingsError(f"model {name!r}: write path:DIR, package:MODULE or hub:NAME")
    local = None if scheme == "hub" else _directory(name, scheme, rest)
    _quiet(offline=local is not None)
    try:
        model = _load(str(local or rest), local is not None, threads, device)
    except Exception as error:  # whatever transformers, torch or the network raise: the model is not there
        looked_for = f"in {local}" if local else f"{rest} on the Hugging Face hub or in its cache"
        reason = str(error).strip().split("\n", 1)[0][:200]
        raise ModelUnavailable(f"model {name} cannot be loaded ({looked_for}): {reason}") from error
    return SentenceTransformersEncoder(name, model, local or _hub_directory(rest))


class SentenceTransformersEncoder:
    """A loaded model. Not thread-safe; runs off the event loop."""

    def __init__(self, name: str, model: Any, directory: Path | None = None) -> None:
        self._name = name
        self._model = model
        self._directory = directory
        self._tokenizer = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._dimension = _dimension(name, model)
        self._max_tokens = self._limit()
        factor = 1 if str(model.device) == "cpu" else ACCELERATOR_FACTOR
        self._batch_texts, self._batch_tokens = BATCH_TEXTS * factor, BATCH_TOKENS * factor

    @property
    def name(self) -> str:
        return self._name

    @property
    def dimension(self) -> int:
        return self._dimension

    @property
    def max_tokens(self) -> int:
        """Text tokens that fit: sentence-transformers' `max_seq_length` less special tokens and default prompt."""
        return self._max_tokens

    @property
    def tokenizer_json(self) -> str:
        """The model's tokenizer, without truncation and padding."""
        text: str = self._tokenizer.to_str()
        return text

    @cached_property
    def identity(self) -> str:
        """SHA-256 over the names and contents of the model's weights and configuration."""
        if self._directory is None:
            raise ModelUnavailable(f"model {self._name}: its files were not found, so it has no identity")
        digest = hashlib.sha256()
        for path in _model_files(self._directory):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            digest.update(path.relative_to(self._directory).as_posix().encode() + b"\0" + content)
        return digest.hexdigest()

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Normalised float32 vectors, shape (len(texts), dimension), in the order of `texts`.

        Raises UnusableVector with the text's number as `index` when a vector is NaN, infinite or zero.
        """
        vectors = np.zeros((len(texts), self._dimension), dtype=np.float32)
        for batch in self._batches(texts):
            vectors[batch] = self._encode([texts[i] for i in batch])
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        unusable = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
        if unusable.size:
            error = UnusableVector(
                f"model {self._name} makes no usable vector of text {unusable[0]} of {len(texts)}"
            )
            error.index = int(unusable[0])  # type: ignore[attr-defined]
            raise error
        return vectors

    def _encode(self, texts: list[str]) -> npt.NDArray[np.float32]:
        made = self._model.encode(
            texts,
            batch_size=len(texts),
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        vectors = np.asarray(made, dtype=np.float32)
        if vectors.shape != (len(texts), self._dimension):
            raise DimensionMismatch(
                f"model {self._name} says {self._dimension} dimensions, but its vectors have {vectors.shape[-1]}"
            )
        return vectors

    def _batches(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Numbers of texts, short ones first, as many at once as the budget of padded tokens allows."""
        counts = [len(encoding) for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        batch: list[int] = []
        for number in sorted(range(len(texts)), key=counts.__getitem__):
            full = len(batch) == self._batch_texts or (len(batch) + 1) * counts[number] > self._batch_tokens
            if batch and full:
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    def _limit(self) -> int:
        length = self._model.max_seq_length
        if not length:
            raise ModelUnavailable(
                f"model {self._name} does not say how many tokens it reads (max_seq_length)"
            )
        special = self._model.tokenizer.num_special_tokens_to_add()
        prompt = (self._model.prompts or {}).get(self._model.default_prompt_name, "")
        prompt_tokens = len(self._tokenizer.encode(prompt, add_special_tokens=False)) if prompt else 0
        return int(length) - int(special) - prompt_tokens


def _directory(name: str, scheme: str, rest: str) -> Path:
    if scheme == "path":
        directory = Path(rest).expanduser()
    else:
        try:
            directory = Path(importlib.import_module(rest).MODEL_DIR)
        except ImportError as error:
            raise ModelUnavailable(f"model {name}: no Python package {rest} is installed") from error
        except AttributeError as error:
            raise ModelUnavailable(f"model {name}: package {rest} has no MODEL_DIR") from error
    if not any((directory / file).is_file() for file in ("modules.json", "config.json")):
        raise ModelUnavailable(f"model {name}: neither modules.json nor config.json in {directory}")
    return directory


def _hub_directory(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for repository in (name, f"sentence-transformers/{name}"):
        try:
            return Path(snapshot_download(repository, local_files_only=True))
        except (HfHubHTTPError, LocalEntryNotFoundError, ValueError):
            continue
    return None


def _quiet(*, offline: bool) -> None:
    """Before anything of Hugging Face is imported: it reads these once."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    for library in ("sentence_transformers", "transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)


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


def _model_files(directory: Path) -> list[Path]:
    return sorted(
        path
        for path in directory.rglob("*")
        if path.is_file()
        and path.suffix in MODEL_SUFFIXES
        and not any(
            part in OTHER_RUNTIMES or part.startswith(".") for part in path.relative_to(directory).parts
        )
    )
