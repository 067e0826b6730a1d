"""The source: whether it can be captured, by this user, and what would hold it up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from connectors.debezium.naming import SERVICE_TABLES, Naming, publication_name
from connectors.postgres.doctor import Looking, look_at_source
from connectors.postgres.source import LEAST_VERSION, first, rows
from schemas.errors import SettingsError
from schemas.spec import CollectionSpec
from streams.capture import check_collections
from streams.doctor import database
from streams.doctor.core import Check, Questions, State, Verdict, ask_all, fail, not_yet, ok, skipped, warn
from streams.doctor.known import Known
from streams.settings import Settings

Row = Mapping[str, Any]
GRANTS: Final = "give the source's administrator the output of `upwell doctor --sql`"
OWNER: Final = "give the owner of the tables the output of `upwell migrate source --print`"
#: Write-ahead log kept for a slot, before it is worth a word.
MUCH_WAL_BYTES: Final = 1024**3


def source_checks(settings: Settings, known: Known) -> list[Check]:
    """Checks of the source, in order."""
    dsn = settings.source.dsn
    user = capture_user(settings)
    questions: Questions[Looking] = [
        ("version", _version),
        ("encoding", _encoding),
        ("wal_level", _wal_level),
        ("primary", _primary),
        ("replication slots", partial(_room, known=known, name=settings.name)),
        ("replication right", partial(_replication_right, user=user)),
        *[
            (f"table {spec.table}", partial(_table, name=name, spec=spec, user=user))
            for name, spec in settings.collections.items()
        ],
        ("schema upwell", partial(_schema, name=settings.name, user=user)),
        ("publication", partial(_publication, settings=settings, known=known)),
        ("slot", partial(_slot, name=settings.name, known=known)),
        ("limit of WAL kept", partial(_keep, name=settings.name)),
        ("disk", partial(_disk, dsn=dsn, name=settings.name)),
        ("transactions", database.transactions),
        ("timeouts", database.timeouts),
        ("clock", database.clock),
    ]
    mend = "start it, or mend UPWELL_SOURCE_DSN"
    return ask_all("source", lambda: look_at_source(dsn), mend, questions)


def capture_user(settings: Settings) -> str | None:
    """The user of the connector where it is another than ours; None if it is ours, or cannot be seen from here."""
    if not settings.connect.secrets_file:
        return None
    try:
        lines = Path(settings.connect.secrets_file).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    pairs = (line.partition("=") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == "user"), None)


def _version(db: Looking) -> Verdict:
    server = db.row("server")
    if server["version"] < LEAST_VERSION:
        return fail(f"Postgres {server['version_name']}", "upgrade it: the source needs Postgres 14 or newer")
    return ok(f"Postgres {server['version_name']}")


def _encoding(db: Looking) -> Verdict:
    encoding = db.row("server")["encoding"]
    if encoding != "UTF8":
        return fail(
            f"the database is {encoding}", "copy it into a database with ENCODING 'UTF8': pgoutput needs it"
        )
    return ok(encoding)


def _wal_level(db: Looking) -> Verdict:
    level = db.row("server")["wal_level"]
    if level != "logical":
        return fail(level, "ALTER SYSTEM SET wal_level = logical, then restart the server")
    return ok(level)


def _primary(db: Looking) -> Verdict:
    if db.row("server")["standby"]:
        return fail(
            "this server is a standby", "let UPWELL_SOURCE_DSN name the primary: signals are written there"
        )
    return ok("can be written to")


def _room(db: Looking, known: Known, name: str) -> Iterator[Verdict]:
    has_slot = bool(db.rows("slots", {"pattern": slot_pattern(name)}))
    yield from judge_room(db.row("replication"), has_slot=has_slot)


def judge_room(row: Row, *, has_slot: bool) -> Iterator[Verdict]:
    """A deployment without a slot needs one more, and one more sender."""
    for what, setting in (("slots", "max_replication_slots"), ("senders", "max_wal_senders")):
        used, most = row[f"{what}_used"], row[what]
        says, name = f"{used} of {most} used", setting
        if used >= most and not has_slot:
            yield fail(says, f"raise {setting} and restart the server, or drop what nobody reads").of(name)
        else:
            yield ok(says).of(name)


def _replication_right(db: Looking, user: str | None) -> Verdict:
    role = user or db.row("server")["role"]
    found = db.row("role", {"role": role})
    if not found:
        return fail(f"connect.secrets_file names the role {role}, which the source does not have", GRANTS)
    if not found["replication"]:
        return fail(f"{role} may not read the write-ahead log", f"ALTER ROLE {role} REPLICATION, or {GRANTS}")
    return ok(f"{role} has it")


def _table(db: Looking, name: str, spec: CollectionSpec, user: str | None) -> Iterator[Verdict]:
    try:
        info = check_collections(db.connection, {name: spec}, server=False)[name]
    except SettingsError as error:
        yield fail(str(error), "mend what the line says, or the spec")
        return
    role = user or db.row("server")["role"]
    schema, table = spec.table.split(".")
    if not db.row("role", {"role": role}):
        yield skipped(f"there is no role {role}")
        return
    rights = db.row("table_rights", {"role": role, "schema": schema, "table": table})
    if not rights["uses_schema"]:
        yield fail(f"{role} may not use schema {schema}", f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    elif not rights["selects"]:
        yield fail(f"{role} may not read it", f"GRANT SELECT ON {spec.table} TO {role}")
    else:
        identity = "FULL" if info.full else "by key, which is enough: no long value is used"
        key = ", ".join(column.name for column in info.key)
        yield ok(f"key {key}; replica identity {identity}")


def _schema(db: Looking, name: str, user: str | None) -> Verdict:
    there = {str(row["name"]) for row in rows(db.connection, "service_tables")}
    server = db.row("server")
    if not {table.split(".")[1] for table in SERVICE_TABLES} | {"deployment", "published"} <= there:
        if db.row("role", {"role": server["role"]})["creates_schemas"]:
            return not_yet("not all of its tables are there", "upwell migrate source")
        return Verdict(
            State.NOT_YET, f"not all of its tables are there, and {server['role']} may not make it", OWNER
        )
    lacking = [row["missing"] for row in db.rows("service_rights", {"role": user or server["role"]})]
    if lacking:
        return fail(f"{user or server['role']} lacks {', '.join(lacking)}", GRANTS)
    if first(db.connection, "placeholder", {"name": name}) is None:
        return not_yet(f"it does not know deployment {name}", "upwell migrate source")
    return ok("tables and rights are there")


def _publication(db: Looking, settings: Settings, known: Known) -> Verdict:
    name = publication_name(settings.name)
    facts = first(db.connection, "publication", {"publication": name})
    present = {str(row["name"]) for row in rows(db.connection, "published_tables", {"publication": name})}
    tables = [spec.table for spec in settings.collections.values()]
    verdict = judge_publication(name, facts, present, tables, captured=known.lineage is not None)
    if verdict.next_step == "run `upwell migrate source`":
        foreign = _foreign(db, tables)
        if foreign:
            return Verdict(verdict.state, f"{verdict.says}; {foreign} belong to others", OWNER)
    return verdict


def _foreign(db: Looking, tables: list[str]) -> str:
    """Tables that only another role may publish."""
    role = db.row("server")["role"]
    found = []
    for name in tables:
        schema, table = name.split(".")
        rights = db.row("table_rights", {"role": role, "schema": schema, "table": table})
        if rights and not rights["owns"]:
            found.append(f"{name} ({rights['owner']})")
    return ", ".join(found)


def judge_publication(
    name: str, facts: Row | None, present: set[str], tables: list[str], *, captured: bool
) -> Verdict:
    """`captured`: a connector was applied, so what is missing is lost meanwhile."""
    if facts is None:
        if captured:
            return fail(f"{name} is gone: the connector fails", "run `upwell migrate source`")
        return not_yet(f"{name} is not there", "upwell migrate source")
    if facts["all_tables"]:
        return fail(f"{name} is FOR ALL TABLES", f"DROP PUBLICATION {name}: upwell makes its own")
    missing = sorted({*tables, *SERVICE_TABLES} - present)
    if missing:
        return not_yet(f"{name} lacks {', '.join(missing)}", "upwell migrate source")
    if not facts["complete"]:
        return fail(
            f"{name} does not publish all operations: deletes are lost", "run `upwell migrate source`"
        )
    return ok(f"{name}: {len(present)} tables, all operations")


def slot_pattern(name: str) -> str:
    """Slots of every lineage of a deployment, as a regular expression."""
    return f"^upwell_{name}_[0-9]+$"


def _slot(db: Looking, name: str, known: Known) -> Iterator[Verdict]:
    slots = db.rows("slots", {"pattern": slot_pattern(name)})
    newest = None if known.lineage is None else Naming(name, known.lineage).slot
    yield from judge_slots(slots, newest, away=known.away)


def judge_slots(slots: list[Any], newest: str | None, *, away: str = "") -> Iterator[Verdict]:
    """`newest`: the slot of the lineage that the sink knows, None if there is none; `away`: why it is not known."""
    if away and not slots:
        yield skipped(away)
    elif newest is None and not slots:
        yield not_yet("there is none", "upwell connector apply")
    elif newest is not None and newest not in {slot["name"] for slot in slots}:
        yield fail(
            f"{newest} is gone: changes since are lost",
            "run `upwell connector rebuild`",
        )
    for slot in slots:
        if newest is not None and slot["name"] != newest:
            step = f"SELECT pg_drop_replication_slot('{slot['name']}')"
            yield warn(f"{slot['name']} is an older lineage's: it keeps {_mib(slot)} of WAL for nobody", step)
        else:
            yield judge_slot(slot)


def judge_slot(slot: Row) -> Verdict:
    name, status, kept = slot["name"], slot["wal_status"], _mib(slot)
    if status == "lost":
        return fail(
            f"{name} is lost: the source removed write-ahead log that it needed",
            "raise max_slot_wal_keep_size, then run `upwell connector rebuild`",
        )
    if status == "unreserved":
        return fail(
            f"{name} is about to be lost: it keeps {kept}, more than max_slot_wal_keep_size",
            "see that the connector runs now, and raise max_slot_wal_keep_size",
        )
    left = "" if slot["safe_bytes"] is None else f", {slot['safe_bytes'] / 1024**3:.1f} GiB until it is lost"
    says = f"{name}: {'read' if slot['active'] else 'not read'}, {status}, keeps {kept} of WAL{left}"
    if not slot["active"]:
        return warn(says, "see that the connector runs: `upwell connector status`")
    if (slot["retained_bytes"] or 0) > MUCH_WAL_BYTES:
        return warn(says, "see that the connector runs, and that no transaction is open for long")
    return ok(says)


def _mib(slot: Row) -> str:
    retained = slot["retained_bytes"]
    return "an unknown amount" if retained is None else f"{retained / 1024**2:.0f} MiB"


def _keep(db: Looking, name: str) -> Iterator[Verdict]:
    yield from judge_keep(db.row("keep"), db.rows("slots", {"pattern": slot_pattern(name)}))


def judge_keep(row: Row, slots: list[Any]) -> Iterator[Verdict]:
    keep_mb, idle_seconds = row["keep_mb"], row["idle_seconds"]
    if keep_mb is None or keep_mb < 0:
        yield warn(
            "max_slot_wal_keep_size is unlimited: a connector that is away for long fills the disk",
            "set it to what the disk can spare, e.g. ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'",
        )
    else:
        yield ok(f"max_slot_wal_keep_size is {keep_mb} MB")
    if idle_seconds:
        yield warn(
            f"idle_replication_slot_timeout is {idle_seconds} s: a connector that is away for so long loses its slot",
            "make it longer than any outage that must do no harm",
        )


def _disk(db: Looking, dsn: str, name: str) -> Verdict:
    slots = db.rows("slots", {"pattern": slot_pattern(name)})
    return database.disk(db, dsn, sum(slot["retained_bytes"] or 0 for slot in slots))
