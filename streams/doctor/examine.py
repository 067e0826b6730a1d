"""All checks, in the order in which the changes flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from connectors.debezium.naming import Naming
from schemas.errors import UpwellError
from streams.doctor.core import Check, State, Verdict, fail, line_of, ok, skipped
from streams.doctor.known import Known, known_of
from streams.doctor.sink import sink_checks
from streams.doctor.source import source_checks
from streams.doctor.stream import connect_checks, kafka_checks, registry_checks
from streams.settings import Settings


def examine(settings: Settings, *, model: bool = True) -> Iterator[Check]:
    """Checks as they are found. Raises nothing that a neighbour is to blame for, writes nothing.

    `model`: load it, which takes seconds.
    """
    known = known_of(settings)
    yield from spec_checks(settings, known)
    yield from source_checks(settings, known)
    yield from sink_checks(settings)
    yield from kafka_checks(settings, known)
    yield from connect_checks(settings, known)
    yield from registry_checks(settings, known)
    yield from model_checks(settings, known, load=model)


def spec_checks(settings: Settings, known: Known) -> Iterator[Check]:
    names = ", ".join(settings.collections)
    collections = (
        ok(names) if names else fail("there is none", "write one (README, The spec), or run `upwell init`")
    )
    yield _check("spec", "collections", collections)
    yield _check("spec", "name", judge_name(settings.name, known))


def judge_name(name: str, known: Known) -> Verdict:
    """A sink belongs to one deployment: its positions are those of its topics."""
    if known.lineage is None:
        return ok(name)
    if Naming(name, known.lineage).topic_prefix != known.topic_prefix:
        return fail(
            f"the sink belongs to topics {known.topic_prefix}.*, not to deployment {name}",
            "take the old name again, or give the new one an empty sink",
        )
    return ok(f"{name}, lineage {known.lineage}")


def model_checks(
    settings: Settings,
    known: Known,
    *,
    load: bool,
    loader: Callable[[Settings], tuple[int, int]] | None = None,
) -> Iterator[Check]:
    """`loader` gives the model's dimension and most tokens."""
    names = ("loads", "dimension", "chunk.max_tokens")
    if not load:
        yield from (_check("model", name, skipped("of --no-model")) for name in names)
        return
    try:
        dimension, max_tokens = (loader or _load)(settings)
    except UpwellError as error:
        yield _check("model", names[0], fail(line_of(error), "mend [model] name, or install it"))
        yield from (_check("model", name, skipped("it does not load")) for name in names[1:])
        return
    yield _check("model", names[0], ok(f"{settings.model.name}, {dimension} dimensions, {max_tokens} tokens"))
    yield _check("model", names[1], judge_dimension(dimension, settings, known))
    yield _check("model", names[2], judge_tokens(max_tokens, settings))


def _load(settings: Settings) -> tuple[int, int]:
    from streams.models import encoder_of

    encoder = encoder_of(settings, settings.model.name, lambda line: None)
    return encoder.dimension, encoder.max_tokens


def judge_dimension(dimension: int, settings: Settings, known: Known) -> Verdict:
    """A model that was replaced under its name is told from its dimension."""
    if known.away:
        return skipped(known.away)
    live = {name: known.models[name] for name in settings.collections if name in known.models}
    other = [
        name
        for name, (model, there, _) in live.items()
        if model == settings.model.name and there != dimension
    ]
    if other:
        return fail(
            f"the live generation of {other[0]} has {live[other[0]][1]} dimensions, the model {dimension}",
            f"restore the model, or run `upwell generation create {other[0]}`",
        )
    return ok("that of every live generation") if live else skipped("there is no generation yet")


def judge_tokens(max_tokens: int, settings: Settings) -> Verdict:
    above = [name for name, spec in settings.collections.items() if spec.chunk.max_tokens > max_tokens]
    if above:
        asked = settings.collections[above[0]].chunk.max_tokens
        return fail(
            f"{above[0]} has {asked}, the model reads {max_tokens}: the rest of a chunk would be cut off",
            f"lower it to {max_tokens}, or to 0 for the model's own limit",
        )
    return ok(f"at most {max_tokens}")


def _check(neighbour: str, name: str, verdict: Verdict) -> Check:
    return Check(neighbour, name, verdict.state, verdict.says, verdict.next_step)


__all__ = ["Check", "State", "examine"]
