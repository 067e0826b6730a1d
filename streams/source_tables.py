"""What the source's catalog says now of a collection's table: whether what has blocked the collection is mended.

A change that was sent while a column was away, or without a value that the log did not have, stays as it was sent. Once
the table is again as the collection needs it, only the source can say what the row is: its key is read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from connectors.postgres.capture_state import connect_sink
from connectors.postgres.record_columns import stored_types
from connectors.postgres.source import connect_source
from schemas.errors import SettingsError
from schemas.spec import CollectionSpec
from streams.capture import check_collections


@dataclass(frozen=True, slots=True)
class CatalogTables:
    """Implements `SourceTables` of streams/ports.py; each question is a connection of its own, as few are asked."""

    source_dsn: str
    sink_dsn: str
    collections: Mapping[str, CollectionSpec]

    async def fits(self, collection: str) -> bool:
        return await asyncio.to_thread(self._fits, collection)

    async def retyped(self, collection: str) -> str:
        return await asyncio.to_thread(self._retyped, collection)

    def _fits(self, collection: str) -> bool:
        with connect_source(self.source_dsn) as source:
            try:
                check_collections(source, {collection: self.collections[collection]}, server=False)
            except SettingsError:
                return False
        return True

    def _retyped(self, collection: str) -> str:
        spec = self.collections[collection]
        with connect_sink(self.sink_dsn) as sink, connect_source(self.source_dsn) as source:
            stored = stored_types(sink, collection)
            try:
                info = check_collections(source, {collection: spec}, server=False)[collection]
            except SettingsError as error:
                return str(error)
        for column, there in info.types.items():
            if stored.get(column, there) != there:
                return (
                    f"column {column!r} of {spec.table} is {there} now, in the sink it is {stored[column]}: "
                    f"run `upwell migrate`"
                )
        return ""
