"""What happens between transactions of the real store: locks, snapshots, deadlocks."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg.types.json import Jsonb

from connectors.postgres.generations import Generations
from connectors.postgres.store import PostgresStore
from connectors.postgres.sweep import Scan, Sweep
from schemas.errors import Conflict, UnusableVector
from schemas.sink import Claim, Fence, IntakePlan, IntakeRequest, IntakeView, RecordState
from tests.contracts.sinks import PostgresSink, generation
from tests.contracts.steps import change, claim, digest, document, embed, embed_all, take_in, vector, when

Result = TypeVar("Result")


async def test_h14_vectors_committed_while_a_delete_waits_are_removed(postgres: PostgresSink) -> None:
    await take_in(postgres.store, change(1, 1, "tea"))
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as embedder:
        await embedder.execute("SELECT FROM upwell.record_content WHERE _key = '[1]' FOR UPDATE")
        deleting = asyncio.create_task(take_in(postgres.store, change(1, 2, None)))
        await postgres.waits(deleting)
        await embedder.execute(
            "INSERT INTO upwell.embedding_content_g1 VALUES ('[1]', 0, %s, 'tea', %s::vector, now())",
            (digest("tea"), str(vector("tea"))),
        )
        await embedder.commit()
        await deleting
    assert await postgres.chunks("[1]") == []
    assert await postgres.alive() == []


async def test_h15_the_comparison_is_made_after_the_lock(postgres: PostgresSink) -> None:
    await take_in(postgres.store, change(1, 1, "A"))
    seen: list[RecordState] = []

    def look(view: IntakeView) -> IntakePlan:
        seen.append(view.records["[1]"])
        return IntakePlan()

    async with await psycopg.AsyncConnection.connect(postgres.dsn) as other:
        await other.execute("SELECT FROM upwell.record_content WHERE _key = '[1]' FOR UPDATE")
        second = asyncio.create_task(postgres.store.intake(IntakeRequest("content", {}, ["[1]"]), look))
        await postgres.waits(second)
        await other.execute(
            "UPDATE upwell.record_content SET _text_hash = %s, _offset = 2 WHERE _key = '[1]'", (digest("B"),)
        )
        await other.commit()
        await second
    assert (seen[0].text_hash, seen[0].version.offset) == (digest("B"), 2)


async def test_h7_a_truncate_waits_for_an_upsert_that_saw_no_fence(postgres: PostgresSink) -> None:
    go, inside = threading.Event(), threading.Event()

    def slow(view: IntakeView) -> IntakePlan:
        assert view.fence is None
        inside.set()
        assert go.wait(20)
        return IntakePlan(writes=[change(1, 1, "below", lsn=100)])

    async def upsert() -> None:
        store = await PostgresStore.open(postgres.dsn, writer="other")
        await store.intake(IntakeRequest("content", {}, ["[1]"]), slow)
        await store.close()

    thread = threading.Thread(target=lambda: asyncio.run(upsert()))
    thread.start()
    await asyncio.to_thread(inside.wait, 20)
    truncate = asyncio.create_task(take_in(postgres.store, fence=Fence(1, 150)))
    try:
        await postgres.waits(truncate)
    finally:
        go.set()
    await truncate
    await asyncio.to_thread(thread.join, 20)
    assert await postgres.alive() == []


async def test_h19_generations_are_read_under_the_lock(postgres: PostgresSink) -> None:
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as command:
        await command.execute(
            "SELECT pg_advisory_xact_lock(hashtext('upwell.collection'), hashtext('content'))"
        )
        waiting = asyncio.create_task(take_in(postgres.store, change(1, 1, "a")))
        await postgres.waits(waiting)
        await postgres.add_generation(2)
        await command.commit()
        await waiting
    assert await postgres.pending("[1]", 2) is not None


async def test_a_write_waits_for_no_model_and_holds_no_lock_between_claim_and_write(
    postgres: PostgresSink,
) -> None:
    await take_in(postgres.store, change(1, 1, "a"))
    (claimed,) = await claim(postgres.store)
    await asyncio.wait_for(take_in(postgres.store, change(1, 2, "b")), 5)
    assert (await embed(postgres.store, claimed))[0].value == "moved_on"


async def test_a_claim_waits_for_nobody(postgres: PostgresSink) -> None:
    await take_in(postgres.store, change(1, 1, "a"), change(2, 2, "b"))
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as other:
        await other.execute("SELECT FROM upwell.pending WHERE key = '[1]' FOR UPDATE")
        claims = await asyncio.wait_for(claim(postgres.store), 5)
        assert [each.key for each in claims] == ["[2]"]


async def test_h20_a_release_that_waits_holds_nothing(postgres: PostgresSink) -> None:
    """Intake takes pending rows in its own order: whoever waits for one of them must not hold another."""
    await take_in(postgres.store, change(1, 1, "a"), change(2, 2, "b"))
    assert len(await claim(postgres.store, slot="w1")) == 2
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as other:
        await other.execute("SELECT FROM upwell.pending WHERE key = '[2]' FOR UPDATE")
        releasing = asyncio.create_task(postgres.store.release("w1"))
        async with asyncio.timeout(5):
            while not await _is_free(postgres, "[1]"):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await asyncio.wait_for(other.execute("SELECT FROM upwell.pending WHERE key = '[1]' FOR UPDATE"), 5)
        assert not releasing.done()
        await other.rollback()
        assert await asyncio.wait_for(releasing, 5) == 2


async def _is_free(postgres: PostgresSink, key: str) -> bool:
    row = await postgres.pending(key)
    return row is not None and not row.claimed


async def test_a_claimed_row_is_never_older_than_its_version(postgres: PostgresSink) -> None:
    """The document is read after the claim: a claim of version n never renders the row of n - 1."""
    stop = asyncio.Event()
    await take_in(postgres.store, change(1, 0, "0"))

    async def changes() -> None:
        for offset in range(1, 60):
            await take_in(postgres.store, change(1, offset, str(offset)))
        stop.set()

    changing = asyncio.create_task(changes())
    while not stop.is_set():
        for claimed in await claim(postgres.store):
            assert int(str(claimed.row["title"])) >= claimed.version.offset
            await embed(postgres.store, claimed)
    await changing
    await embed_all(postgres.store)
    assert await postgres.chunks("[1]") == ["59"]


KEYS = 12


class Traffic:
    """Owners and embedders over one sink, each trying again when it conflicts."""

    def __init__(self, store: PostgresStore, seed: int, generations: Sequence[int] = (1,)) -> None:
        self.store = store
        self.generations = generations
        self.dice = random.Random(seed)
        self.offsets = iter(range(1, 10**6))
        self.conflicts = 0

    async def again(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        while True:
            try:
                return await attempt()
            except Conflict:
                self.conflicts += 1

    async def owner(self, number: int) -> None:
        """Keys of one partition each, so that versions of a key grow."""
        for _ in range(60):
            keys = sorted(self.dice.sample(range(number, KEYS, 2), self.dice.randint(1, 4)))
            offset = next(self.offsets)
            if self.dice.random() < 0.05:
                await self.again(partial(take_in, self.store, fence=Fence(1, offset)))
                continue
            texts = [self.dice.choice([None, "", "same", f"text {offset}"]) for _ in keys]
            writes = [
                change(key, offset, text, since=when(10), lsn=offset)
                for key, text in zip(keys, texts, strict=True)
            ]
            await self.again(partial(take_in, self.store, *writes))

    async def embedder(self, slot: str) -> None:
        for _ in range(80):
            number = self.dice.choice(self.generations)
            claims = await self.again(
                partial(claim, self.store, self.dice.randint(1, 6), [number], slot=slot)
            )
            if claims and self.dice.random() < 0.1:
                await self.again(partial(self.store.fail, claims[0], UnusableVector("NaN"), 0.0))
                claims = claims[1:]
            if self.dice.random() < 0.1:
                await self.again(partial(self.store.release, slot))
            elif claims:
                await self._write(claims)
            await asyncio.sleep(0)

    async def _write(self, claims: Sequence[Claim]) -> None:
        texts = [str(each.row["title"]) for each in claims]
        number = claims[0].generation
        known = await self.store.known_hashes("content", number, [digest(text) for text in texts])
        documents = [
            document(each, kept=[text] if digest(text) in known else ())
            for each, text in zip(claims, texts, strict=True)
        ]
        await self.again(partial(self.store.write, documents))


async def test_h20_a_random_mix_of_everything_deadlocks_nowhere(postgres: PostgresSink) -> None:
    """Intake of two owners, two embedders, failures, releases, truncates; then the view holds what is stored."""
    traffic = Traffic(postgres.store, 20)
    await asyncio.wait_for(_mixed(traffic), 120)
    await _at_rest(postgres, 1)
    assert traffic.conflicts == 0


async def _mixed(traffic: Traffic) -> None:
    """Two owners and two embedders."""
    await asyncio.gather(traffic.owner(0), traffic.owner(1), traffic.embedder("w1"), traffic.embedder("w2"))


async def _at_rest(postgres: PostgresSink, *generations: int) -> None:
    """What is stored is in each generation, nothing else is, and nobody was ever ended for a deadlock."""
    await postgres.expire_leases()
    rows = await postgres.rows("SELECT _key, _row ->> 'title' FROM upwell.record_content WHERE NOT _deleted")
    for number in generations:
        while claims := await claim(postgres.store, 100, [number]):
            await embed(postgres.store, *claims)
        for key, title in rows:
            assert await postgres.chunks(key, number) == ([title] if title else [])
        query = f"SELECT DISTINCT key FROM upwell.embedding_content_g{number}"
        assert {row[0] for row in await postgres.rows(query)} == {key for key, title in rows if title}
    deadlocks = await postgres.rows(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    assert deadlocks == [(0,)]


def _commands(dsn: str, stop: threading.Event) -> int:
    """Another generation goes live, and the table is swept, again and again; how often."""
    done = 0
    with Generations.open(dsn) as generations, psycopg.connect(dsn, autocommit=True) as connection:
        while not stop.is_set():
            with contextlib.suppress(Conflict):  # after 5 s: nothing was changed, try again
                generations.rollback("content")
                Sweep(connection, Scan("content", 2, {})).run()
                done += 1
            time.sleep(0.05)
    return done


async def test_h20_switches_and_sweeps_beside_all_of_it_deadlock_nowhere(postgres: PostgresSink) -> None:
    """A sweep of a lineage that has not begun finds every row unseen."""
    with Generations.open(postgres.dsn) as generations:
        generations.create(generation(number=0, fingerprint="f2", state="filling"))
        generations.switch("content", 2)
    stop, traffic = threading.Event(), Traffic(postgres.store, 21, (1, 2))
    commands = asyncio.create_task(asyncio.to_thread(_commands, postgres.dsn, stop))
    try:
        await asyncio.wait_for(_mixed(traffic), 120)
    finally:
        stop.set()
    assert await commands > 2
    await _at_rest(postgres, 1, 2)


@pytest.mark.parametrize(
    ("state", "scanned_lsn", "after"),
    [
        ("loading", None, "incomplete"),
        ("loading", 200, "incomplete"),
        ("loading", 100, "loading"),
        ("complete", 100, "complete"),
    ],
)
async def test_h8_a_truncate_spoils_only_a_load_that_it_falls_into(
    postgres: PostgresSink, state: str, scanned_lsn: int | None, after: str
) -> None:
    """Rows that were read before the truncate may come after it; a table that was read to its end is not read again."""
    detail = {"from": 7} if scanned_lsn is None else {"from": 7, "scanned_lsn": scanned_lsn, "ends": {}}
    await postgres.rows(
        "UPDATE upwell.collection SET load_state = %s, load_detail = %s WHERE name = 'content'",
        state,
        Jsonb(detail),
    )
    await take_in(postgres.store, fence=Fence(1, 150))
    found = await postgres.rows("SELECT load_state FROM upwell.collection WHERE name = 'content'")
    assert found == [(after,)]


@pytest.mark.parametrize(
    ("state", "before", "after"),
    [
        ("loading", {"signal": "load-1", "from": 7}, {"reason": "truncated", "from": 7}),
        ("incomplete", {"reason": "truncated", "from": 7}, {"reason": "truncated", "from": 7}),
        ("loading", {"from": 7, "scanned_lsn": 200, "ends": {}}, {"reason": "truncated"}),
        ("incomplete", {"reason": "rebuild"}, {"reason": "rebuild"}),
        ("incomplete", None, None),
    ],
)
async def test_h8_what_is_known_of_a_spoilt_scan(
    postgres: PostgresSink, state: str, before: dict[str, Any] | None, after: dict[str, Any] | None
) -> None:
    """Where it was asked for stays while it may be under way; what was never asked for stays so."""
    detail = None if before is None else Jsonb(before)
    await postgres.rows(
        "UPDATE upwell.collection SET load_state = %s, load_detail = %s WHERE name = 'content'", state, detail
    )
    await take_in(postgres.store, fence=Fence(1, 150))
    found = await postgres.rows(
        "SELECT load_state, load_detail FROM upwell.collection WHERE name = 'content'"
    )
    assert found == [("incomplete", after)]
