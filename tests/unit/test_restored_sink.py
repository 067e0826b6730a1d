"""A worker looks whether its sink was restored, also while nothing arrives (H21)."""

from __future__ import annotations

import pytest

from schemas.change import TopicPartition
from schemas.errors import PositionConflict, SinkUnavailable
from streams.settings import Settings
from streams.worker import Parts, Worker
from tests.fakes.store import FakeStore

AT = TopicPartition("shop_1.shop.content", 0)
OTHER = TopicPartition("shop_1.shop.content", 1)


def worker(store: FakeStore, told: list[int]) -> Worker:
    """With positions up to 1000 and 7."""
    made = Worker(
        Parts(
            settings=Settings(),
            slot="w",
            store=store,
            load_encoder=lambda name: pytest.fail(name),
            make_recipe=lambda generation, encoder: pytest.fail("it was used"),
            make_intakes=lambda needs: {},
            generations=[],
            on_stopping=told.append,
        )
    )
    made._positions.update({AT: 1000, OTHER: 7})
    return made


@pytest.mark.parametrize(
    ("stored", "ends"),
    [
        ({AT: 1000, OTHER: 7}, False),
        ({AT: 1200, OTHER: 7}, False),
        ({AT: 500, OTHER: 7}, True),
        ({AT: 1000}, True),
        ({}, True),
    ],
)
async def test_a_sink_behind_our_positions_ends_the_worker(
    stored: dict[TopicPartition, int], ends: bool
) -> None:
    """One ahead of them has another owner, which the next transaction finds out."""
    told: list[int] = []
    made = worker(FakeStore([], stored_positions=stored), told)
    await made._look_for_a_restore()
    assert isinstance(made._fatal, PositionConflict) is ends
    assert told == ([1] if ends else [])


async def test_a_sink_that_is_away_is_not_restored() -> None:
    store, told = FakeStore([], stored_positions={}), list[int]()
    store.refuse(SinkUnavailable("away"))
    await worker(store, told)._look_for_a_restore()
    assert told == []
