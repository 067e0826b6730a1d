"""Exports of models in a cache: each made once, by one process, in a child of its own, and moved into place whole.

    CACHE/models/KEY/manifest.json, model.onnx, model.onnx.data      or a manifest alone that says why there is none
    CACHE/models/KEY.lock    held while it is made; others wait
    CACHE/models/KEY.part    being made; what a killed export left is removed by the next one

KEY is a hash of the model's files and of the versions that export and run it: another torch or ONNX Runtime exports
anew, and checks parity anew. What such a change leaves behind goes when an export of the same model is made and nobody
has loaded the old one for a month.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from connectors.encoder.directory import model_identity
from connectors.encoder.onnx import MANIFEST, Manifest
from schemas.errors import ModelUnavailable
from schemas.names import ModelName

Progress = Callable[[str], None]

#: Of what is written here; a greater one exports anew.
FORMAT: Final = 2
#: An older environment on the same machine may still start with its own export.
UNUSED_SECONDS: Final = 30 * 86_400.0
PACKAGES: Final = (
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "onnx",
    "onnxscript",
    "onnxruntime",
)
#: Exit codes of the child besides 0.
MODEL_UNAVAILABLE: Final = 3


class ExportFailed(Exception):
    """No export was made, and a later attempt may succeed: the cache cannot be written, the child was killed."""


def versions() -> dict[str, str]:
    """Of everything that an export depends on."""
    found = {"format": str(FORMAT)}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def place(cache: Path, name: str, identity: str) -> Path:
    """Where the export of model `name` with files of `identity` is, made or not; the int8 variant has its own."""
    variant = ["int8"] if ModelName.parse(name).is_int8 else []
    facts = json.dumps([identity, versions(), *variant], sort_keys=True)
    return cache / "models" / hashlib.sha256(facts.encode()).hexdigest()[:32]


def cached(directory: Path) -> Manifest | None:
    """The manifest of a whole export, or of a remembered failure; None if it is to be made."""
    try:
        found = Manifest.read(directory)
    except (OSError, ValueError):
        return None
    return found if found.is_whole(directory) else None


def exported(
    name: str, source: Path, cache: Path, progress: Progress, *, force: bool = False
) -> tuple[Path, Manifest]:
    """The export of model `name` with files in `source`, made now if there is none; `force` makes it anew.

    Raises ExportFailed, ModelUnavailable.
    """
    identity = model_identity(source)
    directory = place(cache, name, identity)
    found = None if force else cached(directory)
    if found is None:
        try:
            found = _made(name, (source, identity, directory), progress, force)
        except OSError as error:
            raise ExportFailed(f"{error.filename or directory}: {error.strerror or error}") from error
    return directory, found


def _made(name: str, where: tuple[Path, str, Path], progress: Progress, force: bool) -> Manifest:
    """`where`: the model's files, their identity, the export's place."""
    source, identity, directory = where
    with _alone(directory, progress) as lock:
        found = None if force else cached(directory)
        if found is not None:
            return found  # another process made it meanwhile
        progress(f"model {name} is exported to ONNX, once on this machine")
        part = directory.with_name(f"{directory.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            _export(name, source, identity, part, lock)
            _flush(part)
            shutil.rmtree(directory, ignore_errors=True)
            part.rename(directory)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        _remove_unused(name, directory)
        found = cached(directory)
        if found is None:
            raise ExportFailed(f"{directory} is not whole")
        progress(f"model {name}: {said(found)}")
        return found


def used(directory: Path) -> None:
    """Note that an export is loaded."""
    with contextlib.suppress(OSError):
        os.utime(directory / MANIFEST)


def _remove_unused(name: str, kept: Path) -> None:
    """Other exports of the model that nobody has loaded for long. A process that has one open keeps what it has."""
    for directory in kept.parent.iterdir():
        with contextlib.suppress(OSError, ValueError):
            if directory == kept or Manifest.read(directory).model != name:
                continue
            if time.time() - (directory / MANIFEST).stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(directory)


def said(manifest: Manifest) -> str:
    """One line for a person."""
    if manifest.problem is not None:
        return f"no ONNX: {manifest.problem}"
    size = sum(manifest.files.values()) / 1e6
    return f"ONNX, {size:.0f} MB, cosine with sentence-transformers at least {manifest.parity:.7f}"


@contextlib.contextmanager
def _alone(directory: Path, progress: Progress) -> Iterator[int]:
    """Hold the export's lock; its descriptor goes to the child, so that the lock lasts as long as either."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(
        directory.with_name(f"{directory.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
    )
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process exports the model: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def _export(name: str, source: Path, identity: str, part: Path, lock: int) -> None:
    """In a child, which brings torch along and ends with it."""
    command = [sys.executable, "-m", "connectors.encoder.exporter", name, str(source), identity, str(part)]
    done = subprocess.run(
        [*command, str(os.getpid())],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        pass_fds=(lock,),
        check=False,
    )
    last = (done.stderr.strip().splitlines() or [""])[-1][:300]
    if done.returncode == MODEL_UNAVAILABLE:
        raise ModelUnavailable(last)
    if done.returncode:
        how = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"ended: {last}"
        raise ExportFailed(f"the export of model {name} {how}")


def _flush(part: Path) -> None:
    """To the disk before the name: after a power cut a name without content would look whole."""
    for path in [*part.iterdir(), part]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
