"""Where a model's files are, and what they are. Imports neither torch nor, but for `hub:`, anything of Hugging Face."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
from pathlib import Path
from typing import Final

from schemas.errors import ModelUnavailable
from schemas.names import ModelName

#: Files that say what a model computes; not its documentation, nor exports of it for other runtimes.
MODEL_SUFFIXES: Final = frozenset({".json", ".safetensors", ".bin", ".pt", ".txt", ".model", ".py", ".npz"})
OTHER_RUNTIMES: Final = frozenset({"onnx", "openvino"})


def model_directory(name: str) -> Path | None:
    """Of `path:DIR`, `package:MODULE` (with a `MODEL_DIR`) or `hub:NAME`; None if a hub model is not in its cache.

    The int8 variant has the same files. Asks no network. Raises SettingsError for another scheme, ModelUnavailable
    saying what was looked for.
    """
    which = ModelName.parse(name)
    return _snapshot(which.place) if which.scheme == "hub" else _local(name, which.scheme, which.place)


def model_identity(directory: Path) -> str:
    """SHA-256 over the names and contents of a model's weights and configuration."""
    digest = hashlib.sha256()
    for path in _model_files(directory):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(path.relative_to(directory).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()


def quiet(*, offline: bool) -> None:
    """Before anything of Hugging Face is imported: it reads these once."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    for library in ("sentence_transformers", "transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)


def _local(name: str, scheme: str, rest: str) -> Path:
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


def _snapshot(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for repository in (name, f"sentence-transformers/{name}"):
        try:
            return Path(snapshot_download(repository, local_files_only=True))
        except (HfHubHTTPError, LocalEntryNotFoundError, ValueError):
            continue
    return None


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
