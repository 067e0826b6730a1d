"""From rows at the source to searchable vectors, two worker processes: documents a second, against encoders alone.

The clock runs from the first searchable documents to the last: what comes before is the start of processes and of the
scan. The bare encoders run just before and just after, as the machine may not be what it was minutes ago.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Final

from streams.benchmark.bench import KINDS, PROCESSES, Bench, Kind
from streams.benchmark.line import AFTER_LOAD, Deployment, NotMeasured, documents
from streams.benchmark.processes import Usage, spent, usage
from streams.benchmark.results import Figure, Section, Target

#: Of two bare ONNX processes, and of sentence-transformers' defaults.
TO_ONNX: Final[Mapping[Kind, float]] = {"mixed": 0.85, "short": 0.65}
#: Of two bare ONNX processes on short texts, where HNSW is built afterwards.
AFTER_LOAD_TO_ONNX: Final = 0.75
TO_TORCH: Final = 1.3
LOAD_SECONDS: Final = 1800.0
#: Documents that have to come in the time that is measured.
FEWEST: Final = 20
POLL_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Backfill:
    """`rate`: documents a second. `first_seconds`: from the wish to load until the first is searchable.

    `cpu_seconds`, `resident`: by who used it; `cores`: used by all of them.
    """

    rate: float
    first_seconds: float
    cpu_seconds: Mapping[str, float]
    resident: Mapping[str, Usage]
    cores: float


def measure(bench: Bench) -> Section:
    figures: list[Figure] = []
    onnx: dict[Kind, float] = {}
    for kind in KINDS:
        alone, before = bench.alone(kind), bench.onnx_rate(kind)
        with bench.stack.deployment(f"backfill_{kind}") as deployment:
            found = _backfill(bench, deployment, kind)
        bench.tell(f"{kind}: {found.rate:.1f} documents/s end to end")
        onnx[kind] = bench.onnx_rate(kind)
        to_onnx = found.rate / mean([before, onnx[kind]])
        name = f"backfill.{kind}"
        figures += [
            Figure(f"{name}.rate", f"{kind} texts: source to searchable", found.rate, "documents/s", "more"),
            Figure(
                f"{name}.to_onnx",
                f"{kind} texts: to two bare ONNX processes",
                to_onnx,
                "times",
                "more",
                Target("at least", TO_ONNX[kind]),
            ),
            Figure(
                f"{name}.to_torch",
                f"{kind} texts: to SentenceTransformer.encode",
                to_onnx * alone.onnx_rate / alone.torch_rate,
                "times",
                "more",
                Target("at least", TO_TORCH) if kind == "mixed" else None,
            ),
            Figure(
                f"{name}.first",
                f"{kind} texts: until the first is searchable",
                found.first_seconds,
                "s",
                "less",
            ),
            Figure(f"{name}.cores", f"{kind} texts: cores in use", found.cores, "cores"),
            *_shares(name, kind, found),
        ]
    return Section("backfill", [*figures, *_after_load(bench, onnx["short"])])


def _after_load(bench: Bench, before: float) -> list[Figure]:
    """Short texts, whose rows cost most of HNSW, with the index built when the load is complete. `before`: documents a
    second of the bare encoders.
    """
    with bench.stack.deployment("backfill_after_load", AFTER_LOAD) as deployment:
        found = _backfill(bench, deployment, "short")
    bench.tell(f"short, HNSW after the load: {found.rate:.1f} documents/s end to end")
    told, name = "short texts, HNSW after the load", "backfill.after_load"
    return [
        Figure(f"{name}.rate", f"{told}: source to searchable", found.rate, "documents/s", "more"),
        Figure(
            f"{name}.to_onnx",
            f"{told}: to two bare ONNX processes",
            found.rate / mean([before, bench.onnx_rate("short")]),
            "times",
            "more",
            Target("at least", AFTER_LOAD_TO_ONNX),
        ),
    ]


def _shares(name: str, kind: Kind, found: Backfill) -> list[Figure]:
    total = sum(found.cpu_seconds.values())
    shares = [
        Figure(f"{name}.cpu.{who}", f"{kind} texts: share of CPU of {who}", seconds / total * 100, "%")
        for who, seconds in found.cpu_seconds.items()
    ]
    memory = [
        Figure(f"{name}.rss.{who}", f"{kind} texts: memory of {who}", each.resident_mib, "MiB")
        for who, each in found.resident.items()
    ]
    return [*shares, *memory]


def _backfill(bench: Bench, deployment: Deployment, kind: Kind) -> Backfill:
    texts = bench.texts(kind)
    deployment.prepare(texts)
    deployment.start_workers(PROCESSES)
    roots = {"workers": [worker.pid for worker in deployment.workers], **bench.stack.pids()}
    roots = {who: roots[who] for who in ("workers", "sink", "source", "kafka", "connect", "registry")}
    with deployment.sink() as sink:
        asked = time.monotonic()
        deployment.begin_load()
        first = deployment.until(
            lambda: documents(sink), LOAD_SECONDS, "a searchable document", every=POLL_SECONDS
        )
        begun, before = time.monotonic(), usage(roots)
        if len(texts) - first < FEWEST:
            raise NotMeasured(f"{first} of {len(texts)} documents came at once: give more --documents")
        deployment.until(
            lambda: documents(sink) >= len(texts),
            LOAD_SECONDS,
            f"{len(texts)} documents searchable",
            every=POLL_SECONDS,
        )
        seconds, after = time.monotonic() - begun, usage(roots)
    used = spent(before, after)
    rate = (len(texts) - first) / seconds
    return Backfill(rate, begun - asked, used, after, sum(used.values()) / seconds)
