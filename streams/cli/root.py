"""The root command. Subcommands are imported when they are called, so that `upwell --help` is quick."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from streams.cli.context import Context, one_clear_line

#: command -> (module, attribute, one line for `upwell --help`)
COMMANDS: Final = {
    "init": ("streams.cli.init", "init", "Write a first spec for your own tables."),
    "doctor": ("streams.cli.doctor", "doctor", "Check every neighbour, right and setting; say what to do."),
    "stack": ("streams.cli.stack", "stack", "Start, stop and look at the local stack."),
    "migrate": ("streams.cli.migrate", "migrate", "Bring source and sink in line with the spec."),
    "connector": ("streams.cli.connector", "connector", "Apply, look at and restart the Debezium connector."),
    "worker": ("streams.cli.worker", "worker", "Run workers: intake and embed."),
    "monitor": ("streams.cli.monitor", "monitor", "Measure freshness and show it: verdicts, SLO, page."),
    "search": ("streams.cli.search", "search", "Nearest neighbours of a text, through the view."),
    "report": ("streams.cli.report", "report", "Propagation delay by stage, pending, dead letters."),
    "status": ("streams.cli.status", "status", "One screen: what works, what is wrong, the next step."),
    "generation": (
        "streams.cli.generation",
        "generation",
        "Another model, template or chunking, beside the live one.",
    ),
    "maintain": (
        "streams.cli.maintain",
        "maintain",
        "Indexes and tables of the sink: look, rebuild, vacuum.",
    ),
    "reconcile": ("streams.cli.reconcile", "reconcile", "Compare source and sink, key by key; repair."),
    "model": ("streams.cli.model", "model", "The model on this machine, its export to ONNX."),
    "explain": ("streams.cli.explain", "explain", "All that is known of one key, or left of it."),
    "uninstall": ("streams.cli.uninstall", "uninstall", "Drop what upwell made; say first what that is."),
    "completion": ("streams.cli.completion", "completion", "Print the completion script of a shell."),
    "dead-letters": (
        "streams.cli.dead_letters",
        "dead_letters",
        "What could not be taken in: look, replay, waive.",
    ),
    "demo": (
        "streams.cli.demo",
        "demo",
        "The whole line on real components, with live changes and searches.",
    ),
    "benchmark": ("streams.cli.benchmark", "benchmark", "How fast it is here, next to its parts alone."),
    "up": ("streams.cli.up", "up", "Start stack, capture and workers in the background."),
    "down": ("streams.cli.up", "down", "Stop what `up` started."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported on use, and whose every known error is one clear line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands without importing them: a shell waits for this at every Tab."""
        options = super(click.Group, self).shell_complete(ctx, incomplete)
        commands = [
            CompletionItem(name, help=line)
            for name, (_, _, line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*commands, *options]

    def invoke(self, ctx: click.Context) -> Any:
        with one_clear_line():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--spec", type=click.Path(path_type=Path), help="The spec; default UPWELL_SPEC, else ./upwell.toml."
)
@click.version_option(package_name="upwell")
@click.pass_context
def cli(ctx: click.Context, spec: Path | None) -> None:
    """upwell keeps the embeddings in a Postgres/pgvector database fresh, and says how fresh they are.

    Exit codes: 0 fine, 1 the answer is bad, 2 usage, settings or HALT, 3 a neighbour is unreachable.
    """
    ctx.obj = Context(spec=spec)


def main() -> None:
    """Entry point of the `upwell` script."""
    cli(prog_name="upwell")
