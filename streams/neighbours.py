"""One place that knows how each neighbour is reached: with these nobody forgets its user, password or CA."""

from __future__ import annotations

from connectors.debezium.connect import TIMEOUT_SECONDS as CONNECT_SECONDS
from connectors.debezium.connect import Connect
from connectors.debezium.notifications import Notifications
from connectors.debezium.topic import OwnTopic
from connectors.kafka import TIMEOUT_SECONDS, Kafka
from connectors.registry import TIMEOUT_SECONDS as REGISTRY_SECONDS
from connectors.registry import BlockingRegistry, Registry
from streams.settings import Settings


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


def own_topic(settings: Settings, topic: str, offset: int) -> OwnTopic:
    """A reader of one of our own topics, from `offset`."""
    servers, security = settings.kafka.bootstrap_servers, settings.kafka.security()
    return OwnTopic(servers, blocking_registry(settings), topic, offset, security)


def notifications(settings: Settings, topic: str, offset: int) -> Notifications:
    """A reader of the notifications topic, from `offset`."""
    return Notifications(own_topic(settings, topic, offset))
