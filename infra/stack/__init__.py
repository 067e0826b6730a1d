"""Kafka, Kafka Connect with Debezium, an Avro registry and two Postgres servers on this machine (DESIGN 9).

From the package registries only; no Docker, no root, no system Java, no system Postgres.
"""

from __future__ import annotations

from infra.stack.environment import StackEnvironment
from infra.stack.errors import StackError
from infra.stack.lifecycle import ComponentStatus, down, status, up
from infra.stack.security import Security

__all__ = ["ComponentStatus", "Security", "StackEnvironment", "StackError", "down", "status", "up"]
