"""`upwell init`: a first spec for tables of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas.errors import SettingsError
from streams.cli.context import say, spec_from

if TYPE_CHECKING:
    from connectors.postgres.source import Connection, TableInfo


@click.command()
@click.option("--from-dsn", "dsn", envvar="UPWELL_SOURCE_DSN", help="The source; default UPWELL_SOURCE_DSN.")
@click.option(
    "--table", "tables", multiple=True, metavar="S.T", help="Only this one; may be given several times."
)
@click.option("--force", is_flag=True, help="Write over a spec that is there.")
@click.pass_context
def init(ctx: click.Context, dsn: str | None, tables: tuple[str, ...], force: bool) -> None:
    """Look at the source's tables and write a commented spec. Reads only; the address is not written down."""
    from connectors.postgres.source import connect_source
    from schemas.names import IDENTIFIER
    from streams.first_spec import first_spec, identity_statements

    path = spec_from(ctx)
    if path.exists() and not force:
        raise SettingsError(f"{path} is there already: give another --spec, or --force")
    with connect_source(dsn or "") as connection:
        found, refused = _looked_at(connection, tables)
        database = connection.info.dbname
    text = first_spec(database if IDENTIFIER.fullmatch(database) else "upwell", found, refused)
    _check(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    say(f"{path} written, with {text.count('[collections.')} collections: read it, then run `upwell migrate`")
    for statement in identity_statements(found):
        say(f"before that, the table's owner runs: {statement}")


def _looked_at(connection: Connection, named: Sequence[str]) -> tuple[list[TableInfo], list[str]]:
    """Tables that can be captured, and why others cannot. Raises SettingsError for one that was named."""
    from connectors.postgres.source import check_server, inspect_tables, rows
    from schemas.names import IDENTIFIER

    if named:
        return list(inspect_tables(connection, named).values()), []
    check_server(connection)
    found: list[TableInfo] = []
    refused: list[str] = []
    for row in rows(connection, "capturable_tables"):
        name = str(row["name"])
        try:
            if all(map(IDENTIFIER.fullmatch, name.split("."))):
                found += inspect_tables(connection, [name]).values()
            else:
                refused.append(f"{name}: only names of lower-case letters, digits and _ can be captured")
        except SettingsError as error:
            refused.append(str(error))
    if not found:
        raise SettingsError(
            "; ".join(refused) or "the source has no table with a primary key that this user sees"
        )
    return found, refused


def _check(text: str) -> None:
    """What is written can be loaded. Raises SettingsError."""
    import tempfile

    from streams.settings import load

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upwell.toml"
        path.write_text(text, encoding="utf-8")
        load(path, environment={})
