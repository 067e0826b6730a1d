"""Who is told of pending rows leaves those who took them in a head start, and asks once for many."""

from __future__ import annotations

import asyncio

import pytest

from streams.embed import listen


async def test_many_notices_wake_once_and_later_ones_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "HEAD_START_SECONDS", 0.01)
    woken = 0

    def wake() -> None:
        nonlocal woken
        woken += 1

    soon = listen.once_soon(wake)
    for expected in (1, 2):
        for _ in range(100):
            soon()
        assert woken == expected - 1
        await asyncio.sleep(0.05)
        assert woken == expected
