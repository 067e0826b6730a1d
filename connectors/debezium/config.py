"""The connector's configuration as a dataclass, rendered to what Connect is given (DESIGN 6).

No secret is in it: user and password are references that Connect's file provider resolves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from connectors.debezium.naming import SERVICE_TABLES, SIGNAL_TABLE, Naming, check_tables
from schemas.errors import SettingsError
from schemas.names import check_identifier

CONNECTOR_CLASS: Final = "io.debezium.connector.postgresql.PostgresConnector"
#: Of one record in Kafka, by default: a text of 8 MiB before and after its change, and the rest of the row.
MAX_MESSAGE_BYTES: Final = 20 * 1024 * 1024
#: Kafka's default of what a producer may hold; one record has to fit, and a second one beside it.
_PRODUCER_BUFFER_BYTES: Final = 32 * 1024 * 1024

#: One row, rewritten: the slot advances also while only other tables change, and H31's last commit is
#: flushed.
HEARTBEAT_QUERY: Final = (
    "INSERT INTO upwell.heartbeat (id, at) VALUES (1, clock_timestamp()) "
    "ON CONFLICT (id) DO UPDATE SET at = excluded.at"
)

#: Whatever would drop, convert or invent an event silently is set, whether or not it is today's default.
FIXED: Final[dict[str, str]] = {
    "connector.class": CONNECTOR_CLASS,
    "tasks.max": "1",
    "plugin.name": "pgoutput",
    "slot.drop.on.stop": "false",
    "publication.autocreate.mode": "disabled",
    "snapshot.mode": "no_data",
    "incremental.snapshot.watermarking.strategy": "insert_delete",
    "signal.data.collection": SIGNAL_TABLE,
    "signal.enabled.channels": "source",
    "notification.enabled.channels": "sink,log",
    "skipped.operations": "none",
    # Messages of others (pg_logical_emit_message) have no topic here: the first one would hold everything up for good.
    "message.prefix.exclude.list": ".*",
    "tombstones.on.delete": "true",
    "extended.headers.enabled": "false",
    "provide.transaction.metadata": "false",
    "decimal.handling.mode": "string",
    "interval.handling.mode": "string",
    "time.precision.mode": "adaptive_time_microseconds",
    "schema.name.adjustment.mode": "avro",
    "field.name.adjustment.mode": "avro",
    "heartbeat.action.query": HEARTBEAT_QUERY,
    "errors.tolerance": "none",
    "errors.max.retries": "-1",
    "errors.log.include.messages": "false",
    "event.processing.failure.handling.mode": "fail",
    "max.batch.size": "512",
    "max.queue.size": "2048",
    "max.queue.size.in.bytes": str(64 * 1024 * 1024),
    "producer.override.compression.type": "lz4",
    "producer.override.linger.ms": "5",
    "database.tcpKeepAlive": "true",
}


@dataclass(frozen=True, slots=True)
class ConnectorConfig:
    """Everything that differs between deployments. `placeholder` is random per deployment (unchanged TOAST
    values).

    `tables` are the collections' tables, `excluded` columns as `schema.table.column`. `secrets_file` is a
    properties file on Connect's machine with `user` and `password`; `registry_user` says that it also has
    `registry_user` and `registry_password`. `ssl` is by Debezium's names; its files are on Connect's machine.
    """

    naming: Naming
    host: str
    port: int
    database: str
    tables: tuple[str, ...]
    placeholder: str
    secrets_file: str
    registry_url: str
    registry_user: bool = False
    registry_ca_file: str = ""
    excluded: tuple[str, ...] = ()
    ssl: dict[str, str] = field(default_factory=dict)
    ssl_password: bool = False
    converter: Literal["apicurio", "confluent"] = "apicurio"
    heartbeat_interval_ms: int = 2000
    poll_interval_ms: int = 20
    snapshot_chunk_rows: int = 128
    retry_wait_ms: int = 2000
    max_message_bytes: int = MAX_MESSAGE_BYTES

    def render(self) -> dict[str, str]:
        """The JSON object for `PUT /connectors/{name}/config`, keys sorted. Raises SettingsError."""
        config = {
            **FIXED,
            **self._source(),
            **self._stream(),
            **converters(
                self.converter,
                self.registry_url,
                user=self._reference("registry_user") if self.registry_user else "",
                password=self._reference("registry_password") if self.registry_user else "",
                ca_file=self.registry_ca_file,
            ),
        }
        return dict(sorted(config.items()))

    def _reference(self, key: str) -> str:
        """What Connect's file provider resolves. Raises SettingsError."""
        if ":" in self.secrets_file or "}" in self.secrets_file:
            raise SettingsError(f"secrets file {self.secrets_file!r}: ':' and '}}' end a reference to it")
        return f"${{file:{self.secrets_file}:{key}}}"

    def _source(self) -> dict[str, str]:
        encrypted_key = {"database.sslpassword": self._reference("sslpassword")} if self.ssl_password else {}
        return {
            "database.hostname": self.host,
            "database.port": str(self.port),
            "database.dbname": self.database,
            "database.user": self._reference("user"),
            "database.password": self._reference("password"),
            **self.ssl,
            **encrypted_key,
        }

    def _stream(self) -> dict[str, str]:
        tables = (*check_tables(self.tables), *SERVICE_TABLES)
        config = {
            "name": self.naming.connector,
            "topic.prefix": self.naming.topic_prefix,
            "slot.name": self.naming.slot,
            "publication.name": self.naming.publication,
            "table.include.list": ",".join(_pattern(table) for table in tables),
            "unavailable.value.placeholder": self.placeholder,
            "notification.sink.topic.name": self.naming.notifications_topic,
            "heartbeat.interval.ms": str(self.heartbeat_interval_ms),
            "poll.interval.ms": str(self.poll_interval_ms),
            "incremental.snapshot.chunk.size": str(self.snapshot_chunk_rows),
            "retriable.restart.connector.wait.ms": str(self.retry_wait_ms),
            "producer.override.max.request.size": str(self.max_message_bytes),
            "producer.override.buffer.memory": str(max(_PRODUCER_BUFFER_BYTES, 2 * self.max_message_bytes)),
        }
        if self.excluded:
            config["column.exclude.list"] = ",".join(_pattern(column) for column in self.excluded)
        return config


def without_scans(config: Mapping[str, str]) -> dict[str, str]:
    """The same for a connector that only streams: it heeds no signal and goes on with no incremental snapshot."""
    return {name: value for name, value in config.items() if not name.startswith("signal.")}


def scans(config: Mapping[str, str]) -> bool:
    """Whether a connector with this config reads tables when it is asked to."""
    return "signal.data.collection" in config


def other_settings(ours: Mapping[str, str], running: Mapping[str, str]) -> list[str]:
    """Names of the settings that differ, also of those that only one has. Never a value: it may be a secret.

    Where both are references to a file it is the same secret: the path is that of the machine that has applied it.
    """

    def same(name: str) -> bool:
        here, there = ours.get(name), running.get(name)
        return here == there or bool(here and there and here.startswith("${") and there.startswith("${"))

    return sorted(name for name in ours.keys() | running.keys() if not same(name))


def _pattern(qualified: str) -> str:
    """Debezium's lists are anchored regular expressions: only the dots need an escape."""
    for part in qualified.split("."):
        check_identifier(part, f"{qualified!r}:")
    return qualified.replace(".", "\\.")


def converters(
    kind: str, registry_url: str, *, user: str = "", password: str = "", ca_file: str = ""
) -> dict[str, str]:
    """Key and value converter: Avro in the Confluent wire format, magic 0 and 4-byte id (DESIGN 9).

    `user` and `password` are references, never the values; `ca_file` is PEM.
    """
    access = _confluent if kind == "confluent" else _apicurio
    one = access(registry_url, user, password, ca_file)
    return {f"{side}.converter{key}": value for side in ("key", "value") for key, value in one.items()}


def _confluent(registry_url: str, user: str, password: str, ca_file: str) -> dict[str, str]:
    one = {"": "io.confluent.connect.avro.AvroConverter", ".schema.registry.url": registry_url}
    if user:
        one |= {
            ".basic.auth.credentials.source": "USER_INFO",
            ".basic.auth.user.info": f"{user}:{password}",
        }
    if ca_file:
        one |= {
            ".schema.registry.ssl.truststore.type": "PEM",
            ".schema.registry.ssl.truststore.location": ca_file,
        }
    return one


def _apicurio(registry_url: str, user: str, password: str, ca_file: str) -> dict[str, str]:
    one = {
        "": "io.apicurio.registry.utils.converter.AvroConverter",
        ".apicurio.registry.url": registry_url,
        ".apicurio.registry.auto-register": "true",
        ".apicurio.registry.as-confluent": "true",
        ".apicurio.registry.use-id": "contentId",
        ".apicurio.registry.headers.enabled": "false",
        ".apicurio.registry.id-handler": "io.apicurio.registry.serde.Legacy4ByteIdHandler",
    }
    if user:
        one |= {".apicurio.auth.username": user, ".apicurio.auth.password": password}
    if ca_file:
        # The documented apicurio.registry.request.ssl.truststore.* takes no PEM (infra/decisions/0007).
        one[".apicurio.rest.request.ssl.ca-bundle.location"] = ca_file
    return one
