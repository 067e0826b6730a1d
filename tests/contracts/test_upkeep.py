"""HNSW indexes and dead rows on real servers: what migrate makes, what maintain mends beside workers and readers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, Literal

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from connectors.postgres.generations import Generations
from connectors.postgres.layout import CollectionLayout
from connectors.postgres.migrate import migrate_sink
from connectors.postgres.upkeep import Upkeep, read_unindexed, read_vectors
from schemas import upkeep as judged
from schemas.errors import SettingsError, SinkUnavailable
from schemas.sink import GenerationInfo, Lane
from schemas.spec import CollectionSpec, VectorIndex
from schemas.upkeep import needed_bytes
from streams.doctor.sink import judge_index
from streams.settings import Settings, SinkSettings
from streams.upkeep import Stock, look, maintain
from tests.contracts.server import Server
from tests.contracts.sinks import PostgresSink, generation, layout
from tests.contracts.steps import change, claim, document, embed_all, take_in, vector, when
from tests.deployment import until

Connection = psycopg.Connection[Any]
INDEX: Final = "embedding_content_g1_hnsw"
WIDER: Final = VectorIndex(m=24, ef_construction=80)
NEW: Final = generation(
    fingerprint="f2", model="package:other", dimension=3, template="{{ title }}!", state="filling"
)


def settings(dsn: str) -> Settings:
    spec = CollectionSpec(table="shop.content", template="{{ title }}")
    return Settings(name="shop", sink=SinkSettings(dsn=dsn), collections={"content": spec})


def indexed(index: VectorIndex) -> CollectionLayout:
    return replace(layout(), index=index)


def indexes(connection: Connection, number: int = 1) -> dict[str, tuple[bool, str]]:
    """HNSW indexes of a generation: whether each is valid, and what it was made with."""
    query = """SELECT c.relname, i.indisvalid, coalesce(array_to_string(c.reloptions, ','), '') FROM pg_index i
                 JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
                WHERE a.amname = 'hnsw' AND i.indrelid = %s::regclass ORDER BY 1"""
    rows = connection.execute(query, (f"upwell.embedding_content_g{number}",)).fetchall()
    return {row[0]: (row[1], row[2]) for row in rows}


def file_of(connection: Connection, index: str = INDEX) -> int:
    """Another one after each build."""
    row = connection.execute("SELECT relfilenode FROM pg_class WHERE relname = %s", (index,)).fetchone()
    assert row is not None
    return int(row[0])


def run(dsn: str) -> tuple[Stock, list[str]]:
    said: list[str] = []
    return maintain(settings(dsn), ["content"], said.append), said


async def shop(postgres: PostgresSink, rows: int = 20) -> None:
    await take_in(postgres.store, *(change(n, n, f"t{n}", since=when(10)) for n in range(1, rows + 1)))
    await embed_all(postgres.store)


async def fill(postgres: PostgresSink, number: int = 2) -> None:
    while claims := await claim(postgres.store, 100, generations=[number]):
        for write in (document(each) for each in claims):
            chunks = [replace(each, vector=vector(each.text)[:3]) for each in write.chunks]
            await postgres.store.write([replace(write, chunks=chunks)])


# -- migrate


@pytest.mark.parametrize("server", [16, 18], indirect=True)
def test_an_index_is_made_as_the_spec_says(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        migrate_sink(connection, [indexed(replace_index(ef_search=123))])
        assert indexes(connection) == {INDEX: (True, "m=24,ef_construction=80")}
        query = (
            "SELECT pg_get_function_arguments('upwell.search_content(text, vector, int, int)'::regprocedure)"
        )
        assert "ef_search integer DEFAULT 123" in str(connection.execute(query).fetchone())
        assert migrate_sink(connection, [indexed(replace_index(ef_search=50))]) == []
        assert "ef_search integer DEFAULT 50" in str(connection.execute(query).fetchone())
    with Generations.open(empty_dsn) as generations:
        (live,) = generations.fed("content")
        assert generations._layout(live).index == replace_index(ef_search=50)


def replace_index(**changed: Any) -> VectorIndex:
    return WIDER.model_copy(update=changed)


async def test_migrate_leaves_the_index_of_rows_as_it_is_and_says_who_builds_it_anew(
    postgres: PostgresSink, connection: Connection
) -> None:
    await shop(postgres)
    before = file_of(connection)
    assert migrate_sink(connection, [layout()]) == []
    for _ in range(2):
        (said,) = migrate_sink(connection, [indexed(WIDER)])
        assert said == (
            "collection content: its HNSW index still has m = 16, ef_construction = 64: run `upwell maintain content`, "
            "which builds it anew"
        )
    assert file_of(connection) == before
    connection.execute(f"DROP INDEX upwell.{INDEX}".encode())
    (said,) = migrate_sink(connection, [layout()])
    assert said == "collection content: it has no HNSW index: run `upwell maintain content`"
    assert indexes(connection) == {}


def test_storage_parameters_are_set_where_nobody_has_set_them(connection: Connection) -> None:
    query = "SELECT array_to_string(reloptions, ' ') FROM pg_class WHERE oid = %s::regclass"
    scale = "autovacuum_vacuum_scale_factor"
    expected = {
        "record_content": f"fillfactor=80 {scale}=0.05 autovacuum_analyze_scale_factor=0.05",
        "embedding_content_g1": f"fillfactor=70 {scale}=0.1",
    }
    for table, options in expected.items():
        assert connection.execute(query, (f"upwell.{table}",)).fetchone() == (options,)
    connection.execute("ALTER TABLE upwell.record_content SET (autovacuum_vacuum_scale_factor = 0.3)")
    connection.execute("ALTER TABLE upwell.embedding_content_g1 RESET (autovacuum_vacuum_scale_factor)")
    migrate_sink(connection, [layout()])
    assert "0.3" in str(connection.execute(query, ("upwell.record_content",)).fetchone())
    found = connection.execute(query, ("upwell.embedding_content_g1",)).fetchone()
    assert found == (expected["embedding_content_g1"],)


def test_migrate_does_not_wait_for_a_vacuum(dsn: str, connection: Connection) -> None:
    """Workers wait for migrate: one that cannot be interrupted may take hours."""
    connection.execute("ALTER TABLE upwell.record_content RESET (autovacuum_vacuum_scale_factor)")
    connection.execute("SET lock_timeout = '10s'")
    with psycopg.connect(dsn) as vacuum:
        vacuum.execute("LOCK TABLE upwell.record_content IN SHARE UPDATE EXCLUSIVE MODE")
        (said,) = migrate_sink(connection, [layout()])
    assert said == (
        "record_content is being vacuumed or indexed: its storage parameters are set by the next migrate"
    )
    assert migrate_sink(connection, [layout()]) == []


@pytest.mark.parametrize("server", [16, 18], indirect=True)
async def test_a_change_of_metadata_stays_in_its_page_and_touches_no_index(
    postgres: PostgresSink, connection: Connection
) -> None:
    """HOT: else each would be a new entry in every index of its table, and none touches the vectors."""
    rows = 400
    await shop(postgres, rows)
    for start in range(1, 11):
        keys = range(start, rows + 1, 10)
        offset = 1000 * start
        changes = [change(n, offset + n, f"t{n}", embed="keep", price="1.00") for n in keys]
        await take_in(postgres.store, *changes)
    await postgres.store.close()
    query = """SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables
                WHERE relid IN ('upwell.record_content'::regclass, 'upwell.embedding_content_g1'::regclass)
                ORDER BY relname"""
    until(lambda: connection.execute(query).fetchall()[1][0] == rows, 20, "statistics")
    embedding, record = connection.execute(query).fetchall()
    assert embedding[0] == 0
    assert record[1] >= 0.9 * rows, record


# -- maintain


@pytest.mark.parametrize("server", [16, 18], indirect=True)
async def test_other_parameters_are_built_beside_the_old_index(
    dsn: str, postgres: PostgresSink, connection: Connection
) -> None:
    await shop(postgres)
    assert look(settings(dsn)).due == []
    migrate_sink(connection, [indexed(WIDER)])
    before = "content, generation 1: m = 16, ef_construction = 64, the spec has 24 and 80"
    assert look(settings(dsn)).due == [before]
    stock, said = run(dsn)
    assert stock.due == []
    assert said[0] == f"index of {before}"
    assert indexes(connection) == {INDEX: (True, "m=24,ef_construction=80")}
    built = file_of(connection)
    assert run(dsn)[1] == [], "again: nothing is due"
    assert file_of(connection) == built
    query = "SELECT count(*) FROM upwell.search_content('package:fake', '[1,0,0,0]', 20)"
    assert connection.execute(query).fetchone() == (20,)
    assert migrate_sink(connection, [indexed(WIDER)]) == []


def long_reader(dsn: str) -> Connection:
    """It keeps its snapshot."""
    reader = psycopg.connect(dsn)
    reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    reader.execute("SELECT count(*) FROM upwell.content")
    return reader


class Waiting:
    """A maintain that waits for a reader's transaction, as it would for one of hours."""

    def __init__(self, dsn: str, connection: Connection) -> None:
        self._connection = connection
        self._reader = long_reader(dsn)
        self._threads = ThreadPoolExecutor(1)
        self.said: list[str] = []
        self.done: Future[Stock] = self._threads.submit(
            maintain, settings(dsn), ["content"], self.said.append
        )
        until(self._waits, 20, "a build that waits")

    @property
    def pid(self) -> int:
        found = self._connection.execute(
            "SELECT pid FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%'"
        )
        row = found.fetchone()
        return 0 if row is None else int(row[0])

    def _waits(self) -> bool:
        assert not self.done.done(), self.done.result()
        return self.pid != 0

    def end_reader(self) -> None:
        self._reader.rollback()

    def close(self) -> None:
        self._reader.close()
        self._threads.shutdown()


@pytest.fixture
async def waiting(dsn: str, postgres: PostgresSink, connection: Connection) -> Any:
    await shop(postgres)
    migrate_sink(connection, [indexed(WIDER)])
    found = Waiting(dsn, connection)
    yield found
    found.close()


@pytest.mark.parametrize("server", [16, 18], indirect=True)
async def test_workers_and_readers_go_on_while_it_waits(
    dsn: str, postgres: PostgresSink, connection: Connection, waiting: Waiting
) -> None:
    connection.execute("SET lock_timeout = '2s'")
    async with asyncio.timeout(20):
        await take_in(postgres.store, change(21, 100, "new", since=when(11)), change(1, 101, None))
        await embed_all(postgres.store)
    assert connection.execute("SELECT count(*) FROM upwell.content").fetchone() == (20,)
    with pytest.raises(SettingsError, match=r"another .* is running"):
        migrate_sink(connection, [layout()])
    with pytest.raises(SettingsError, match=r"another .* is running"):
        run(dsn)
    held = "SELECT count(*) FROM pg_locks WHERE pid = %s AND mode = 'AccessExclusiveLock' AND relation IS NOT NULL"
    assert connection.execute(held, (waiting.pid,)).fetchone() == (0,)
    await asyncio.to_thread(
        until, lambda: any("waits for the transaction" in line for line in waiting.said), 20, "said"
    )
    waiting.end_reader()
    assert (await asyncio.to_thread(waiting.done.result, 20)).due == []
    query = "SELECT count(*) FROM upwell.search_content('package:fake', '[1,0,0,0]', 30)"
    assert connection.execute(query).fetchone() == (20,)


@pytest.mark.parametrize("server", [16, 18], indirect=True)
async def test_killed_in_the_middle_the_next_run_mends(
    dsn: str, connection: Connection, waiting: Waiting
) -> None:
    connection.execute("SELECT pg_terminate_backend(%s)", (waiting.pid,))
    with pytest.raises(SinkUnavailable):
        await asyncio.to_thread(waiting.done.result, 20)
    waiting.end_reader()
    left = indexes(connection)
    assert left["embedding_content_g1_new"][0] is False
    assert left[INDEX][0] is True
    assert "a build was interrupted" in look(settings(dsn)).due[0]
    assert (
        judge_index("content", read_vectors(connection, "content")).next_step
        == "run `upwell maintain content`"
    )
    assert run(dsn)[0].due == []
    assert indexes(connection) == {INDEX: (True, "m=24,ef_construction=80")}


async def test_killed_before_the_new_index_had_its_name(
    dsn: str, postgres: PostgresSink, connection: Connection
) -> None:
    """It is not built a second time, and searches have used it meanwhile."""
    await shop(postgres)
    connection.execute(f"ALTER INDEX upwell.{INDEX} RENAME TO embedding_content_g1_new".encode())
    assert read_unindexed(connection) == []
    before = file_of(connection, "embedding_content_g1_new")
    assert "a build was not finished" in look(settings(dsn)).due[0]
    assert run(dsn)[0].due == []
    assert file_of(connection) == before
    assert list(indexes(connection)) == [INDEX]


async def test_what_a_reindex_by_hand_has_left_goes(
    dsn: str, postgres: PostgresSink, connection: Connection
) -> None:
    await shop(postgres)
    connection.execute(
        f"CREATE INDEX {INDEX}_ccnew ON upwell.embedding_content_g1 USING hnsw (embedding vector_cosine_ops)".encode()
    )
    connection.execute(
        "CREATE INDEX of_my_own ON upwell.embedding_content_g1 USING hnsw (embedding vector_l2_ops)"
    )
    assert look(settings(dsn)).due == [], "valid: somebody's own"
    connection.execute(
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'upwell.{INDEX}_ccnew'::regclass".encode()
    )
    run(dsn)
    assert set(indexes(connection)) == {INDEX, "of_my_own"}


@pytest.mark.parametrize("server", [16, 18], indirect=True)
async def test_dead_rows_are_a_reason_to_build_and_to_vacuum(
    dsn: str, postgres: PostgresSink, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judged, "MANY_DEAD", 10)
    await shop(postgres)
    connection.execute("ALTER TABLE upwell.embedding_content_g1 SET (autovacuum_enabled = false)")
    connection.execute("ALTER TABLE upwell.record_content SET (autovacuum_enabled = false)")
    await take_in(postgres.store, *(change(n, n + 100, None) for n in range(1, 16)))
    await postgres.store.close()
    until(lambda: look(settings(dsn), ["content"]).vectors[0].table.dead == 15, 20, "statistics")
    due = look(settings(dsn)).due
    assert due[0] == "content, generation 1: 15 dead rows"
    assert due[1].startswith("record_content: ")
    before = file_of(connection)
    stock, said = run(dsn)
    assert stock.due == []
    assert "record_content: vacuumed" in said
    assert file_of(connection) != before
    assert (stock.vectors[0].table.dead, stock.tables[0].dead) == (0, 0)


@pytest.mark.parametrize(
    ("dimension", "m", "type_"),
    [
        *((dimension, 16, "vector") for dimension in (4, 384, 768, 1536)),
        (384, 48, "vector"),
        (2000, 8, "vector"),
        (384, 16, "halfvec"),
        (1536, 16, "halfvec"),
        (4000, 8, "halfvec"),
    ],
)
def test_what_an_index_needs_is_what_a_fresh_one_takes(
    connection: Connection, dimension: int, m: int, type_: Literal["vector", "halfvec"]
) -> None:
    """Else it would be taken for bloated just after it was built."""
    rows = 600
    connection.execute(
        f"CREATE TABLE fresh AS SELECT (SELECT array_agg(random()) FROM generate_series(1, {dimension}) WHERE n > 0)"
        f"::{type_}({dimension}) AS v FROM generate_series(1, {rows}) AS n".encode()
    )
    wanted = VectorIndex(m=m, ef_construction=max(16, 2 * m), type=type_)
    options = f"(m = {m}, ef_construction = {wanted.ef_construction})"
    connection.execute(
        f"CREATE INDEX fresh_hnsw ON fresh USING hnsw (v {type_}_cosine_ops) WITH {options}".encode()
    )
    row = connection.execute("SELECT pg_relation_size('fresh_hnsw')").fetchone()
    assert row is not None
    assert 0.8 < row[0] / needed_bytes(rows, dimension, wanted) < 1.3


async def test_a_bloated_index_is_built_anew(
    dsn: str, postgres: PostgresSink, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judged, "WORTH_BYTES", 0)
    connection.execute(
        "INSERT INTO upwell.embedding_content_g1 SELECT '[' || n || ']', 0, int4send(n), '', "
        "ARRAY[random(), random(), random(), random()]::vector, now() FROM generate_series(1, 1000) AS n"
    )
    assert look(settings(dsn)).due == []
    connection.execute("DELETE FROM upwell.embedding_content_g1 WHERE hashtext(key) % 3 <> 0")
    connection.execute("VACUUM upwell.embedding_content_g1")
    (due,) = look(settings(dsn)).due
    assert "times as large as its rows need" in due
    assert run(dsn)[0].due == []


def test_only_the_owner_may(server: Server, dsn: str) -> None:
    with server.connect("postgres") as administrator:
        administrator.execute("DROP ROLE IF EXISTS plain_worker")
        administrator.execute("CREATE ROLE plain_worker LOGIN IN ROLE upwell_worker")
    with pytest.raises(SettingsError, match="does not own"):
        run(make_conninfo(dsn, user="plain_worker"))
    assert look(settings(make_conninfo(dsn, user="plain_worker"))).due == []


# -- an index after the load


@pytest.mark.parametrize("server", [16, 18], indirect=True)
async def test_an_index_that_is_to_come_after_the_load(empty_dsn: str) -> None:
    from connectors.postgres.store import PostgresStore

    late = indexed(VectorIndex(build="after_load"))
    said = "collection content: it has no HNSW index yet: run `upwell maintain content` when its load is complete"
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        assert said in migrate_sink(connection, [late])
        assert migrate_sink(connection, [late]) == [said]
        store = await PostgresStore.open(empty_dsn, writer="w")
        await shop(PostgresSink(store, empty_dsn))
        query = "SELECT count(*) FROM upwell.search_content('package:fake', '[1,0,0,0]', 20)"
        assert connection.execute(query).fetchone() == (20,), "searches read the table"
        assert (run(empty_dsn)[1], indexes(connection)) == ([], {})
        assert read_unindexed(connection) == []
        verdict = judge_index("content", read_vectors(connection, "content"))
        assert verdict.state.value == "not yet"
        connection.execute("UPDATE upwell.collection SET load_state = 'complete'")
        await take_in(store, change(30, 300, "a row of the load", lane=Lane.BACKFILL))
        assert (look(settings(empty_dsn)).due, read_unindexed(connection)) == ([], []), (
            "it waits to be embedded"
        )
        await embed_all(store)
        await store.close()
        assert read_unindexed(connection) == ["content"]
        assert run(empty_dsn)[0].due == []
        assert indexes(connection)[INDEX][0] is True
        assert read_unindexed(connection) == []
        assert migrate_sink(connection, [late]) == []


@pytest.fixture
def commands(dsn: str) -> Iterator[Generations]:
    with Generations.open(dsn) as found:
        yield found


@pytest.mark.parametrize("server", [16, 18], indirect=True)
async def test_a_generation_that_fills_is_indexed_before_it_is_switched_to(
    dsn: str, postgres: PostgresSink, commands: Generations, connection: Connection
) -> None:
    migrate_sink(connection, [indexed(WIDER)])
    await shop(postgres)
    commands.create(NEW)
    assert indexes(connection, 2) == {}
    ready = commands.switch("content", None)[2]
    assert (ready.is_ready, indexes(connection, 2)) == (False, {}), "not filled: nothing is built"
    assert not [line for line in look(settings(dsn)).due if "generation 2" in line]
    await fill(postgres)
    said: list[str] = []
    live, target, ready = commands.switch("content", None, said.append)
    assert (live.number, target.number, ready.is_ready) == (1, 2, True)
    assert indexes(connection, 2) == {"embedding_content_g2_hnsw": (True, "m=24,ef_construction=80")}
    assert said[0] == "index of content, generation 2: is built before it is switched to"
    connection.execute("DROP INDEX upwell.embedding_content_g1_hnsw")
    assert commands.rollback("content")[1].number == 1
    assert indexes(connection)[INDEX][0] is True


async def test_workers_go_on_while_a_switch_builds_the_index(
    dsn: str, postgres: PostgresSink, commands: Generations, connection: Connection
) -> None:
    """And what they bring meanwhile is in it."""
    await shop(postgres)
    commands.create(NEW)
    await fill(postgres)
    with long_reader(dsn) as reader, ThreadPoolExecutor(1) as thread:
        switching = thread.submit(commands.switch, "content", None)
        waits = "SELECT count(*) > 0 FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%'"
        await asyncio.to_thread(until, lambda: connection.execute(waits).fetchone() == (True,), 20, "a build")
        async with asyncio.timeout(20):
            await take_in(postgres.store, change(50, 500, "meanwhile", since=when(11)))
            await embed_all(postgres.store)
            await fill(postgres)
        reader.rollback()
        _, target, ready = await asyncio.to_thread(switching.result, 20)
    assert isinstance(target, GenerationInfo)
    assert (target.number, ready.is_ready) == (2, True)
    found = connection.execute(
        "SELECT id FROM upwell.search_content('package:other', '[1,0,0]', 30)"
    ).fetchall()
    assert (50,) in found


def test_another_build_is_one_clear_line(dsn: str) -> None:
    with Upkeep.open(dsn), pytest.raises(SettingsError, match=r"^another .*upwell maintain.* is running"):
        run(dsn)
