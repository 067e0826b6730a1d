"""An encoder without a model: deterministic vectors, and the misbehaviour that a test asks for."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from schemas.errors import UnusableVector


class FakeEncoder:
    """Equal texts have equal vectors, different ones different.

    `delay_seconds` passes per text through `sleep`. A text that contains `poison` has no usable vector. After
    `hold()` calls of `encode` block until `release()`; `waiting` is set while one does. `encoded` lists the texts.
    """

    def __init__(
        self,
        dimension: int = 8,
        *,
        name: str = "fake:encoder",
        max_tokens: int = 126,
        delay_seconds: float = 0.0,
        poison: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = name
        self.dimension = dimension
        self.max_tokens = max_tokens
        self.identity = hashlib.sha256(f"{name}:{dimension}".encode()).hexdigest()
        self.delay_seconds = delay_seconds
        self.poison = poison
        self.encoded: list[str] = []
        self.calls = 0
        self.waiting = threading.Event()
        self._sleep = sleep
        self._go = threading.Event()
        self._go.set()

    @property
    def count(self) -> int:
        """How many texts were encoded."""
        return len(self.encoded)

    def hold(self) -> None:
        self._go.clear()

    def release(self) -> None:
        self._go.set()

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.calls += 1
        self._wait()
        if self.delay_seconds:
            self._sleep(self.delay_seconds * len(texts))
        for index, text in enumerate(texts):
            if self.poison is not None and self.poison in text:
                error = UnusableVector(
                    f"model {self.name} makes no usable vector of text {index} of {len(texts)}"
                )
                error.index = index  # type: ignore[attr-defined]
                raise error
        self.encoded.extend(texts)
        vectors = [self.vector(text) for text in texts]
        return np.array(vectors, dtype=np.float32).reshape(len(texts), self.dimension)

    def vector(self, text: str) -> npt.NDArray[np.float32]:
        """What `encode` makes of one text."""
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        drawn = np.random.default_rng(seed).standard_normal(self.dimension)
        return (drawn / np.linalg.norm(drawn)).astype(np.float32)

    def _wait(self) -> None:
        if not self._go.is_set():
            self.waiting.set()
            self._go.wait()
            self.waiting.clear()
