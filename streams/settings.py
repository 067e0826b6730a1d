"""Settings: `upwell.toml` < `stack.env` < environment (`UPWELL_...`) < flags, validated as one model.

Every setting is `UPWELL_` + section + field in capitals; an unknown `UPWELL_` variable is an error like an
unknown key in the file, because a mistyped setting that is silently ignored is found out at night.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from connectors.debezium.config import MAX_MESSAGE_BYTES
from schemas.errors import SettingsError
from schemas.freshness import CANARY
from schemas.names import IDENTIFIER
from schemas.spec import CANARY_SPEC, Collections, CollectionSpec, ModelSpec, Strict
from streams.secured import SecuredDatabase, SecuredHttp, SecuredKafka

PREFIX: Final = "UPWELL_"
#: Variables that say where settings and caches are; they are not settings themselves.
PLACES: Final = frozenset({"UPWELL_SPEC", "UPWELL_HOME", "UPWELL_CACHE"})


MOST_PROCESSES: Final = 64

#: `offset.flush.interval.ms` of Connect, and how much earlier than its round a watermark is.
FLUSH_SECONDS: Final = 2.0
GUARD_SECONDS: Final = 1.0


class SourceSettings(SecuredDatabase):
    """The database whose changes are captured."""

    dsn: str = Field(
        "", repr=False, description="where the source is, as a Postgres URL or `host=... port=...`"
    )


class SinkSettings(SecuredDatabase):
    """The database with pgvector that applications query."""

    dsn: str = Field("", repr=False, description="where the sink is, written the same way")
    pool_size: int = Field(6, ge=2, le=50, description="connections of one worker to the sink")
    audit_retention_days: int = Field(90, ge=1, description="audit rows older than this are dropped")


class KafkaSettings(SecuredKafka):
    """The broker, and the topics that upwell creates."""

    bootstrap_servers: str = Field("127.0.0.1:9092", description="brokers as `host:port`, comma between")
    partitions: int = Field(4, ge=1, le=1000, description="of each collection's topic, when it is created")
    replication_factor: int = Field(1, ge=1, le=10, description="of each topic, when it is created")
    retention_hours: float = Field(
        14 * 24.0, gt=0, description="how long topics keep changes, when they are created"
    )
    max_message_bytes: int = Field(
        MAX_MESSAGE_BYTES,
        ge=1024 * 1024,
        le=1024**3,
        description="largest record: a row before and after its change; greater, run `upwell connector apply`",
    )


class ConnectSettings(SecuredHttp):
    """Kafka Connect's REST interface and what the connector needs."""

    url: str = Field("http://127.0.0.1:8083", description="Connect's REST interface")
    username: str = Field("", description="who upwell is to Connect (basic authentication)")
    ca_file: str = Field("", description="CA of Connect's certificate, PEM; if not set, the system's CAs")
    converter: str = Field(
        "apicurio", pattern="^(apicurio|confluent)$", description="Avro converter: `apicurio` or `confluent`"
    )
    secrets_file: str = Field(
        "",
        description="properties file on Connect's machine with `user` and `password` of the source; "
        "if not set, `connector apply` writes one (also `registry_user`, `registry_password`, where set)",
    )
    heartbeat_interval_ms: int = Field(2000, ge=100, description="how often the connector writes a heartbeat")
    poll_interval_ms: int = Field(20, ge=1, description="how often the connector looks for new changes")
    snapshot_chunk_rows: int = Field(128, ge=1, description="rows that a first load reads at once")


class RegistrySettings(SecuredHttp):
    """The schema registry: `url` is the Confluent API that workers read, `converter_url` Connect's converter's."""

    url: str = Field(
        "http://127.0.0.1:8080/apis/ccompat/v7", description="the registry's Confluent API, for workers"
    )
    converter_url: str = Field(
        "http://127.0.0.1:8080/apis/registry/v2", description="the registry's API for Connect's converter"
    )
    username: str = Field("", description="who upwell and the converter are to the registry")
    ca_file: str = Field(
        "", description="CA of the registry's certificate, PEM, at the same path on Connect's machine"
    )

    def _urls(self) -> tuple[str, ...]:
        return (self.url, self.converter_url)


class WorkerSettings(Strict):
    """One worker process."""

    slot: str = Field(
        "", description="stable id of a worker, each its own; if not set, the host's name and `-0`"
    )
    processes: int | Literal["auto"] = Field(
        0,
        description="worker processes to supervise; `auto`: as many as fit the machine; "
        "0: this process is the worker itself",
    )
    drain_seconds: float = Field(
        10.0, gt=0, description="a stopping worker that a silent neighbour holds up ends after this"
    )
    batch_size: int = Field(500, ge=1, le=10_000, description="most changes in one intake transaction")
    load_rows_ahead: int = Field(
        500, ge=1, description="a first load is paused while more records than this wait to be taken in"
    )
    embed_batch: int = Field(128, ge=1, le=1000, description="most texts claimed at once")
    backfill_share: float = Field(
        0.25, ge=0, le=1, description="share of embedding kept for first loads while live changes wait"
    )
    lease_seconds: float = Field(120.0, gt=0, description="a claim of a dead worker is free again after this")
    poll_seconds: float = Field(1.0, gt=0, description="how often to look for pending texts when not woken")
    embed_attempts: int = Field(
        5, ge=1, description="a text that fails this often, or ends its worker, becomes a dead letter"
    )
    encode_deadline_seconds: float = Field(
        600.0, ge=1, description="a worker whose model does not answer ends after this, to be started again"
    )
    retry_deadline_seconds: float = Field(
        86_400.0, gt=0, description="a worker that waits for a neighbour gives up after this"
    )
    session_timeout_seconds: float = Field(
        30.0, ge=6, description="Kafka gives away a silent worker's partitions after this"
    )
    threads: int = Field(
        0, ge=0, description="threads of the model; 0: one with ONNX Runtime, torch's own choice with torch"
    )
    metrics_interval_seconds: float = Field(1.0, gt=0, description="how often counts and delays are stored")
    http_host: str = Field(
        "127.0.0.1", description="where a worker serves `/metrics`, `/healthz` and `/readyz`"
    )
    http_port: int = Field(
        0,
        ge=0,
        le=65_000,
        description="the first worker's port, the next one's is one more; 0: any that is free",
    )

    @field_validator("processes", mode="before")
    @classmethod
    def _processes(cls, processes: object) -> object:
        """One line for both kinds: a union would name its members."""
        text = str(processes).strip()
        if text != "auto" and not (text.isdecimal() and int(text) <= MOST_PROCESSES):
            raise ValueError(f"{text!r} is neither auto nor a number up to {MOST_PROCESSES}")
        return text if text == "auto" else int(text)


class MonitorSettings(Strict):
    """The process that measures freshness and shows it."""

    host: str = Field(
        "127.0.0.1",
        description="where the monitor listens; anything but loopback shows keys and texts with a token only",
    )
    port: int = Field(
        8095, ge=0, le=65_535, description="the monitor's port; 0: any that is free, it is printed"
    )
    token: str = Field("", repr=False, description="who sends it as a bearer token is shown keys and texts")
    token_file: str = Field("", description="a file with the token, read anew at each start")
    round_seconds: float = Field(5.0, ge=1, le=60, description="how often a round begins")
    evaluate_seconds: float = Field(1.0, ge=0.2, le=10, description="how often every collection is evaluated")
    restart_seconds: float = Field(
        5.0,
        ge=0,
        description="a FAILED connector is restarted after this, then after twice as long, ...; 0: never",
    )
    rebuild: bool = Field(
        False, description="`connector rebuild` is run by the monitor itself when changes are lost"
    )


class Settings(BaseSettings):
    """All settings of a deployment. Each has a default that works on one machine."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        "upwell", description="the deployment's name: part of topics, slot, connector and consumer group"
    )
    source: SourceSettings = SourceSettings()
    sink: SinkSettings = SinkSettings()
    kafka: KafkaSettings = KafkaSettings()
    connect: ConnectSettings = ConnectSettings()
    registry: RegistrySettings = RegistrySettings()
    worker: WorkerSettings = WorkerSettings()
    monitor: MonitorSettings = MonitorSettings()
    model: ModelSpec = ModelSpec()
    collections: dict[str, CollectionSpec] = {}
    home: Path = Path(".upwell")

    @field_validator("name")
    @classmethod
    def _identifier(cls, name: str) -> str:
        if not IDENTIFIER.fullmatch(name) or len(name) > 30:
            raise ValueError(f"name {name!r} is not an identifier of at most 30 letters")
        return name

    @field_validator("collections")
    @classmethod
    def _checked(cls, collections: dict[str, CollectionSpec]) -> dict[str, CollectionSpec]:
        return Collections(collections=collections).collections

    @model_validator(mode="after")
    def _shown(self) -> Self:
        least = self.least_threshold_seconds
        for name, spec in self.collections.items():
            if spec.slo.threshold_seconds < least:
                raise ValueError(
                    f"collections.{name}.slo.threshold_seconds {spec.slo.threshold_seconds:g} is below the "
                    f"{least:g} s that rounds, heartbeat and flush can show; raise it, or lower "
                    f"monitor.round_seconds and connect.heartbeat_interval_ms"
                )
        return self

    @property
    def least_threshold_seconds(self) -> float:
        """What can be shown at all (DESIGN 7): a round's own age, two heartbeats and flushes, the guard and a look."""
        heartbeat = self.connect.heartbeat_interval_ms / 1000
        rounds = self.monitor.round_seconds + 2 * (heartbeat + FLUSH_SECONDS)
        return rounds + GUARD_SECONDS + self.monitor.evaluate_seconds

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
    def served(self) -> dict[str, CollectionSpec]:
        """What workers take in and embed: the spec's collections, and the canary's beside them."""
        return {**self.collections, CANARY: CANARY_SPEC} if self.collections else {}

    @property
    def group_id(self) -> str:
        return f"upwell-{self.name}"


def variables() -> dict[str, tuple[str, ...]]:
    """Every environment variable and the path of the setting that it sets."""
    found: dict[str, tuple[str, ...]] = {
        "UPWELL_NAME": ("name",),
        "UPWELL_MODEL_NAME": ("model", "name"),
        "UPWELL_MODEL_RUNTIME": ("model", "runtime"),
    }
    for section, field in Settings.model_fields.items():
        annotation = field.annotation
        if section in {"collections", "model"} or not (
            isinstance(annotation, type) and issubclass(annotation, Strict)
        ):
            continue
        for name in annotation.model_fields:
            found[f"{PREFIX}{section}_{name}".upper()] = (section, name)
    return found


def cache_directory() -> Path:
    """UPWELL_CACHE, else the user's cache folder: shared by all deployments of the user."""
    base = os.environ.get("UPWELL_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upwell"


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
            if not isinstance(place, dict):
                raise SettingsError(f"{section} is no table, but {name} in {origin} sets a part of it")
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
