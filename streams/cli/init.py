"""`upwell init`: a first spec for tables of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from schemas.errors import SettingsError
from streams.cli.context import say, spec_from


@click.command()
@click.option("--from-dsn", "dsn", envvar="UPWELL_SOURCE_DSN", help="The source; default UPWELL_SOURCE_DSN.")
@click.option(
    "--table", "tables", multiple=True, metavar="S.T", help="Only this one; may be given several times."
)
@click.option("--force", is_flag=True, help="Write over a spec that is there.")
@click.pass_context
def init(ctx: click.Context, dsn: str | None, tables: tuple[str, ...], force: bool) -> None:
    """Look at the source's tables and write a commented spec. Reads only; the address is not written down."""
    from connectors.postgres.source import connect_source, inspect_tables, rows
    from schemas.names import IDENTIFIER
    from streams.first_spec import first_spec

    path = spec_from(ctx)
    if path.exists() and not force:
        raise SettingsError(f"{path} is there already: give another --spec, or --force")
    with connect_source(dsn or "") as connection:
        wanted = tables or tuple(
            name
            for row in rows(connection, "capturable_tables")
            if all(map(IDENTIFIER.fullmatch, (name := str(row["name"])).split(".")))
        )
        if not wanted:
            raise SettingsError("the source has no table with a primary key that this user sees")
        found = inspect_tables(connection, wanted)
        database = connection.info.dbname
    text = first_spec(database if IDENTIFIER.fullmatch(database) else "upwell", list(found.values()))
    _check(text)
    path.write_text(text, encoding="utf-8")
    say(f"{path} written, with {text.count('[collections.')} collections: read it, then run `upwell migrate`")


def _check(text: str) -> None:
    """What is written can be loaded. Raises SettingsError."""
    import tempfile

    from streams.settings import load

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upwell.toml"
        path.write_text(text, encoding="utf-8")
        load(path, environment={})
