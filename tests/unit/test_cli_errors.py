"""Mistakes and neighbours that are away: one clear line, the right exit code, no traceback and no password."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner, Result

from connectors.postgres.capture_state import Deployment
from streams import neighbours
from streams.cli.root import cli
from streams.settings import Settings

SECRET: Final = "hunter2"
SPEC: Final = """
[collections.content]
table = "shop.content"
template = "{{ title }}"
"""
#: Every command that reads the settings.
READERS: Final = (
    "migrate",
    "migrate source",
    "migrate source --print",
    "migrate sink",
    "connector apply",
    "connector status",
    "connector restart",
    "connector rebuild",
    "connector delete",
    "worker",
    "search content coffee",
    "explain content 42",
    "dead-letters list",
    "dead-letters show 1",
    "dead-letters replay --all",
    "dead-letters waive 1 --reason tested",
    "model show",
    "model export",
    "report",
    "doctor",
    "doctor --sql",
    "uninstall --yes",
    "up",
    "demo",
)

Run = Callable[..., Result]


def closed_port() -> int:
    """A port of the loopback interface at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def dsn() -> str:
    return f"postgresql://somebody:{SECRET}@127.0.0.1:{closed_port()}/nothing"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "upwell.toml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def upwell(spec: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line, with nothing of the caller's own settings."""
    for name in [name for name in os.environ if name.startswith("UPWELL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("infra.stack.up", _nothing_starts)

    def run(line: str, **environment: str) -> Result:
        return CliRunner().invoke(cli, ["--spec", str(spec), *line.split()], env=environment)

    return run


def _nothing_starts(*_: object, **__: object) -> None:
    raise AssertionError("the stack was started before the settings were looked at")


def the_line(done: Result, exit_code: int) -> str:
    """The one line on stderr of a command that has failed."""
    assert done.exit_code == exit_code, done.output
    assert isinstance(done.exception, SystemExit)
    assert done.stderr.startswith("upwell: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.output
    assert SECRET not in done.output
    return done.stderr.removeprefix("upwell: ").rstrip("\n")


# Settings


@pytest.mark.parametrize("command", READERS)
def test_an_unknown_variable(upwell: Run, command: str) -> None:
    line = the_line(upwell(command, UPWELL_SINK_DSM=SECRET), 2)
    assert line.startswith("UPWELL_SINK_DSM in the environment is not a setting")


@pytest.mark.parametrize("command", READERS)
def test_a_missing_spec(upwell: Run, spec: Path, command: str) -> None:
    spec.unlink()
    assert the_line(upwell(command), 2).startswith(f"no spec at {spec}: give --spec")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[collections.content\n", "cannot be read"),
        (SPEC * 2, "cannot be read"),
        ("colour = 1\n" + SPEC, "colour"),
        (SPEC + "colour = 1\n", "collections.content.colour"),
        ("[kafka]\npartitions = 0\n", "kafka.partitions"),
        (SPEC.replace("{{ title }}", "{% include 'x' %}"), "include is not allowed"),
        (SPEC.replace("{{ title }}", "{{ ''.__class__ }}"), "template"),
        (SPEC.replace("[collections.content]", "[collections.pending]"), "'pending' is reserved"),
        (SPEC.replace("[collections.content]", "[collections.Content]"), "is not an identifier"),
        (SPEC + "slo = { threshold_seconds = 1 }\n", "slo.threshold_seconds"),
        ("collections = 3\n", "collections"),
    ],
)
def test_a_wrong_spec(upwell: Run, spec: Path, text: str, said: str) -> None:
    spec.write_text(text)
    line = the_line(upwell("report"), 2)
    assert str(spec) in line
    assert said in line


def test_a_spec_that_is_no_text(upwell: Run, spec: Path) -> None:
    spec.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in the_line(upwell("report"), 2)


@pytest.mark.parametrize(
    ("variable", "value", "place"),
    [
        ("UPWELL_SINK_POOL_SIZE", "1", "sink.pool_size"),
        ("UPWELL_SINK_POOL_SIZE", "51", "sink.pool_size"),
        ("UPWELL_WORKER_BACKFILL_SHARE", "1.1", "worker.backfill_share"),
        ("UPWELL_WORKER_LEASE_SECONDS", "0", "worker.lease_seconds"),
        ("UPWELL_KAFKA_PARTITIONS", "many", "kafka.partitions"),
        ("UPWELL_CONNECT_CONVERTER", "json", "connect.converter"),
        ("UPWELL_MODEL_NAME", "minilm", "model"),
        ("UPWELL_NAME", "Not one", "name"),
        ("UPWELL_NAME", "a" * 31, "name"),
    ],
)
def test_a_setting_out_of_range(upwell: Run, variable: str, value: str, place: str) -> None:
    assert place in the_line(upwell("report", **{variable: value}), 2)


def test_a_mistake_in_the_stack_env(upwell: Run, spec: Path) -> None:
    home = spec.parent / ".upwell"
    home.mkdir()
    (home / "stack.env").write_text("UPWELL_NONSENSE=1\n")
    assert f"UPWELL_NONSENSE in {home / 'stack.env'}" in the_line(upwell("report"), 2)


@pytest.mark.parametrize("variable", ["UPWELL_SOURCE_DSN", "UPWELL_SINK_DSN"])
@pytest.mark.parametrize(
    "mistyped",
    [
        SECRET,
        f"host=x password=a {SECRET}",
        f"postgresql://somebody:a@{SECRET}@127.0.0.1/x",
        f"postgresql://somebody:{SECRET}/a@127.0.0.1/x",
        f"postgresql://somebody:a%{SECRET}@127.0.0.1/x",
        f"postgresql://127.0.0.1:{SECRET}/x",
        f"hots={SECRET}",
    ],
)
def test_no_piece_of_a_mistyped_dsn_is_shown(upwell: Run, variable: str, mistyped: str) -> None:
    place = variable.removeprefix("UPWELL_").lower().replace("_", ".")
    assert the_line(upwell("migrate", **{variable: mistyped}), 2).startswith(
        f"{place} is no Postgres address"
    )


@pytest.mark.parametrize(
    "right",
    [
        "host=/run/postgresql dbname=x",
        f"postgresql://somebody:a%40{SECRET}@127.0.0.1:1/x",
        f"host=127.0.0.1,127.0.0.1 port=1,2 password={SECRET}",
    ],
)
def test_addresses_that_libpq_reads_are_tried(upwell: Run, right: str) -> None:
    assert the_line(upwell("report", UPWELL_SINK_DSN=right), 3).startswith("sink database: ")


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("report", "sink.dsn"),
        ("search content coffee", "sink.dsn"),
        ("worker", "sink.dsn"),
        ("migrate source", "source.dsn"),
        ("connector apply", "source.dsn"),
    ],
)
def test_an_address_that_is_not_given(upwell: Run, command: str, place: str) -> None:
    assert the_line(upwell(command), 2).startswith(f"{place} is not set")


def test_search_in_an_unknown_collection(upwell: Run) -> None:
    line = the_line(upwell("search contents coffee", UPWELL_SINK_DSN=dsn()), 2)
    assert line == "no collection 'contents' in the spec: it has content"


def test_a_home_that_cannot_be_made(upwell: Run, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def up(home: Path, **_: object) -> None:
        (home / "log").mkdir(parents=True)

    monkeypatch.setattr("infra.stack.up", up)
    home = spec / "below-a-file"
    assert the_line(upwell("up", UPWELL_HOME=str(home)), 2).endswith("Not a directory")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"UPWELL_MONITOR_TOKEN_FILE": "/nonexistent"},
            "monitor.token_file cannot be read: FileNotFoundError",
        ),
        (
            {"UPWELL_MONITOR_TOKEN_FILE": "/nonexistent", "UPWELL_MONITOR_TOKEN": SECRET},
            "monitor.token and monitor.token_file are both set: leave one out",
        ),
        ({"UPWELL_SINK_DSN": ""}, "sink.dsn is not set"),
        ({"UPWELL_MONITOR_ROUND_SECONDS": "0.1"}, "monitor.round_seconds"),
    ],
)
def test_a_monitor_with_wrong_settings(upwell: Run, variables: dict[str, str], said: str) -> None:
    assert said in the_line(upwell("monitor --port 0", **{"UPWELL_SINK_DSN": dsn(), **variables}), 2)


def test_a_monitor_whose_port_is_taken(upwell: Run) -> None:
    """The sink being away is no reason to end: that is what it is there to say. So it gets as far as the port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = upwell(f"monitor --port {port}", UPWELL_SINK_DSN=dsn(), UPWELL_SOURCE_DSN=dsn())
    assert done.exit_code == 2
    assert f"the page cannot listen on 127.0.0.1:{port}" in done.stderr.splitlines()[-1]
    assert "UPWELL_MONITOR_PORT" in done.stderr
    assert "Traceback" not in done.output


# Neighbours that are away


@pytest.mark.parametrize("command", ["report", "search content coffee", "worker"])
def test_no_sink(upwell: Run, command: str) -> None:
    assert the_line(upwell(command, UPWELL_SINK_DSN=dsn()), 3).startswith("sink database: ")


@pytest.mark.parametrize("command", ["migrate", "migrate source --print", "migrate sink", "connector apply"])
def test_no_source(upwell: Run, command: str) -> None:
    assert the_line(upwell(command, UPWELL_SOURCE_DSN=dsn()), 3).startswith("source database: ")


@pytest.mark.parametrize("command", ["connector status", "connector status --json", "connector restart"])
def test_no_connect(upwell: Run, command: str) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    access = {"UPWELL_CONNECT_USERNAME": "somebody", "UPWELL_CONNECT_PASSWORD": SECRET}
    assert the_line(upwell(command, UPWELL_CONNECT_URL=url, **access), 3).startswith(
        "Connect does not answer at http://"
    )


class RecordedState:
    """A sink that has recorded one topic."""

    @classmethod
    @contextlib.contextmanager
    def open(cls, dsn: str) -> Iterator[RecordedState]:
        yield cls()

    def deployment(self) -> Deployment:
        return Deployment(1, (), ())

    def check_schema(self) -> None:
        pass

    def lineage(self) -> tuple[int, str]:
        return 1, "upwell_1"

    def topics(self, lineage: int) -> dict[str, Any]:
        return {"upwell_1.shop.content": None}


def test_no_kafka(upwell: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.app.CaptureState", RecordedState)
    monkeypatch.setattr("streams.neighbours.kafka", functools.partial(neighbours.kafka, timeout=0.5))
    address = f"127.0.0.1:{closed_port()}"
    done = upwell("worker", UPWELL_SINK_DSN=dsn(), UPWELL_KAFKA_BOOTSTRAP_SERVERS=address)
    assert the_line(done, 3).startswith(f"Kafka at {address}: ")


def ask_blocking(settings: Settings, *_: object, **__: object) -> None:
    neighbours.blocking_registry(settings).schema(1)


def ask_in_a_loop(settings: Settings, *_: object, **__: object) -> None:
    async def ask() -> None:
        registry = neighbours.registry(settings)
        try:
            await registry.schema(1)
        finally:
            await registry.close()

    asyncio.run(ask())


@pytest.mark.parametrize("ask", [ask_blocking, ask_in_a_loop])
def test_no_registry(upwell: Run, monkeypatch: pytest.MonkeyPatch, ask: Callable[..., None]) -> None:
    """The first load's notifications ask it for a schema."""
    monkeypatch.setattr("streams.capture.apply", ask)
    url = f"http://127.0.0.1:{closed_port()}/apis/ccompat/v7"
    access = {"UPWELL_REGISTRY_USERNAME": "somebody", "UPWELL_REGISTRY_PASSWORD": SECRET}
    done = upwell("connector apply", UPWELL_REGISTRY_URL=url, **access)
    assert the_line(done, 3).startswith("registry at http://127.0.0.1:")


@pytest.mark.parametrize("variable", ["CONNECT_URL", "REGISTRY_URL", "REGISTRY_CONVERTER_URL"])
def test_a_user_in_a_url_is_refused_and_not_shown(upwell: Run, variable: str) -> None:
    url = f"http://somebody:{SECRET}@127.0.0.1:{closed_port()}"
    line = the_line(upwell("connector status", **{f"UPWELL_{variable}": url}), 2)
    assert "set username and password_file" in line


# `up` and `demo`


@pytest.mark.parametrize("command", ["up", "demo"])
def test_the_own_stack_wins_over_exported_addresses(
    upwell: Run, spec: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    seen: list[Settings] = []

    def up(home: Path, **_: object) -> None:
        (home / "log").mkdir(parents=True)
        (home / "stack.env").write_text("UPWELL_SOURCE_DSN=host=own\nUPWELL_SINK_DSN=host=own\n")

    def prepare(line: object, settings: Settings, *, sample: bool) -> None:
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("infra.stack.up", up)
    monkeypatch.setattr("infra.stack.down", lambda home: None)
    monkeypatch.setattr("streams.local.Line.prepare", prepare)
    done = upwell(command, UPWELL_SOURCE_DSN="host=production", UPWELL_SINK_POOL_SIZE="3")
    assert done.exit_code == 130
    assert done.stderr == "upwell: interrupted\n"
    assert [(each.source.dsn, each.sink.dsn, each.sink.pool_size) for each in seen] == [
        ("host=own", "host=own", 3)
    ]
    assert seen[0].home == spec.parent / ".upwell" / ("demo" if command == "demo" else "")


def test_a_demo_that_is_ended_stops_its_stack(
    upwell: Run, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[Path] = []
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("infra.stack.up", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr("infra.stack.down", stopped.append)
    assert upwell("demo").exit_code == 130
    assert stopped == [spec.parent / ".upwell" / "demo"]
    assert signal.getsignal(signal.SIGTERM) == before


# The script itself


def script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real process, as a person starts it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("UPWELL_")}
    command = [sys.executable, "-m", "streams.cli", *arguments]
    return subprocess.run(
        command, env={**inherited, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_process_says_one_line_and_exits_with_3(spec: Path) -> None:
    done = script("report", UPWELL_SPEC=str(spec), UPWELL_SINK_DSN=dsn())
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("upwell: sink database: ")
    assert done.stderr.count("\n") == 1
    assert SECRET not in done.stderr


def test_the_process_says_one_line_and_exits_with_2(tmp_path: Path) -> None:
    done = script("--spec", str(tmp_path / "none.toml"), "worker")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("upwell: no spec at ")
    assert done.stderr.count("\n") == 1
