"""The models of generations, loaded as the settings say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from streams.ports import Encoder
from streams.settings import Settings, cache_directory

if TYPE_CHECKING:
    from connectors.encoder.batches import BatchingEncoder
    from connectors.encoder.calibration import Calibration
    from connectors.encoder.onnx import Manifest

log = structlog.get_logger()

Progress = Callable[[str], None]


def encoder_of(settings: Settings, model: str, progress: Progress | None = None) -> Encoder:
    """A generation's model; its first load on a machine exports it. `progress`, else the log, tells of that.

    Raises ModelUnavailable.
    """
    import connectors.encoder

    tell = progress or (lambda line: log.info("model", state=line))
    encoder: BatchingEncoder = connectors.encoder.load_encoder(
        model,
        threads=settings.worker.threads or None,
        cache=cache_directory(),
        runtime=settings.model.runtime,
        progress=tell,
    )
    if progress is None:
        log.info("model loaded", model=model, runtime=encoder.runtime)
    return encoder


@dataclass(frozen=True, slots=True)
class ModelState:
    """The spec's model on this machine. `source`, `identity` and `place` are None for a hub model that is not
    downloaded, `export` until the model is exported; an export with a `problem` says why torch is used. `calibration`:
    of a batch with the settings' threads, None until a process has loaded the export.
    """

    name: str
    runtime: str
    why: str
    source: Path | None
    identity: str | None
    place: Path | None
    export: Manifest | None
    calibration: Calibration | None


def model_state(settings: Settings) -> ModelState:
    """Loads, downloads and exports nothing. Raises ModelUnavailable."""
    from connectors.encoder.calibration import read
    from connectors.encoder.directory import model_directory, model_identity
    from connectors.encoder.export import cached, place
    from connectors.encoder.model import choose_for, falls_back, onnx_key

    name = settings.model.name
    choice = choose_for(name, settings.model.runtime)
    source = model_directory(name)
    identity = None if source is None else model_identity(source)
    where = None if identity is None else place(cache_directory(), name, identity)
    export = None if where is None else cached(where)
    runtime, why = choice.runtime, choice.why
    problem = "" if export is None else export.problem
    if runtime == "onnx" and problem and falls_back(name, settings.model.runtime):
        runtime, why = "torch", problem
    calibration = None if where is None else read(where).get(onnx_key(settings.worker.threads))
    return ModelState(name, runtime, why, source, identity, where, export, calibration)


def export_model(settings: Settings, progress: Progress, *, force: bool) -> tuple[Path, Manifest]:
    """Where the export of the spec's model is, and what is known of it; made now if there is none.

    Raises ModelUnavailable.
    """
    from connectors.encoder.export import ExportFailed, exported
    from connectors.encoder.model import source_of
    from schemas.errors import ModelUnavailable

    name = settings.model.name
    try:
        return exported(name, source_of(name), cache_directory(), progress, force=force)
    except ExportFailed as error:
        raise ModelUnavailable(f"model {name} was not exported: {error}") from error
