"""`upwell migrate`: what is made at the source and in the sink, from the spec and the source's own catalog."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from connectors.postgres import source_schema
from connectors.postgres.capture_state import CaptureState, connect_sink
from connectors.postgres.layout import CollectionLayout, Column
from connectors.postgres.migrate import migrate_sink as bring_sink
from connectors.postgres.record_columns import stored_types
from connectors.postgres.removed_collection import collection_names, remove_collection
from connectors.postgres.source import Connection, SourceColumn, TableInfo, connect_source, has_values
from schemas.errors import SettingsError
from schemas.freshness import CANARY, CANARY_TABLE
from schemas.sink import GenerationInfo
from schemas.spec import CollectionSpec
from streams import neighbours
from streams.capture import apply, check_collections
from streams.generations import as_specified, matching
from streams.models import encoder_of
from streams.settings import Settings

Progress = Callable[[str], None]
#: The canary's table is ours: what it is like need not be looked up.
CANARY_INFO: Final = TableInfo(
    CANARY_TABLE,
    key=(SourceColumn("id", "integer", not_null=True, toastable=False, generated=False),),
    columns=(
        SourceColumn("id", "integer", not_null=True, toastable=False, generated=False),
        SourceColumn("nonce", "text", not_null=True, toastable=True, generated=False),
        SourceColumn("at", "timestamp with time zone", not_null=True, toastable=False, generated=False),
    ),
    full=False,
)
#: Workers notice within a second and start again; who does not is not waited for longer.
RESTART_SECONDS: Final = 30.0


def migrate(
    settings: Settings, progress: Progress, *, remove: Collection[str] = (), load: bool = True
) -> None:
    """Source, then sink, then what captures already; each line says what was done.

    `remove`: collections that the spec no longer has. `load`: also read tables that are not loaded yet, where something
    is captured already. Raises SettingsError for a collection that neither the spec nor `remove` names.
    """
    with connect_source(settings.source.dsn) as source:
        check_collections(source, settings.collections)
    gone = removable(settings, remove)
    for line in _bring_source(settings):
        progress(f"source: {line}")
    for line in migrate_sink(settings, progress):
        progress(f"sink: {line}")
    captured = is_captured(settings)
    if captured:
        apply(settings, progress, load=load and not gone)
    for name in gone:
        _remove(settings, name, progress)
    if captured and gone and load:
        apply(settings, progress)


def removable(settings: Settings, remove: Collection[str]) -> list[str]:
    """Those of `remove` that the sink still has. Raises SettingsError: nothing goes that nobody asked to go."""
    with connect_sink(settings.sink.dsn) as sink:
        there = collection_names(sink)
    kept = sorted(set(remove) & set(settings.collections))
    if kept:
        raise SettingsError(f"collection {kept[0]} is in the spec: take it out before you remove it")
    forgotten = sorted(set(there) - set(settings.served) - set(remove))
    if forgotten:
        raise SettingsError(
            f"collection {forgotten[0]} is in the sink, but not in the spec: put it back, or run "
            f"`upwell migrate --remove {forgotten[0]}`, which removes its view, records and vectors"
        )
    return sorted(set(there) & set(remove))


def is_captured(settings: Settings) -> bool:
    """Whether topics and connector were ever made."""
    with CaptureState.open(settings.sink.dsn) as state:
        return state.lineage() is not None


def _remove(settings: Settings, name: str, progress: Progress) -> None:
    """First nobody takes it in any more, then its topic, then what was made of it; killed, it is run again."""
    with CaptureState.open(settings.sink.dsn) as state, connect_sink(settings.sink.dsn) as sink:
        topics = state.collection_topics(name)
        state.forget_topics(topics)
        if topics:
            # A consumer of a topic that is gone asks for it without a pause.
            state.wait_restarted(RESTART_SECONDS)
            neighbours.kafka(settings).delete_topics(topics)
        removed = remove_collection(sink, name)
    progress(
        f"sink: collection {name} removed: {removed.records} records, {removed.vectors} vectors, "
        f"{removed.dead_letters} open dead letters; its audit stays"
    )


def migrate_source(settings: Settings) -> list[str]:
    """Schema `upwell`, publication and marks. Raises SettingsError for a table that cannot be captured."""
    if settings.sink.dsn:
        removable(settings, ())
    return _bring_source(settings)


def _bring_source(settings: Settings) -> list[str]:
    with connect_source(settings.source.dsn) as source:
        check_collections(source, settings.collections)
        tables = [spec.table for spec in settings.collections.values()]
        return source_schema.migrate_source(source, settings.name, tables)


def source_script(settings: Settings) -> str:
    """The same as SQL for the owner of the tables."""
    with connect_source(settings.source.dsn) as source:
        infos = check_collections(source, settings.collections, advise=True)
        return source_schema.print_source_sql(source, settings.name, {i.table: i for i in infos.values()})


def migrate_sink(settings: Settings, progress: Progress | None = None) -> list[str]:
    """The sink's schema and every collection's objects; what is not in the spec is left alone.

    `progress` tells of an export of the model.
    """
    with connect_source(settings.source.dsn) as source, connect_sink(settings.sink.dsn) as sink:
        infos = {**check_collections(source, settings.collections), CANARY: CANARY_INFO}
        facts = model_facts(settings, CaptureState(sink).generations(), progress)
        made = [layout(name, spec, infos[name], facts[name]) for name, spec in settings.served.items()]
        return bring_sink(sink, [replace(each, valued=_valued(source, sink, each)) for each in made])


def _valued(source: Connection, sink: Connection, made: CollectionLayout) -> frozenset[str]:
    """Metadata columns that the sink does not have yet, though the collection, and that the source has values of."""
    stored = stored_types(sink, made.name)
    new = [column.name for column in made.metadata if stored and column.name not in stored]
    return frozenset(name for name in new if has_values(source, made.table, name))


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a layout needs to know of the model: `max_tokens` is the most that a chunk may have."""

    name: str
    dimension: int
    max_tokens: int


def model_facts(
    settings: Settings, fed: Mapping[str, Sequence[GenerationInfo]], progress: Progress | None = None
) -> dict[str, ModelFacts]:
    """By collection. The model is loaded, and exported on its first use, only if no generation says what is needed.

    Raises GenerationMismatch if a collection has generations, and none is as the spec says.
    """
    name, facts = settings.model.name, {}
    known = [each for generations in fed.values() for each in generations if each.model == name]
    for collection, spec in settings.served.items():
        if collection in fed:
            same = matching(settings, collection, fed[collection])
            facts[collection] = ModelFacts(name, same.dimension, same.max_tokens)
        else:
            # What another collection's chunks may have, those of a new one may have, too.
            fitting = [each for each in known if 0 < spec.chunk.max_tokens <= each.max_tokens]
            if fitting:
                facts[collection] = ModelFacts(name, fitting[0].dimension, fitting[0].max_tokens)
    if len(facts) < len(settings.served):
        encoder = encoder_of(settings, name, progress)
        loaded = ModelFacts(name, encoder.dimension, encoder.max_tokens)
        return {collection: facts.get(collection, loaded) for collection in settings.served}
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
    return CollectionLayout(
        name=name,
        table=spec.table,
        key=_columns(info.key),
        metadata=_columns(by_name[column] for column in spec.metadata),
        generation=as_specified(name, spec, chunk, model.name, model.dimension),
        threshold_seconds=spec.slo.threshold_seconds,
        index=spec.index,
    )


def _columns(columns: Iterable[SourceColumn]) -> tuple[Column, ...]:
    return tuple(Column(column.name, column.type) for column in columns)
