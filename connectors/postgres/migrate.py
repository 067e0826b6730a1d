"""The sink's schema: numbered forward-only migrations, then the objects of each collection, in line with the spec.

All in one transaction under an advisory lock: killed anywhere, it leaves what was there. No superuser is needed where
the roles and the extension exist already.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from connectors.postgres.layout import (
    CollectionLayout,
    Column,
    embedding_table,
    hnsw_name,
    record_table,
    repeated_table,
)
from connectors.postgres.record_columns import fill, read_again, stored_types
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from schemas.errors import GenerationMismatch, MigrationNeeded, SettingsError
from schemas.freshness import CANARY
from schemas.names import VIEW_COLUMNS
from schemas.sink import GenerationInfo
from schemas.spec import VectorIndex
from schemas.upkeep import IndexFacts

SQL: Final = Queries.load("layout")
SINK: Final = Queries.load("sink")
ROLES: Final = ("upwell_owner", "upwell_worker", "upwell_reader")
LEAST_SERVER: Final = 150_000
LEAST_PGVECTOR: Final = (0, 8)
#: Dead rows of `embedding` cost results of a search, and a change of metadata leaves one of `record`: rather often than
#: much (speed of a search after churn, ADR 0020).
EMBEDDING_OPTIONS: Final = {"autovacuum_vacuum_scale_factor": "0.1"}
RECORD_OPTIONS: Final = {"autovacuum_vacuum_scale_factor": "0.05", "autovacuum_analyze_scale_factor": "0.05"}
#: A text's chunks that HNSW is given: from some three hundred on a search has no way out of them (ADR 0023), and
#: workers that write a text at the same time do not see each other's.
COPIES_INDEXED: Final = 100

Connection = psycopg.Connection[Any]


def migrations() -> list[tuple[int, str, str]]:
    """Number, name and text of every migration, in order."""
    found = []
    for file in (files("connectors.postgres") / "migrations").iterdir():
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name)
        if match:
            found.append((int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return sorted(found)


def migrate_sink(connection: Connection, layouts: Sequence[CollectionLayout]) -> list[str]:
    """Bring the sink in line; idempotent. Returns what was done, a line each.

    `connection` must be in autocommit mode. Workers may run: they wait for it as for a truncate, and it for them.
    Raises SettingsError when another migrate runs or the server will not do,
    MigrationNeeded when the schema is newer than this code, GenerationMismatch when vectors would change.
    """
    with sink_errors(), alone(connection), connection.transaction():
        if _one(connection, SQL["has_migrations"])[0]:
            lock_collections(connection)
        done = [*_extension(connection), *_roles(connection), *_numbered(connection)]
        for layout in layouts:
            done += _collection(connection, layout)
        connection.execute(SQL["grant_worker"])
    return done


def lock_collections(connection: Connection) -> None:
    """Alone on all collections, in the order of their names, until the caller's transaction ends.

    First, as every transaction does: altering a table that a worker has locked rows of could deadlock (H20).
    """
    for (name,) in connection.execute(SQL["collection_names"]).fetchall():
        connection.execute(SINK["lock_collection_alone"], {"collection": name})


def check_schema(connection: Connection) -> None:
    """Raise MigrationNeeded unless the schema is just the one that this code was written for."""
    with sink_errors():
        applied = _applied(connection)
    newest = max(number for number, _, _ in migrations())
    if not applied:
        raise MigrationNeeded("the sink has no upwell schema yet: run `upwell migrate` first")
    if max(applied) < newest:
        raise MigrationNeeded("the sink's schema is older than this upwell: run `upwell migrate`")
    _refuse_newer(applied)


@contextlib.contextmanager
def alone(connection: Connection) -> Iterator[None]:
    """No migrate runs beside it, nor another that makes indexes. Raises SettingsError."""
    if not _one(connection, SQL["try_migrate"])[0]:
        raise SettingsError(
            "another `upwell migrate` or `upwell maintain` is running on this sink: wait for it and run it again"
        )
    try:
        yield
    finally:
        connection.execute(SQL["unlock_migrate"])


def _one(
    connection: Connection, query: sql.SQL | sql.Composed, parameters: dict[str, Any] | None = None
) -> tuple[Any, ...]:
    row = connection.execute(query, parameters).fetchone()
    return () if row is None else tuple(row)


def _applied(connection: Connection) -> dict[int, str]:
    if not _one(connection, SQL["has_migrations"])[0]:
        return {}
    return dict(connection.execute(SQL["migrations"]).fetchall())


def _refuse_newer(applied: dict[int, str]) -> None:
    known = {number for number, _, _ in migrations()}
    newer = sorted(set(applied) - known)
    if newer:
        raise MigrationNeeded(
            f"the sink has migration {newer[-1]} ({applied[newer[-1]]}), which this version of upwell does not know: "
            f"upgrade upwell, or restore the sink"
        )


def _extension(connection: Connection) -> list[str]:
    version, installed, available = _one(connection, SQL["server"])
    if version < LEAST_SERVER:
        raise SettingsError(f"the sink is Postgres {version // 10_000}; upwell needs 15 or newer")
    done = []
    if installed is None:
        if not available:
            raise SettingsError("the sink has no pgvector: install it on the server, version 0.8 or newer")
        connection.execute("CREATE EXTENSION vector")
        installed = _one(connection, SQL["server"])[1]
        done.append(f"extension vector {installed}")
    if tuple(int(part) for part in installed.split(".")[:2]) < LEAST_PGVECTOR:
        raise SettingsError(
            f"the sink has pgvector {installed}; upwell needs 0.8 or newer: ALTER EXTENSION vector UPDATE"
        )
    return done


def _roles(connection: Connection) -> list[str]:
    done = []
    for role in ROLES:
        if not _one(connection, SQL["role_exists"], {"role": role})[0]:
            connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(role)))
            done.append(f"role {role}")
    return done


def _numbered(connection: Connection) -> list[str]:
    applied = _applied(connection)
    _refuse_newer(applied)
    if not applied:
        connection.execute("CREATE SCHEMA IF NOT EXISTS upwell")
        connection.execute(
            "CREATE TABLE upwell.migration (number int PRIMARY KEY, name text NOT NULL, "
            "applied_at timestamptz NOT NULL DEFAULT now())"
        )
        connection.execute("GRANT USAGE ON SCHEMA upwell TO upwell_worker, upwell_reader")
    done = []
    for number, name, text in migrations():
        if number not in applied:
            connection.execute(text.encode())
            connection.execute(SQL["record_migration"], {"number": number, "name": name})
            done.append(f"migration {number:04d} {name}")
    connection.execute("SELECT upwell.make_audit_partitions(3, 36500)")
    return done


def _collection(connection: Connection, layout: CollectionLayout) -> list[str]:
    row = _one(
        connection,
        SQL["upsert_collection"],
        {
            "name": layout.name,
            "table": layout.table,
            "key": [column.name for column in layout.key],
            "threshold_seconds": layout.threshold_seconds,
            **layout.index.model_dump(),
        },
    )
    if row[0] != layout.table or row[1] != [column.name for column in layout.key]:
        raise SettingsError(
            f"collection {layout.name} was made of {row[0]} with key {', '.join(row[1])}: "
            "give the changed table another name"
        )
    if row[3] != layout.index.type:
        raise SettingsError(
            f"collection {layout.name}: its vectors are of the type {row[3]}, which stays while the collection is "
            f'there: write index.type = "{row[3]}", or give one of another type another name'
        )
    connection.execute(SQL["create_watermark"], {"name": layout.name})
    connection.execute(SQL["move_deadlines"], {"collection": layout.name})
    again = _record(connection, layout)
    live = _live(connection, layout)
    left = make_embedding(connection, live, layout.index)
    left += _index(connection, layout, live)
    left += _options(connection, f"record_{layout.name}", RECORD_OPTIONS)
    make_read_side(connection, replace(layout, generation=live))
    return [*([f"collection {layout.name}"] if row[2] else again), *left]


def fed_generations(connection: Connection, collection: str) -> list[GenerationInfo]:
    """Those that are fed, the live one first."""
    return [
        GenerationInfo(*row) for row in connection.execute(SQL["generations"], {"collection": collection})
    ]


def insert_generation(connection: Connection, generation: GenerationInfo) -> None:
    """Its row alone."""
    values = asdict(generation)
    connection.execute(SQL["insert_generation"], values)


def _live(connection: Connection, layout: CollectionLayout) -> GenerationInfo:
    """The live generation as it is stored; a collection's first one is made here, and no other."""
    fed = fed_generations(connection, layout.name)
    if not fed:
        insert_generation(connection, layout.generation)
        return layout.generation
    _check_wanted(layout.name, layout.generation, fed)
    return fed[0]


def _check_wanted(name: str, wanted: GenerationInfo, fed: Sequence[GenerationInfo]) -> None:
    """Raise GenerationMismatch unless the spec's vectors are those of a generation that is fed."""
    if name == CANARY or any(each.fingerprint == wanted.fingerprint for each in fed):
        return
    live = fed[0]
    parts = (
        ("model", live.model, wanted.model),
        ("template", live.template, wanted.template),
        ("chunk.max_tokens", live.max_tokens, wanted.max_tokens),
        ("chunk.overlap_tokens", live.overlap_tokens, wanted.overlap_tokens),
    )
    changed = [part for part, was, now in parts if was != now] or ["model files"]
    raise GenerationMismatch(
        f"{', '.join(changed)} of {name} changed against its live generation {live.number}: its vectors would change; "
        f"undo it, or run upwell generation create {name}"
    )


def _record(connection: Connection, layout: CollectionLayout) -> list[str]:
    """Returns what was done to the rows that are there, in words."""
    record = record_table(layout.name)
    connection.execute(SQL.filled("create_record", record=record))
    there = {row[0] for row in connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
        (f"upwell.record_{layout.name}",),
    )}  # fmt: skip
    wanted = {"_partition", *(column.name for column in layout.columns)}
    stored = stored_types(connection, layout.name)
    retyped = [column for column in layout.columns if stored.get(column.name, column.type) != column.type]
    if (wanted - there or retyped) and connection.execute(
        SQL["view_columns"], {"view": f"upwell.{layout.name}"}
    ).rowcount:
        connection.execute(SQL.filled("lock_view", view=sql.Identifier("upwell", layout.name)))
    if "_partition" not in there:
        connection.execute(SQL.filled("add_partition", record=record))
    if retyped:
        _drop_read_side(connection, layout)
    for column in retyped:
        connection.execute(SQL.filled("drop_column", record=record, column=sql.Identifier(column.name)))
        there.remove(column.name)
    for column in layout.columns:
        if column.name not in there:
            name = sql.Identifier(column.name)
            connection.execute(SQL.filled("add_column", record=record, column=name, type=_type(column)))
            fill(connection, layout, column.name, _type(column))
    index = f"record_{layout.name}_key"
    if not is_there(connection, index):
        keys = sql.SQL(", ").join(sql.Identifier(column.name) for column in layout.key)
        connection.execute(SQL.filled("index_key", index=sql.Identifier(index), record=record, columns=keys))
    return _again(connection, layout, retyped)


def is_there(connection: Connection, relation: str) -> bool:
    """Asked first: CREATE INDEX IF NOT EXISTS waits for a vacuum even where there is nothing to do."""
    return bool(_one(connection, SQL["is_there"], {"relation": f"upwell.{relation}"})[0])


def _again(connection: Connection, layout: CollectionLayout, retyped: Sequence[Column]) -> list[str]:
    """Rows that are to be read again, as no event says what their columns are."""
    done = [f"collection {layout.name}: {column.name} is {column.type} now" for column in retyped]
    if retyped or layout.valued:
        count = read_again(connection, layout.name, () if retyped else sorted(layout.valued))
        done += [f"collection {layout.name}: {count} rows are read again"] if count else []
    return done


def _drop_read_side(connection: Connection, layout: CollectionLayout) -> None:
    """A column cannot change its type under them. `make_read_side` makes them again, in the same transaction."""
    if connection.execute(SQL["view_columns"], {"view": f"upwell.{layout.name}"}).rowcount:
        connection.execute(SQL.filled("drop_view", view=sql.Identifier("upwell", layout.name)))
    function = sql.Identifier("upwell", f"search_{layout.name}")
    connection.execute(SQL.filled("drop_search", function=function))


def _type(column: Column) -> sql.SQL:
    """A type's name as the source's catalog prints it; it never comes from the spec."""
    if not re.fullmatch(r'[a-zA-Z0-9_ (),."\[\]]+', column.type):
        raise SettingsError(f"column {column.name} has the type {column.type!r}, which the sink cannot hold")
    return sql.SQL(column.type)


def make_embedding(connection: Connection, generation: GenerationInfo, index: VectorIndex) -> list[str]:
    """A generation's table, all but its HNSW index, and what a worker may do with it. Returns what is left to do."""
    collection, number = generation.collection, generation.number
    table, name = embedding_table(collection, number), f"embedding_{collection}_g{number}"
    column = {"type": sql.SQL(index.type), "dimension": sql.Literal(generation.dimension)}
    connection.execute(SQL.filled("create_embedding", embedding=table, **column))
    if not is_there(connection, f"{name}_hash"):
        connection.execute(SQL.filled("index_hash", index=sql.Identifier(f"{name}_hash"), embedding=table))
    _grant_worker(connection, record_table(collection), table)
    left = _options(connection, name, EMBEDDING_OPTIONS)
    return left + _repeated(connection, collection, number)


def _repeated(connection: Connection, collection: str, number: int) -> list[str]:
    """The part of the generation's table that is not indexed, and what brings chunks there. Returns what is left."""
    name = f"repeated_{collection}_g{number}"
    parts = _embedding_parts(collection, number)
    if not is_there(connection, name):
        try:
            with connection.transaction():
                connection.execute(SQL["patience"])
                for query in ("create_repeated", "create_set_apart", "set_apart"):
                    connection.execute(SQL.filled(query, **parts))
                connection.execute(
                    SQL.filled(
                        "index_hash", index=sql.Identifier(f"{name}_hash"), embedding=parts["repeated"]
                    )
                )
                connection.execute(SQL["patience_ends"])
        except psycopg.errors.LockNotAvailable:
            return [
                f"embedding_{collection}_g{number} is being vacuumed, indexed or written: "
                "its repeated texts are set apart by the next migrate"
            ]
    _grant_worker(connection, parts["repeated"])
    return _options(connection, name, EMBEDDING_OPTIONS)


def drop_embedding(connection: Connection, collection: str, number: int) -> None:
    """A generation's table and what belongs to it."""
    connection.execute(SQL.filled("drop_embedding", **_embedding_parts(collection, number)))


def _embedding_parts(collection: str, number: int) -> dict[str, sql.Composable]:
    return {
        "embedding": embedding_table(collection, number),
        "repeated": repeated_table(collection, number),
        "set_apart": sql.Identifier("upwell", f"set_apart_{collection}_g{number}"),
        "copies": sql.Literal(COPIES_INDEXED),
    }


def _grant_worker(connection: Connection, *tables: sql.Composable) -> None:
    connection.execute(SQL.filled("grant_worker_collection", tables=sql.SQL(", ").join(tables)))


def _index(connection: Connection, layout: CollectionLayout, live: GenerationInfo) -> list[str]:
    """The HNSW index of an empty table, if it is not to come after the load. Over rows it would keep workers waiting
    for as long as it takes: then what is to be done, in words.
    """
    wanted = layout.index
    there = hnsw_indexes(connection, embedding_table(layout.name, live.number)).get(
        hnsw_name(layout.name, live.number)
    )
    due = f"run `upwell maintain {layout.name}`"
    if there is not None:
        made_with = f"m = {there.m}, ef_construction = {there.ef_construction}"
        if (there.m, there.ef_construction) == (wanted.m, wanted.ef_construction):
            return []
        return [
            f"collection {layout.name}: its HNSW index still has {made_with}: {due}, which builds it anew"
        ]
    table = embedding_table(layout.name, live.number)
    if wanted.build == "after_load":
        return [f"collection {layout.name}: it has no HNSW index yet: {due} when its load is complete"]
    if _one(connection, SQL.filled("has_embeddings", embedding=table))[0]:
        return [f"collection {layout.name}: it has no HNSW index: {due}"]
    connection.execute(hnsw_query(layout.name, live.number, wanted))
    return []


def hnsw_indexes(connection: Connection, table: sql.Identifier) -> dict[str, IndexFacts]:
    """HNSW indexes of a table by name, in its order; none of a table that is not there."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(SQL["hnsw_indexes"], {"table": table.as_string(connection)}).fetchall()
    return {row["name"]: IndexFacts(**row) for row in rows}


def hnsw_query(collection: str, generation: int, wanted: VectorIndex, *, beside: str = "") -> sql.Composed:
    """Makes the index over a generation's vectors; or CONCURRENTLY another one, of the name `beside`."""
    return SQL.filled(
        "index_hnsw",
        concurrently=sql.SQL("CONCURRENTLY" if beside else ""),
        index=sql.Identifier(beside or hnsw_name(collection, generation)),
        embedding=embedding_table(collection, generation),
        operators=sql.SQL(wanted.type + "_cosine_ops"),
        m=sql.Literal(wanted.m),
        ef_construction=sql.Literal(wanted.ef_construction),
    )


def _options(connection: Connection, table: str, wanted: Mapping[str, str]) -> list[str]:
    """Storage parameters that nobody has set. Workers wait for this transaction: it waits for no vacuum that cannot be
    interrupted, and for no index that is being built; then what is to be done, in words.
    """
    at = {"table": f"upwell.{table}", "names": list(wanted), "values": list(wanted.values())}
    try:
        with connection.transaction():
            for name, value in connection.execute(SQL["unset_options"], at).fetchall():
                connection.execute(SQL["patience"])
                where, number = sql.Identifier("upwell", table), sql.Literal(float(value))
                connection.execute(SQL.filled("set_option", table=where, option=sql.SQL(name), value=number))
                connection.execute(SQL["patience_ends"])
    except psycopg.errors.LockNotAvailable:
        return [f"{table} is being vacuumed or indexed: its storage parameters are set by the next migrate"]
    return []


def make_read_side(connection: Connection, layout: CollectionLayout) -> None:
    """View and search function over the layout's generation. What readers hold stays valid where no column goes."""
    view, function = sql.Identifier("upwell", layout.name), sql.Identifier("upwell", f"search_{layout.name}")
    keys = {column.name for column in layout.key}
    wanted = [column for column in layout.columns if column.name not in keys]
    columns = connection.execute(SQL["view_columns"], {"view": f"upwell.{layout.name}"}).fetchall()
    there = [row[0] for row in columns]
    shown = [name for name in there[len(keys) :] if name not in VIEW_COLUMNS]
    metadata = sorted(
        wanted, key=lambda column: shown.index(column.name) if column.name in shown else len(shown)
    )
    parts: dict[str, sql.Composable] = {
        "view": view,
        "function": function,
        "record": record_table(layout.name),
        "embedding": embedding_table(layout.name, layout.generation.number),
        "model": sql.Literal(layout.generation.model),
        "collection": sql.Literal(layout.name),
        "generation": sql.Literal(layout.generation.number),
        "ef_search": sql.Literal(layout.index.ef_search),
        "type": sql.SQL(layout.index.type),
        "keys": sql.SQL(", ").join(sql.Identifier("r", column.name) for column in layout.key),
        "metadata": sql.Composed([sql.SQL(", ") + sql.Identifier("r", column.name) for column in metadata]),
        "returns": sql.SQL(", ").join(_returned(layout, metadata)),
        "selected": sql.SQL(", ").join(sql.Identifier(name) for name in _selected(layout, metadata)),
    }
    sized = any(name == "embedding" and not plain for name, plain in columns)
    older = bool(there) and tuple(there[len(keys) :][: len(VIEW_COLUMNS)]) != VIEW_COLUMNS
    if sized or older or not set(shown) <= {column.name for column in wanted}:
        connection.execute(SQL.filled("drop_view", **parts))
        shown = []
    if older or shown != [column.name for column in metadata]:
        connection.execute(SQL.filled("drop_search", **parts))
    connection.execute(SQL["load_pgvector"])
    for query in ("create_view", "create_search", "grant_view", "grant_search"):
        connection.execute(SQL.filled(query, **parts))


#: "" is the collection's own.
_VIEW_TYPES: Final = (
    ("chunk_no", "int"),
    ("chunk_text", "text"),
    ("embedding", ""),
    ("model", "text"),
    ("source_committed_at", "timestamptz"),
    ("embedded_at", "timestamptz"),
    ("is_stale", "boolean"),
    ("stale_since", "timestamptz"),
)


def _returned(layout: CollectionLayout, metadata: Sequence[Column]) -> Iterator[sql.Composable]:
    for column in layout.key:
        yield sql.Identifier(column.name) + sql.SQL(" ") + _type(column)
    for name, type_name in _VIEW_TYPES:
        yield sql.Identifier(name) + sql.SQL(" ") + sql.SQL(type_name or layout.index.type)
    for column in metadata:
        yield sql.Identifier(column.name) + sql.SQL(" ") + _type(column)


def _selected(layout: CollectionLayout, metadata: Sequence[Column]) -> list[str]:
    return [*(c.name for c in layout.key), *(name for name, _ in _VIEW_TYPES), *(c.name for c in metadata)]
