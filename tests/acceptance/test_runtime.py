"""The whole line with the real model and no torch in any of its processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.acceptance.plain import ROWS, TABLES, all_searchable
from tests.deployment import Deployment, until
from tests.oracle import compare

pytestmark = pytest.mark.acceptance


def test_with_an_export_nothing_imports_torch(
    deployment: Deployment, encode: Callable[[Sequence[str]], Any]
) -> None:
    deployment.upwell("model", "export")
    with deployment.source() as source:
        source.execute(TABLES)
        source.execute(ROWS, (1, 30))
    deployment.cli = "tests.without_torch"
    shown = json.loads(deployment.upwell("model", "show", "--json").stdout)
    assert (shown["runtime"], shown["export"]["dimension"]) == ("onnx", 384)
    deployment.upwell("migrate")
    deployment.upwell("connector", "apply", seconds=180)
    worker = deployment.start_worker(module=deployment.cli)
    until(lambda: all_searchable(deployment), 120, "the first rows")
    assert '"runtime": "onnx"' in worker.log.read_text()
    found = json.loads(deployment.upwell("search", "content", "Piece 7", "--json").stdout)
    assert found["hits"][0]["score"] > 0.5
    path = deployment.directory / "upwell.toml"
    path.write_text(path.read_text().replace("{{ tags }}", "Tags: {{ tags }}"))
    assert json.loads(deployment.upwell("generation", "plan", "content", "--json").stdout)["chunks"] == 30
    path.write_text(path.read_text().replace("Tags: {{ tags }}", "{{ tags }}"))
    different = compare(deployment.source_dsn, deployment.sink_dsn, "content", encode)
    assert not different, different
