"""The README's walk-through of tables of one's own, run block by block as it stands there; the model is a fake.

Blocks are run in one shell: `console` as it is, `sql` by psql at the database that its first line names, `toml` is
written to the spec. Each line of a `text` block must be in what the block before it prints.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
import pytest
import requests
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from streams.cli.root import cli
from tests.deployment import ROOT, Stack, _drop_database
from tests.unit.test_readme import section

pytestmark = pytest.mark.acceptance

TITLE: Final = "Your own tables, step by step"
DSNS: Final = {"-- at the source": "$UPWELL_SOURCE_DSN", "-- in the sink": "$UPWELL_SINK_DSN"}
#: Commands that change nothing, so that they can be run until they print what they should.
READS: Final = re.compile(
    r"upwell (search|explain|status|report) .*(\nupwell (search|explain|status|report) .*)*\n"
)
UPWELL: Final = f"""#!/bin/sh
PYTHONPATH={ROOT} exec {sys.executable} -m tests.fake_cli "$@"
"""
SECONDS: Final = 120.0


@dataclass(frozen=True)
class Block:
    """A fenced block of the README; `expected` are the lines of the `text` block behind it."""

    kind: str
    text: str
    expected: tuple[str, ...]


def blocks() -> list[Block]:
    found: list[Block] = []
    for kind, text in re.findall(r"```(\w+)\n(.*?)```", section(TITLE), re.DOTALL):
        if kind == "text":
            lines = tuple(" ".join(line.split()) for line in text.splitlines())
            found[-1] = Block(found[-1].kind, found[-1].text, lines)
        else:
            found.append(Block(kind, text, ()))
    return found


class Shell:
    """One bash for the whole walk: it ends at the first command that fails."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "-e", "-o", "pipefail"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def run(self, commands: str) -> str:
        """What they print; an assertion error if one of them fails."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{commands}\necho '=== done'\n")
        self._process.stdin.flush()
        printed, deadline = "", time.monotonic() + SECONDS
        while True:
            line = self._lines.get(timeout=max(0.1, deadline - time.monotonic()))
            if line is None:
                raise AssertionError(f"exit {self._process.wait()} of\n{commands}\n{printed}")
            if line == "=== done\n":
                return printed
            printed += line

    def close(self) -> None:
        """End it, and what it has started in the background: the supervisor ends its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 15)
        self._process.wait(30)


@pytest.fixture
def shell(stack: Stack, tmp_path: Path) -> Iterator[Shell]:
    """A folder that looks like the repository's, whose `.upwell/kb` is the session's stack."""
    (tmp_path / "infra").symlink_to(ROOT / "infra")
    (tmp_path / ".upwell").mkdir()
    (tmp_path / ".upwell" / "kb").symlink_to(stack.home)
    environment_with_fake_model(tmp_path / ".venv")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("UPWELL_")}
    given = {"LC_ALL": "C.UTF-8", "PSQLRC": "/dev/null", "PAGER": "cat"}
    found = Shell(tmp_path, {**kept, **given, "UPWELL_WORKER_SESSION_TIMEOUT_SECONDS": "6"})
    try:
        yield found
    finally:
        found.close()
        requests.delete(f"{stack.variables['UPWELL_CONNECT_URL']}/connectors/upwell-kb", timeout=30)
        for variable in ("UPWELL_SOURCE_DSN", "UPWELL_SINK_DSN"):
            empty(stack.variables[variable])
        (stack.home / "upwell.toml").unlink(missing_ok=True)


def environment_with_fake_model(directory: Path) -> None:
    """The virtual environment of this session, but for its `upwell`."""
    real, programs = Path(sys.prefix), directory / "bin"
    programs.mkdir(parents=True)
    for part in ("lib", "pyvenv.cfg"):
        (directory / part).symlink_to(real / part)
    (programs / "python").symlink_to(real / "bin" / "python")
    (programs / "upwell").write_text(UPWELL)
    (programs / "upwell").chmod(0o755)


def empty(dsn: str) -> None:
    """The stack's own database, made anew."""
    database = str(conninfo_to_dict(dsn)["dbname"])
    admin = psycopg.conninfo.make_conninfo(dsn, dbname="postgres")
    _drop_database(admin, database)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))


def commands(block: Block) -> str:
    """What the shell runs for a block."""
    if block.kind == "sql":
        place, _, text = block.text.partition("\n")
        return f"psql \"{DSNS[place]}\" -q -v ON_ERROR_STOP=1 <<'SQL'\n{text}SQL"
    if block.kind == "toml":
        place, _, text = block.text.partition("\n")
        into = {"# upwell.toml": ">", "# add to upwell.toml": ">>"}[place]
        return f"cat {into} \"$UPWELL_SPEC\" <<'TOML'\n{text}TOML"
    assert block.kind == "console", block.kind
    lines = [line for line in block.text.splitlines() if line not in NOT_RUN]
    if "doctor" not in cli.commands:
        lines = [line for line in lines if line != "upwell doctor"]
    return "\n".join(lines)


#: The test is set up by the first, and its stack is not its own.
NOT_RUN: Final = ("make setup", "upwell stack down")


def lacking(block: Block, printed: str) -> list[str]:
    flat = [" ".join(line.split()) for line in printed.splitlines()]
    return [line for line in block.expected if line not in flat]


def test_the_walk_through_does_what_it_says(shell: Shell) -> None:
    walk = blocks()
    assert [block.kind for block in walk].count("sql") >= 6
    for block in walk:
        begun = time.monotonic()
        printed = shell.run(commands(block))
        repeatable = READS.fullmatch(block.text) or block.text.startswith("-- in the sink")
        while repeatable and lacking(block, printed) and time.monotonic() < begun + 60:
            printed = shell.run(commands(block))
        if lacking(block, printed):
            log = shell.run("tail -n 20 .upwell/kb/worker.log")
            raise AssertionError(f"{block.text}\nprints\n{printed}\nworkers say\n{log}")
        print(f"{time.monotonic() - begun:5.1f} s  {block.text.strip().splitlines()[0]}")
