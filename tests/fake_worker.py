"""A worker with a deterministic, optionally slow, fake model: everything else is real. Starts without torch.

FAKE_SECONDS_PER_TEXT makes it slow; FAKE_HOLD names a file: while it exists, encoding waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streams import logs
from streams.app import run_worker
from streams.cli.context import one_clear_line
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
        return super().encode(texts)


if __name__ == "__main__":
    with one_clear_line():
        logs.set_up()
        run_worker(load(), load_encoder=lambda: SlowEncoder(dimension=384, max_tokens=254))
