"""Which generation a spec means, and what a new one would cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from connectors.encoder import TokenChunker
from connectors.postgres.generations import Generations
from connectors.postgres.source import connect_source
from schemas.errors import GenerationMismatch, SettingsError, TemplateError
from schemas.freshness import CANARY
from schemas.sink import GenerationInfo
from schemas.spec import CANARY_SPEC, Chunking, CollectionSpec, fingerprint
from schemas.template import Template
from streams.embed.core import chunk_hash
from streams.ports import Encoder
from streams.settings import Settings

Load = Callable[[str], Encoder]

#: Rows that a plan renders and cuts, and chunks of theirs that it encodes.
SAMPLE_ROWS: Final = 500
SAMPLE_CHUNKS: Final = 64
#: A worker that lives embeds one row in far less.
FOLLOW_SECONDS: Final = 15.0
#: Bytes of a dimension in table and index together.
BYTES_PER_DIMENSION: Final = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What a generation as the spec says would cost, estimated from `sampled` rows.

    `same_as`: a generation that is fed is just that; then nothing is to be done. `copied`: chunks of the same text
    and model that the live generation has, so that they need no encoding. `seconds`: of one worker process that does
    nothing else. `unrenderable`: sampled rows that the template fails on, `why` the first one does.
    """

    collection: str
    live: GenerationInfo
    same_as: int | None
    model: str
    dimension: int
    rows: int
    sampled: int
    documents: int
    chunks: int
    copied: int
    seconds: float
    vector_bytes: int
    unrenderable: int
    why: str | None


def matching(settings: Settings, name: str, fed: Sequence[GenerationInfo]) -> GenerationInfo:
    """The generation that the spec means. `fed`: the collection's own. Raises GenerationMismatch if there is none."""
    if name == CANARY:
        # It follows the others, see `follow_canary`.
        return next((each for each in fed if each.is_live), fed[0])
    spec = settings.collections[name]
    for each in fed:
        chunk = Chunking(
            max_tokens=spec.chunk.max_tokens or each.max_tokens, overlap_tokens=spec.chunk.overlap_tokens
        )
        if fingerprint(settings.model.name, spec.template, chunk) == each.fingerprint:
            return each
    live = next((each.number for each in fed if each.is_live), 0)
    raise GenerationMismatch(
        f"template, model or chunking of {name} are not those of its live generation {live}: "
        f"undo the change, or run upwell generation create {name}"
    )


def spec_of(settings: Settings, name: str) -> CollectionSpec:
    """Raises SettingsError for a collection that the spec does not have."""
    if name not in settings.collections:
        known = ", ".join(sorted(settings.collections)) or "none"
        raise SettingsError(f"no collection {name!r} in the spec: it has {known}")
    return settings.collections[name]


def existing(settings: Settings, name: str, fed: Sequence[GenerationInfo]) -> GenerationInfo | None:
    """The generation that the spec means, if it is fed already."""
    try:
        return matching(settings, name, fed)
    except GenerationMismatch:
        return None


def wanted(settings: Settings, name: str, encoder: Encoder) -> GenerationInfo:
    """A generation as the spec says. Raises SettingsError for chunks that the model would cut off."""
    spec = spec_of(settings, name)
    chunk = spec.chunk.model_copy(update={"max_tokens": spec.chunk.max_tokens or encoder.max_tokens})
    TokenChunker.of(encoder, max_tokens=chunk.max_tokens, overlap_tokens=chunk.overlap_tokens)
    made = as_specified(name, spec, chunk, encoder.name, encoder.dimension)
    return replace(made, number=0, state="filling")


def as_specified(
    name: str, spec: CollectionSpec, chunk: Chunking, model: str, dimension: int
) -> GenerationInfo:
    """A collection's first generation. `chunk.max_tokens` must be resolved (not 0)."""
    return GenerationInfo(
        collection=name,
        number=1,
        fingerprint=fingerprint(model, spec.template, chunk),
        model=model,
        dimension=dimension,
        template=spec.template,
        max_tokens=chunk.max_tokens,
        overlap_tokens=chunk.overlap_tokens,
        state="live",
    )


def create(settings: Settings, name: str, load: Load) -> tuple[GenerationInfo, int]:
    """Make what the spec says beside the live generation; returns it and how many rows are to be embedded.

    The table is looked at first: the new template may need columns whose unchanged long values updates leave out, or
    that are not stored. Raises SettingsError then.
    """
    from streams.capture import check_collections

    spec = spec_of(settings, name)
    with Generations.open(settings.sink.dsn) as generations:
        found = existing(settings, name, generations.fed(name))
        if found is not None:
            return found, 0
        with connect_source(settings.source.dsn) as source:
            check_collections(source, {name: spec})
        for row in generations.sample(name, SAMPLE_ROWS):
            lacking = sorted(Template(spec.template).columns - row.keys())
            if lacking:
                raise SettingsError(
                    f"{name}: column {lacking[0]} of the template is not in all stored rows, it was excluded or new: "
                    f"take it out of exclude alone, restart the workers, run UPDATE {spec.table} SET {lacking[0]} = "
                    f"{lacking[0]} at the source, and then change the template"
                )
        return generations.create(wanted(settings, name, load(settings.model.name)))


def follow_canary(settings: Settings, seconds: float = FOLLOW_SECONDS) -> str:
    """Make the canary use a model that a collection's live generation uses; what was done, in words, "" if nothing.

    Workers fill its generation of one row in a moment; if none does within `seconds`, the next switch tries again.
    """
    with Generations.open(settings.sink.dsn) as generations:
        live = [generations.fed(name)[0] for name in settings.collections]
        canary = generations.fed(CANARY)[0]
        if not live or canary.model in {each.model for each in live}:
            return ""
        like = next((each for each in live if each.model == settings.model.name), live[0])
        made = as_specified(CANARY, CANARY_SPEC, CANARY_SPEC.chunk, like.model, like.dimension)
        target, _ = generations.create(replace(made, number=0, state="filling"))
        deadline = time.monotonic() + seconds
        while not generations.switch(CANARY, target.number)[2].is_ready:
            if time.monotonic() > deadline:
                return f"no worker embeds the canary with {like.model} yet; it still uses {canary.model}"
            time.sleep(0.2)
        generations.drop(CANARY, canary.number)
        return f"the canary uses {like.model} now"


def plan(settings: Settings, name: str, load: Load) -> Plan:
    """Render, cut and encode a sample of the stored rows. Writes nothing."""
    spec = spec_of(settings, name)
    with Generations.open(settings.sink.dsn) as generations:
        fed = generations.fed(name)
        found, live = existing(settings, name, fed), fed[0]
        encoder = load(settings.model.name)
        new = wanted(settings, name, encoder)
        rows, sample = generations.rows(name), generations.sample(name, SAMPLE_ROWS)
        texts, failures = _rendered(Template(spec.template), sample)
        chunker = TokenChunker.of(encoder, max_tokens=new.max_tokens, overlap_tokens=new.overlap_tokens)
        cuts = [found_chunks for text in texts if (found_chunks := chunker.chunks(text))]
        hashes = {chunk_hash(text): text for chunks in cuts for text in chunks}
        alike = (live.model, live.dimension) == (new.model, new.dimension)
        copied = generations.known_hashes(name, live.number, hashes) if alike else frozenset()
    per_chunk = _seconds_per_chunk(encoder, [text for digest, text in hashes.items() if digest not in copied])
    scale = rows / len(sample) if sample else 0.0
    chunks = sum(len(chunks) for chunks in cuts)
    kept = sum(1 for chunks in cuts for text in chunks if chunk_hash(text) in copied)
    return Plan(
        collection=name,
        live=live,
        same_as=None if found is None else found.number,
        model=new.model,
        dimension=new.dimension,
        rows=rows,
        sampled=len(sample),
        documents=round(len(cuts) * scale),
        chunks=round(chunks * scale),
        copied=round(kept * scale),
        seconds=round((chunks - kept) * scale) * per_chunk,
        vector_bytes=round(chunks * scale) * new.dimension * BYTES_PER_DIMENSION,
        unrenderable=len(failures),
        why=failures[0] if failures else None,
    )


def _rendered(template: Template, rows: Sequence[object]) -> tuple[list[str], list[str]]:
    """Texts, and why the rest cannot be rendered."""
    texts, failures = [], []
    for row in rows:
        try:
            texts.append(template.render(row))  # type: ignore[arg-type]
        except TemplateError as error:
            failures.append(str(error))
    return texts, failures


def _seconds_per_chunk(encoder: Encoder, texts: Sequence[str]) -> float:
    """Measured on some of them, after one to warm up."""
    if not texts:
        return 0.0
    some = texts[:: max(1, len(texts) // SAMPLE_CHUNKS)][:SAMPLE_CHUNKS]
    encoder.encode(some[:1])
    started = time.monotonic()
    encoder.encode(some)
    return (time.monotonic() - started) / len(some)
