"""How many padded tokens a batch should have here: measured once, kept beside the export.

    CACHE/models/KEY/calibration.json    by runtime, threads, processor and version of the runtime
    CACHE/models/KEY/calibration.lock    held while it is measured; others wait for it, some seconds

Large batches spill out of the processor's caches, small ones leave units idle; where it turns depends on the machine.
Other load must not decide it: candidates take turns, each is compared with the default of the same round, and the
default stays unless the median says that another is clearly better.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from connectors.encoder.batches import BATCH_TOKENS

CALIBRATION: Final = "calibration.json"
CANDIDATES: Final = (128, 256, BATCH_TOKENS, 1024)
#: By how much another must be better than the default.
LEAST_GAIN: Final = 1.05
#: All of it; where three rounds take longer the default stays.
SECONDS: Final = 3.0
LEAST_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Calibration:
    """`tokens` of a batch. `gains`: tokens a second of each candidate against the default, medians of `rounds`."""

    tokens: int
    gains: Mapping[str, float]
    rounds: int


DEFAULT: Final = Calibration(BATCH_TOKENS, {}, 0)


def calibrated(directory: Path, key: str, call_seconds: Callable[[int], float]) -> Calibration:
    """What is known of `key`, or is measured now. `call_seconds`: of one call with so many padded tokens.

    Where nothing can be kept nothing is measured: the default.
    """
    found = read(directory).get(key)
    if found is not None:
        return found
    try:
        lock = os.open(directory / "calibration.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return DEFAULT
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read(directory)
        if key not in known:
            known[key] = judge(measure(call_seconds))
            with contextlib.suppress(OSError):
                _write(directory, known)
        return known[key]
    finally:
        os.close(lock)


def read(directory: Path) -> dict[str, Calibration]:
    """What is known, by key; nothing of a file that cannot be read."""
    try:
        stored = json.loads((directory / CALIBRATION).read_text(encoding="utf-8"))
        return {key: Calibration(**facts) for key, facts in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


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
) -> list[dict[int, float]]:
    """Tokens a second of each candidate, by rounds, as many as `SECONDS` allow; none if these are too few."""
    began = now()
    smallest = min(CANDIDATES)
    call_seconds(smallest)  # what is slow only once
    a_round = call_seconds(smallest) * sum(CANDIDATES) / smallest
    rounds: list[dict[int, float]] = []
    while now() - began + a_round * max(1, LEAST_ROUNDS - len(rounds)) <= SECONDS:
        rounds.append({tokens: tokens / max(call_seconds(tokens), 1e-9) for tokens in CANDIDATES})
    return rounds


def judge(rounds: Sequence[Mapping[int, float]]) -> Calibration:
    """The best candidate, if it is clearly better than the default."""
    if len(rounds) < LEAST_ROUNDS:
        return DEFAULT
    gains = {
        tokens: statistics.median(each[tokens] / each[BATCH_TOKENS] for each in rounds)
        for tokens in CANDIDATES
    }
    best = max(gains, key=gains.__getitem__)
    said = {str(tokens): round(gain, 3) for tokens, gain in gains.items()}
    return Calibration(best if gains[best] >= LEAST_GAIN else BATCH_TOKENS, said, len(rounds))


def _write(directory: Path, known: Mapping[str, Calibration]) -> None:
    """Whole or not at all; whoever writes holds the lock."""
    part = directory / f"{CALIBRATION}.part"
    part.write_text(
        json.dumps({key: asdict(each) for key, each in known.items()}, indent=1), encoding="utf-8"
    )
    part.replace(directory / CALIBRATION)
