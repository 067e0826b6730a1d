"""When a worker starts again, because what it was started for is not what is captured now."""

from __future__ import annotations

from typing import Any

import pytest

from connectors.postgres.capture_state import Deployment
from schemas.errors import DeploymentChanged, SinkUnavailable
from streams import watch as module
from streams.watch import watch

NOW = Deployment(1, ("shop_1.shop.content a",), ("record_content.id", "record_customers.id"))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (NOW, ""),
        (Deployment(2, (), ()), "lineage 2 has begun"),
        (
            Deployment(1, ("shop_1.shop.content b",), NOW.columns),
            "topics have come or gone: shop_1.shop.content",
        ),
        (
            Deployment(1, (*NOW.topics, "shop_1.shop.blog c"), NOW.columns),
            "topics have come or gone: shop_1.shop.blog",
        ),
        (
            Deployment(1, NOW.topics, (*NOW.columns, "record_content.price")),
            "columns have come or gone: record_content.price",
        ),
        (Deployment(1, NOW.topics, ("record_content.id", "record_blog.id")), ""),
    ],
)
def test_what_makes_a_worker_start_again(other: Deployment, said: str) -> None:
    assert NOW.difference(other, ["content"]) == said


class Store:
    """Answers in turn."""

    def __init__(self, *answers: Deployment | Exception) -> None:
        self.answers = list(answers)

    async def deployment(self) -> Deployment:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_sink_that_is_away_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    store: Any = Store(NOW, SinkUnavailable("away"), NOW, Deployment(2, (), ()))
    with pytest.raises(DeploymentChanged, match="lineage 2 has begun: this worker starts again"):
        await watch(store, NOW, ["content"], lambda: None, lambda: False)
    assert store.answers == []
