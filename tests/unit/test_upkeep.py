"""Which index is built anew, and why: each reason alone, and nothing without one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from schemas.spec import VectorIndex
from schemas.upkeep import WORTH_BYTES, IndexFacts, TableFacts, VectorFacts, needed_bytes, why_build
from streams.doctor.sink import judge_index

NEED: Final = needed_bytes(100_000, 384, VectorIndex())
INDEX: Final = IndexFacts("embedding_content_g1_hnsw", True, 16, 64, NEED)
WELL: Final = VectorFacts(
    collection="content",
    generation=1,
    state="live",
    dimension=384,
    wanted=VectorIndex(),
    filling=False,
    table=TableFacts("embedding_content_g1", 100_000, 0, 10**9),
    index=INDEX,
)


def changed(**fields: Any) -> VectorFacts:
    return replace(WELL, **fields)


def sized(factor: float) -> VectorFacts:
    return changed(index=replace(INDEX, bytes=round(NEED * factor)))


def littered(dead: int, rows: int = 100_000) -> VectorFacts:
    return changed(table=replace(WELL.table, dead=dead, rows=rows))


SPARE: Final = replace(INDEX, name="embedding_content_g1_new")
CASES: Final = {
    "well": (WELL, []),
    "missing": (changed(index=None), ["the HNSW index is missing"]),
    "missing while it is filled": (changed(index=None, filling=True), []),
    "invalid": (changed(index=replace(INDEX, valid=False)), ["the HNSW index is INVALID"]),
    "interrupted": (changed(leftovers=("embedding_content_g1_new",)), ["a build was interrupted"]),
    "interrupted while it is filled": (
        changed(index=None, filling=True, leftovers=("x",)),
        ["a build was interrupted", "the HNSW index is missing"],
    ),
    "not finished": (changed(index=None, spare=SPARE), ["a build was not finished"]),
    "other m": (
        changed(wanted=VectorIndex(m=24)),
        ["m = 16, ef_construction = 64, the spec has 24 and 64"],
    ),
    "other ef_construction": (
        changed(wanted=VectorIndex(ef_construction=100)),
        ["m = 16, ef_construction = 64, the spec has 16 and 100"],
    ),
    "another ef_search": (changed(wanted=VectorIndex(ef_search=200)), []),
    "a little bloat": (sized(1.45), []),
    "bloat": (sized(2.0), ["the HNSW index is 2.0 times as large as its rows need"]),
    "bloat of a small one": (
        changed(table=replace(WELL.table, rows=1000), index=replace(INDEX, bytes=WORTH_BYTES)),
        [],
    ),
    "some dead": (littered(19_999), []),
    "dead": (littered(20_000), ["20000 dead rows"]),
    "few of few": (changed(table=replace(WELL.table, dead=9_999, rows=0), index=replace(INDEX, bytes=1)), []),
}


@pytest.mark.parametrize("case", CASES)
def test_reasons(case: str) -> None:
    facts, expected = CASES[case]
    assert list(why_build(facts)) == expected


def test_pending_has_dead_rows_at_all_times() -> None:
    assert not TableFacts("pending", 0, 99_999, 10**7).is_littered
    assert TableFacts("pending", 0, 100_000, 10**7).is_littered
    assert TableFacts("record_content", 0, 10_000, 10**7).is_littered


@pytest.mark.parametrize(
    ("found", "state", "says"),
    [
        ([WELL], "ok", "195.3 MiB, 1.0 times what its rows need"),
        ([sized(2.0)], "warn", "generation 1: the HNSW index is 2.0 times as large as its rows need"),
        ([changed(index=None)], "warn", "generation 1: the HNSW index is missing"),
        ([changed(index=None, filling=True)], "not yet", "it is built once the load is complete"),
        (
            [changed(table=replace(WELL.table, rows=0))],
            "warn",
            "the HNSW index is large, and has no rows",
        ),
        ([changed(table=replace(WELL.table, rows=0), index=replace(INDEX, bytes=8192))], "ok", "no rows yet"),
        ([], "not yet", "there is none"),
        ([changed(apart=19_999)], "ok", "195.3 MiB"),
        ([changed(apart=20_000)], "warn", "20000 chunks of repeated texts are beside it"),
    ],
)
def test_what_the_doctor_says(found: list[VectorFacts], state: str, says: str) -> None:
    verdict = judge_index("content", found)
    assert verdict.state.value == state
    assert says in verdict.says
    mended = state != "ok" and bool(found) and not found[0].apart
    assert ("upwell maintain content" in verdict.next_step) == mended
