"""`upwell doctor --sql`: all that the administrators of source and sink have to grant, so that nothing of upwell runs
as a superuser. Roles that log in belong to one deployment, so several may share a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from connectors.postgres import source_schema
from connectors.postgres.migrate import ROLES
from connectors.postgres.source import connect_source
from schemas.errors import SettingsError, SourceUnavailable
from schemas.names import check_identifier
from streams.capture import check_collections
from streams.settings import Settings

RULE: Final = "-- " + "-" * 100


def grants(settings: Settings, database: str = "both") -> str:
    """The script for `source`, `sink` or both, to be run by psql as its administrator, again and again if need be.

    The source is asked what is there already; if it cannot be reached, the script makes all that is not there.
    Raises SettingsError for a spec without collections.
    """
    if not settings.collections:
        raise SettingsError("the spec has no collections")
    made = {"source": source_grants, "sink": sink_grants}
    scripts = [make(settings) for place, make in made.items() if database in {place, "both"}]
    return "\n\n".join("\n".join([RULE, *lines]) for lines in scripts) + "\n"


def source_grants(settings: Settings) -> list[str]:
    """For the source, in the database of `source.dsn`."""
    name, tables = settings.name, [spec.table for spec in settings.collections.values()]
    role = source_schema.capture_role(name)
    return [
        f"-- SOURCE, database {_database(settings.source.dsn)}: deployment {name}. Run it with psql as a superuser,",
        "-- or as the owner of the tables if that role may create roles. It may be run again.",
        "--",
        f"-- {role} is the login of connector and workers: it reads the write-ahead log and the tables of the",
        "-- spec, and writes to schema upwell only. Managed servers: leave REPLICATION out and grant theirs, e.g.",
        f"-- GRANT rds_replication TO {role};",
        *source_schema.capture_role_sql(name),
        f"-- Choose its password with \\password {role}, and put both into UPWELL_SOURCE_DSN.",
        f"GRANT CONNECT ON DATABASE {_quoted(_database(settings.source.dsn))} TO {role};",
        "",
        "-- Schema upwell (heartbeat, signals) and the publication. The owner of the tables makes them.",
        *_made(settings, tables),
        "",
        *source_schema.capture_grants(name, tables),
        "-- Optional: `upwell doctor` then sees whose open transaction holds the slot back.",
        f"-- GRANT pg_read_all_stats TO {role};",
    ]


def _made(settings: Settings, tables: Sequence[str]) -> list[str]:
    try:
        with connect_source(settings.source.dsn) as source:
            infos = check_collections(source, settings.collections, advise=True, server=False)
            plain = [info.table for info in infos.values() if not info.full]
            return source_schema.script(
                settings.name, source_schema.plan(source, settings.name, tables), plain
            )
    except SourceUnavailable:
        return source_schema.script(settings.name, source_schema.fresh_plan(settings.name, tables), tables)


def sink_grants(settings: Settings) -> list[str]:
    """For the sink, in the database of `sink.dsn`."""
    database = _database(settings.sink.dsn)
    admin, worker = sink_roles(settings.name)
    return [
        f"-- SINK, database {database}: deployment {settings.name}. Run it with psql as a superuser, in that database.",
        "-- It may be run again.",
        "CREATE EXTENSION IF NOT EXISTS vector;",
        "",
        "-- Rights: upwell_owner owns schema upwell, upwell_worker writes rows and vectors, upwell_reader searches.",
        *(_role(role, "NOLOGIN") for role in ROLES),
        f"GRANT CONNECT, CREATE ON DATABASE {_quoted(database)} TO upwell_owner;",
        f"GRANT CONNECT ON DATABASE {_quoted(database)} TO upwell_worker, upwell_reader;",
        "",
        f"-- Logins. {admin}: `upwell migrate`, `upwell connector` and `upwell doctor`; what it makes belongs to",
        f"-- upwell_owner. {worker}: `upwell worker` and every command that only looks. Choose their passwords with",
        "-- \\password, and put them into UPWELL_SINK_DSN where those commands run.",
        _role(admin, "LOGIN"),
        f"GRANT upwell_owner TO {admin};",
        f"ALTER ROLE {admin} IN DATABASE {_quoted(database)} SET role = 'upwell_owner';",
        _role(worker, "LOGIN"),
        f"GRANT upwell_worker TO {worker};",
        "",
        "-- For each application that searches:",
        "-- CREATE ROLE my_application LOGIN; GRANT upwell_reader TO my_application;",
    ]


def sink_roles(name: str) -> tuple[str, str]:
    """Logins of a deployment at the sink: who migrates, and who works."""
    return check_identifier(f"upwell_{name}_admin", "role"), check_identifier(f"upwell_{name}_work", "role")


def _role(name: str, how: str) -> str:
    return (
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN "
        f"CREATE ROLE {name} {how}; END IF; END $$;"
    )


def _database(dsn: str) -> str:
    found = conninfo_to_dict(dsn)
    return str(found.get("dbname") or found.get("user") or "postgres")


def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string(None)
