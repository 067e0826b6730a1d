"""Jars by a committed lock of exact coordinates and SHA-256, fetched in parallel into a cache of the user's.

`jars.lock`: `tree group:artifact:version[:classifier]:packaging sha256`, one a line.
`python -m infra.stack.jars --relock` resolves the trees anew (a maintainer's command, half a minute).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from infra.stack.errors import DownloadFailed, WrongHash
from infra.stack.processes import born

Progress = Callable[[str], None]

TREES: Final = {
    "kafka": (
        "org.apache.kafka:kafka_2.13:4.3.1",
        "org.apache.kafka:connect-runtime:4.3.1",
        "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",
    ),
    "debezium": ("io.debezium:debezium-connector-postgres:3.7.0.Final",),
    "converter": ("io.apicurio:apicurio-registry-utils-converter:2.6.13.Final",),
}
REGISTRY: Final = ("io.apicurio", "apicurio-registry-app", "3.3.3", "all", "tar.gz")
#: Connect has these itself; a second copy in a plugin breaks it.
CONNECTS_OWN: Final = ("org.apache.kafka", "org.slf4j", "lz4", "snappy", "zstd")
PARALLEL: Final = 8
CHECK_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock."""

    tree: str
    group: str
    artifact: str
    version: str
    classifier: str
    packaging: str
    sha256: str

    @property
    def coordinates(self) -> str:
        middle = f":{self.classifier}" if self.classifier else ""
        return f"{self.group}:{self.artifact}:{self.version}{middle}:{self.packaging}"

    @property
    def path(self) -> str:
        """Where a Maven repository has it."""
        suffix = f"-{self.classifier}" if self.classifier else ""
        folder = f"{self.group.replace('.', '/')}/{self.artifact}/{self.version}"
        return f"{folder}/{self.artifact}-{self.version}{suffix}.{self.packaging}"


def cache_directory() -> Path:
    """UPWELL_CACHE, else the user's cache folder: shared by all clones."""
    base = os.environ.get("UPWELL_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upwell"


def parse_lock(text: str) -> list[Jar]:
    """The lines of a lock; comments and blank lines are passed over."""
    jars = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            tree, coordinates, sha256 = line.split()
            group, artifact, version, *rest = coordinates.split(":")
            classifier = rest[0] if len(rest) == 2 else ""
            jars.append(Jar(tree, group, artifact, version, classifier, rest[-1], sha256))
    return jars


def locked() -> list[Jar]:
    """The committed lock."""
    return parse_lock((files("infra.stack") / "jars.lock").read_text(encoding="utf-8"))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(
    progress: Progress,
    jars: Iterable[Jar] | None = None,
    cache: Path | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, list[Path]]:
    """Every jar of the lock in the cache, verified; paths by tree. Raises WrongHash, DownloadFailed, and whatever
    `check` raises, which is asked all the while."""
    wanted, store = list(locked() if jars is None else jars), (cache or cache_directory()) / "jars"
    missing = [jar for jar in wanted if not _is_verified(store, jar)]
    if missing:
        progress(f"fetching {len(missing)} of {len(wanted)} jars")
        with _staging(store) as part:
            _fetch_all(part, store, missing, progress, check)
    found: dict[str, list[Path]] = {}
    for jar in wanted:
        found.setdefault(jar.tree, []).append(store / jar.path)
    return found


def _marker(store: Path, jar: Jar) -> Path:
    path = store / jar.path
    return path.with_name(f".{path.name}.verified")


def _is_verified(store: Path, jar: Jar) -> bool:
    """Whether this very file was verified before: size and time of change are those of then."""
    try:
        facts = (store / jar.path).stat()
        return _marker(store, jar).read_text() == f"{jar.sha256} {facts.st_size} {facts.st_mtime_ns}"
    except FileNotFoundError:
        return False


def _context(store: Path) -> Any:
    from jgo.maven import MavenContext

    store.mkdir(parents=True, exist_ok=True)
    return MavenContext(repo_cache=store)


@contextlib.contextmanager
def _staging(store: Path) -> Iterator[Path]:
    """A folder of this process alone, gone afterwards, as are those of processes that were killed: what is half
    fetched is never in the cache, and two that fetch at once never see each other's halves."""
    store.mkdir(parents=True, exist_ok=True)
    for left in store.glob(".part-*"):
        _, pid, birth = left.name.split("-")
        if born(int(pid)) != birth:
            shutil.rmtree(left, ignore_errors=True)
    part = store / f".part-{os.getpid()}-{born(os.getpid())}"
    part.mkdir(exist_ok=True)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fetch_all(
    part: Path, store: Path, missing: Sequence[Jar], progress: Progress, check: Callable[[], None]
) -> None:
    context, number = _context(part), 0
    pool = ThreadPoolExecutor(PARALLEL)
    try:
        pending = {pool.submit(_fetch, context, part, store, jar) for jar in missing}
        while pending:
            done, pending = wait(pending, timeout=CHECK_SECONDS, return_when=FIRST_COMPLETED)
            for each in done:
                each.result()
                number += 1
                if number % 25 == 0 or number == len(missing):
                    progress(f"jars {number}/{len(missing)}")
            check()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _fetch(context: Any, part: Path, store: Path, jar: Jar) -> None:
    """Into the cache once it is verified. A file that lies there and is another one is fetched anew."""
    path = store / jar.path
    if not path.exists() or sha256_of(path) != jar.sha256:
        new = _download(context, part, jar)
        actual = sha256_of(new)
        if actual != jar.sha256:
            new.unlink()
            raise WrongHash(
                f"{jar.coordinates}: the fetched file has SHA-256 {actual}, jars.lock says {jar.sha256}; it was not "
                "kept: try again, and if that does not help, something on the way to the registry alters files"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        new.replace(path)
    facts = path.stat()
    _marker(store, jar).write_text(f"{jar.sha256} {facts.st_size} {facts.st_mtime_ns}")


def _download(context: Any, part: Path, jar: Jar) -> Path:
    try:
        version = context.project(jar.group, jar.artifact).at_version(jar.version)
        version.artifact(classifier=jar.classifier or "", packaging=jar.packaging).resolve()
    except Exception as error:  # whatever jgo or the network raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DownloadFailed(f"{jar.coordinates} cannot be fetched: {said[:200]}") from error
    if not (part / jar.path).exists():
        raise DownloadFailed(f"{jar.coordinates} cannot be fetched from the package registry")
    return part / jar.path


def plugin_jars(paths: Iterable[Path]) -> list[Path]:
    """Those of a connector's or converter's tree that Connect does not have itself."""
    own = tuple(name.replace(".", "/") for name in CONNECTS_OWN)
    return [path for path in paths if not any(name in str(path) for name in own)]


def unpack_registry(archive: Path, cache: Path | None = None) -> Path:
    """`quarkus-run.jar` of the unpacked registry; unpacked once, moved into place whole."""
    target = (cache or cache_directory()) / f"registry-{archive.stem.removesuffix('.tar')}"
    if not target.exists():
        with _staging(target.parent) as part:
            with tarfile.open(archive) as file:
                file.extractall(part / "registry", filter="data")
            with contextlib.suppress(OSError):  # another process was quicker
                (part / "registry").rename(target)
    return next(target.rglob("quarkus-run.jar"))


def _version_key(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.replace("-", ".").split(".")]


def relock() -> str:
    """Resolve all trees and hash every file. Each root alone, the newest version wins: resolving several roots
    together takes the versions that the first one manages, and Kafka then gets an older client."""
    store = cache_directory() / "jars"
    context, lines = _context(store), []
    for tree, roots in TREES.items():
        newest: dict[tuple[str, str, str], Any] = {}
        for root in roots:
            dependency = context.create_dependency(root)
            resolved = context.resolver.resolve([dependency])
            for each in [dependency, *(resolved[1] if isinstance(resolved, tuple) else resolved)]:
                found = each.artifact
                place = (found.groupId, found.artifactId, found.classifier)
                if found.packaging == "jar" and (
                    place not in newest or _version_key(found.version) > _version_key(newest[place].version)
                ):
                    newest[place] = found
        lines += [_line(tree, found) for found in newest.values()]
    group, artifact, version, classifier, packaging = REGISTRY
    lines.append(
        _line(
            "registry", context.project(group, artifact).at_version(version).artifact(classifier, packaging)
        )
    )
    return (
        "# tree coordinates sha256; made by python -m infra.stack.jars --relock\n"
        + "\n".join(sorted(lines))
        + "\n"
    )


def _line(tree: str, found: Any) -> str:
    middle = f":{found.classifier}" if found.classifier else ""
    coordinates = f"{found.groupId}:{found.artifactId}:{found.version}{middle}:{found.packaging}"
    return f"{tree} {coordinates} {sha256_of(Path(found.resolve()))}"


if __name__ == "__main__":
    if sys.argv[1:] != ["--relock"]:
        sys.exit("usage: python -m infra.stack.jars --relock")
    Path(str(files("infra.stack") / "jars.lock")).write_text(relock(), encoding="utf-8")
