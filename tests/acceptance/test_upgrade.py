"""A rolling upgrade as the README has it: the new version's `upwell migrate`, then worker by worker, under load."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.acceptance.plain import FAKE, ROWS, TABLES, all_searchable, fake_encode, one
from tests.acceptance.test_workers import AUDITED, Writer, embedding
from tests.deployment import ROOT, Deployment, WorkerProcess, until
from tests.oracle import compare
from tests.versions import earlier, later, migrations

pytestmark = pytest.mark.acceptance

Workers = dict[str, WorkerProcess]


def test_workers_are_replaced_one_by_one_under_load(deployment: Deployment, tmp_path: Path) -> None:
    """From the version before to this one, and from this one to one with another migration."""
    before = earlier(tmp_path / "earlier")
    steps = [ROOT, later(tmp_path / "later")]
    if before is None:
        print("no earlier commit is here: from this version to a later one only")
    else:
        steps.insert(0, before)
    versions = [replace(deployment, tree=tree, cli=command(tree)) for tree in steps]
    with deployment.source() as source:
        source.execute(TABLES)
        source.execute(ROWS, (1, 50))
    for version in versions:
        assert_runs(version)
    versions[0].upwell("migrate")
    versions[0].upwell("connector", "apply", seconds=180)
    workers = {slot: started(versions[0], slot) for slot in ("w1", "w2")}
    with Writer(deployment, seed=6) as writer:
        for old, new in pairwise(versions):
            upgrade(old, new, workers, writer)
    until(lambda: all_searchable(deployment), 90, "everything")
    difference = compare(deployment.source_dsn, deployment.sink_dsn, "content", fake_encode)
    assert not difference, difference
    with deployment.sink() as sink:
        for topic, partition, taken_in, audited in sink.execute(AUDITED).fetchall():
            assert taken_in == audited, f"{topic}/{partition}: each offset has one outcome"
    for worker in workers.values():
        assert worker.stop() == 0, worker.tail()


def command(tree: Path) -> str:
    """The module of the command line; early versions have none with a fake model."""
    return "tests.fake_cli" if (tree / "tests" / "fake_cli.py").exists() else "streams.cli"


def upgrade(old: Deployment, new: Deployment, workers: Workers, writer: Writer) -> None:
    """`migrate` first; the old workers go on until each is replaced: one is told to stop, the other is killed."""
    newer = migrations(new.tree) != migrations(old.tree)
    if newer:
        refuses(
            lambda: started_only(new, "early"),
            "the sink's schema is older than this upwell: run `upwell migrate`",
        )
    new.upwell("migrate")
    goes_on(new, workers, writer)
    if newer:
        last = max(migrations(new.tree))
        number, name = int(last[:4]), last[5:].removesuffix(".sql")
        said = f"the sink has migration {number} ({name}), which this version of upwell does not know"
        refuses(lambda: started_only(old, "late"), said)
        # Commits before this test let `connector apply` do its work; those before the canary see its collection first.
        for words in (("migrate",), ("connector", "apply")) if old.tree == ROOT else (("migrate",),):
            refused = old.upwell(*words, check=False)
            known = said in refused.stderr or "collection canary is in the sink, but not" in refused.stderr
            assert (refused.returncode, known) == (2, True), refused.stderr
    assert workers["w1"].stop() == 0, workers["w1"].tail()
    workers["w1"] = started(new, "w1")
    goes_on(new, workers, writer)
    workers["w2"].kill()
    workers["w2"] = started(new, "w2")
    goes_on(new, workers, writer)


def goes_on(deployment: Deployment, workers: Workers, writer: Writer) -> None:
    """What is written from now on is taken in and searchable, and no worker has ended."""
    written = writer.written
    until(lambda: writer.written > written + 100, 60, "changes")
    key = 10_000 + writer.written
    with deployment.source() as source, deployment.sink() as sink:
        source.execute(ROWS, (key, key))
        there = "SELECT count(*) FROM upwell.content WHERE id = %s"
        until(lambda: one(sink, there, key) == 1, 60, f"row {key}")
    for worker in workers.values():
        assert worker.process.poll() is None, worker.tail()


def started_only(version: Deployment, slot: str) -> WorkerProcess:
    return version.start_worker(slot, **FAKE)  # type: ignore[arg-type]


def started(version: Deployment, slot: str) -> WorkerProcess:
    """A worker that has begun to embed."""
    worker = started_only(version, slot)
    until(lambda: embedding(worker, 1), 60, f"worker {slot}")
    return worker


def refuses(start: Callable[[], WorkerProcess], said: str) -> None:
    worker = start()
    assert worker.process.wait(60) == 2, worker.tail()
    (line,) = [line for line in worker.tail().splitlines() if line.startswith("upwell: ")]
    assert said in line
    assert "Traceback" not in worker.tail()


def assert_runs(version: Deployment) -> None:
    """The code of its own tree runs, not of another."""
    done = subprocess.run(
        [sys.executable, "-c", "import streams, schemas, connectors; print(streams.__file__)"],
        env={**version.environment, "PYTHONPATH": str(version.tree)},
        cwd=version.directory,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(version.tree)
