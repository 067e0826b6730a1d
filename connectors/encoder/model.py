"""A model by its name, with the runtime that suits the machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

from connectors.encoder.batches import BatchingEncoder
from connectors.encoder.calibration import calibrated, key_of
from connectors.encoder.directory import model_directory
from connectors.encoder.export import ExportFailed, exported, used
from connectors.encoder.onnx import OnnxEncoder
from connectors.encoder.torch import load_torch
from schemas.errors import ModelUnavailable, SettingsError
from schemas.names import ModelName

Runtime = Literal["auto", "onnx", "torch"]
Progress = Callable[[str], None]

_LOG: Final = logging.getLogger("upwell.model")
#: Device files of what torch would use: CUDA, ROCm, CUDA in WSL.
DEVICES: Final = ("nvidia[0-9]*", "kfd", "dxg")


@dataclass(frozen=True, slots=True)
class Choice:
    """A runtime, and why."""

    runtime: Literal["onnx", "torch"]
    why: str


def choose(runtime: Runtime, device: str | None = None, devices: Path = Path("/dev")) -> Choice:
    """What `runtime` means on this machine; decided without torch, whose import takes seconds."""
    if runtime != "auto":
        return Choice(runtime, f"model.runtime is {runtime}")
    if device is not None:
        return Choice("onnx" if device == "cpu" else "torch", f"device {device}")
    found = next((path for pattern in DEVICES for path in sorted(devices.glob(pattern))), None)
    if found is None:
        return Choice("onnx", "no accelerator")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return Choice("onnx", f"{found}, but CUDA_VISIBLE_DEVICES hides it")
    if _torch_version().endswith("+cpu"):
        return Choice("onnx", f"{found}, but torch is built for CPUs only")
    return Choice("torch", f"an accelerator, {found}")


def choose_for(name: str, runtime: Runtime, device: str | None = None) -> Choice:
    """What `runtime` means for model `name` on this machine. Raises SettingsError for the int8 variant with torch."""
    if not ModelName.parse(name).is_int8:
        return choose(runtime, device)
    if runtime == "torch":
        raise SettingsError(f"model {name}: int8 runs with ONNX only; set model.runtime to auto or onnx")
    return Choice("onnx", "int8 runs with ONNX only")


def load_encoder(
    name: str,
    threads: int | None = None,
    device: str | None = None,
    *,
    cache: Path,
    runtime: Runtime = "auto",
    progress: Progress = _LOG.warning,
) -> BatchingEncoder:
    """Load `path:DIR`, `package:MODULE` (with a `MODEL_DIR`) or `hub:NAME`; the first two without any network. `int8:`
    before it is for the variant with int8 weights, which runs with ONNX only.

    `threads`: of one encode call; None is one with ONNX Runtime and torch's own choice with torch. `device`: torch's
    name of it; None takes the best there is. `cache`: below it exports lie; the first load of a model makes one
    (20 to 30 seconds), or waits for the process that does. `progress` gets lines about that, and the line that torch
    is used because a model does not export. Raises ModelUnavailable saying what was looked for, or, with
    `runtime="onnx"`, why there is no export.
    """
    if choose_for(name, runtime, device).runtime == "torch":
        return load_torch(name, threads, device)
    try:
        return _load_onnx(name, threads, cache, progress)
    except ExportFailed as error:
        if not falls_back(name, runtime):
            raise ModelUnavailable(f"model {name} cannot run with ONNX: {error}; {_instead(name)}") from error
        progress(f"model {name} runs with torch, not ONNX: {error}")
        return load_torch(name, threads, device)


def falls_back(name: str, runtime: Runtime) -> bool:
    """Whether torch is used where a model does not export; not for the int8 variant, whose vectors are others."""
    return runtime == "auto" and not ModelName.parse(name).is_int8


def _instead(name: str) -> str:
    variant = ModelName.parse(name).is_int8
    return "write its name without int8:" if variant else "set model.runtime to auto or torch"


def source_of(name: str) -> Path:
    """The model's directory; a hub model that is not in its cache is downloaded first."""
    source = model_directory(name)
    if source is None:
        load_torch(name, device="cpu")  # only sentence-transformers knows which files it needs
        source = model_directory(name)
    if source is None:
        raise ModelUnavailable(f"model {name}: it was loaded, but its files were not found")
    return source


def _load_onnx(name: str, threads: int | None, cache: Path, progress: Progress) -> OnnxEncoder:
    """Raises ExportFailed, ModelUnavailable."""
    directory, manifest = exported(name, source_of(name), cache, progress)
    used(directory)
    if manifest.problem is not None:
        raise ExportFailed(manifest.problem)
    try:
        encoder = OnnxEncoder(name, directory, manifest, threads or 1)
        if not encoder.is_int8:
            encoder.batch_tokens = calibrated(directory, onnx_key(threads), encoder.call_seconds).tokens
        return encoder
    except Exception as error:  # whatever ONNX Runtime raises: the files are not what was checked
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ExportFailed(f"{directory}: {reason}; `upwell model export --force` makes it anew") from error


def onnx_key(threads: int | None) -> str:
    """Under which a calibration of the ONNX runtime is kept."""
    return key_of("onnxruntime", version("onnxruntime"), threads or 1)


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""
