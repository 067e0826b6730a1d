"""`upwell migrate`: what is made at the source and in the sink, from the spec and the source's own catalog."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from connectors.encoder import load_encoder
from connectors.postgres import source_schema
from connectors.postgres.capture_state import CaptureState, connect_sink
from connectors.postgres.layout import CollectionLayout, Column
from connectors.postgres.migrate import migrate_sink as bring_sink
from connectors.postgres.source import SourceColumn, TableInfo, connect_source
from schemas.errors import SettingsError
from schemas.sink import GenerationInfo
from schemas.spec import CollectionSpec, fingerprint
from streams.capture import check_collections
from streams.generations import matching
from streams.settings import Settings

Progress = Callable[[str], None]


def migrate(settings: Settings, progress: Progress) -> None:
    """Source, then sink; each line says what was done."""
    for line in migrate_source(settings):
        progress(f"source: {line}")
    for line in migrate_sink(settings):
        progress(f"sink: {line}")


def migrate_source(settings: Settings) -> list[str]:
    """Schema `upwell`, publication and marks. Raises SettingsError for a table that cannot be captured."""
    with connect_source(settings.source.dsn) as source:
        check_collections(source, settings.collections)
        tables = [spec.table for spec in settings.collections.values()]
        return source_schema.migrate_source(source, settings.name, tables)


def source_script(settings: Settings) -> str:
    """The same as SQL for the owner of the tables."""
    with connect_source(settings.source.dsn) as source:
        infos = check_collections(source, settings.collections, advise=True)
        return source_schema.print_source_sql(source, settings.name, {i.table: i for i in infos.values()})


def migrate_sink(settings: Settings) -> list[str]:
    """The sink's schema and every collection's objects."""
    with connect_source(settings.source.dsn) as source:
        infos = check_collections(source, settings.collections)
    with connect_sink(settings.sink.dsn) as sink:
        facts = model_facts(settings, CaptureState(sink).generations())
        return bring_sink(
            sink,
            [layout(name, spec, infos[name], facts[name]) for name, spec in settings.collections.items()],
        )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a layout needs to know of the model: `max_tokens` is the most that a chunk may have."""

    name: str
    dimension: int
    max_tokens: int


def model_facts(settings: Settings, fed: Mapping[str, Sequence[GenerationInfo]]) -> dict[str, ModelFacts]:
    """By collection. The model is loaded (seconds, torch) only for a collection's first generation.

    Raises GenerationMismatch if a collection has generations, and none is as the spec says.
    """
    name, facts = settings.model.name, {}
    for collection in settings.collections:
        if collection in fed:
            same = matching(settings, collection, fed[collection])
            facts[collection] = ModelFacts(name, same.dimension, same.max_tokens)
    if len(facts) < len(settings.collections):
        encoder = load_encoder(name)
        loaded = ModelFacts(name, encoder.dimension, encoder.max_tokens)
        return {collection: facts.get(collection, loaded) for collection in settings.collections}
    return facts


def layout(name: str, spec: CollectionSpec, info: TableInfo, model: ModelFacts) -> CollectionLayout:
    """A collection's shape in the sink. Raises SettingsError for chunks that the model would cut off."""
    chunk = spec.chunk.model_copy(update={"max_tokens": spec.chunk.max_tokens or model.max_tokens})
    if chunk.max_tokens > model.max_tokens:
        limit = f"the model's limit {model.max_tokens}"
        raise SettingsError(f"collection {name}: chunk.max_tokens {chunk.max_tokens} is above {limit}")
    if chunk.overlap_tokens >= chunk.max_tokens:
        raise SettingsError(f"collection {name}: chunk.overlap_tokens must be below max_tokens")
    by_name = {column.name: column for column in info.columns}
    generation = GenerationInfo(
        collection=name,
        number=1,
        fingerprint=fingerprint(model.name, spec.template, chunk),
        model=model.name,
        dimension=model.dimension,
        template=spec.template,
        max_tokens=chunk.max_tokens,
        overlap_tokens=chunk.overlap_tokens,
        state="live",
    )
    return CollectionLayout(
        name=name,
        table=spec.table,
        key=_columns(info.key),
        metadata=_columns(by_name[column] for column in spec.metadata),
        generation=generation,
        threshold_seconds=spec.slo.threshold_seconds,
    )


def _columns(columns: Iterable[SourceColumn]) -> tuple[Column, ...]:
    return tuple(Column(column.name, column.type) for column in columns)
