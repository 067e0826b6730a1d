"""What `upwell dead-letters` needs of a deployment: its neighbours are asked only where they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from connectors.postgres.source import connect_source
from connectors.postgres.source_schema import placeholder
from connectors.postgres.store import PostgresStore
from schemas.sink import GenerationInfo
from streams import neighbours
from streams.generations import matching
from streams.replay import Decoders, Replayed, Replaying
from streams.settings import Settings


async def replay(settings: Settings, numbers: Sequence[int], tell: Callable[[Replayed], None]) -> bool:
    """Replay dead letters of these ids in this order; False if one is still open. Raises Retry and Halt errors."""
    store = await PostgresStore.open(settings.sink.dsn, writer="replay", pool_size=1)
    try:
        found = await _decoders(settings, store)
        return await Replaying(store, found).run(numbers, tell)
    finally:
        await store.close()


async def decoders(settings: Settings) -> Decoders:
    """Those of now. Source and registry are asked when the first message is read."""
    store = await PostgresStore.open(settings.sink.dsn, writer="look", pool_size=1)
    try:
        return await _decoders(settings, store)
    finally:
        await store.close()


async def _decoders(settings: Settings, store: PostgresStore) -> Decoders:
    lineage = (await store.deployment()).lineage
    keys, fed = await store.key_columns(), await store.generations()

    def secret() -> str:
        with connect_source(settings.source.dsn) as connection:
            return placeholder(connection, settings.name)

    def check(collection: str) -> GenerationInfo:
        return matching(settings, collection, [each for each in fed if each.collection == collection])

    return Decoders(
        settings.collections,
        keys,
        lineage,
        registry=neighbours.blocking_registry(settings),
        placeholder=secret,
        check=check,
    )
