"""Faust's transport, where it has no setting for what matters."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread

from streams.intake.transport import FETCH_WAIT_MS, PromptThread


async def test_a_fetch_waits_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle partition would hold up a busy one for as long as a fetch may wait."""

    def created(self: Any, loop: Any) -> Any:
        return AIOKafkaConsumer(bootstrap_servers="127.0.0.1:1", fetch_max_wait_ms=1500)

    monkeypatch.setattr(AIOKafkaConsumerThread, "_create_consumer", created)
    thread = PromptThread.__new__(PromptThread)
    consumer = created(thread, None)
    assert consumer._fetch_max_wait_ms == 1500, "aiokafka calls it otherwise now"
    assert thread._create_consumer(None)._fetch_max_wait_ms == FETCH_WAIT_MS
