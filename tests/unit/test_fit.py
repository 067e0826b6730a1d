"""`worker --processes auto`: what a machine, a container and an accelerator say."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from schemas.errors import SettingsError
from streams import fit
from streams.cli.worker import Processes
from streams.fit import cores, fitted, fitting, free_megabytes
from streams.settings import Settings, load

PLENTY = 1_000_000.0


@pytest.mark.parametrize(
    ("given", "processes", "why"),
    [
        ((1, PLENTY, "onnx", False), 1, "1 core may be used"),
        ((8, PLENTY, "onnx", False), 8, "8 cores may be used"),
        ((8, None, "onnx", False), 8, "8 cores may be used"),
        ((200, PLENTY, "onnx", False), 64, "200 cores may be used"),
        ((8, 2000.0, "onnx", False), 3, "2000 MB of memory are free, a worker with onnx may use 600"),
        ((8, 100.0, "onnx", False), 1, "100 MB of memory are free, a worker with onnx may use 600"),
        ((8, 4000.0, "torch", False), 2, "4000 MB of memory are free, a worker with torch may use 1500"),
        ((8, PLENTY, "torch", True), 1, "torch on an accelerator serves one best"),
        ((8, PLENTY, "onnx", True), 8, "8 cores may be used"),
    ],
)
def test_how_many_fit_and_why(given: tuple[int, float | None, str, bool], processes: int, why: str) -> None:
    found = fitting(*given)
    assert (found.processes, found.why) == (processes, why)


def machine(root: Path, group: str, files: dict[str, str]) -> Path:
    """A machine with 24 GB free and these files of control groups."""
    everything = {
        "proc/self/cgroup": group,
        "proc/meminfo": "MemTotal: 32000000 kB\nMemAvailable:   24000000 kB\n",
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }
    for name, text in everything.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("group", "files", "number"),
    [
        ("0::/", {}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "250000 100000\n"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1),
        ("0::/a\n", {"a/cpu.max": "50000 100000\n"}, 1),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, 8),
        ("4:memory:/a\n", {"memory/a/cpu.cfs_quota_us": "1", "memory/a/cpu.cfs_period_us": "1"}, 8),
    ],
)
def test_cores_of_this_process(tmp_path: Path, group: str, files: dict[str, str], number: int) -> None:
    assert cores(machine(tmp_path, group, files)) == number


@pytest.mark.usefixtures("eight")
def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    assert (cores(tmp_path), free_megabytes(tmp_path)) == (8, None)


@pytest.mark.parametrize(
    ("group", "files", "megabytes"),
    [
        ("0::/a\n", {}, 24576),
        ("0::/a\n", {"a/memory.max": "max", "a/memory.current": "5"}, 24576),
        ("0::/a\n", {"a/memory.max": "2000000000", "a/memory.current": "500000000"}, 1500),
        (
            "0::/a\n",
            {
                "a/memory.max": "2000000000",
                "a/memory.current": "900000000",
                "a/memory.stat": "anon 5\ninactive_file 400000000\n",
            },
            1500,
        ),
        (
            "5:memory:/a\n",
            {"memory/a/memory.limit_in_bytes": "1000000000", "memory/a/memory.usage_in_bytes": "100000000"},
            900,
        ),
    ],
)
def test_memory_that_is_free(tmp_path: Path, group: str, files: dict[str, str], megabytes: int) -> None:
    assert free_megabytes(machine(tmp_path, group, files)) == pytest.approx(megabytes)


def settings(tmp_path: Path, environment: dict[str, str], text: str = "") -> Settings:
    spec = tmp_path / "upwell.toml"
    spec.write_text(text)
    return load(spec, environment=environment)


def test_auto_is_taken_from_the_file_and_the_environment(tmp_path: Path) -> None:
    assert settings(tmp_path, {}, '[worker]\nprocesses = "auto"\n').worker.processes == "auto"
    assert settings(tmp_path, {"UPWELL_WORKER_PROCESSES": "auto"}).worker.processes == "auto"
    assert settings(tmp_path, {"UPWELL_WORKER_PROCESSES": "3"}).worker.processes == 3


@pytest.mark.parametrize("value", ["many", "-1", "65", "1.5", ""])
def test_anything_else_is_refused_in_one_line(tmp_path: Path, value: str) -> None:
    with pytest.raises(SettingsError, match=r"worker\.processes: .* is neither auto nor a number up to 64"):
        settings(tmp_path, {"UPWELL_WORKER_PROCESSES": value})
    with pytest.raises(click.BadParameter):
        Processes().convert(value, None, None)


def test_the_flag_takes_it() -> None:
    assert [Processes().convert(value, None, None) for value in ("auto", "0", "64")] == ["auto", 0, 64]


def test_it_becomes_a_number_when_workers_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "cores", lambda: 5)
    monkeypatch.setattr(fit, "free_megabytes", lambda: PLENTY)
    chosen = {"UPWELL_MODEL_RUNTIME": "onnx"}
    auto = settings(tmp_path, {**chosen, "UPWELL_WORKER_PROCESSES": "auto"})
    assert fitted(auto).worker.processes == 5
    fixed = settings(tmp_path, {**chosen, "UPWELL_WORKER_PROCESSES": "0"})
    assert fitted(fixed) is fixed
