"""A worker with deterministic, optionally slow, fake models: everything else is real. Starts without torch.

A model `path:fake-256` has 256 dimensions, `path:missing` cannot be loaded, every other has 384.
FAKE_CLOCK_SECONDS sets this process's clock ahead. FAKE_SECONDS_PER_TEXT makes it slow; FAKE_HOLD names a file: while
it exists, encoding waits. FAKE_HOLD_LOAD the same for the loading of a `path:` model. A text that says "hang the model"
or "kill the worker" does.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.errors import ModelUnavailable
from streams import logs
from streams.app import run_worker
from streams.cli.context import one_clear_line
from streams.cli.worker import supervise
from streams.fit import fitted
from streams.settings import load
from tests.fakes.encoder import FakeEncoder
from tests.fixtures.model import tokenizer_json


class SlowEncoder(FakeEncoder):
    """FakeEncoder that takes its time in real seconds, and counts tokens as the real model does."""

    @property
    def tokenizer_json(self) -> str:
        return tokenizer_json().read_text()

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        time.sleep(float(os.environ.get("FAKE_SECONDS_PER_TEXT", "0")) * len(texts))
        hold = os.environ.get("FAKE_HOLD")
        while hold and Path(hold).exists():
            time.sleep(0.01)
        if any("hang the model" in text for text in texts):
            threading.Event().wait()
        if any("kill the worker" in text for text in texts):
            os.kill(os.getpid(), signal.SIGKILL)
        vectors = super().encode(texts)
        for row, text in enumerate(texts):
            if text.startswith("canary of upwell"):  # texts that are nearly the same are near each other
                vectors[row] = np.eye(self.dimension, dtype=np.float32)[0] + 0.1 * vectors[row]
                vectors[row] /= np.linalg.norm(vectors[row])
        return vectors


def load_fake(name: str, threads: int | None = None) -> SlowEncoder:
    """As `load_encoder`."""
    if name == "path:missing":
        raise ModelUnavailable(f"model {name} cannot be loaded (in missing): nothing there")
    hold = os.environ.get("FAKE_HOLD_LOAD") if name.startswith("path:") else None
    while hold and Path(hold).exists():
        time.sleep(0.01)
    dimension = int(name.rpartition("-")[2]) if name.startswith("path:fake-") else 384
    return SlowEncoder(dimension=dimension, max_tokens=254, name=name)


def set_clock_ahead(seconds: float) -> None:
    """What of this process asks for the time is told a wrong one."""
    right = time.time

    class Ahead(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Ahead:
            return cls.fromtimestamp(time.time(), tz)

    time.time = lambda: right() + seconds
    datetime.datetime = Ahead  # type: ignore[misc]


if "FAKE_CLOCK_SECONDS" in os.environ:
    set_clock_ahead(float(os.environ["FAKE_CLOCK_SECONDS"]))


def main() -> None:
    """As `upwell worker`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--slot")
    parser.add_argument("--processes", type=int, default=0)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    settings = load()
    settings = settings.model_copy(update={"worker": settings.worker.model_copy(update=given)})
    settings = fitted(settings)
    if settings.worker.processes:
        supervise(settings, [sys.executable, "-m", "tests.fake_worker"])
    else:
        run_worker(settings, load_encoder=load_fake)


if __name__ == "__main__":
    with one_clear_line():
        logs.set_up()
        main()
