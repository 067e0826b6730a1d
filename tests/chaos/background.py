"""What goes on in a thread of its own while everything else happens."""

from __future__ import annotations

import threading
from typing import Self


class Background:
    """`_run` runs from the beginning of a `with` to its end, and heeds `_stop`."""

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        raise NotImplementedError
