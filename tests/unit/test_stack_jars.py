"""The lock of jars, and what becomes of a file that is not the one in the lock. No network: jgo is a fake."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Self

import pytest

from infra.stack import jars
from infra.stack.errors import DownloadFailed, WrongHash
from infra.stack.jars import Jar, fetch, locked, parse_lock

GOOD = b"the file that was locked"
LINE = re.compile(
    r"(kafka|debezium|converter|registry) [\w.-]+:[\w.-]+:[\w.-]+(:[\w-]+)?:(jar|tar\.gz) [0-9a-f]{64}"
)


def jar(name: str = "engine", content: bytes = GOOD) -> Jar:
    return Jar("kafka", "org.example", name, "1.0", "", "jar", hashlib.sha256(content).hexdigest())


@dataclass
class FakeRegistry:
    """Stands for jgo's context: `served` by artifact; `asked` in order."""

    served: dict[str, bytes | Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    store: Path = Path()

    def into(self, store: Path) -> Self:
        self.store = store
        return self

    def project(self, group: str, artifact: str) -> FakeVersion:
        return FakeVersion(self, group, artifact)


@dataclass
class FakeVersion:
    """Project, version and artifact of jgo in one."""

    registry: FakeRegistry
    group: str
    name: str
    version: str = ""
    file: str = ""

    def at_version(self, version: str) -> Self:
        self.version = version
        return self

    def artifact(self, classifier: str, packaging: str) -> Self:
        self.file = f"{self.name}-{self.version}.{packaging}"
        return self

    def resolve(self) -> None:
        self.registry.asked.append(self.name)
        content = self.registry.served[self.name]
        if isinstance(content, Exception):
            raise content
        folder = self.registry.store / self.group.replace(".", "/") / self.name / self.version
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.file).write_bytes(content)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    fake = FakeRegistry({"engine": GOOD})
    monkeypatch.setattr(jars, "_context", fake.into)
    return fake


def quiet(line: str) -> None:
    """Progress that nobody reads."""


def kept(cache: Path) -> list[str]:
    """Every file of a cache, also the hidden ones."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_every_line_of_the_lock_has_exact_coordinates_and_a_hash_and_no_address() -> None:
    text = (files("infra.stack") / "jars.lock").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    assert "//" not in text
    assert not re.search(r"SNAPSHOT|LATEST|RELEASE\b", text)
    assert lines == sorted(set(lines))


def test_the_lock_holds_what_design_9_names() -> None:
    found = {each.coordinates for each in locked()}
    assert {root for roots in jars.TREES.values() for root in roots} <= {
        each.rpartition(":")[0] for each in found
    }
    assert "io.apicurio:apicurio-registry-app:3.3.3:all:tar.gz" in found


def test_the_lock_holds_one_version_of_a_jar_in_a_tree() -> None:
    places = [(each.tree, each.group, each.artifact, each.classifier) for each in locked()]
    assert len(places) == len(set(places))


def test_a_lock_line_becomes_a_path_in_the_layout_of_maven() -> None:
    (found,) = parse_lock(f"# comment\n\nregistry org.example.a:app:3.3:all:tar.gz {'0' * 64}\n")
    assert found.path == "org/example/a/app/3.3/app-3.3-all.tar.gz"
    assert found.coordinates == "org.example.a:app:3.3:all:tar.gz"


def test_a_file_with_a_wrong_hash_is_one_clear_line_and_is_not_kept(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.served["engine"] = b"something else"
    with pytest.raises(WrongHash) as caught:
        fetch(quiet, [jar()], tmp_path)
    said = str(caught.value)
    assert "\n" not in said
    assert "org.example:engine:1.0:jar" in said
    assert jar().sha256 in said
    assert "try again" in said
    assert kept(tmp_path) == []


def test_one_wrong_file_does_not_lose_the_right_ones(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.served |= {"bad": b"something else"}
    fetch(quiet, [jar()], tmp_path)
    with pytest.raises(WrongHash, match=r"org\.example:bad"):
        fetch(quiet, [jar(), jar("bad")], tmp_path)
    assert kept(tmp_path) == [".engine-1.0.jar.verified", "engine-1.0.jar"]
    registry.served["bad"] = GOOD
    found = fetch(quiet, [jar(), jar("bad")], tmp_path)
    assert [path.read_bytes() for path in found["kafka"]] == [GOOD, GOOD]
    assert registry.asked.count("engine") == 1


def test_a_file_in_the_cache_that_is_another_one_is_fetched_anew(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    path = tmp_path / "jars" / jar().path
    path.parent.mkdir(parents=True)
    path.write_bytes(GOOD[:7])  # as a killed download of an older version left it
    (found,) = fetch(quiet, [jar()], tmp_path)["kafka"]
    assert found == path
    assert path.read_bytes() == GOOD


def test_a_file_that_was_changed_after_it_was_verified_is_noticed(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    (path,) = fetch(quiet, [jar()], tmp_path)["kafka"]
    path.write_bytes(b"tampered with")
    fetch(quiet, [jar()], tmp_path)
    assert path.read_bytes() == GOOD
    assert registry.asked == ["engine", "engine"]


def test_what_is_in_the_cache_is_not_asked_for_again(registry: FakeRegistry, tmp_path: Path) -> None:
    fetch(quiet, [jar()], tmp_path)
    fetch(quiet, [jar()], tmp_path)
    assert registry.asked == ["engine"]


def test_a_good_file_without_its_mark_is_verified_and_not_asked_for(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    path = tmp_path / "jars" / jar().path
    path.parent.mkdir(parents=True)
    path.write_bytes(GOOD)
    fetch(quiet, [jar()], tmp_path)
    assert registry.asked == []


@pytest.mark.parametrize("error", [OSError("no route to host\nmore"), AssertionError()])
def test_a_registry_that_does_not_answer_is_one_clear_line(
    registry: FakeRegistry, tmp_path: Path, error: Exception
) -> None:
    registry.served["engine"] = error
    with pytest.raises(DownloadFailed) as caught:
        fetch(quiet, [jar()], tmp_path)
    assert str(caught.value).startswith("org.example:engine:1.0:jar cannot be fetched: ")
    assert "\n" not in str(caught.value)


def test_halves_that_a_killed_process_left_are_removed(registry: FakeRegistry, tmp_path: Path) -> None:
    left = tmp_path / "jars" / ".part-1-0" / "org"  # pid 1 lives, but was born at another time
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    fetch(quiet, [jar()], tmp_path)
    assert kept(tmp_path) == [".engine-1.0.jar.verified", "engine-1.0.jar"]
    assert not left.exists()


def stopping_at(number: int) -> Callable[[], None]:
    calls = iter(range(1, 1000))

    def check() -> None:
        if next(calls) >= number:
            raise InterruptedError("the caller is gone")

    return check


def test_a_caller_that_is_gone_ends_the_fetching(registry: FakeRegistry, tmp_path: Path) -> None:
    names = [f"part{number}" for number in range(200)]
    registry.served |= {name: GOOD for name in names}
    with pytest.raises(InterruptedError):
        fetch(quiet, [jar(name) for name in names], tmp_path, check=stopping_at(1))
    assert len(registry.asked) < len(names)


def test_connect_gets_no_second_copy_of_its_own_jars() -> None:
    paths = [
        Path("/c/org/apache/kafka/a.jar"),
        Path("/c/io/debezium/b.jar"),
        Path("/c/org/lz4/lz4-java/c.jar"),
    ]
    assert jars.plugin_jars(paths) == [Path("/c/io/debezium/b.jar")]


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("UPWELL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert jars.cache_directory() == tmp_path / ".cache" / "upwell"
    monkeypatch.setenv("UPWELL_CACHE", "/elsewhere")
    assert jars.cache_directory() == Path("/elsewhere")
