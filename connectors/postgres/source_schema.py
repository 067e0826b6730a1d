"""Bringing the source in line with the spec: schema `upwell`, the publication, and when each table joined it.

No user table is altered. The same statements are run (`migrate source`) or printed for the owner
(`migrate source --print`); both only say what is not there yet.

A transaction may have written to a table before the table joined the publication and commit afterwards:
its rows are in no event, and a scan before its commit does not see them either (H25). So after the
addition has committed, a second transaction marks it with its own id, and the scan waits until every older
transaction has ended.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from psycopg import sql

from connectors.debezium.naming import SERVICE_TABLES, check_tables, publication_name
from connectors.postgres.source import Connection, TableInfo, first, rows, source_errors
from schemas.errors import SettingsError
from schemas.names import check_identifier

#: Serialises migrations of the source; any constant does.
_LOCK: Final = "SELECT pg_try_advisory_lock(hashtext('upwell.migrate_source'))"
_UNLOCK: Final = "SELECT pg_advisory_unlock(hashtext('upwell.migrate_source'))"

#: Another deployment's migration is over by then.
LOCK_SECONDS: Final = 10.0

TABLES: Final[Mapping[str, str]] = {
    "heartbeat": "CREATE TABLE IF NOT EXISTS upwell.heartbeat (id int PRIMARY KEY, at timestamptz NOT NULL)",
    "signal": "CREATE TABLE IF NOT EXISTS upwell.signal (id text PRIMARY KEY, type text NOT NULL, data text)",
    "canary": (
        "CREATE TABLE IF NOT EXISTS upwell.canary "
        "(id int PRIMARY KEY, nonce text NOT NULL, at timestamptz NOT NULL)"
    ),
    "deployment": (
        "CREATE TABLE IF NOT EXISTS upwell.deployment "
        "(name text PRIMARY KEY, placeholder text NOT NULL, created_at timestamptz NOT NULL DEFAULT now())"
    ),
    "published": (
        "CREATE TABLE IF NOT EXISTS upwell.published "
        "(publication text, table_name text, after_xid xid8 NOT NULL, PRIMARY KEY (publication, table_name))"
    ),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One statement and what it does, in words. The words are empty for what is not worth a line."""

    statement: str
    words: str


def plan(connection: Connection, name: str, tables: Iterable[str]) -> list[Step]:
    """What is missing before the marks, in order. Reads only."""
    wanted = (*SERVICE_TABLES, *check_tables(tables))
    exist = {str(row["name"]) for row in rows(connection, "service_tables")}
    steps = [] if exist else [Step("CREATE SCHEMA IF NOT EXISTS upwell", "schema upwell")]
    steps += [Step(text, f"table upwell.{table}") for table, text in TABLES.items() if table not in exist]
    if "deployment" not in exist or first(connection, "placeholder", {"name": name}) is None:
        steps.append(_deployment(name))
    return steps + _publication(connection, publication_name(name), wanted)


def _deployment(name: str) -> Step:
    placeholder = f"__upwell_unavailable_{secrets.token_hex(16)}__"
    return Step(
        "INSERT INTO upwell.deployment (name, placeholder) "
        f"VALUES ('{check_identifier(name, 'name')}', '{placeholder}') ON CONFLICT (name) DO NOTHING",
        "",
    )


def _publication(connection: Connection, publication: str, wanted: tuple[str, ...]) -> list[Step]:
    facts = first(connection, "publication", {"publication": publication})
    if facts is None:
        listed = ", ".join(_quoted(table) for table in wanted)
        create = Step(f"CREATE PUBLICATION {publication} FOR TABLE {listed}", f"publication {publication}")
        return [create, Step(_generated(publication), "")]
    if facts["all_tables"]:
        raise SettingsError(f"publication {publication} is FOR ALL TABLES: drop it, upwell makes its own")
    present = {str(row["name"]) for row in rows(connection, "published_tables", {"publication": publication})}
    steps = [] if facts["complete"] else [_all_operations(publication)]
    if not facts["generated"]:
        steps.append(Step(_generated(publication), f"publication {publication}: generated columns"))
    for table in sorted(set(wanted) - present):
        text = f"ALTER PUBLICATION {publication} ADD TABLE {_quoted(table)}"
        steps.append(Step(_forget(publication, table), ""))
        steps.append(Step(text, f"publication {publication}: {table} added"))
    for table in sorted(present - set(wanted)):
        text = f"ALTER PUBLICATION {publication} DROP TABLE {_quoted(table)}"
        steps.append(Step(text, f"publication {publication}: {table} removed"))
        steps.append(Step(_forget(publication, table), ""))
    return steps


def _all_operations(publication: str) -> Step:
    text = f"ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate')"
    return Step(text, f"publication {publication}: all operations")


def _generated(publication: str) -> str:
    """From Postgres 18 on, the tables' own UPDATEs fail otherwise (infra/decisions/0014); no older one knows it."""
    return (
        "DO $$ BEGIN IF current_setting('server_version_num')::int >= 180000 THEN\n"
        f"  EXECUTE 'ALTER PUBLICATION {publication} SET (publish_generated_columns = stored)';\nEND IF; END $$"
    )


def _quoted(table: str) -> str:
    return sql.Identifier(*table.split(".")).as_string(None)


def _forget(publication: str, table: str) -> str:
    condition = sql.SQL("publication = {} AND table_name = {}").format(
        sql.Literal(publication), sql.Literal(table)
    )
    return f"DELETE FROM upwell.published WHERE {condition.as_string(None)}"


def _mark(publication: str) -> str:
    """Runs in a transaction of its own after the addition: its id is above all that began before it."""
    return (
        "INSERT INTO upwell.published (publication, table_name, after_xid)\n"
        "SELECT pubname, schemaname || '.' || tablename, pg_current_xact_id()\n"
        f"  FROM pg_publication_tables WHERE pubname = '{publication}'\n"
        "ON CONFLICT (publication, table_name) DO NOTHING"
    )


def migrate_source(connection: Connection, name: str, tables: Iterable[str]) -> list[str]:
    """Do what `plan` says under an advisory lock; idempotent. Returns what was done, in words.

    Raises SettingsError while another migration runs.
    """
    publication = publication_name(name)
    with source_errors():
        _take_lock(connection)
        try:
            steps = plan(connection, name, tables)
            with connection.transaction():
                connection.execute("SET LOCAL lock_timeout = '10s'")
                for step in steps:
                    connection.execute(step.statement)
            if rows(connection, "unmarked_tables", {"publication": publication}):
                connection.execute(_mark(publication))
        finally:
            connection.execute(_UNLOCK)
    return [step.words for step in steps if step.words]


def _take_lock(connection: Connection) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while connection.execute(_LOCK).fetchone() != (True,):
        if time.monotonic() > deadline:
            raise SettingsError("another `upwell migrate source` is running: wait for it and run it again")
        time.sleep(0.1)


def print_source_sql(connection: Connection, name: str, tables: Mapping[str, TableInfo]) -> str:
    """The same as a script for the owner of the tables, and what upwell advises but never does itself."""
    plain = [table for table, info in tables.items() if not info.full]
    head = f"-- upwell: what the source still needs for deployment {name}. Run it as the owner of the tables."
    role = [
        "A role of its own for the connector (choose a password, put it into connect.secrets_file):",
        *capture_role_sql(name),
        *capture_grants(name, tables),
    ]
    steps = plan(connection, name, tables)
    return "\n".join([head, *script(name, steps, plain), *(f"-- {line}" for line in role)]) + "\n"


def fresh_plan(name: str, tables: Iterable[str]) -> list[Step]:
    """What a source needs that has nothing of upwell yet; parts that are there already do no harm."""
    publication, wanted = publication_name(name), (*SERVICE_TABLES, *check_tables(tables))
    listed = ", ".join(_quoted(table) for table in wanted)
    create = (
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = '{publication}') THEN\n"
        f"  CREATE PUBLICATION {publication} FOR TABLE {listed};\nEND IF; END $$"
    )
    steps = [Step("CREATE SCHEMA IF NOT EXISTS upwell", ""), *(Step(text, "") for text in TABLES.values())]
    return [*steps, _deployment(name), Step(create, ""), Step(_generated(publication), "")]


def script(name: str, steps: Iterable[Step], plain: Iterable[str]) -> list[str]:
    """`steps`, their marks, and advice for tables that are not REPLICA IDENTITY FULL."""
    statements = [f"{step.statement};" for step in steps]
    lines = ["BEGIN;", "SET LOCAL lock_timeout = '5s';", *statements, "COMMIT;"] if statements else []
    lines += [
        "-- In a transaction of its own: no first load begins before every older transaction has ended.",
        f"{_mark(publication_name(name))};",
    ]
    advice = [f"ALTER TABLE {_quoted(table)} REPLICA IDENTITY FULL;" for table in plain]
    if advice:
        lines += ["-- Advised: without it, updates leave out long values that they do not change.", *advice]
    return lines


def capture_role(name: str) -> str:
    """The login of connector and workers at the source: one for each deployment."""
    return check_identifier(f"upwell_{name}_capture", "role")


def capture_role_sql(name: str) -> list[str]:
    """Makes the role; where it is there already, nothing."""
    role = capture_role(name)
    return [
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN "
        f"CREATE ROLE {role} LOGIN REPLICATION; END IF; END $$;"
    ]


def capture_grants(name: str, tables: Iterable[str]) -> list[str]:
    """All that the role needs beside REPLICATION: it reads the tables, and writes to schema `upwell` only."""
    role, listed = capture_role(name), list(tables)
    schemas = sorted({table.split(".")[0] for table in listed})
    return [
        f"GRANT USAGE ON SCHEMA {', '.join(_quoted(schema) for schema in schemas)}, upwell TO {role};",
        f"GRANT SELECT ON {', '.join(_quoted(table) for table in listed)} TO {role};",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON upwell.heartbeat, upwell.signal, upwell.canary TO {role};",
        f"GRANT SELECT ON upwell.deployment, upwell.published TO {role};",
    ]


def unsettled(connection: Connection, name: str, tables: Iterable[str]) -> list[str]:
    """Tables whose scan would be too early, because an older transaction is still open (H25)."""
    parameters = {"publication": publication_name(name), "tables": list(tables)}
    return [str(row["name"]) for row in rows(connection, "unsettled_tables", parameters)]


def unpublished(connection: Connection, name: str, tables: Iterable[str]) -> list[str]:
    """Tables that are missing from the publication, or were added to it without a mark."""
    publication = publication_name(name)
    present = {row["name"] for row in rows(connection, "published_tables", {"publication": publication})}
    unmarked = {row["name"] for row in rows(connection, "unmarked_tables", {"publication": publication})}
    return sorted(set((*SERVICE_TABLES, *tables)) - (present - unmarked))


def placeholder(connection: Connection, name: str) -> str:
    """The deployment's placeholder. Raises SettingsError before `migrate source`."""
    row = first(connection, "placeholder", {"name": name})
    if row is None:
        raise SettingsError(f"the source knows no deployment {name!r}: run `upwell migrate source` first")
    return str(row["placeholder"])
