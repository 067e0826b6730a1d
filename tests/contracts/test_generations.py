"""Several generations of a collection: what a store promises of them, and what the commands do to a real one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from connectors.postgres.generations import Generations
from connectors.postgres.migrate import fed_generations, migrate_sink
from connectors.postgres.read import read_report, search_rows
from connectors.postgres.store import PostgresStore
from schemas.change import Change, Operation, Origin, Version
from schemas.errors import Conflict, GenerationDropped, GenerationMismatch, SettingsError, UnusableVector
from schemas.sink import IntakePlan, IntakeRequest, IntakeView, WriteOutcome
from schemas.template import Template, text_hash
from streams.generations import follow_canary
from streams.intake.core import decide
from streams.settings import Settings, load
from tests.contracts.sinks import MODEL, PostgresSink, Sink, generation, layout
from tests.contracts.steps import AT, change, claim, digest, document, embed, embed_all, take_in, vector, when

Connection = psycopg.Connection[Any]
WRITTEN = WriteOutcome.WRITTEN


def render(template: str, changed: Change) -> tuple[str, bytes]:
    text = Template(template).render(changed.row or {})
    return text, text_hash(text, template)


async def update(sink: Sink, offset: int, **row: str) -> None:
    """Row 1 as an intake takes it in, whose own template does not matter."""
    changed = Change(Operation.UPDATE, AT, Version(1, offset), "[1]", Origin(committed_at=when(10)), row)

    def decided(view: IntakeView) -> IntakePlan:
        return replace(decide([changed], view, lambda change, row: change, render), positions={})

    await sink.store.intake(IntakeRequest("content", {}, ["[1]"]), decided)


async def drain(sink: Sink, *numbers: int) -> None:
    """Embed for some generations, each with its own template."""
    templates = {
        each.number: each.template for each in await sink.store.generations() if each.collection == "content"
    }
    for number in numbers:
        while claims := await claim(sink.store, generations=[number]):
            for each in claims:
                text = Template(templates[number]).render(each.row)
                made = document(each, text) if text else replace(document(each), chunks=[])
                await sink.store.write([made])


# -- a change is looked at by each generation's own template


async def test_a_change_that_one_template_does_not_show_is_pending_in_the_other(sink: Sink) -> None:
    await sink.add_generation(2, "{{ body }}")
    await update(sink, 1, title="tea", body="green")
    await drain(sink, 1, 2)
    assert (await sink.chunks("[1]", 1), await sink.chunks("[1]", 2)) == (["tea"], ["green"])
    await update(sink, 2, title="tea", body="black")
    assert await sink.pending("[1]", 1) is None
    assert await sink.pending("[1]", 2) is not None
    await drain(sink, 1, 2)
    assert await sink.chunks("[1]", 2) == ["black"]
    await update(sink, 3, title="tea", body="black", price="1.00")
    assert await sink.pending("[1]", 1) is await sink.pending("[1]", 2) is None


async def test_a_text_that_was_stored_before_a_template_was_fed_is_new_to_it(sink: Sink) -> None:
    """Generation 2 comes after the row; an update of its text alone would be lost by a hash of template 1 only."""
    await update(sink, 1, title="tea", body="green")
    await drain(sink, 1)
    await sink.add_generation(2, "{{ body }}")
    await update(sink, 2, title="tea", body="black")
    assert await sink.pending("[1]", 1) is None
    await drain(sink, 2)
    assert await sink.chunks("[1]", 2) == ["black"]


async def test_what_another_template_made_of_the_row_is_not_its_text(sink: Sink) -> None:
    """The new body is just what the title was: the same bytes, but template 2 never made them of this row."""
    await update(sink, 1, title="tea", body="green")
    await sink.add_generation(2, "{{ body }}")
    await update(sink, 2, title="milk", body="tea")
    assert await sink.pending("[1]", 2) is not None


async def test_a_text_may_be_empty_in_one_generation_alone(sink: Sink) -> None:
    await sink.add_generation(2, "{{ body }}")
    await update(sink, 1, title="tea", body="green")
    await drain(sink, 1, 2)
    await update(sink, 2, title="", body="black")
    assert (await sink.chunks("[1]", 1), await sink.pending("[1]", 1)) == ([], None)
    assert await sink.pending("[1]", 2) is not None
    await drain(sink, 1, 2)
    await update(sink, 3, title="milk", body="")
    await drain(sink, 1, 2)
    assert (await sink.chunks("[1]", 1), await sink.chunks("[1]", 2)) == (["milk"], [])


async def test_a_dead_letter_stays_open_where_its_own_text_is_kept(sink: Sink) -> None:
    await sink.add_generation(2, "{{ body }}")
    await update(sink, 1, title="tea", body="green")
    await drain(sink, 1)
    (claimed,) = await claim(sink.store, generations=[2])
    await sink.store.fail(claimed, UnusableVector("NaN"), None)
    await update(sink, 2, title="milk", body="green")
    assert await sink.dead_letters() == [("embed", "[1]")]
    await update(sink, 3, title="milk", body="black")
    assert await sink.dead_letters() == []


async def test_only_the_live_generation_has_a_live_lane(sink: Sink) -> None:
    await sink.add_generation(2)
    await take_in(sink.store, change(1, 1, "tea", since=when(10)))
    lanes = {number: row.lane for number in (1, 2) if (row := await sink.pending("[1]", number))}
    assert lanes == {1: "live", 2: "backfill"}


async def test_vectors_are_copied_from_a_generation_of_the_same_model(sink: Sink) -> None:
    await sink.add_generation(2)
    await take_in(sink.store, change(1, 1, "tea"), change(2, 2, "milk"))
    await drain(sink, 1)
    first, second = sorted(await claim(sink.store, generations=[2]), key=lambda each: each.key)
    copied = replace(document(first, "tea", kept=["tea"]), copy_from=1)
    assert (await sink.store.write([copied]))[0] == [WRITTEN]
    assert await sink.chunks("[1]", 2) == ["tea"]
    gone = replace(document(second, "milk", kept=["milk"]))
    assert (await sink.store.write([gone]))[0] == [WriteOutcome.VANISHED], "nothing to copy from was named"


# -- the commands, on Postgres


NEW = generation(
    fingerprint="f2", model="package:other", dimension=3, template="{{ title }}!", state="filling"
)


@pytest.fixture
def commands(dsn: str) -> Iterator[Generations]:
    with Generations.open(dsn) as found:
        yield found


async def fill(postgres: PostgresSink, number: int = 2, dimension: int = 3) -> None:
    """As workers do, with vectors of another dimension."""
    while claims := await claim(postgres.store, 100, generations=[number]):
        writes = [document(each) for each in claims]
        for write in writes:
            chunks = [replace(each, vector=vector(each.text)[:dimension]) for each in write.chunks]
            await postgres.store.write([replace(write, chunks=chunks)])


async def shop(postgres: PostgresSink, rows: int = 5) -> None:
    await take_in(postgres.store, *(change(n, n, f"t{n}", since=when(10)) for n in range(1, rows + 1)))
    await embed_all(postgres.store)


@pytest.mark.parametrize("server", [16, 18], indirect=True)
async def test_h39_a_new_generation_has_all_rows_in_the_backfill_lane_without_a_commit_time(
    postgres: PostgresSink, commands: Generations
) -> None:
    await shop(postgres)
    await take_in(postgres.store, change(1, 9, None))
    made, pending = commands.create(NEW)
    assert (made.number, made.state, pending) == (2, "filling", 4)
    row = await postgres.pending("[2]", 2)
    assert row is not None
    assert (row.lane, row.pending_since) == ("backfill", None)
    assert await postgres.pending("[1]", 2) is None
    assert commands.create(NEW) == (made, 0), "again: it is there"
    with pytest.raises(SettingsError, match="upwell generation drop content 2"):
        commands.create(replace(NEW, fingerprint="f3"))
    assert ("generation_created", None) in await postgres.actions()


async def test_h19_a_key_that_is_being_taken_in_while_a_generation_is_made_is_in_it(
    postgres: PostgresSink, commands: Generations
) -> None:
    """The create command waits for the transaction, which knows one generation only."""
    creating = threading.Thread(target=commands.create, args=(NEW,))

    def slow(view: IntakeView) -> IntakePlan:
        creating.start()
        creating.join(0.3)
        assert creating.is_alive(), "it waits for the collection's lock"
        return IntakePlan(writes=[change(7, 7, "new")])

    await postgres.store.intake(IntakeRequest("content", {}, ["[7]"]), slow)
    await asyncio.to_thread(creating.join, 10)
    assert await postgres.pending("[7]", 2) is not None


async def test_a_switch_waits_for_every_row_and_takes_old_changes_and_dead_letters_for_reasons(
    postgres: PostgresSink, commands: Generations
) -> None:
    await shop(postgres)
    commands.create(NEW)
    assert commands.switch("content", None)[2].unfilled == 5
    (claimed,) = await claim(postgres.store, 1, generations=[2])
    await postgres.store.fail(claimed, UnusableVector("NaN"), None)
    await fill(postgres)
    ready = commands.switch("content", None)[2]
    assert (ready.unfilled, ready.dead_letters, ready.is_ready) == (0, 1, False)
    await take_in(postgres.store, change(int(claimed.key[1:-1]), 10, "mended", since=when(11)))
    ready = commands.switch("content", None)[2]
    assert (ready.unfilled, ready.late, ready.dead_letters) == (1, 1, 0), "it would vanish from search"
    await fill(postgres)
    await take_in(postgres.store, change(2, 11, "later", since=when(12)))
    assert commands.switch("content", None)[2].late == 1
    assert fed_generations(commands._connection, "content")[0].number == 1
    await fill(postgres)
    assert commands.switch("content", None)[2].is_ready
    assert fed_generations(commands._connection, "content")[0].number == 2


@pytest.mark.parametrize("server", [16, 18], indirect=True)
async def test_there_and_back_again(
    dsn: str, postgres: PostgresSink, commands: Generations, connection: Connection
) -> None:
    await shop(postgres)
    commands.create(NEW)
    await fill(postgres)
    function = "SELECT 'upwell.search_content(text, vector, int, int)'::regprocedure::oid"
    before = connection.execute(function).fetchone()
    live, target, ready = commands.switch("content", None)
    assert (live.number, target.number, ready.is_ready) == (1, 2, True)
    assert connection.execute(function).fetchone() == before, "who has found it would lose it"
    query = "SELECT DISTINCT model, vector_dims(embedding), count(*) OVER () FROM upwell.content GROUP BY id, 1, 2"
    assert connection.execute(query).fetchone() == ("package:other", 3, 5)
    assert (
        len(connection.execute("SELECT * FROM upwell.search_content('package:other', '[1,0,0]')").fetchall())
        == 5
    )
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="package:other"):
        connection.execute("SELECT * FROM upwell.search_content('package:fake', '[1,0,0,0]')")
    connection.execute("SET ROLE upwell_reader")
    assert connection.execute("SELECT count(*) FROM upwell.content").fetchone() == (5,)
    connection.execute("RESET ROLE")
    await take_in(postgres.store, change(1, 20, "new", since=when(12)), change(2, 21, None))
    assert connection.execute("SELECT is_stale FROM upwell.content WHERE id = 1").fetchone() == (True,)
    row, old = await postgres.pending("[1]", 2), await postgres.pending("[1]", 1)
    assert row is not None
    assert old is not None
    assert (row.lane, old.lane) == ("live", "backfill")
    await embed_all(postgres.store)
    live, target, ready = commands.rollback("content")
    assert (live.number, target.number, ready.pending) == (2, 1, 0)
    found = connection.execute(
        "SELECT id, chunk_text, vector_dims(embedding) FROM upwell.content ORDER BY id"
    )
    assert found.fetchall() == [(1, "new", 4), (3, "t3", 4), (4, "t4", 4), (5, "t5", 4)]
    row = await postgres.pending("[1]", 2)
    assert row is not None
    assert row.lane == "backfill"
    assert commands.rollback("content")[1].number == 2, "the one that was live last"


async def test_a_readers_prepared_statement_outlives_a_switch_to_another_dimension(
    postgres: PostgresSink, commands: Generations, connection: Connection
) -> None:
    await shop(postgres)
    connection.execute("PREPARE all_of_it AS SELECT * FROM upwell.content ORDER BY id")
    for _ in range(6):
        connection.execute("EXECUTE all_of_it")
    commands.create(NEW)
    await fill(postgres)
    commands.switch("content", 2)
    assert len(connection.execute("EXECUTE all_of_it").fetchall()) == 5


MODELS = {"package:fake": "[1,0,0,0]", "package:other": "[1,0,0]"}


class Reader(threading.Thread):
    """Searches with both models, and reads the view, until told to stop; `wrong` says what was neither old nor new."""

    def __init__(self, dsn: str, stop: threading.Event) -> None:
        super().__init__()
        self._dsn, self._stop_now = dsn, stop
        self.wrong: list[str] = []
        self.found_by: set[str] = set()

    def run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._stop_now.is_set():
                for model in MODELS:
                    self._search(connection, model)
                seen = connection.execute(
                    "SELECT count(*), count(DISTINCT model) FROM upwell.content"
                ).fetchone()
                if seen != (20, 1):
                    self.wrong.append(str(seen))

    def _search(self, connection: Connection, model: str) -> None:
        query = "SELECT model FROM upwell.search_content(%s, %s::vector, 20)"
        try:
            found = connection.execute(query, (model, MODELS[model])).fetchall()
        except psycopg.errors.InvalidParameterValue:
            return  # the other one is live, as it says
        except psycopg.Error as error:
            self.wrong.append(str(error))
            return
        self.found_by.add(model)
        if found != [(model,)] * 20:
            self.wrong.append(f"{model}: {found}")


async def test_readers_meanwhile_see_the_old_or_the_new_and_never_nothing(
    dsn: str, postgres: PostgresSink, commands: Generations
) -> None:
    await shop(postgres, 20)
    commands.create(NEW)
    await fill(postgres)
    stop = threading.Event()
    readers = [Reader(dsn, stop) for _ in range(3)]
    for each in readers:
        each.start()
    await asyncio.to_thread(commands.switch, "content", 2)
    for _ in range(40):
        await asyncio.to_thread(commands.rollback, "content")
    stop.set()
    for each in readers:
        each.join()
    wrong = [line for each in readers for line in each.wrong]
    assert not wrong, wrong[:3]
    assert set.union(*(each.found_by for each in readers)) == set(MODELS)


async def test_a_generation_is_dropped_with_all_that_waits_for_it(
    postgres: PostgresSink, commands: Generations, connection: Connection
) -> None:
    await shop(postgres)
    commands.create(NEW)
    held, failing = await claim(postgres.store, 2, generations=[2])
    await postgres.store.fail(failing, UnusableVector("NaN"), None)
    with pytest.raises(SettingsError, match="live"):
        commands.drop("content", 1)
    assert commands.drop("content", 2)
    assert not commands.drop("content", 2), "again: it was before"
    assert await postgres.dead_letters() == []
    assert await postgres.pending("[1]", 2) is None
    assert connection.execute("SELECT to_regclass('upwell.embedding_content_g2')").fetchone() == (None,)
    with pytest.raises(GenerationDropped):
        await postgres.store.known_hashes("content", 2, [digest("t1")])
    with pytest.raises(GenerationDropped):
        await postgres.store.own_hashes("content", 2, [held.key])
    assert await embed(postgres.store, held) == [WriteOutcome.DISCARDED], "an embedder was at work"
    await take_in(postgres.store, change(1, 30, "goes on"), change(2, 31, None))
    await embed_all(postgres.store)
    assert await postgres.chunks("[1]") == ["goes on"]
    again, pending = commands.create(NEW)
    assert (again.number, pending) == (3, 4), "a number is never used twice"
    with pytest.raises(SettingsError, match="no generation 9"):
        commands.drop("content", 9)


async def test_a_reader_that_stays_is_not_waited_for_for_ever(
    dsn: str, postgres: PostgresSink, commands: Generations
) -> None:
    await shop(postgres)
    commands.create(NEW)
    await fill(postgres)
    with psycopg.connect(dsn) as reader:
        reader.execute("SELECT count(*) FROM upwell.content")
        with pytest.raises(Conflict, match="nothing was changed"):
            await asyncio.to_thread(commands.switch, "content", None)
    assert fed_generations(commands._connection, "content")[0].number == 1
    assert commands.switch("content", None)[2].is_ready


async def test_migrate_goes_on_with_what_is_live_whichever_fed_generation_the_spec_is(
    postgres: PostgresSink, commands: Generations, connection: Connection
) -> None:
    await shop(postgres)
    new = layout(fingerprint="f2", model="package:other", dimension=3)
    with pytest.raises(GenerationMismatch, match="upwell generation create content"):
        migrate_sink(connection, [new])
    commands.create(NEW)
    migrate_sink(connection, [new])
    assert connection.execute("SELECT DISTINCT model FROM upwell.content").fetchall() == [("package:fake",)]
    await fill(postgres)
    commands.switch("content", None)
    migrate_sink(connection, [layout()])
    assert connection.execute("SELECT DISTINCT model FROM upwell.content").fetchall() == [("package:other",)]
    commands.drop("content", 1)
    with pytest.raises(GenerationMismatch):
        migrate_sink(connection, [layout()])


async def test_reports_and_staleness_are_of_the_live_generation_alone(
    postgres: PostgresSink, commands: Generations, connection: Connection
) -> None:
    from datetime import timedelta

    from connectors.postgres.capture_state import CaptureState

    await shop(postgres)
    commands.create(NEW)
    (claimed,) = await claim(postgres.store, 1, generations=[2])
    await postgres.store.fail(claimed, UnusableVector("NaN"), None)
    read = read_report(connection, timedelta(minutes=5), "content")
    assert (list(read.pending), dict(read.dead_letters)) == ([], {})
    assert CaptureState(connection).backfill_pending("content") == 0, "a first load is not held up by it"
    assert connection.execute("SELECT bool_or(is_stale) FROM upwell.content").fetchone() == (False,)
    await take_in(postgres.store, change(1, 9, "t1 changed", since=when(10)))
    assert [
        (row.lane, row.count) for row in read_report(connection, timedelta(minutes=5), "content").pending
    ] == [("live", 1)]


async def test_status_says_what_waits_and_how_large_it_is(
    dsn: str, postgres: PostgresSink, commands: Generations
) -> None:
    await shop(postgres)
    commands.create(NEW)
    old, new = commands.facts("content")
    assert (old.info.state, old.chunks, old.pending, old.eta_seconds) == ("live", 5, 0, 0.0)
    assert (new.info.state, new.chunks, new.pending, new.eta_seconds) == ("filling", 0, 5, None)
    assert old.bytes > 0
    store = await PostgresStore.open(dsn, writer="w9")
    await store.register_worker("w9", "here", 1)
    await store.set_problems(["generation 2 of content (filling): no such model"])
    assert commands.problems() == ["worker w9: generation 2 of content (filling): no such model"]
    await store.set_problems([])
    assert commands.problems() == []
    await store.close()


async def test_search_says_which_model_is_live_to_a_vector_of_the_retired_one(
    postgres: PostgresSink, commands: Generations, connection: Connection
) -> None:
    import numpy as np

    await shop(postgres)
    commands.create(replace(NEW, dimension=4))
    await fill(postgres, dimension=4)
    commands.switch("content", None)
    with pytest.raises(GenerationMismatch, match="package:other"):
        search_rows(connection, "content", "package:fake", np.array([1, 0, 0, 0], dtype=np.float32), 3)


# -- the canary follows


@pytest.fixture
def with_canary(dsn: str, tmp_path: Path) -> Settings:
    """A sink with the canary's collection, and the settings that go with it; content's live model is `package:new`."""
    spec = tmp_path / "upwell.toml"
    spec.write_text('[collections.content]\ntable = "shop.content"\ntemplate = "{{ title }}"\n')
    with psycopg.connect(dsn, autocommit=True) as connection:
        canary = layout("canary", (), fingerprint="c1", template="canary of upwell, number {{ nonce }}")
        migrate_sink(connection, [canary])
        connection.execute(
            "INSERT INTO upwell.record_canary (_key, _row, _text_hash, _lineage, _offset, _deleted, _streamed, "
            "_taken_in_at) VALUES ('[1]', '{\"nonce\": \"1\"}', '', 1, 1, false, true, now())"
        )
    return load(spec, environment={"UPWELL_SINK_DSN": dsn})


def switch_content(settings: Settings, model: str) -> None:
    with Generations.open(settings.sink.dsn) as generations:
        made, _ = generations.create(generation(number=0, fingerprint=model, model=model, state="filling"))
        assert generations.switch("content", made.number)[2].is_ready


def canary_models(settings: Settings) -> list[tuple[str, str]]:
    with Generations.open(settings.sink.dsn) as generations:
        return [(each.model, each.state) for each in generations.fed("canary")]


def test_the_canary_stays_while_a_collection_uses_its_model(with_canary: Settings) -> None:
    assert follow_canary(with_canary, 0.0) == ""
    assert canary_models(with_canary) == [(MODEL, "live")]


def test_the_canary_follows_to_a_model_that_is_used(with_canary: Settings) -> None:
    """Else it would need a model that nobody has any more, and everything would look dead."""
    switch_content(with_canary, "package:new")
    assert "no worker embeds the canary with package:new yet" in follow_canary(with_canary, 0.0)
    assert canary_models(with_canary) == [(MODEL, "live"), ("package:new", "filling")]
    with psycopg.connect(with_canary.sink.dsn, autocommit=True) as connection:
        connection.execute(
            "DELETE FROM upwell.pending WHERE collection = 'canary'"
        )  # a worker has embedded it
    assert follow_canary(with_canary, 0.0) == "the canary uses package:new now"
    assert canary_models(with_canary) == [("package:new", "live")]
