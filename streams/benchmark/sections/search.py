"""Nearest neighbours through the view, against the bare table and against exact search, before and after churn.

Recall: the part of the ten found that are no further away than the tenth of exact search. Plans are read: where one
does not use the HNSW index nothing is measured.

Table and view are asked in prepared statements, as drivers make them of what is repeated, and in plain ones: those are
planned each time, which takes a fifth of a millisecond more for a view.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psycopg

from streams.benchmark.bench import PROCESSES, Bench
from streams.benchmark.line import VECTORS, VIEW, Deployment, NotMeasured, one
from streams.benchmark.results import Figure, Section, Target, quantile, quantiles

NEAREST: Final = 10
#: Cosines this near are the same.
TOLERANCE: Final = 1e-5
#: Queries are texts that no document has.
FIRST_QUERY: Final = 5_000_000
WARM: Final = 5
ROUNDS: Final = 3
CHURN_SECONDS: Final = 1800.0
ORDERED: Final = f"ORDER BY embedding <=> %s::vector LIMIT {NEAREST}"
QUERIES: Final = {
    "table": f"SELECT key, chunk_no, embedding <=> %s::vector FROM ONLY {VECTORS} {ORDERED}",
    "view": f"SELECT id, chunk_no, embedding <=> %s::vector FROM {VIEW} {ORDERED}",
    "function": f"SELECT id, chunk_no, 1 - score FROM upwell.search_document(%s, %s::vector, {NEAREST})",
}

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class State:
    """By query: recall, seconds of plain statements, and of prepared ones."""

    recall: dict[str, float]
    seconds: dict[str, list[float]]
    prepared: dict[str, list[float]]


def measure(bench: Bench) -> Section:
    count = bench.plan.searched
    queries = bench.encoder.encode([bench.corpus.short(FIRST_QUERY + n) for n in range(bench.plan.queries)])
    with bench.stack.deployment("search") as deployment, deployment.sink() as sink:
        bench.tell(f"{count} documents are embedded")
        deployment.filled([bench.corpus.short(number) for number in range(count)], PROCESSES)
        sink.execute(f"ANALYZE {VECTORS}".encode())
        notes = _use_index(sink, queries[0])
        fresh = _state(deployment, sink, queries, forced=bool(notes))
        bench.tell(f"recall {fresh.recall['view']:.3f}; every document gets another text")
        _churn(bench, deployment, sink)
        forced = bool(_use_index(sink, queries[0])) or bool(notes)
        churned = _state(deployment, sink, queries, forced=forced)
        bench.tell(f"recall {churned.recall['view']:.3f} after churn")
    return Section("search", _figures(fresh, churned), notes=notes)


def _use_index(sink: psycopg.Connection[Any], query: Vectors) -> list[str]:
    """See to it that table and view are read through the index; returns a note where that had to be asked for.

    Raises NotMeasured.
    """
    if not (unlike := _plans_without_index(sink, query)):
        return []
    sink.execute("SET enable_seqscan = off")
    for name, plan in _plans_without_index(sink, query).items():
        raise NotMeasured(f"the {name} is not read through the HNSW index: {plan[:300]}")
    return [
        f"so few rows that the planner would read all of the {' and the '.join(unlike)}: the index was forced"
    ]


def _plans_without_index(sink: psycopg.Connection[Any], query: Vectors) -> dict[str, str]:
    """By query."""
    found = {}
    for name in ("table", "view"):
        plan = sink.execute(f"EXPLAIN (FORMAT JSON) {QUERIES[name]}".encode(), [_text(query)] * 2).fetchone()
        if "_hnsw" not in json.dumps(plan):
            found[name] = json.dumps(plan)
    return found


def _state(deployment: Deployment, sink: psycopg.Connection[Any], queries: Vectors, *, forced: bool) -> State:
    """`forced`: the plain statements' connection was told to use the index."""
    exact, model = _exact(sink, queries), str(one(sink, f"SELECT model FROM {VIEW} LIMIT 1"))
    recall: dict[str, list[float]] = {name: [] for name in QUERIES}
    seconds: dict[str, list[float]] = {name: [] for name in QUERIES}
    prepared: dict[str, list[float]] = {name: [] for name in QUERIES}
    with deployment.sink() as preparing:
        preparing.prepare_threshold = 0
        if forced:
            preparing.execute("SET enable_seqscan = off")
        for turn in range(ROUNDS):
            for number, query in enumerate(queries):
                vector = _text(query)
                for name in _turned(list(QUERIES), number + turn):
                    asked = [model, vector] if name == "function" else [vector, vector]
                    for connection, spent in ((sink, seconds), (preparing, prepared)):
                        begun = time.perf_counter()
                        rows = connection.execute(QUERIES[name].encode(), asked).fetchall()
                        spent[name].append(time.perf_counter() - begun)
                    recall[name].append(sum(row[2] <= exact[number] + TOLERANCE for row in rows) / NEAREST)
    return State(
        {name: float(np.mean(values)) for name, values in recall.items()},
        *({name: values[WARM:] for name, values in each.items()} for each in (seconds, prepared)),
    )


def _exact(sink: psycopg.Connection[Any], queries: Vectors) -> Sequence[float]:
    """The distance of each query's tenth neighbour, by comparing it with every vector."""
    rows = sink.execute(f"SELECT embedding::text FROM {VECTORS}".encode()).fetchall()
    vectors = np.array([json.loads(row[0]) for row in rows], dtype=np.float32)
    if len(vectors) < NEAREST:
        raise NotMeasured(f"only {len(vectors)} vectors")
    distances = 1 - queries @ vectors.T
    return [float(each) for each in np.sort(distances, axis=1)[:, NEAREST - 1]]


def _churn(bench: Bench, deployment: Deployment, sink: psycopg.Connection[Any]) -> None:
    """Every row gets the text of another number, through the whole line."""
    count = bench.plan.searched
    query = f"SELECT count(*) FROM {VECTORS} WHERE chunk_no = 0 AND chunk_text LIKE 'Again: %%'"
    texts = ((f"Again: {bench.corpus.short(count + n)}", n + 1) for n in range(count))
    with deployment.source() as source, source.cursor() as cursor:
        cursor.executemany("UPDATE bench.document SET body = %s WHERE id = %s", texts)
    deployment.until(
        lambda: int(one(sink, query)) >= count, CHURN_SECONDS, "every document changed", every=0.2
    )


def _figures(fresh: State, churned: State) -> list[Figure]:
    p50 = {name: quantile(values, 0.5) for name, values in fresh.prepared.items()}
    plain = {name: quantile(values, 0.5) for name, values in fresh.seconds.items()}
    view = quantiles(fresh.prepared["view"])
    figures = [
        Figure("search.table_p50", "bare table, p50", p50["table"], "s", "less"),
        Figure("search.view_p50", "view, p50", p50["view"], "s", "less", None, view),
        Figure("search.function_p50", "search function, p50", p50["function"], "s", "less"),
        Figure(
            "search.view_to_table",
            "view to bare table, p50",
            p50["view"] / p50["table"],
            "times",
            "less",
            Target("at most", 1.25),
        ),
        Figure(
            "search.view_to_table_plain",
            "view to bare table, p50, planned each time",
            plain["view"] / plain["table"],
            "times",
            "less",
        ),
        Figure("search.table_recall", "recall@10 of the bare table", fresh.recall["table"], ""),
    ]
    for when, state in (("", fresh), (" after all rows changed", churned)):
        for name in ("view", "function"):
            figures.append(
                Figure(
                    f"search.{name}_recall{'_churned' if when else ''}",
                    f"recall@10 of the {name if name == 'view' else 'search function'}{when}",
                    state.recall[name],
                    "",
                    "more",
                    Target("at least", 0.95),
                )
            )
    return figures


def _turned(names: Sequence[str], by: int) -> list[str]:
    """Who comes first takes turns."""
    at = by % len(names)
    return [*names[at:], *names[:at]]


def _text(vector: Vectors) -> str:
    return f"[{','.join(map(repr, vector.tolist()))}]"
