"""Settings: `upwell.toml` < `stack.env` < environment (`UPWELL_...`) < flags, validated as one model.

Every setting is `UPWELL_` + section + field in capitals; an unknown `UPWELL_` variable is an error like an
unknown key in the file, because a mistyped setting that is silently ignored is found out at night.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from schemas.errors import SettingsError
from schemas.names import IDENTIFIER
from schemas.spec import Collections, CollectionSpec, ModelSpec, Strict

PREFIX: Final = "UPWELL_"
#: Variables that say where settings and caches are; they are not settings themselves.
PLACES: Final = frozenset({"UPWELL_SPEC", "UPWELL_HOME", "UPWELL_CACHE"})

Positive = Annotated[float, Field(gt=0)]


class SourceSettings(Strict):
    """The database whose changes are captured."""

    dsn: str = ""


class SinkSettings(Strict):
    """The database with pgvector that applications query."""

    dsn: str = ""
    pool_size: Annotated[int, Field(ge=2, le=50)] = 6
    audit_retention_days: Annotated[int, Field(ge=1)] = 90


class KafkaSettings(Strict):
    """The broker, and the topics that upwell creates."""

    bootstrap_servers: str = "127.0.0.1:9092"
    partitions: Annotated[int, Field(ge=1, le=1000)] = 4
    replication_factor: Annotated[int, Field(ge=1, le=10)] = 1
    retention_hours: Annotated[float, Field(gt=0)] = 14 * 24.0


class ConnectSettings(Strict):
    """Kafka Connect's REST interface and what the connector needs."""

    url: str = "http://127.0.0.1:8083"
    converter: Annotated[str, Field(pattern="^(apicurio|confluent)$")] = "apicurio"
    secrets_file: str = ""
    heartbeat_interval_ms: Annotated[int, Field(ge=100)] = 2000
    poll_interval_ms: Annotated[int, Field(ge=1)] = 20
    snapshot_chunk_rows: Annotated[int, Field(ge=1)] = 512


class RegistrySettings(Strict):
    """The schema registry: `url` is the Confluent API that workers read, `converter_url` Connect's converter's."""

    url: str = "http://127.0.0.1:8080/apis/ccompat/v7"
    converter_url: str = "http://127.0.0.1:8080/apis/registry/v2"


class WorkerSettings(Strict):
    """One worker process."""

    slot: str = ""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    batch_size: Annotated[int, Field(ge=1, le=10_000)] = 200
    batch_linger_seconds: Annotated[float, Field(ge=0, le=10)] = 0.01
    embed_batch: Annotated[int, Field(ge=1, le=1000)] = 16
    backfill_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    lease_seconds: Positive = 120.0
    poll_seconds: Positive = 1.0
    embed_attempts: Annotated[int, Field(ge=1)] = 5
    retry_deadline_seconds: Positive = 86_400.0
    session_timeout_seconds: Annotated[float, Field(ge=6)] = 30.0
    threads: Annotated[int, Field(ge=0)] = 0
    metrics_interval_seconds: Positive = 1.0


class Settings(BaseSettings):
    """All settings of a deployment. Each has a default that works on one machine."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    name: str = "upwell"
    source: SourceSettings = SourceSettings()
    sink: SinkSettings = SinkSettings()
    kafka: KafkaSettings = KafkaSettings()
    connect: ConnectSettings = ConnectSettings()
    registry: RegistrySettings = RegistrySettings()
    worker: WorkerSettings = WorkerSettings()
    model: ModelSpec = ModelSpec()
    collections: dict[str, CollectionSpec] = {}
    home: Path = Path(".upwell")

    @field_validator("name")
    @classmethod
    def _identifier(cls, name: str) -> str:
        if not IDENTIFIER.match(name) or len(name) > 30:
            raise ValueError(f"name {name!r} is not an identifier of at most 30 letters")
        return name

    @field_validator("collections")
    @classmethod
    def _checked(cls, collections: dict[str, CollectionSpec]) -> dict[str, CollectionSpec]:
        return Collections(collections=collections).collections

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` merged: an unknown variable must be an error, which pydantic-settings cannot say."""
        return (init_settings,)

    @property
    def group_id(self) -> str:
        return f"upwell-{self.name}"


def variables() -> dict[str, tuple[str, ...]]:
    """Every environment variable and the path of the setting that it sets."""
    found: dict[str, tuple[str, ...]] = {"UPWELL_NAME": ("name",), "UPWELL_MODEL_NAME": ("model", "name")}
    for section, field in Settings.model_fields.items():
        annotation = field.annotation
        if section in {"collections", "model"} or not (
            isinstance(annotation, type) and issubclass(annotation, Strict)
        ):
            continue
        for name in annotation.model_fields:
            found[f"{PREFIX}{section}_{name}".upper()] = (section, name)
    return found


def _overlay(target: dict[str, Any], environment: Mapping[str, str], origin: str) -> None:
    known = variables()
    for name, value in environment.items():
        if not name.startswith(PREFIX) or name in PLACES:
            continue
        if name not in known:
            raise SettingsError(f"{name} in {origin} is not a setting: see the settings table in the README")
        *sections, last = known[name]
        place = target
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"]) or "settings"
    return f"{place}: {str(problem['msg']).removeprefix('Value error, ')}"


def read_spec(path: Path) -> dict[str, Any]:
    """The spec file as a mapping. Raises SettingsError in one line if it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"no spec at {path}: give --spec, set UPWELL_SPEC or run in its folder") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error


def read_environment_file(path: Path) -> dict[str, str]:
    """`NAME=value` lines of a `stack.env`; an absent file is empty."""
    if not path.exists():
        return {}
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#") and "=" in line)
    return {name.strip(): value.strip().strip('"').strip("'") for name, value in pairs}


def load(
    spec: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Iterable[tuple[tuple[str, ...], Any]] = (),
) -> Settings:
    """Merge and validate all settings. Raises SettingsError with one line that names the first wrong one."""
    environment = os.environ if environment is None else environment
    path = spec or Path(environment.get("UPWELL_SPEC") or "upwell.toml")
    merged = read_spec(path)
    home = Path(environment.get("UPWELL_HOME") or path.resolve().parent / ".upwell").resolve()
    _overlay(merged, read_environment_file(home / "stack.env"), str(home / "stack.env"))
    _overlay(merged, environment, "the environment")
    for place, value in flags:
        section = merged
        for part in place[:-1]:
            section = section.setdefault(part, {})
        section[place[-1]] = value
    merged["home"] = home
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise SettingsError(f"{path}: {_first_problem(error)}") from None
