"""Takes out one guard after the other, and runs the tests that must notice.

Each change is made in a tree of its own, of links to this one but for the changed file, in a fork of a process that has
imported everything but upwell: a test costs tenths of a second. Tests on Postgres share one server. A change counts as
noticed only if a test fails (pytest's exit code 1): one that cannot be imported proves nothing.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.mutations.guards import Guard

ROOT: Final = Path(__file__).resolve().parents[2]
SECONDS: Final = 90.0
#: What a tree needs of ours; the rest of the folder is no matter to a test of the lower rungs.
LINKED: Final = (
    "connectors",
    "infra",
    "schemas",
    "streams",
    "tests",
    "pyproject.toml",
    "upwell.toml",
    "README.md",
)
#: Slow to import, and none of it imports upwell.
WARM: Final = (
    "avro.schema", "click", "confluent_kafka.admin", "faust.transport.drivers.aiokafka", "fastavro",
    "hypothesis.stateful", "jinja2.sandbox", "numpy", "prometheus_client", "psycopg_pool", "pydantic_settings",
    "pytest", "pytest_asyncio.plugin", "pytest_timeout", "requests", "structlog", "_hypothesis_pytestplugin",
)  # fmt: skip
PLUGINS: Final = ("pytest_asyncio.plugin", "pytest_timeout", "_hypothesis_pytestplugin")
NOTICED: Final = 1


@dataclass(frozen=True, slots=True)
class Run:
    """A change and what became of it: pytest's exit code (None: it did not end), its output, and its seconds."""

    guard: Guard
    code: int | None
    output: str
    seconds: float

    @property
    def noticed(self) -> bool:
        return self.code == NOTICED


def change(guard: Guard) -> str:
    """The changed file's text. Raises ValueError unless what is taken out stands there exactly once."""
    text = (ROOT / guard.file).read_text(encoding="utf-8")
    for old, new in guard.changes:
        found = text.count(old)
        if found != 1:
            raise ValueError(f"{guard.name}: {found} times in {guard.file}: {old!r}")
        text = text.replace(old, new)
    return text


def plant(tree: Path, guard: Guard | None) -> None:
    """Links to this tree, with the changed file in its place."""
    for name in LINKED:
        (tree / name).symlink_to(ROOT / name)
    if guard is None:
        return
    at, source = tree, ROOT
    for part in Path(guard.file).parts[:-1]:
        at, source = at / part, source / part
        at.unlink()
        at.mkdir()
        for child in source.iterdir():
            (at / child.name).symlink_to(child)
    changed = tree / guard.file
    changed.unlink()
    changed.write_text(change(guard), encoding="utf-8")


def warm() -> None:
    """Import what every test needs. Nothing of upwell may be imported here: it is what differs."""
    sys.dont_write_bytecode = True  # bytecode lies beside the files that the trees link to
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in WARM:
        importlib.import_module(name)
    ours = [name for name in sys.modules if name.partition(".")[0] in ("connectors", "schemas", "streams")]
    assert not ours, f"imported already: {ours}"
    silent = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as nothing,
        contextlib.redirect_stdout(silent),
        contextlib.redirect_stderr(silent),
    ):
        _main(Path(nothing), [])  # pytest's own plugins, too
    gc.collect()
    gc.freeze()  # pytest collects at its end, and a child has all of this


def _main(tree: Path, tests: Sequence[str]) -> int:
    import pytest

    plugins = [part for plugin in PLUGINS for part in ("-p", plugin)]
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--no-header",
        "--tb=native",
        "--disable-warnings",
        f"--rootdir={tree}",
    ]
    return int(pytest.main([*plugins, *options, *(tests or [str(tree)])]))


def _pytest(tree: Path, tests: Sequence[str]) -> int:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    os.chdir(tree)
    sys.path[:] = [str(tree), *(path for path in sys.path if path not in ("", str(ROOT)))]
    return _main(tree, tests)


def fork(tree: Path, tests: Sequence[str]) -> int:
    """A child that runs the tests of a tree; its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        with (tree / "output").open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = _pytest(tree, tests)
        sys.stdout.flush()
    finally:
        os._exit(code)


@contextlib.contextmanager
def planted(guard: Guard | None) -> Iterator[Path]:
    """A tree for a while."""
    with tempfile.TemporaryDirectory(prefix="upwell-mutation-") as directory:
        tree = Path(directory)
        plant(tree, guard)
        yield tree


@dataclass
class _Child:
    guard: Guard
    process: int
    begun: float
    stack: contextlib.ExitStack
    tree: Path

    def ended(self) -> Run | None:
        """What became of it, None while it runs."""
        found, status = os.waitpid(self.process, os.WNOHANG)
        seconds = time.monotonic() - self.begun
        if not found and seconds < SECONDS:
            return None
        code: int | None = os.waitstatus_to_exitcode(status)
        if not found:
            os.killpg(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            code = None
        output = (self.tree / "output").read_text(errors="replace")
        self.stack.close()
        return Run(self.guard, code, output, seconds)


def start(guard: Guard) -> _Child:
    """Run the tests that must notice that a guard is out."""
    stack = contextlib.ExitStack()
    tree = stack.enter_context(planted(guard))
    return _Child(guard, fork(tree, guard.tests), time.monotonic(), stack, tree)


def unchanged(guards: Sequence[Guard]) -> tuple[int, str]:
    """All these tests without any change: exit code and output."""
    with planted(None) as tree:
        process = fork(tree, sorted({test for guard in guards for test in guard.tests}))
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        return code, (tree / "output").read_text(errors="replace")


def take_out(guards: Sequence[Guard], jobs: int, tell: Callable[[Run], None]) -> list[Run]:
    """Each of them in turn, some at a time."""
    waiting, running, runs = list(guards), list[_Child](), list[Run]()
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(start(waiting.pop(0)))
        for child in list(running):
            run = child.ended()
            if run is not None:
                running.remove(child)
                runs.append(run)
                tell(run)
        time.sleep(0.01)
    return runs


@contextlib.contextmanager
def postgres(guards: Sequence[Guard]) -> Iterator[None]:
    """One server for all tests that need one."""
    if not any(guard.needs_postgres for guard in guards):
        yield
        return
    from tests.contracts.server import SHARED, running

    with running(18) as server:
        os.environ[SHARED] = str(server.directory)
        yield
