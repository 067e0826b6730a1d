"""Other versions of upwell beside this one: an earlier commit of this repository, and a later one that is made up."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Final

from tests.deployment import ROOT

PACKAGES: Final = ("schemas", "connectors", "streams", "infra", "tests")
MIGRATIONS: Final = Path("connectors/postgres/migrations")
#: So far back an earlier version is looked for.
COMMITS: Final = 1000


def migrations(tree: Path) -> dict[str, str]:
    """Git's name of the contents of each migration of a version, by file name."""
    return {path.name: _blob(path.read_bytes()) for path in (tree / MIGRATIONS).glob("*.sql")}


def earlier(directory: Path) -> Path | None:
    """The version to upgrade from: the newest commit with fewer migrations than now, and the same as far as they go.

    Where no migration was added since the first commit that can be upgraded, the newest commit before this one. None
    without history: a shallow clone, or an unpacked archive.
    """
    now, same = migrations(ROOT), ""
    for commit in _git("rev-list", "--first-parent", f"--max-count={COMMITS}", "HEAD").decode().split()[1:]:
        then = _migrations_of(commit)
        if then and then.items() < now.items():
            return _unpacked(commit, directory)
        if then == now:
            same = same or commit
    return _unpacked(same, directory) if same else None


def later(directory: Path) -> Path:
    """This version with one more migration, and a query that needs it."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    newest = max(int(name[:4]) for name in migrations(ROOT))
    added = directory / MIGRATIONS / f"{newest + 1:04d}_later.sql"
    added.write_text(
        "-- What a version after this one adds.\nALTER TABLE upwell.lineage ADD COLUMN later text;\n"
    )
    queries = directory / "connectors/postgres/queries/capture.sql"
    text, there = queries.read_text(), "FROM upwell.lineage ORDER BY"
    assert there in text
    queries.write_text(text.replace(there, "FROM upwell.lineage WHERE later IS NULL ORDER BY"))
    return directory


def _migrations_of(commit: str) -> dict[str, str]:
    listed = _git("ls-tree", commit, f"{MIGRATIONS}/").decode().splitlines()
    entries = (line.split(maxsplit=3) for line in listed)
    return {Path(path).name: blob for _, _, blob, path in entries if path.endswith(".sql")}


def _unpacked(commit: str, directory: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(_git("archive", "--format=zip", commit))) as archive:
        archive.extractall(directory)
    return directory


def _git(*arguments: str) -> bytes:
    """What git prints; nothing where there is no git, no repository or no such commit."""
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return b""


def _blob(text: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(text) + text, usedforsecurity=False).hexdigest()
