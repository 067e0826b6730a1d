"""One place that knows how each neighbour is reached: with these nobody forgets its user, password or CA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from connectors.debezium.canary import CanaryTopic
from connectors.debezium.canary import parse as parse_canary
from connectors.debezium.connect import TIMEOUT_SECONDS as CONNECT_SECONDS
from connectors.debezium.connect import Connect
from connectors.debezium.notifications import Notifications
from connectors.debezium.notifications import parse as parse_notification
from connectors.debezium.topic import OwnTopic
from connectors.kafka import TIMEOUT_SECONDS, Kafka
from connectors.registry import TIMEOUT_SECONDS as REGISTRY_SECONDS
from connectors.registry import BlockingRegistry, Registry
from streams.settings import Settings

T = TypeVar("T")


def kafka(settings: Settings, *, timeout: float = TIMEOUT_SECONDS) -> Kafka:
    """The brokers, for an administrator. `timeout` of one call, in seconds."""
    return Kafka(settings.kafka.bootstrap_servers, settings.kafka.security(), timeout=timeout)


def connect(settings: Settings, *, timeout: tuple[float, float] = CONNECT_SECONDS) -> Connect:
    """Connect's REST interface. `timeout`: to connect and to answer, in seconds."""
    return Connect(settings.connect.url, settings.connect.access(), timeout=timeout)


def registry(settings: Settings) -> Registry:
    """The registry, for an event loop."""
    return Registry(settings.registry.url, settings.registry.access())


def blocking_registry(
    settings: Settings, url: str = "", *, timeout_seconds: float = REGISTRY_SECONDS
) -> BlockingRegistry:
    """The registry, for the command line; `url`: another of its interfaces."""
    access = settings.registry.access()
    return BlockingRegistry(url or settings.registry.url, access, timeout_seconds=timeout_seconds)


def notifications(settings: Settings, topic: str, offset: int) -> Notifications:
    """A reader of the notifications topic, from `offset`."""
    return _own_topic(settings, topic, offset, parse_notification)


def canary(settings: Settings, topic: str, offset: int) -> CanaryTopic:
    """A reader of the canary's topic, from `offset`."""
    return _own_topic(settings, topic, offset, parse_canary)


def _own_topic(
    settings: Settings, topic: str, offset: int, parse: Callable[[int, dict[str, Any]], T | None]
) -> OwnTopic[T]:
    servers, security = settings.kafka.bootstrap_servers, settings.kafka.security()
    return OwnTopic(servers, blocking_registry(settings), topic, offset, parse, security=security)
