"""Fixtures of all rungs: the real stack, started once per session on its own ports and home."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment import Deployment, Stack


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Kafka, Connect, registry, source and sink. A rung that cannot run says why; in CI that is a failure."""
    from infra import stack as local

    home = Path(tempfile.mkdtemp(prefix="upwell-test-"))
    try:
        environment = local.up(home, progress=lambda line: None)
        yield Stack(home, dict(environment.variables))
    finally:
        local.down(home)
        if not os.environ.get("UPWELL_TEST_KEEP"):
            shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def deployment(stack: Stack, tmp_path: Path) -> Iterator[Deployment]:
    """A fresh deployment on the shared stack: own databases, topics, slot and connector."""
    with Deployment.create(stack, tmp_path) as fresh:
        yield fresh
