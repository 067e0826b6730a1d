"""`upwell model`: the spec's model on this machine, and its export to ONNX."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from streams.cli.context import say, settings_from

if TYPE_CHECKING:
    from streams.models import ModelState


@click.group()
def model() -> None:
    """The model on this machine: its runtime, its export to ONNX."""


@model.command()
@click.option("--force", is_flag=True, help="Export again, also if there is an export.")
@click.pass_context
def export(ctx: click.Context, force: bool) -> None:
    """Export the spec's model to ONNX, once on a machine.

    Where it is missing, workers and `migrate` do it by themselves. Exit 1 if the model does not export, or its vectors
    are then not those of sentence-transformers.
    """
    from streams.models import export_model

    place, manifest = export_model(settings_from(ctx), say, force=force)
    if manifest.problem is not None:
        click.echo(f"upwell: model {manifest.model} does not run with ONNX: {manifest.problem}", err=True)
        ctx.exit(1)
    say(
        f"{place}: {manifest.dimension} dimensions, {manifest.max_tokens} tokens, cosine {manifest.parity:.7f}"
    )


@model.command()
@click.option("--json", "json_", is_flag=True, help="For a machine.")
@click.pass_context
def show(ctx: click.Context, json_: bool) -> None:
    """Runtime, hash, dimension, limit and export of the model.

    Loads nothing.
    """
    from streams.models import model_state

    state = model_state(settings_from(ctx))
    if json_:
        click.echo(json.dumps(_as_json(state), indent=2))
    else:
        _print(state)


def _as_json(state: ModelState) -> dict[str, object]:
    facts = None if state.export is None else asdict(state.export)
    if facts is not None:
        facts.pop("tokenizer_json")  # half a megabyte
    return {
        "model": state.name,
        "runtime": state.runtime,
        "why": state.why,
        "source": _text(state.source),
        "identity": state.identity,
        "export_path": _text(state.place),
        "export": facts,
        "calibration": _batches(state),
    }


def _batches(state: ModelState) -> dict[str, object] | None:
    found = state.calibration
    if found is None or not found.is_done:
        return None
    return {"tokens": found.tokens, "gains": found.gains, "rounds": len(found.rounds)}


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _calibration(state: ModelState) -> str:
    found = state.calibration
    if state.runtime != "onnx":
        return "fixed with torch"
    if found is None or not found.is_done:
        return "measured when the model is loaded"
    rates = ", ".join(f"{tokens}: {gain:.2f}" for tokens, gain in found.gains.items())
    return f"{found.tokens} ({rates or 'not measured: a slow model'})"


def _print(state: ModelState) -> None:
    export = state.export
    rows = [("model", state.name), ("runtime", f"{state.runtime}: {state.why}")]
    rows += [("files", _text(state.source) or "not downloaded yet"), ("hash", state.identity or "-")]
    if export is None:
        rows.append(("export", "none yet: the first start makes it, or upwell model export"))
    else:
        rows += [("dimensions", str(export.dimension)), ("tokens of a chunk", f"at most {export.max_tokens}")]
        rows.append(("export", f"none: {export.problem}" if export.problem else str(state.place)))
        rows.append(("cosine", "-" if export.parity is None else f"at least {export.parity:.7f}"))
        rows.append(("tokens of a batch", _calibration(state)))
        rows += [(name, number) for name, number in export.versions.items() if name != "format"]
    for name, value in rows:
        click.echo(f"{name:<22} {value}")
