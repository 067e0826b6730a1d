"""ONNX Runtime as the runtime: an export of all modules of a model, and its tokenizer. No torch, no transformers."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from connectors.encoder.batches import BatchingEncoder

MANIFEST: Final = "manifest.json"
GRAPH: Final = "model.onnx"
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
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._tokenizer = Tokenizer.from_str(manifest.tokenizer_json)
        self._manifest = manifest
        self._session = _session(directory / GRAPH, threads)

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

    def _embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        prompt = self._manifest.prompt
        encodings = self._tokenizer.encode_batch([prompt + text for text in texts] if prompt else texts)
        columns = {
            "input_ids": [each.ids for each in encodings],
            "attention_mask": [each.attention_mask for each in encodings],
            "token_type_ids": [each.type_ids for each in encodings],
        }
        feed = {name: np.array(columns[name], dtype=np.int64) for name in self._manifest.inputs}
        (made,) = self._session.run(None, feed)
        vectors: npt.NDArray[np.float32] = np.array(made, dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # NaN and infinity are found, and told of, by `encode`
            vectors /= np.maximum(norms, LEAST_NORM)
        return vectors


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
