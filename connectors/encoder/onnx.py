"""ONNX Runtime as the runtime: an export of all modules of a model, and its tokenizer. No torch, no transformers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from connectors.encoder.batches import BATCH_TEXTS, BatchingEncoder
from schemas.names import ModelName

MANIFEST: Final = "manifest.json"
GRAPH: Final = "model.onnx"
#: Texts of so many tokens are measured, and no batch has more texts than of these fit into it, or BATCH_TEXTS.
SHORT_TOKENS: Final = 64
#: As torch.nn.functional.normalize: a shorter vector is not made longer.
LEAST_NORM: Final = 1e-12
ONLY_ERRORS: Final = 3


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of one export. With a `problem` there is no graph: the model runs with torch.

    `tokenizer_json` truncates and pads as sentence-transformers does. `parity`: the least cosine between vectors of
    the export and of sentence-transformers on the parity corpus. `files`: name -> bytes.
    """

    model: str
    identity: str
    dimension: int
    max_tokens: int
    prompt: str
    inputs: tuple[str, ...]
    tokenizer_json: str
    versions: dict[str, str]
    files: dict[str, int]
    parity: float | None = None
    problem: str | None = None

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Raises OSError, or ValueError if it is none of ours."""
        found = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        try:
            return cls(**{**found, "inputs": tuple(found["inputs"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{directory / MANIFEST} is no manifest of an export: {error}") from error

    def write(self, directory: Path) -> None:
        (directory / MANIFEST).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    def is_whole(self, directory: Path) -> bool:
        """Whether every file of it is there in its length."""
        try:
            return all((directory / name).stat().st_size == size for name, size in self.files.items())
        except FileNotFoundError:
            return False


class OnnxEncoder(BatchingEncoder):
    """An exported model. `threads`: of one encode call."""

    def __init__(self, name: str, directory: Path, manifest: Manifest, threads: int = 1) -> None:
        super().__init__(name, manifest.tokenizer_json, manifest.dimension)
        self.is_int8 = ModelName.parse(name).is_int8
        if self.is_int8:
            self._batch_texts = (
                1  # activations are scaled by what the batch has: a vector would depend on its company
            )
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._threads = threads
        self._use(Tokenizer.from_str(manifest.tokenizer_json), manifest, _session(directory / GRAPH, threads))

    def _use(self, tokenizer: Tokenizer, manifest: Manifest, session: Any) -> None:
        self._tokenizer, self._manifest, self._session = tokenizer, manifest, session
        self._padding: dict[str, Any] = tokenizer.padding or {}
        tokenizer.no_padding()

    @property
    def runtime(self) -> str:
        return "onnx"

    @property
    def max_tokens(self) -> int:
        return self._manifest.max_tokens

    @property
    def identity(self) -> str:
        """SHA-256 over the names and contents of the exported model's weights and configuration."""
        return self._manifest.identity

    @property
    def batch_tokens(self) -> int:
        """Padded tokens of one batch."""
        return self._batch_tokens

    @batch_tokens.setter
    def batch_tokens(self, tokens: int) -> None:
        self._batch_tokens, self._batch_texts = tokens, max(BATCH_TEXTS, tokens // SHORT_TOKENS)

    def call_seconds(self, tokens: int) -> float:
        """Of one call of the model with so many tokens. With one thread time of a core: other load counts little."""
        width = min(SHORT_TOKENS, self.max_tokens)
        shape = (max(1, tokens // width), width)
        feed = {
            name: np.full(shape, name != "token_type_ids", dtype=np.int64) for name in self._manifest.inputs
        }
        clock = time.thread_time if self._threads == 1 else time.perf_counter
        started = clock()
        self._session.run(None, feed)
        return clock() - started

    def _prepared(self, texts: Sequence[str]) -> tuple[Sequence[int], Sequence[Encoding]]:
        """Tokenised once: batches are made of the same tokens that the model is fed."""
        prompt = self._manifest.prompt
        encodings = self._tokenizer.encode_batch_fast([prompt + text for text in texts])
        return [len(each) for each in encodings], encodings

    def _embed(self, prepared: list[Encoding]) -> npt.NDArray[np.float32]:
        columns = {
            "input_ids": ([each.ids for each in prepared], self._padding.get("pad_id", 0)),
            "attention_mask": ([each.attention_mask for each in prepared], 0),
            "token_type_ids": ([each.type_ids for each in prepared], self._padding.get("pad_type_id", 0)),
        }
        feed = {name: self._padded(*columns[name]) for name in self._manifest.inputs}
        (made,) = self._session.run(None, feed)
        vectors: npt.NDArray[np.float32] = np.array(made, dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # NaN and infinity are found, and told of, by `encode`
            vectors /= np.maximum(norms, LEAST_NORM)
        return vectors

    def _padded(self, rows: Sequence[Sequence[int]], filler: int) -> npt.NDArray[np.int64]:
        """As the tokenizer pads: to the longest, a multiple or a fixed length, on either side."""
        width = max(map(len, rows))
        multiple = self._padding.get("pad_to_multiple_of") or 1
        width = max(-(-width // multiple) * multiple, self._padding.get("length") or 0)
        padded = np.full((len(rows), width), filler, dtype=np.int64)
        for line, row in zip(padded, rows, strict=True):
            if self._padding.get("direction") == "left":
                line[width - len(row) :] = row
            else:
                line[: len(row)] = row
        return padded


def _session(graph: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ONLY_ERRORS
    # Threads that wait for work must not take the cores of intake and Postgres.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Shapes differ from batch to batch: what would be planned for one is never used again, only kept.
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
