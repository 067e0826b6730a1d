"""`upwell completion SHELL`: what a shell needs to complete commands, options and names of collections."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem, get_completion_class

SHELLS: Final = ("bash", "zsh", "fish")
VARIABLE: Final = "_UPWELL_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of SHELL: bash, zsh or fish."""
    from streams.cli.root import cli

    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(cli, {}, "upwell", VARIABLE).source())


def collection_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Collections of the spec that begin so; none where it cannot be read, for a shell must not be disturbed."""
    given = ctx.find_root().params.get("spec") or os.environ.get("UPWELL_SPEC") or "upwell.toml"
    try:
        found = tomllib.loads(Path(given).expanduser().read_text(encoding="utf-8")).get("collections", {})
    except (OSError, ValueError):
        return []
    names = found if isinstance(found, dict) else {}
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
