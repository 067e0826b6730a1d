"""`upwell generation`: another model, template or chunking, filled beside the live one and switched to."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from streams.cli.context import settings_from
from streams.cli.table import console, duration, print_whole, table

if TYPE_CHECKING:
    from connectors.postgres.generations import GenerationFacts, Readiness
    from schemas.sink import GenerationInfo
    from streams.generations import Plan
    from streams.settings import Settings

MIB: Final = 1024**2


@click.group()
def generation() -> None:
    """Change model, template or chunking: plan, create, watch, switch, go back, drop."""


@generation.command()
@click.argument("collection")
@click.option("--json", "json_", is_flag=True, help="For a machine.")
@click.pass_context
def plan(ctx: click.Context, collection: str, json_: bool) -> None:
    """What a generation of COLLECTION as the spec says now would cost. Writes nothing."""
    from streams.generations import plan as estimate
    from streams.models import encoder_of

    settings = settings_from(ctx)
    found = estimate(settings, collection, lambda name: encoder_of(settings, name, _progress))
    if json_:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        _print_plan(found)


@generation.command()
@click.argument("collection")
@click.pass_context
def create(ctx: click.Context, collection: str) -> None:
    """Begin a generation of COLLECTION as the spec says.

    The workers fill it beside the live one. Run again, it does nothing.
    """
    from streams.generations import create as make
    from streams.models import encoder_of

    settings = settings_from(ctx)
    made, pending = make(settings, collection, lambda name: encoder_of(settings, name, _progress))
    if pending or made.state == "filling":
        what = f"{pending} rows to embed" if pending else "is there already"
        click.echo(f"generation {made.number} of {collection} fills: {what}")
        click.echo(f"next: upwell generation status {collection}")
    else:
        click.echo(
            f"generation {made.number} of {collection} is just that, it is {made.state}: nothing to do"
        )


@generation.command()
@click.argument("collection", required=False)
@click.option("--json", "json_", is_flag=True, help="For a machine.")
@click.pass_context
def status(ctx: click.Context, collection: str | None, json_: bool) -> None:
    """Generations of COLLECTION, or of all: state, what waits, ETA, size."""
    from connectors.postgres.generations import Generations
    from streams.generations import spec_of

    settings = settings_from(ctx)
    if collection is not None:
        spec_of(settings, collection)
    names = [collection] if collection is not None else sorted(settings.collections)
    with Generations.open(settings.sink.dsn) as generations:
        facts = {name: generations.facts(name) for name in names}
        problems = generations.problems()
    if json_:
        answer = {name: [_plain(each) for each in found] for name, found in facts.items()}
        click.echo(json.dumps({"generations": answer, "problems": problems}, indent=2, default=str))
    else:
        _print_status(facts, problems)


@generation.command()
@click.argument("collection")
@click.argument("number", required=False, type=int)
@click.pass_context
def switch(ctx: click.Context, collection: str, number: int | None) -> None:
    """Make the filling generation of COLLECTION, or NUMBER, the live one.

    Exit 1 if it is not ready.
    """
    from connectors.postgres.generations import Generations

    settings = settings_from(ctx)
    with Generations.open(settings.sink.dsn) as generations:
        live, target, ready = generations.switch(collection, number, _progress)
        if live.number == target.number:
            click.echo(f"generation {live.number} of {collection} is live already")
            return
        if not ready.is_ready:
            facts = next(each for each in generations.facts(collection) if each.info.number == target.number)
            click.echo(f"upwell: {_not_ready(target, ready, facts)}", err=True)
            ctx.exit(1)
    _say_live(settings, live, target)


@generation.command()
@click.argument("collection")
@click.pass_context
def rollback(ctx: click.Context, collection: str) -> None:
    """Back to the generation of COLLECTION that was live last."""
    from connectors.postgres.generations import Generations

    settings = settings_from(ctx)
    with Generations.open(settings.sink.dsn) as generations:
        live, target, ready = generations.rollback(collection, _progress)
    if not ready.is_indexed:
        click.echo(
            f"upwell: generation {target.number} of {collection} has no HNSW index: try again", err=True
        )
        ctx.exit(1)
    if not ready.is_ready or ready.pending:
        click.echo(f"{ready.pending} rows wait in it, {ready.dead_letters} dead letters: these are stale")
    _say_live(settings, live, target)


@generation.command()
@click.argument("collection")
@click.argument("number", type=int)
@click.pass_context
def drop(ctx: click.Context, collection: str, number: int) -> None:
    """Remove generation NUMBER of COLLECTION; never the live one."""
    from connectors.postgres.generations import Generations
    from streams.generations import existing

    settings = settings_from(ctx)
    with Generations.open(settings.sink.dsn) as generations:
        done = generations.drop(collection, number)
        left = generations.fed(collection)
    click.echo(f"generation {number} of {collection} {'dropped' if done else 'was dropped before'}")
    if collection in settings.collections and existing(settings, collection, left) is None:
        click.echo(
            f"the spec is that of none that is left: undo the change of {collection} before a worker starts"
        )


def _progress(line: str) -> None:
    """Beside the answer, not in it."""
    click.echo(line, err=True)


def _say_live(settings: Settings, live: GenerationInfo, target: GenerationInfo) -> None:
    name = target.collection
    click.echo(f"generation {target.number} of {name} is live, generation {live.number} is kept up to date")
    if live.model != target.model:
        click.echo(f"queries need vectors of {target.model} now")
    from streams.generations import follow_canary

    followed = follow_canary(settings)
    if followed:
        click.echo(followed)
    click.echo(f"next: upwell generation rollback {name}, or upwell generation drop {name} {live.number}")


def _not_ready(target: GenerationInfo, ready: Readiness, facts: GenerationFacts) -> str:
    parts = [
        (ready.unfilled, f"{ready.unfilled} rows are not embedded yet"),
        (ready.late, f"{ready.late} changes wait for longer than the threshold"),
        (ready.dead_letters, f"{ready.dead_letters} dead letters are open"),
        (not ready.is_indexed and ready.is_filled, "its HNSW index is missing"),
    ]
    why = ", ".join(text for number, text in parts if number)
    eta = f"; ready in {duration(facts.eta_seconds)}" if facts.eta_seconds and not ready.dead_letters else ""
    return f"generation {target.number} of {target.collection} is not ready: {why}{eta}"


def _plain(facts: GenerationFacts) -> dict[str, Any]:
    found = asdict(facts)
    info = found.pop("info")
    return {**{name: info[name] for name in info if name != "collection"}, **found}


def _print_status(facts: dict[str, list[GenerationFacts]], problems: list[str]) -> None:
    columns = ("collection", "number", "state", "model", "dim", "chunks", "pending", "ETA", "dead", "MiB")
    made = table(None, *columns, left=("collection", "state", "model"))
    for name, found in facts.items():
        for each in found:
            made.add_row(
                name,
                str(each.info.number),
                each.info.state,
                each.info.model,
                str(each.info.dimension),
                str(each.chunks),
                str(each.pending),
                duration(each.eta_seconds),
                str(each.dead_letters),
                f"{each.bytes / MIB:.1f}",
            )
    screen = console()
    print_whole(screen, made)
    for problem in problems:
        screen.print(f"WRONG  {problem}")


def _print_plan(found: Plan) -> None:
    live = found.live
    screen = console()
    screen.print(f"live: generation {live.number}, {live.model}, {live.dimension} dimensions")
    if found.same_as is not None:
        screen.print(f"the spec is that of generation {found.same_as}: nothing to do")
        return
    screen.print(f"new:  {found.model}, {found.dimension} dimensions")
    made = table(None, "", "", left=("",))
    made.add_row("stored rows", str(found.rows))
    made.add_row("documents with text", str(found.documents))
    made.add_row("chunks", str(found.chunks))
    made.add_row("of them copied, not encoded", str(found.copied))
    made.add_row("time of one worker process", duration(found.seconds))
    made.add_row("vectors and index, MiB", f"{found.vector_bytes / MIB:.0f}")
    screen.print(made)
    screen.print(f"estimated from {found.sampled} rows, at the rate of this machine now")
    if found.unrenderable:
        screen.print(f"WRONG  the template fails on {found.unrenderable} of them: {found.why}")
    screen.print(f"next: upwell generation create {live.collection}")
