"""How many chunks are encoded for an edit of a long document, and for a text of many rows: the workers' counters."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, Final

import psycopg

from streams.benchmark.bench import Bench
from streams.benchmark.line import VECTORS, Deployment, one
from streams.benchmark.results import Figure, Section, Target, quantiles

RESULTS: Final = ("chunks_encoded", "chunks_kept", "chunks_copied")
#: Counters are written this often, not every second: they are waited for after each edit.
COUNTERS: Final = {"UPWELL_WORKER_METRICS_INTERVAL_SECONDS": "0.1"}
SEARCHABLE_SECONDS: Final = 60.0
FIRST_SAME: Final = 1_000_000
INSERTED: Final = "and then, quite by surprise,"


def measure(bench: Bench) -> Section:
    chance = random.Random(f"chunks/{bench.plan.seed}")
    texts = [bench.corpus.long(number) for number in range(bench.plan.long_documents)]
    with bench.stack.deployment("chunks") as deployment, deployment.sink() as sink:
        deployment.filled(texts, 1, **COUNTERS)
        _settled(deployment, sink)
        chunks = [
            int(one(sink, f"SELECT count(*) FROM {VECTORS} WHERE key = %s", f"[{number}]"))
            for number in range(1, len(texts) + 1)
        ]
        bench.tell(f"{len(texts)} documents of {min(chunks)} to {max(chunks)} chunks are edited")
        replaced, inserted = [], []
        for key, text in enumerate(texts, start=1):
            words = text.split(" ")
            place = chance.randrange(len(words) // 4, 3 * len(words) // 4)
            words[place] = "marmalade"
            replaced.append(_encoded_for(deployment, sink, key, " ".join(words)))
            words.insert(chance.randrange(len(words) // 4, 3 * len(words) // 4), INSERTED)
            inserted.append(_encoded_for(deployment, sink, key, " ".join(words)))
        bench.tell(f"the same text in {bench.plan.same_rows} rows")
        same = _same_text(bench, deployment, sink)
    return Section("chunks", _figures(chunks, replaced, inserted, same, bench.plan.same_rows))


def _encoded_for(deployment: Deployment, sink: psycopg.Connection[Any], key: int, text: str) -> int:
    """Chunks that were encoded when a document became `text`."""
    before = deployment.counters(sink)
    with deployment.source() as source:
        source.execute("UPDATE bench.document SET body = %s WHERE id = %s", (text, key))
    after = deployment.until(
        lambda: _more(before, deployment.counters(sink), 1), SEARCHABLE_SECONDS, "an edit searchable"
    )
    return after["chunks_encoded"] - before.get("chunks_encoded", 0)


def _same_text(bench: Bench, deployment: Deployment, sink: psycopg.Connection[Any]) -> int:
    """Chunks encoded for one short text in many rows."""
    before, count = deployment.counters(sink), bench.plan.same_rows
    text = f"The very same words in all rows. {bench.corpus.short(0)}"
    deployment.fill([text] * count, FIRST_SAME)
    after = deployment.until(
        lambda: _more(before, deployment.counters(sink), count), SEARCHABLE_SECONDS, f"{count} rows"
    )
    return after["chunks_encoded"] - before.get("chunks_encoded", 0)


def _more(before: Mapping[str, int], after: Mapping[str, int], count: int) -> Mapping[str, int]:
    """`after` once so many documents more were written and their chunks are counted, nothing until then."""

    def grown(name: str) -> int:
        return after.get(name, 0) - before.get(name, 0)

    written = grown("embed_written") >= count and sum(grown(name) for name in RESULTS) >= count
    return {**dict.fromkeys(RESULTS, 0), **after} if written else {}


def _settled(deployment: Deployment, sink: psycopg.Connection[Any]) -> None:
    """Until the counters say that all chunks there are have been written."""
    stored = int(one(sink, f"SELECT count(*) FROM {VECTORS}"))
    deployment.until(
        lambda: sum(deployment.counters(sink).get(name, 0) for name in RESULTS) >= stored,
        SEARCHABLE_SECONDS,
        "the workers' counters",
    )


def _figures(
    chunks: Sequence[int], replaced: Sequence[int], inserted: Sequence[int], same: int, rows: int
) -> list[Figure]:
    return [
        Figure("chunks.size", "chunks of a long document, least", float(min(chunks)), "chunks"),
        Figure(
            "chunks.replaced",
            "a word replaced: chunks encoded, most",
            float(max(replaced)),
            "chunks",
            "less",
            Target("at most", 2),
            quantiles(replaced),
        ),
        Figure(
            "chunks.inserted_mean",
            "words inserted: chunks encoded, mean",
            mean(inserted),
            "chunks",
            "less",
            Target("at most", 3),
            quantiles(inserted),
        ),
        Figure(
            "chunks.same",
            f"the same text in {rows} rows: chunks encoded",
            float(same),
            "chunks",
            "less",
            Target("at most", 1),
        ),
    ]
