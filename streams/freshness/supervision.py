"""When a FAILED connector is restarted: Connect never does it itself (DESIGN 6). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LONGEST_SECONDS: Final = 300.0
#: A connector that ran this long is restarted without having to wait longer than the first time.
STEADY_SECONDS: Final = 60.0


@dataclass(slots=True)
class Restarts:
    """Restarts of one connector, with backoff. `first_seconds` 0: never. Times are the monitor's own seconds."""

    first_seconds: float
    count: int = 0
    _state: str = ""
    _since: float = 0.0
    _pause: float = 0.0
    _asked: float | None = None

    def see(self, state: str, now: float) -> float:
        """Take in the state that Connect gives; returns for how many seconds it has been so."""
        if state != self._state:
            self._state, self._since = state, now
        elif state == "RUNNING" and now - self._since > STEADY_SECONDS:
            self._pause = 0.0
        return now - self._since

    def due(self, now: float) -> bool:
        """Whether to restart now; asking counts as having done it. The pause doubles each time."""
        if not self.first_seconds or "FAILED" not in self._state:
            return False
        pause = self._pause or self.first_seconds
        since = self._since if self._asked is None else max(self._since, self._asked)
        if now - since < pause:
            return False
        self._asked, self._pause, self.count = now, min(2 * pause, LONGEST_SECONDS), self.count + 1
        return True
