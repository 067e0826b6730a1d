"""Encoders alone, on the texts of the backfill: the ceiling, and what sentence-transformers does by default."""

from __future__ import annotations

from streams.benchmark.bench import KINDS, Bench
from streams.benchmark.results import Figure, Section


def measure(bench: Bench) -> Section:
    figures = []
    for kind in KINDS:
        alone = bench.alone(kind)
        name = f"encoders.{kind}"
        figures += [
            Figure(
                f"{name}.onnx",
                f"{kind} texts: two bare ONNX processes, sorted by length",
                alone.onnx_rate,
                "documents/s",
                "more",
            ),
            Figure(
                f"{name}.torch",
                f"{kind} texts: SentenceTransformer.encode, its defaults",
                alone.torch_rate,
                "documents/s",
            ),
            Figure(
                f"{name}.onnx_to_torch",
                f"{kind} texts: bare ONNX to sentence-transformers",
                alone.onnx_rate / alone.torch_rate,
                "times",
                "more",
            ),
            Figure(f"{name}.chunks", f"{kind} texts: chunks a document", alone.chunks / alone.documents, ""),
        ]
    figures.append(
        Figure(
            "encoders.onnx_rss",
            "resident memory of a bare ONNX process",
            bench.alone("mixed").onnx.resident_mib,
            "MiB",
            "less",
        )
    )
    return Section("encoders", figures)
