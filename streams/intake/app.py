"""The Faust app of a worker, with every setting that DESIGN 4 found to matter."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import faust
from faust.types import AppT
from faust.types.auth import CredentialsT
from mode.supervisors import CrashingSupervisor

from connectors.access import PLAIN_KAFKA, KafkaSecurity
from connectors.debezium.config import MAX_MESSAGE_BYTES
from schemas.change import TopicPartition
from streams.intake.agent import consume
from streams.intake.stage import Intake
from streams.intake.transport import PositionedTransport, ReadPositions

#: More would let one slow or blocked agent starve the others; fewer costs throughput.
MAX_POLL_RECORDS: Final = 100
STREAM_BUFFER: Final = 1024


class RawSchema(faust.Schema):  # type: ignore[misc]
    """Events with the bytes as they are, without a way through Faust's codecs that changes nothing."""

    def compile(self, app: AppT, **options: Any) -> Any:
        create_event = app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return create_event(message.key, message.value, message.headers, message)

        return decode


class IntakeApp(faust.App):  # type: ignore[misc]
    """Faust with positions from the sink, and one place where every crash is heard of."""

    read_positions: ReadPositions
    on_fatal: Callable[[BaseException], None]

    def _new_transport(self) -> PositionedTransport:
        return PositionedTransport(self.conf.broker_consumer, self)

    def on_init_dependencies(self) -> Any:
        """Without the monitor: it times each event for a web page that is off."""
        services = list(super().on_init_dependencies())
        self.sensors.remove(self.monitor)
        return [service for service in services if service is not self.monitor]

    def _crash(self, reason: BaseException) -> None:
        """Whatever service of Faust's crashes ends here; the fetcher's crash alone would leave a worker that idles."""
        self.on_fatal(reason)
        super()._crash(reason)


def faust_settings(
    group_id: str,
    bootstrap_servers: str,
    slot: str,
    home: Path,
    session_timeout_seconds: float,
    *,
    security: KafkaSecurity = PLAIN_KAFKA,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
) -> dict[str, Any]:
    """Settings of the Faust app; each line was seen to lose data, hang or starve when left out (DESIGN 4)."""
    brokers = ";".join(f"kafka://{server.strip()}" for server in bootstrap_servers.split(","))
    return {
        "id": group_id,
        "broker": brokers,
        "broker_credentials": credentials(security),
        "datadir": str(home / "faust" / slot),
        "store": "memory://",
        "autodiscover": False,
        "key_serializer": "raw",
        "value_serializer": "raw",
        "agent_supervisor": CrashingSupervisor,
        "broker_max_poll_interval": 1e8,
        "broker_max_poll_records": MAX_POLL_RECORDS,
        "stream_buffer_maxsize": STREAM_BUFFER,
        "stream_wait_empty": True,
        "broker_commit_interval": 1.0,
        "broker_session_timeout": session_timeout_seconds,
        "broker_heartbeat_interval": min(3.0, session_timeout_seconds / 3),
        "broker_rebalance_timeout": 120.0,
        "broker_request_timeout": 90.0,
        "consumer_max_fetch_size": max_message_bytes,
        "consumer_group_instance_id": slot,
        "producer_request_timeout": 30.0,
        "table_standby_replicas": 0,
        "topic_disable_leader": True,
        "topic_allow_declare": False,
        "web_enabled": False,
        "web_bind": "127.0.0.1",
    }


def credentials(security: KafkaSecurity) -> CredentialsT | None:
    """The same for Faust's consumer and producer; None for PLAINTEXT."""
    context = security.context()
    if security.sasl:
        return faust.SASLCredentials(
            username=security.username,
            password=security.password,
            ssl_context=context,
            mechanism=security.mechanism,
        )
    return None if context is None else faust.SSLCredentials(context)


def make_app(
    settings: Mapping[str, Any],
    intakes: Mapping[str, Intake],
    *,
    batch_size: int,
    read_positions: Callable[[frozenset[TopicPartition]], Awaitable[Mapping[TopicPartition, int]]],
    on_fatal: Callable[[BaseException], None],
) -> AppT:
    """One agent per topic (`intakes` by topic name). Call it inside the running loop."""
    Path(settings["datadir"]).mkdir(parents=True, exist_ok=True)
    app = IntakeApp(**settings, loop=asyncio.get_running_loop())
    app.read_positions = read_positions
    app.on_fatal = on_fatal
    for topic, intake in intakes.items():
        _add_agent(app, topic, intake, batch_size)
    app.finalize()
    return app


def _add_agent(app: AppT, topic: str, intake: Intake, batch_size: int) -> None:
    raw = RawSchema(key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
    channel = app.topic(topic, schema=raw)

    async def agent(stream: Any) -> None:
        try:
            await consume(stream, intake, batch_size, app.consumer.is_behind)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    app.agent(channel, name=f"intake_{intake.collection}")(agent)
