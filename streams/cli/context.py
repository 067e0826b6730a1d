"""What every command shares: the settings, and how an error leaves the process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from schemas.errors import UpwellError
from streams.settings import Settings, load


@dataclass
class Context:
    """Flags of the root command. Settings are read only by commands that need them."""

    spec: Path | None = None
    home: Path | None = None


def settings_from(ctx: click.Context) -> Settings:
    """The validated settings of this invocation. Raises SettingsError."""
    return load(ctx.ensure_object(Context).spec)


def home_from(ctx: click.Context) -> Path:
    """Where the local state lives: UPWELL_HOME, else `.upwell` beside the spec."""
    import os

    spec = ctx.ensure_object(Context).spec or Path(os.environ.get("UPWELL_SPEC") or "upwell.toml")
    return Path(os.environ.get("UPWELL_HOME") or spec.resolve().parent / ".upwell").resolve()


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
        click.echo(f"upwell: {' '.join(str(error).split())}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("upwell: interrupted", err=True)
        sys.exit(130)


def say(line: str) -> None:
    """Progress for a person; flushed, so that it is seen while it happens also without a terminal."""
    click.echo(line)
    sys.stdout.flush()
