"""A worker looks whether its topics are still the ones that were made (H11)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest

from connectors.kafka import Kafka, TopicFacts
from schemas.errors import KafkaUnavailable, LineageMismatch
from streams.app import check_recorded

MADE = {"shop_1.shop.content": TopicFacts("id", 4)}


class Broker:
    """Says that these topics are there."""

    def __init__(self, found: Mapping[str, TopicFacts]) -> None:
        self.found = found

    def describe(self, topics: list[str]) -> Mapping[str, TopicFacts]:
        return self.found


def check(found: Mapping[str, TopicFacts], *, running: bool) -> None:
    check_recorded(cast(Kafka, Broker(found)), MADE, running=running)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("facts", [TopicFacts("id", 6), TopicFacts("another", 4)])
def test_a_topic_that_is_another_one_halts(facts: TopicFacts, running: bool) -> None:
    check(MADE, running=running)
    with pytest.raises(
        LineageMismatch, match="offsets mean something else now, run `upwell connector rebuild`"
    ):
        check({"shop_1.shop.content": facts}, running=running)


def test_a_topic_that_is_not_there_is_only_away_to_who_reads_it() -> None:
    with pytest.raises(LineageMismatch, match="is gone"):
        check({}, running=False)
    with pytest.raises(KafkaUnavailable, match="is not there"):
        check({}, running=True)
