"""What is refused at a start: topics that are not those that were recorded, and a connector behind a hole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from connectors.kafka import TopicFacts
from schemas.errors import GapFound, LineageMismatch
from streams import capture
from streams.app import check_topic

RECORDED = TopicFacts("id", 4)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "is gone"),
        (TopicFacts("id", 6), "id id and 6 partitions"),
        (TopicFacts("new", 4), "has id new"),
    ],
)
def test_h11_a_worker_reads_only_the_topic_that_was_recorded(found: TopicFacts | None, said: str) -> None:
    check_topic("t", RECORDED, RECORDED)
    with pytest.raises(LineageMismatch, match=said):
        check_topic("t", RECORDED, found)


@pytest.mark.parametrize("begun", [True, False])
def test_h28_nothing_is_started_over_a_gap(begun: bool) -> None:
    """H26-H28. A connector that starts behind a hole looks healthy."""
    asked: list[bool] = []

    def gap(*, begun: bool) -> str:
        asked.append(begun)
        return "slot upwell_shop_1 is lost"

    load = SimpleNamespace(state="loading" if begun else "incomplete")
    made: Any = SimpleNamespace(
        state=SimpleNamespace(loads=lambda names: {"content": load}),
        settings=SimpleNamespace(collections={"content": None}),
        gap=gap,
    )
    with pytest.raises(GapFound, match="is lost; run `upwell connector rebuild`"):
        capture.Capture.refuse_gap(made)
    assert asked == [begun]
