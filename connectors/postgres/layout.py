"""The shape of a collection in the sink: what its tables, view and search function are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from psycopg import sql

from schemas.errors import SettingsError
from schemas.names import RESERVED_COLUMNS, check_identifier
from schemas.sink import GenerationInfo
from schemas.spec import VectorIndex

SYSTEM_COLUMNS: Final = frozenset(
    [
        "_key",
        "_row",
        "_text_hash",
        "_lineage",
        "_partition",
        "_offset",
        "_deleted",
        "_streamed",
        "_lsn",
        "_sequence_last_commit",
        "_transaction_id",
        "_fence_lsn",
        "_committed_at",
        "_taken_in_at",
    ]
)


@dataclass(frozen=True, slots=True)
class Column:
    """`type` as `format_type` prints it at the source, e.g. `numeric(10,2)`."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class CollectionLayout:
    """Everything the sink needs to know of a collection. Raises SettingsError for a column name that is ours, and for
    more dimensions than pgvector indexes.

    `valued`: metadata columns that are new to the sink, and not NULL in each row of the source.
    """

    name: str
    table: str
    key: Sequence[Column]
    metadata: Sequence[Column]
    generation: GenerationInfo
    threshold_seconds: float
    valued: frozenset[str] = frozenset()
    index: VectorIndex = field(default_factory=VectorIndex)

    def __post_init__(self) -> None:
        check_identifier(self.name, "collection")
        if self.generation.dimension > self.index.most_dimensions:
            raise SettingsError(
                f"collection {self.name}: {self.generation.model} makes vectors of {self.generation.dimension} "
                f"dimensions, pgvector indexes {self.index.most_dimensions} of the type {self.index.type}"
                + ('; index.type = "halfvec" takes 4000' if self.index.type == "vector" else "")
            )
        for column in self.columns:
            if column.name.startswith("_") or column.name in RESERVED_COLUMNS:
                raise SettingsError(
                    f"collection {self.name}: column {column.name!r} has a name that upwell uses itself; "
                    f"leave it out of the metadata, or rename it at the source"
                )

    @property
    def columns(self) -> list[Column]:
        """Key columns, then metadata columns that are not key columns."""
        keys = {column.name for column in self.key}
        return [*self.key, *(column for column in self.metadata if column.name not in keys)]


def vector_index(row: Mapping[str, Any]) -> VectorIndex:
    """As `upwell.collection` has it."""
    return VectorIndex(**{name: row[f"index_{name}"] for name in VectorIndex.model_fields})


def record_table(collection: str) -> sql.Identifier:
    return sql.Identifier("upwell", f"record_{check_identifier(collection, 'collection')}")


def embedding_table(collection: str, generation: int) -> sql.Identifier:
    return sql.Identifier(
        "upwell", f"embedding_{check_identifier(collection, 'collection')}_g{int(generation)}"
    )


def repeated_table(collection: str, generation: int) -> sql.Identifier:
    """Its chunks that are not indexed, since their text is there often: a part of `embedding_table` (ADR 0023)."""
    return sql.Identifier(
        "upwell", f"repeated_{check_identifier(collection, 'collection')}_g{int(generation)}"
    )


def hnsw_name(collection: str, generation: int) -> str:
    """Of the index over a generation's vectors."""
    return f"embedding_{check_identifier(collection, 'collection')}_g{int(generation)}_hnsw"
