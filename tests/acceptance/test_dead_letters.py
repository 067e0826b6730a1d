"""What cannot be taken in, on the whole line: looked at, mended and replayed, not revived, waived."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.acceptance.plain import FAKE, one
from tests.acceptance.test_workers import AUDITED
from tests.deployment import Deployment, until

pytestmark = [pytest.mark.acceptance, pytest.mark.long]

TABLE: Final = """
CREATE SCHEMA shop;
CREATE TABLE shop.content (id bigint PRIMARY KEY, title text, extra jsonb);
ALTER TABLE shop.content REPLICA IDENTITY FULL;
"""
SPEC: Final = """
name = "{name}"

[collections.content]
table = "shop.content"
template = "{{{{ title }}}} in {{{{ extra.colour }}}}"
max_document_bytes = 60
"""
LONG: Final = "a title of more than sixty bytes, which is more than this collection takes, of row {}"


@pytest.fixture
def limited(deployment: Deployment) -> Deployment:
    """A table of which documents may have 60 bytes, captured; the fake model."""
    spec = deployment.directory / "upwell.toml"
    spec.write_text(SPEC.format(name=deployment.name))
    with deployment.source() as source:
        source.execute(TABLE)
    deployment.cli = "tests.fake_cli"
    deployment.upwell("migrate")
    deployment.upwell("connector", "apply", seconds=180)
    return deployment


def insert(deployment: Deployment, key: int, title: str, extra: str = '{"colour": "red"}') -> None:
    with deployment.source() as source:
        source.execute("INSERT INTO shop.content VALUES (%s, %s, %s)", (key, title, extra))


def delete(deployment: Deployment, key: int) -> None:
    with deployment.source() as source:
        source.execute("DELETE FROM shop.content WHERE id = %s", (key,))


def letters(deployment: Deployment) -> dict[str, dict[str, Any]]:
    """Open ones by key."""
    found = json.loads(deployment.upwell("dead-letters", "list", "content", "--json").stdout)
    return {each["key"]: each for each in found["dead_letters"]}


def asked(deployment: Deployment, *words: str) -> tuple[int, str, str]:
    done = deployment.upwell("dead-letters", *words, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def searchable(deployment: Deployment) -> list[int]:
    with deployment.sink() as sink:
        return [
            row[0] for row in sink.execute("SELECT DISTINCT id FROM upwell.content ORDER BY 1").fetchall()
        ]


def taken_in(deployment: Deployment, records: int) -> bool:
    with deployment.sink() as sink:
        return int(one(sink, "SELECT coalesce(sum(next_offset), 0) FROM upwell.position")) >= records


def each_offset_has_one_outcome(deployment: Deployment) -> None:
    with deployment.sink() as sink:
        for topic, partition, next_offset, audited in sink.execute(AUDITED).fetchall():
            assert next_offset == audited, f"{topic}/{partition}"


def test_dead_letters_are_mended_replayed_and_waived(limited: Deployment) -> None:
    worker = limited.start_worker(**FAKE)  # type: ignore[arg-type]
    insert(limited, 1, "a lantern")
    insert(limited, 2, "a kettle", "{}")
    for key in (3, 4, 5):
        insert(limited, key, LONG.format(key))
    until(lambda: taken_in(limited, 5) and searchable(limited) == [1], 90, "the row that is fine")
    found = letters(limited)
    assert sorted(found) == ["[2]", "[3]", "[4]", "[5]"]
    assert "upwell dead-letters list content" in limited.upwell("status", check=False).stdout.replace(
        "\n", " "
    )

    # Not mended: it stays.
    numbers = {key: str(each["id"]) for key, each in found.items()}
    code, told, failed = asked(limited, "replay", numbers["[2]"], numbers["[3]"])
    assert (code, told) == (1, "")
    assert "extra" in failed
    assert "max_document_bytes is 60" in failed
    shown = json.loads(asked(limited, "show", numbers["[3]"], "--text", "--json")[1])
    assert shown["contents"]["row"]["title"] == LONG.format(3)

    # The setting is mended while no worker runs, and row 4 is deleted meanwhile.
    assert worker.stop() == 0, worker.tail()
    spec = Path(limited.directory / "upwell.toml")
    old = spec.read_text()
    spec.write_text(old.replace("max_document_bytes = 60", "max_document_bytes = 600"))
    delete(limited, 4)
    code, told, failed = asked(limited, "replay", numbers["[4]"])
    assert (code, failed) == (0, "")
    assert "replayed: applied" in told

    # A worker that still has the old limit cannot embed what was replayed; one with the new limit can.
    (limited.directory / "old.toml").write_text(old)
    worker = limited.start_worker(**FAKE, UPWELL_SPEC="old.toml")  # type: ignore[arg-type]
    assert asked(limited, "replay", numbers["[3]"])[0] == 0
    with limited.sink() as sink:
        buried = "SELECT count(*) FROM upwell.dead_letter WHERE stage = 'embed' AND key = '[3]'"
        until(lambda: one(sink, buried) == 1, 60, "it is too long for that worker")
    assert worker.stop() == 0, worker.tail()
    worker = limited.start_worker(**FAKE)  # type: ignore[arg-type]
    assert asked(limited, "replay", str(letters(limited)["[3]"]["id"]))[0] == 0
    until(lambda: searchable(limited) == [1, 3], 60, "row 3; row 4 is deleted")

    # In the version that it had, and a deleted row is not revived by a letter that nothing closed.
    with limited.sink() as sink:
        assert (
            one(sink, "SELECT _offset FROM upwell.record_content WHERE _key = '[3]'")
            == found["[3]"]["offset"]
        )
        sink.execute("UPDATE upwell.dead_letter SET key = NULL WHERE key = '[5]'")
        delete(limited, 5)
        marker = "SELECT count(*) FROM upwell.record_content WHERE _key = '[5]' AND _deleted"
        until(lambda: one(sink, marker) == 1, 60, "the deletion")
    code, told, _ = asked(limited, "replay", numbers["[5]"])
    assert code == 0
    assert "superseded: a newer change of the row, or its deletion" in told

    assert asked(limited, "waive", numbers["[2]"])[0] == 2
    assert asked(limited, "waive", numbers["[2]"], "--reason", "has no colour")[0] == 0
    assert asked(limited, "list") == (0, "no open dead letters\n", "")
    until(lambda: taken_in(limited, 9), 60, "two deletions with their tombstones")
    assert searchable(limited) == [1, 3]
    each_offset_has_one_outcome(limited)
    assert worker.stop() == 0, worker.tail()
