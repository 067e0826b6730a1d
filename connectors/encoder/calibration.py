"""How many padded tokens a batch should have here: measured once, kept beside the export.

    CACHE/models/KEY/calibration.json    by runtime, threads, processor and version of the runtime
    CACHE/models/KEY/calibration.lock    held while it is measured; others wait for it, some seconds

Large batches spill out of the processor's caches, small ones leave units idle; where it turns depends on the machine.
Other load must not decide it: candidates take turns, each is compared with the default of the same round, and the
default stays unless the median says that another is clearly better. A machine too busy for enough rounds at one load
does the others at the next ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from connectors.encoder.batches import BATCH_TOKENS

CALIBRATION: Final = "calibration.json"
CANDIDATES: Final = (128, 256, BATCH_TOKENS, 1024)
#: By how much another must be better than the default.
LEAST_GAIN: Final = 1.05
#: At one load, and of a core's time for all rounds that are needed; a model that takes longer keeps the default.
SECONDS: Final = 3.0
LEAST_ROUNDS: Final = 3
MOST_ROUNDS: Final = 9


Round = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Calibration:
    """`tokens` of a batch. `rounds`: tokens a second of each candidate. `is_done`: no more is to be measured."""

    tokens: int = BATCH_TOKENS
    rounds: Sequence[Round] = ()
    is_done: bool = False

    @property
    def gains(self) -> dict[str, float]:
        """Of each candidate against the default, medians of the rounds."""
        default = str(BATCH_TOKENS)
        return {
            str(tokens): statistics.median(each[str(tokens)] / each[default] for each in self.rounds)
            for tokens in CANDIDATES
            if self.rounds
        }


def calibrated(directory: Path, key: str, call_seconds: Callable[[int], float]) -> Calibration:
    """What is known of `key`, or is measured now. `call_seconds`: of one call with so many padded tokens.

    Where nothing can be kept nothing is measured. Safe for several processes at once.
    """
    found = read(directory).get(key, Calibration())
    if found.is_done:
        return found
    try:
        lock = os.open(directory / "calibration.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return found
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read(directory)
        found = known.get(key, found)
        if not found.is_done:
            found = known[key] = judge(found.rounds, measure(call_seconds))
            with contextlib.suppress(OSError):
                _write(directory, known)
        return found
    finally:
        os.close(lock)


def read(directory: Path) -> dict[str, Calibration]:
    """What is known, by key; nothing of a file that cannot be read."""
    try:
        stored = json.loads((directory / CALIBRATION).read_text(encoding="utf-8"))
        found = {
            key: Calibration(**{**facts, "rounds": tuple(facts.get("rounds", ()))})
            for key, facts in stored.items()
        }
        for each in found.values():
            each.gains  # noqa: B018  a round that lacks a candidate
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}
    return found


def key_of(runtime: str, version: str, threads: int) -> str:
    """What a calibration depends on besides the model."""
    return f"{runtime} {version}, {threads} threads, {processor()}"


def processor(facts: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in {"model name", "Processor", "cpu model"}:
                return value.strip()
    return os.uname().machine


def measure(
    call_seconds: Callable[[int], float], now: Callable[[], float] = time.monotonic
) -> list[Round] | None:
    """One round, and as many more as `SECONDS` allow. None if the model is too slow, however quiet the machine."""
    began = now()
    smallest = min(CANDIDATES)
    call_seconds(smallest)  # what is slow only once
    if call_seconds(smallest) / smallest * sum(CANDIDATES) * LEAST_ROUNDS > SECONDS:
        return None
    rounds: list[Round] = []
    while not rounds or (
        len(rounds) < MOST_ROUNDS and (now() - began) / len(rounds) * (len(rounds) + 1) <= SECONDS
    ):
        rounds.append({str(tokens): tokens / max(call_seconds(tokens), 1e-9) for tokens in CANDIDATES})
    return rounds


def judge(before: Sequence[Round], now: Sequence[Round] | None) -> Calibration:
    """The best candidate of all rounds, if it is clearly better than the default and there are enough of them."""
    if now is None:
        return Calibration(is_done=True)
    found = Calibration(rounds=(*before, *now), is_done=len(before) + len(now) >= LEAST_ROUNDS)
    best = max(CANDIDATES, key=lambda tokens: found.gains[str(tokens)])
    is_better = found.is_done and found.gains[str(best)] >= LEAST_GAIN
    return replace(found, tokens=best if is_better else BATCH_TOKENS)


def _write(directory: Path, known: Mapping[str, Calibration]) -> None:
    """Whole or not at all; whoever writes holds the lock."""
    part = directory / f"{CALIBRATION}.part"
    part.write_text(
        json.dumps({key: asdict(each) for key, each in known.items()}, indent=1), encoding="utf-8"
    )
    part.replace(directory / CALIBRATION)
