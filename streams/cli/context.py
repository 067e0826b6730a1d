"""What every command shares: the settings, and how an error leaves the process."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from schemas.errors import SettingsError, UpwellError
from streams.settings import Settings, load, read_environment_file


@dataclass
class Context:
    """Flags of the root command. Settings are read only by commands that need them."""

    spec: Path | None = None
    home: Path | None = None


def settings_from(ctx: click.Context) -> Settings:
    """The validated settings of this invocation. Raises SettingsError."""
    return _checked(load(spec_from(ctx)))


def local_settings(spec: Path, home: Path) -> Settings:
    """Settings of the line on this machine: addresses of its own stack win over exported ones, as for its worker.

    Raises SettingsError.
    """
    own = {**read_environment_file(home / "stack.env"), "UPWELL_HOME": str(home)}
    return _checked(load(spec, environment={**os.environ, **own}))


def spec_from(ctx: click.Context) -> Path:
    """`--spec`, else UPWELL_SPEC, else `upwell.toml` here."""
    return ctx.ensure_object(Context).spec or Path(os.environ.get("UPWELL_SPEC") or "upwell.toml")


def home_from(ctx: click.Context) -> Path:
    """Where the local state lives: UPWELL_HOME, else `.upwell` beside the spec."""
    beside = spec_from(ctx).resolve().parent / ".upwell"
    return Path(os.environ.get("UPWELL_HOME") or beside).resolve()


def _checked(settings: Settings) -> Settings:
    for place, dsn in (("source.dsn", settings.source.dsn), ("sink.dsn", settings.sink.dsn)):
        if not _is_dsn(dsn):
            raise SettingsError(
                f"{place} is no Postgres address: write postgresql://user:password@host:port/database with %40 for @ "
                "and %2F for / in the password, or host=... port=... dbname=... user=... password=..."
            )
    return settings


def _is_dsn(dsn: str) -> bool:
    """Whether it can be read whole: libpq's own complaint would quote pieces of a mistyped password."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        found = conninfo_to_dict(dsn)
    except ProgrammingError:
        return False
    port = str(found.get("port") or "").replace(",", "")
    return "@" not in str(found.get("host") or "") and (port == "" or port.isdecimal())


@contextlib.contextmanager
def one_clear_line() -> Iterator[None]:
    """Turn every known error into one line on stderr and its exit code; a traceback is a bug of ours."""
    from infra.stack.errors import StackError

    try:
        yield
    except StackError as error:
        # The last log lines of a component that did not start follow the one line.
        click.echo(f"upwell: {error}", err=True)
        sys.exit(error.exit_code)
    except UpwellError as error:
        click.echo(f"upwell: {_one_line(error)}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        click.echo(f"upwell: {error.filename}: {error.strerror}", err=True)
        sys.exit(SettingsError.exit_code)
    except KeyboardInterrupt:
        click.echo("upwell: interrupted", err=True)
        sys.exit(130)


def _one_line(error: UpwellError) -> str:
    """The message without line breaks, and without the password of a URL in it."""
    from connectors.debezium.connect import redacted

    return redacted(" ".join(str(error).split()))


def say(line: str) -> None:
    """Progress for a person; flushed, so that it is seen while it happens also without a terminal."""
    click.echo(line)
    sys.stdout.flush()


def confirm(yes: bool) -> None:
    """Go on if `yes`, or if a person at a terminal says so. Raises SettingsError: nothing is done unasked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise SettingsError("nothing was done: run it again with --yes")
    if not click.confirm("Go on?"):
        raise SettingsError("nothing was done")
