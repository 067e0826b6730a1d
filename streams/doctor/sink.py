"""The sink: whether it can hold vectors, whether this user may, and whether what is there fits the spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from connectors.postgres.capture_state import SILENT_SECONDS
from connectors.postgres.doctor import Looking, look_at_sink
from connectors.postgres.migrate import LEAST_PGVECTOR, LEAST_SERVER, ROLES, migrations
from connectors.postgres.upkeep import read_vectors
from schemas.errors import GenerationMismatch
from schemas.sink import GenerationInfo
from schemas.upkeep import MANY_APART, MANY_DEAD_PENDING, VectorFacts, why_build
from streams.doctor import database
from streams.doctor.core import Check, Questions, State, Verdict, ask_all, fail, not_yet, ok, skipped, warn
from streams.fit import cores
from streams.generations import matching
from streams.settings import Settings

Row = Mapping[str, Any]
GRANTS: Final = "give the sink's administrator the output of `upwell doctor --sql`"
#: Beside its pool: slot, listening, repairs, pacing.
OTHER_CONNECTIONS: Final = 4
MIB: Final = 1024**2


def sink_checks(settings: Settings) -> list[Check]:
    """Checks of the sink, in order."""
    dsn = settings.sink.dsn
    questions: Questions[Looking] = [
        ("version", _version),
        ("encoding", _encoding),
        ("primary", _primary),
        ("pgvector", _pgvector),
        ("roles", _roles),
        ("schema upwell", _schema),
        ("rights", _rights),
        *[
            (f"generation of {name}", partial(_generation, name=name, settings=settings))
            for name in settings.collections
        ],
        *[(f"index of {name}", partial(_index, name=name)) for name in settings.collections],
        ("connections", partial(_connections, settings=settings)),
        ("audit partitions", _partitions),
        ("vacuum of pending", _vacuum),
        ("disk", partial(database.disk, dsn=dsn)),
        ("transactions", database.transactions),
        ("timeouts", database.timeouts),
        ("clock", database.clock),
    ]
    mend = "start it, or mend UPWELL_SINK_DSN"
    return ask_all("sink", lambda: look_at_sink(dsn), mend, questions)


def _version(db: Looking) -> Verdict:
    server = db.row("server")
    if server["version"] < LEAST_SERVER:
        return fail(f"Postgres {server['version_name']}", "upgrade it: the sink needs Postgres 15 or newer")
    return ok(f"Postgres {server['version_name']}")


def _encoding(db: Looking) -> Verdict:
    encoding = db.row("server")["encoding"]
    if encoding != "UTF8":
        return fail(
            f"the database is {encoding}", "make one with ENCODING 'UTF8': not every text fits into this one"
        )
    return ok(encoding)


def _primary(db: Looking) -> Verdict:
    if db.row("server")["standby"]:
        return fail("this server is a standby", "let UPWELL_SINK_DSN name the primary")
    return ok("can be written to")


def _pgvector(db: Looking) -> Verdict:
    row, server = db.row("vector"), db.row("server")
    role = db.row("role", {"role": server["role"]})
    return judge_vector(row, may_create=role["superuser"] or (row["trusted"] and role["creates_schemas"]))


def judge_vector(row: Row, *, may_create: bool) -> Verdict:
    installed, available = row["installed"], row["available"]
    if installed is not None:
        if _old(installed):
            return fail(f"{installed}; 0.8 or newer is needed", "ALTER EXTENSION vector UPDATE")
        return ok(installed)
    if available is None:
        return fail("the server has no pgvector", "install it there, version 0.8 or newer")
    if _old(available):
        return fail(f"the server has {available}; 0.8 or newer is needed", "install a newer one there")
    if not may_create:
        return fail(
            f"{available} is there, but this user may not make it", f"CREATE EXTENSION vector, or {GRANTS}"
        )
    return not_yet(f"{available} is there", "upwell migrate sink")


def _old(version: str) -> bool:
    return tuple(int(part) for part in version.split(".")[:2]) < LEAST_PGVECTOR


def _roles(db: Looking) -> Verdict:
    missing = [row["name"] for row in db.rows("missing_roles", {"roles": list(ROLES)})]
    if not missing:
        return ok(", ".join(ROLES))
    role = db.row("role", {"role": db.row("server")["role"]})
    if role["creates_roles"]:
        return not_yet(f"{', '.join(missing)} missing", "upwell migrate sink")
    return fail(f"{', '.join(missing)} missing, and {role['name']} may not make them", GRANTS)


def _schema(db: Looking) -> Verdict:
    if not db.row("sink_schema")["there"]:
        role = db.row("role", {"role": db.row("server")["role"]})
        if not role["creates_schemas"]:
            return fail(f"it is not there, and {role['name']} may not make it", GRANTS)
        return not_yet("it is not there", "upwell migrate sink")
    return judge_migrations({row["number"] for row in db.rows("migrations")})


def judge_migrations(applied: set[int]) -> Verdict:
    """Whether the schema is the one that this code was written for."""
    known = {number for number, _, _ in migrations()}
    if applied - known:
        return fail(f"it has migration {max(applied)}, which this upwell does not know", "upgrade upwell")
    if known - applied:
        return fail(
            f"it is older than this upwell: {len(known - applied)} migrations", "run `upwell migrate sink`"
        )
    return ok(f"migration {max(known):04d}, the newest")


def _rights(db: Looking) -> Verdict:
    schema = db.row("sink_schema")
    if not schema["there"]:
        return skipped("there is no schema yet")
    if not schema["uses"]:
        return fail("this user may not use schema upwell", GRANTS)
    missing = [row["missing"] for row in db.rows("worker_rights")]
    if missing:
        return fail(
            f"a worker may not write {', '.join(missing)} as this user",
            f"GRANT upwell_worker TO it, or {GRANTS}",
        )
    if not schema["owns"]:
        return ok(
            f"enough for a worker; `upwell migrate` and `connector apply` need those of {schema['owner']}"
        )
    return ok("enough for workers and `upwell migrate`")


def _generation(db: Looking, name: str, settings: Settings) -> Verdict:
    if not db.row("sink_schema")["there"]:
        return skipped("there is no schema yet")
    fed = [GenerationInfo(**row) for row in db.rows("generations") if row["collection"] == name]
    return judge_generation(name, fed, settings)


def judge_generation(name: str, fed: Sequence[GenerationInfo], settings: Settings) -> Verdict:
    """Whether the vectors that the spec would make are those of a generation that is fed."""
    if not fed:
        return not_yet("there is none", "upwell migrate sink")
    try:
        same = matching(settings, name, fed)
    except GenerationMismatch:
        return fail(
            f"template, model or chunking of the spec are those of no generation, the live one has {fed[0].model}: "
            "workers do not start",
            f"undo the change, or {_create(name)}",
        )
    return ok(f"number {same.number}, {same.state}, {same.dimension} dimensions, {same.model}")


def _create(name: str) -> str:
    return f"run `upwell generation create {name}`"


def _index(db: Looking, name: str) -> Verdict:
    if not db.row("sink_schema")["there"]:
        return skipped("there is no schema yet")
    if judge_migrations({row["number"] for row in db.rows("migrations")}).state is not State.OK:
        return skipped("the schema is that of another version")
    return judge_index(name, read_vectors(db.connection, name))


def judge_index(name: str, found: Sequence[VectorFacts]) -> Verdict:
    """`found`: the generations of the collection that are fed."""
    due = [
        f"generation {each.generation}: {', '.join(why)}" for each in found if (why := list(why_build(each)))
    ]
    if due:
        return warn("; ".join(due), f"run `upwell maintain {name}`")
    live = [each for each in found if each.state == "live"]
    if not live:
        return not_yet("there is none", "upwell migrate sink")
    used = live[0].searchable
    if used is None:
        return not_yet(
            "it is built once the load is complete; searches read the table", f"upwell maintain {name}"
        )
    bloat = "no rows yet" if live[0].bloat is None else f"{live[0].bloat:.1f} times what its rows need"
    says = f"{used.bytes / MIB:.1f} MiB, {bloat}"
    if live[0].apart >= MANY_APART:
        table, operators = (
            f"upwell.repeated_{name}_g{live[0].generation}",
            f"{live[0].wanted.type}_cosine_ops",
        )
        return warn(
            f"{says}; {live[0].apart} chunks of repeated texts are beside it, and each search reads them",
            f"CREATE INDEX CONCURRENTLY ON {table} USING hnsw (embedding {operators})",
        )
    return ok(says)


def _connections(db: Looking, settings: Settings) -> Verdict:
    processes = settings.worker.processes
    workers = cores() if processes == "auto" else processes
    if db.row("sink_schema")["there"]:
        workers = max(workers, len(db.rows("live_workers", {"within_seconds": SILENT_SECONDS})))
    role = db.row("role", {"role": db.row("server")["role"]})
    row = db.row("connections")
    limit = role["connection_limit"]
    free = min(row["most"] - row["others"], limit if limit >= 0 else row["most"])
    return judge_connections(free, max(workers, 1), settings.sink.pool_size)


def judge_connections(free: int, workers: int, pool_size: int) -> Verdict:
    """`free`: those that are left to upwell, its present ones included."""
    needed = workers * (pool_size + OTHER_CONNECTIONS)
    says = f"{workers} workers may use {needed}, {free} are left"
    if needed > free:
        return warn(says, "raise max_connections, or lower UPWELL_SINK_POOL_SIZE")
    return ok(says)


def _partitions(db: Looking) -> Verdict:
    if not db.row("sink_schema")["there"]:
        return skipped("there is no schema yet")
    missing = db.row("audit_partitions")["missing"]
    if missing:
        return warn(
            f"none for {', '.join(missing)}", "start a worker, or run `upwell migrate sink`: both make them"
        )
    return ok("there for today and tomorrow")


def _vacuum(db: Looking) -> Verdict:
    row = db.row("vacuum")
    return judge_vacuum(row) if row else skipped("there is no schema yet")


def judge_vacuum(row: Row) -> Verdict:
    if not row["autovacuum"]:
        return warn("autovacuum is off: pending only grows", "ALTER SYSTEM SET autovacuum = on, then reload")
    if row["disabled"]:
        return warn("autovacuum is off for it", "ALTER TABLE upwell.pending RESET (autovacuum_enabled)")
    says = f"{row['live']} rows, {row['dead']} dead"
    if row["dead"] > MANY_DEAD_PENDING and row["dead"] > 10 * row["live"]:
        return warn(says, "see which transaction is open for long, or VACUUM upwell.pending")
    return ok(says)
