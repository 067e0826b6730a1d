"""`upwell dead-letters` over the real sink: what is read, replayed and waived, and what the audit says of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import make_conninfo

from connectors.postgres.dead_letters import open_letters
from connectors.postgres.explain import explain
from schemas.change import Undecodable, Version
from schemas.envelope import Decoder, RawMessage
from schemas.errors import RegistryUnavailable, UnusableVector
from schemas.spec import CollectionSpec
from schemas.template import text_hash
from streams.cli.root import cli
from streams.remains import deleted_at
from streams.replay import Decoders, Replayed, Replaying
from tests.contracts.sinks import PostgresSink
from tests.contracts.steps import AT, change, claim, embed_all, take_in, undecodable, when
from tests.fixtures.envelope import Made, envelope_message

pytestmark = pytest.mark.parametrize("server", [16, 18], indirect=True)

TOPIC: Final = "shop.shop.content"
SPEC: Final = CollectionSpec(table="shop.content", template="{{ title }}")
SHORT: Final = SPEC.model_copy(update={"max_document_bytes": 10})
Ask = Callable[..., Result]


@dataclass
class Registry:
    """Writer schemas that were made so far; away if told."""

    schemas: Mapping[int, str]
    away: bool = False

    def schema(self, schema_id: int) -> str:
        if self.away or schema_id not in self.schemas:
            raise RegistryUnavailable("no such schema, or nobody there")
        return self.schemas[schema_id]

    def answers(self) -> None:
        if self.away:
            raise RegistryUnavailable("nobody there")


def message(key: int, title: str | None, op: str = "c", **source: Any) -> Made:
    row = None if title is None else {"id": key, "title": title}
    source = {"lsn": 100, "sequence": None, **source}
    return envelope_message(row, op, before={"id": key}, topic=TOPIC, **source)


REGISTRY: Final = Registry(message(1, "a").schemas)


def letter(made: Made, offset: int, *, lineage: int = 1, spec: CollectionSpec = SHORT) -> Undecodable:
    """What intake makes of a message that is too long for it."""
    decoder = Decoder("content", spec, ["id"], lineage, "__hole__")
    for schema_id, schema in made.schemas.items():
        decoder.learn(schema_id, schema)
    found = decoder.decode(RawMessage(AT, offset, made.key, made.value, (("h", b"\xff"), ("n", None))))
    assert isinstance(found, Undecodable), found
    return found


async def bury(sink: PostgresSink, *letters: Undecodable) -> list[int]:
    """Their ids."""
    await take_in(sink.store, letters=letters)
    found = await sink.rows("SELECT id FROM upwell.dead_letter ORDER BY id")
    return [row[0] for row in found[-len(letters) :]]


async def replay(
    sink: PostgresSink, *numbers: int, spec: CollectionSpec = SPEC, lineage: int = 1, registry: Any = REGISTRY
) -> tuple[bool, list[str]]:
    told: list[Replayed] = []
    decoders = Decoders(
        {"content": spec}, {"content": ["id"]}, lineage, registry=registry, placeholder=lambda: "__hole__"
    )
    done = await Replaying(sink.store, decoders).run(numbers, told.append)
    assert done == all(each.done for each in told)
    return done, [each.line for each in told]


async def closed(sink: PostgresSink, number: int) -> tuple[Any, ...]:
    """(how it was closed, whether it holds bytes)."""
    query = (
        "SELECT closed_by, coalesce(key_bytes, value_bytes) IS NOT NULL OR headers IS NOT NULL "
        "FROM upwell.dead_letter WHERE id = %s"
    )
    return (await sink.rows(query, number))[0]


async def audited(sink: PostgresSink) -> list[tuple[Any, ...]]:
    """(action, key, count, topic, detail) of what closed dead letters."""
    return await sink.rows(
        "SELECT action, key, count, topic, detail FROM upwell.audit WHERE detail ? 'dead_letter' ORDER BY at"
    )


# Replay of what could not be taken in


async def test_what_is_mended_is_taken_in_in_its_own_version(postgres: PostgresSink) -> None:
    (number,) = await bury(postgres, letter(message(1, "a very long title"), 7))
    before = await postgres.store.positions([AT.topic])
    done, lines = await replay(postgres, number)
    assert (done, lines) == (True, [f"dead letter {number} (content [1]) replayed: applied"])
    assert await closed(postgres, number) == ("replayed", False)
    row = await postgres.pending("[1]")
    assert row is not None
    assert (row.version, row.lane) == (Version(1, 7), "live")
    assert row.pending_since is not None, "it ages from its commit"
    assert await postgres.store.positions([AT.topic]) == before
    await embed_all(postgres.store)
    assert await postgres.chunks("[1]") == ["a very long title"]
    stored = await postgres.rows("SELECT _lineage, _offset, _partition, _lsn FROM upwell.record_content")
    assert stored == [(1, 7, 0, 100)]
    ((action, key, count, topic, detail),) = await audited(postgres)
    assert (action, key, count, topic) == ("replayed", "[1]", 0, None)
    assert detail | {"by": ""} == {
        "dead_letter": number, "stage": "intake", "topic": AT.topic, "partition": 0, "outcome": "applied", "by": "",
    }  # fmt: skip
    counts = "SELECT action, sum(count)::int FROM upwell.audit WHERE topic IS NOT NULL GROUP BY action"
    assert await postgres.rows(counts) == [("dead_letter", 1)], "the offset has one outcome"
    assert await replay(postgres, number) == (True, [f"dead letter {number} is closed already: replayed"])


async def test_what_is_not_mended_stays_with_its_error_of_now(postgres: PostgresSink) -> None:
    broken = Undecodable(
        **{**_fields(letter(message(1, "a very long title"), 7)), "key": None, "committed_at": None}
    )
    (number,) = await bury(postgres, broken)
    shorter = SHORT.model_copy(update={"max_document_bytes": 5})
    done, (line,) = await replay(postgres, number, spec=shorter)
    assert not done
    assert line == (
        f"dead letter {number} (content) stays: the document has 17 bytes, max_document_bytes is 5"
    )
    found = await postgres.rows(
        "SELECT key, error_class, error, committed_at IS NULL FROM upwell.dead_letter"
    )
    assert found == [("[1]", "DocumentTooLarge", "the document has 17 bytes, max_document_bytes is 5", False)]
    assert await closed(postgres, number) == (None, True)
    assert await postgres.alive() == []
    assert await audited(postgres) == []


def _fields(found: Undecodable) -> dict[str, Any]:
    return {name: getattr(found, name) for name in Undecodable.__dataclass_fields__}


async def test_h12_a_deleted_key_is_not_revived(postgres: PostgresSink) -> None:
    (number,) = await bury(postgres, _without_key(letter(message(1, "a very long title"), 7)))
    await take_in(postgres.store, change(1, 9, None, lsn=300))
    done, (line,) = await replay(postgres, number)
    assert done
    assert line.endswith("superseded: a newer change of the row, or its deletion, was taken in")
    assert await closed(postgres, number) == ("superseded", False)
    assert await postgres.alive() == []
    assert await postgres.pending("[1]") is None


def _without_key(found: Undecodable) -> Undecodable:
    """As one whose key could not be read, so that nothing closed it."""
    return Undecodable(**{**_fields(found), "key": None})


async def test_nothing_newer_is_overwritten_and_a_fence_holds(postgres: PostgresSink) -> None:
    newer, fenced = await bury(
        postgres,
        _without_key(letter(message(1, "a very long title"), 7)),
        _without_key(letter(message(2, "a very long title"), 8)),
    )
    await take_in(postgres.store, change(1, 9, "new", lsn=300))
    await postgres.rows(
        "UPDATE upwell.collection SET fence_lineage = 1, fence_lsn = 200 WHERE name = 'content'"
    )
    done, lines = await replay(postgres, newer, fenced)
    assert done
    assert "superseded: something newer says otherwise: a truncate" in lines[1]
    assert [await closed(postgres, each) for each in (newer, fenced)] == [("superseded", False)] * 2
    assert await postgres.alive() == ["[1]"]
    assert [row[0] for row in await audited(postgres)] == ["superseded"] * 2


async def test_a_delete_and_a_truncate_are_replayed(postgres: PostgresSink) -> None:
    for key in (1, 2, 3):
        await take_in(postgres.store, change(key, key, "text", lsn=100 + key))
    await embed_all(postgres.store)
    deletion, truncate = message(1, None, "d", lsn=150), message(0, None, "t", lsn=103)
    made = [
        Undecodable(
            **{**_fields(undecodable(None, offset)), "key_bytes": each.key, "value_bytes": each.value}
        )
        for each, offset in ((deletion, 7), (Made(None, truncate.value, truncate.schemas), 8))
    ]
    first, second = await bury(postgres, *made)
    done, lines = await replay(postgres, first, second)
    assert done, lines
    assert await postgres.alive() == ["[3]"]
    assert await postgres.chunks("[1]") == await postgres.chunks("[2]") == []
    assert [row[4]["outcome"] for row in await audited(postgres)] == ["deleted", "truncated"]
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        found = explain(connection, "content", ["1"])
    assert [row["action"] for row in found.audit if row["at"] == deleted_at(found)] == ["replayed"]


async def test_older_ones_of_a_key_go_first(postgres: PostgresSink) -> None:
    await bury(postgres, letter(message(1, "the second of them", lsn=200), 9))
    await bury(postgres, letter(message(1, "the first of them"), 7))
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        in_order = open_letters(connection, "content", "DocumentTooLarge")
        assert open_letters(connection, "content", "BadMagicByte") == []
    done, lines = await replay(postgres, *in_order)
    assert done
    assert [line.partition(") ")[2] for line in lines] == ["replayed: applied"] * 2
    await embed_all(postgres.store)
    assert await postgres.chunks("[1]") == ["the second of them"]


async def test_an_ended_lineage_is_not_replayed(postgres: PostgresSink) -> None:
    (number,) = await bury(postgres, letter(message(1, "a very long title"), 7))
    done, (line,) = await replay(postgres, number, lineage=2)
    assert not done
    assert "stays: it is of lineage 1, which has ended; lineage 2 reads every row again" in line
    await postgres.rows("INSERT INTO upwell.lineage (number, topic_prefix) VALUES (1, 'a'), (2, 'b')")
    done, (line,) = await replay(postgres, number, lineage=1)
    assert not done, "begun between the look and the transaction"
    assert "lineage 1, which has ended" in line
    assert await closed(postgres, number) == (None, True)


async def test_every_generation_gets_the_text_of_its_template(postgres: PostgresSink) -> None:
    await postgres.add_generation(2, "{{ title }}!")
    (number,) = await bury(postgres, letter(message(1, "a very long title"), 7))
    assert (await replay(postgres, number))[0]
    for generation in (1, 2):
        row = await postgres.pending("[1]", generation)
        assert row is not None
        assert row.version == Version(1, 7)
    ((hashes,),) = await postgres.rows("SELECT _text_hash FROM upwell.record_content")
    texts = {"{{ title }}": "a very long title", "{{ title }}!": "a very long title!"}
    assert hashes == b"".join(sorted(text_hash(text, template) for template, text in texts.items()))


async def test_a_value_that_was_not_sent_is_the_stored_one(postgres: PostgresSink) -> None:
    await take_in(postgres.store, change(1, 5, "as it was stored", lsn=50))
    made = message(1, "__hole__", "u")
    spoilt = Undecodable(
        **{
            **_fields(undecodable(1, 7)),
            "key_bytes": made.key,
            "value_bytes": made.value,
            "committed_at": None,
        }
    )
    (number,) = await bury(postgres, spoilt)
    done, (line,) = await replay(postgres, number)
    assert done, line
    assert await postgres.rows("SELECT _row ->> 'title', _offset FROM upwell.record_content") == [
        ("as it was stored", 7)
    ]


async def test_workers_are_woken(postgres: PostgresSink) -> None:
    (number,) = await bury(postgres, letter(message(1, "a very long title"), 7))
    async with await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as listener:
        await listener.execute("LISTEN upwell_pending")
        assert (await replay(postgres, number))[0]
        (claimed,) = await claim(postgres.store)
        await postgres.store.fail(claimed, UnusableVector("NaN"), None)
        ((again,),) = await postgres.rows("SELECT id FROM upwell.dead_letter WHERE stage = 'embed'")
        assert (await replay(postgres, again))[0]
        told = [each.payload async for each in listener.notifies(timeout=20, stop_after=2)]
    assert told == ["content", "content"]


async def test_a_row_that_the_sink_refuses_stays_and_its_values_are_not_told(postgres: PostgresSink) -> None:
    columns = {"id": "long", "title": "string", "price": ["null", "string"]}
    made = envelope_message(
        {"id": 1, "title": "a very long title", "price": "secret 12"},
        topic=TOPIC,
        columns=columns,
        value_schema_id=9,
    )
    (number,) = await bury(postgres, letter(made, 7))
    registry = Registry({**REGISTRY.schemas, **made.schemas})
    done, (line,) = await replay(postgres, number, registry=registry)
    assert not done
    found = await postgres.rows("SELECT error_class, error FROM upwell.dead_letter")
    assert found == [("RecordRejected", 'sink database: invalid input syntax for type numeric: "..."')]
    assert "secret 12" not in line
    assert await postgres.alive() == []


async def test_a_registry_that_is_away_is_not_a_schema_that_is_missing(postgres: PostgresSink) -> None:
    (number,) = await bury(postgres, letter(message(1, "a very long title"), 7))
    with pytest.raises(RegistryUnavailable):
        await replay(postgres, number, registry=Registry({}, away=True))
    done, (line,) = await replay(postgres, number, registry=Registry({}))
    assert not done
    assert "stays: the registry does not give schema id" in line


# Beside workers


async def test_what_a_worker_takes_in_meanwhile_wins(postgres: PostgresSink) -> None:
    (number,) = await bury(postgres, letter(message(1, "a very long title"), 7))
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as other:
        await other.execute(
            "INSERT INTO upwell.record_content "
            "(_key, _text_hash, _lineage, _offset, _deleted, _streamed, _taken_in_at) "
            "VALUES ('[1]', '', 1, 9, true, true, now())"
        )
        replaying = asyncio.create_task(replay(postgres, number))
        await postgres.waits(replaying)
        await other.execute("UPDATE upwell.dead_letter SET closed_at = now(), closed_by = 'superseded'")
        await other.commit()
        done, (line,) = await replaying
    assert done
    assert line == f"dead letter {number} is closed already: superseded"
    assert await postgres.alive() == []


async def test_whoever_closes_the_letter_first_has_won(postgres: PostgresSink) -> None:
    (number,) = await bury(postgres, letter(message(1, "a very long title"), 7))
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as other:
        await other.execute("UPDATE upwell.dead_letter SET closed_at = now(), closed_by = 'waived'")
        replaying = asyncio.create_task(replay(postgres, number))
        await postgres.waits(replaying)
        await other.commit()
        _, (line,) = await replaying
    assert line == f"dead letter {number} is closed already: waived"
    assert await postgres.alive() == [], "nothing of it was written"
    assert await audited(postgres) == []


# Replay of what could not be embedded


async def _unembedded(sink: PostgresSink) -> int:
    await take_in(sink.store, change(1, 7, "a very long title", since=when(9)))
    (claimed,) = await claim(sink.store)
    await sink.store.fail(claimed, UnusableVector("NaN"), None)
    return int((await sink.rows("SELECT id FROM upwell.dead_letter"))[0][0])


async def test_a_text_is_embedded_again(postgres: PostgresSink) -> None:
    number = await _unembedded(postgres)
    await take_in(postgres.store, change(1, 8, "a very long title", embed="keep", since=when(10)))
    assert await postgres.dead_letters() == [("embed", "[1]")]
    done, (line,) = await replay(postgres, number)
    assert done
    assert line.endswith("replayed: it is to be embedded in generation 1")
    row = await postgres.pending("[1]")
    assert row is not None
    assert (row.version, row.lane, row.pending_since, row.attempts) == (Version(1, 8), "live", when(9), 0)
    await embed_all(postgres.store)
    assert await postgres.chunks("[1]") == ["a very long title"]
    assert await closed(postgres, number) == ("replayed", False)


@pytest.mark.parametrize("gone", ["row", "generation"])
async def test_a_text_that_nobody_wants_any_more(postgres: PostgresSink, gone: str) -> None:
    number = await _unembedded(postgres)
    if gone == "row":
        await postgres.rows("DELETE FROM upwell.record_content")
    else:
        await postgres.rows("UPDATE upwell.generation SET state = 'dropped' WHERE collection = 'content'")
    done, (line,) = await replay(postgres, number)
    assert done
    assert line.endswith("superseded: its row or its generation is gone")
    assert await postgres.pending("[1]") is None


async def test_a_generation_that_is_dropped_while_its_text_is_looked_for(postgres: PostgresSink) -> None:
    number = await _unembedded(postgres)
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as other:
        await other.execute(
            "SELECT pg_advisory_xact_lock(hashtext('upwell.collection'), hashtext('content'))"
        )
        await other.execute("UPDATE upwell.generation SET state = 'dropped' WHERE collection = 'content'")
        replaying = asyncio.create_task(replay(postgres, number))
        await postgres.waits(replaying)
        await other.commit()
        _, (line,) = await replaying
    assert line.endswith("superseded: its row or its generation is gone")
    assert await postgres.pending("[1]") is None


async def test_a_row_that_is_deleted_while_its_text_is_looked_for(postgres: PostgresSink) -> None:
    number = await _unembedded(postgres)
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as other:
        await other.execute("UPDATE upwell.record_content SET _deleted = true")
        replaying = asyncio.create_task(replay(postgres, number))
        await postgres.waits(replaying)
        await other.commit()
        _, (line,) = await replaying
    assert line.endswith("superseded: its row or its generation is gone")
    assert await postgres.pending("[1]") is None


async def test_an_error_of_the_model_is_not_kept_with_the_text_in_it(postgres: PostgresSink) -> None:
    await take_in(postgres.store, change(1, 7, "a secret", since=when(9)))
    (claimed,) = await claim(postgres.store)
    await postgres.store.fail(claimed, RuntimeError("cannot tokenize 'a secret'"), None)
    found = await postgres.rows("SELECT error_class, error FROM upwell.dead_letter")
    assert found == [("RuntimeError", "the model failed on the text")]


# The commands


@pytest.fixture
def ask(postgres: PostgresSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """The command line over this sink, with the rights of a worker."""
    spec = tmp_path / "upwell.toml"
    spec.write_text('[collections.content]\ntable = "shop.content"\ntemplate = "{{ title }}"\n')
    monkeypatch.setenv("UPWELL_SINK_DSN", make_conninfo(postgres.dsn, options="-c role=upwell_worker"))
    monkeypatch.setattr("streams.dead_letters.placeholder", lambda connection, name: "__hole__")
    monkeypatch.setattr("streams.dead_letters.connect_source", lambda dsn: psycopg.connect(postgres.dsn))
    monkeypatch.setattr("streams.neighbours.blocking_registry", lambda settings: REGISTRY)
    monkeypatch.setattr("streams.dead_letters.matching", lambda settings, name, fed: fed[0])

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, ["--spec", str(spec), "dead-letters", *words])

    return run


async def ran(ask: Ask, *words: str) -> Result:
    """In a thread of its own: the command has its own event loop."""
    return await asyncio.to_thread(ask, *words)


async def test_list_shows_neither_texts_nor_bytes(postgres: PostgresSink, ask: Ask) -> None:
    first, second = await bury(postgres, letter(message(1, "a secret title"), 7), undecodable(None, 8))
    done = await ran(ask, "list", "content", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["total"] == 2
    assert [(each["id"], each["key"], each["offset"]) for each in answer["dead_letters"]] == [
        (first, "[1]", 7),
        (second, None, 8),
    ]
    assert answer["dead_letters"][0]["age_seconds"] >= 0
    printed = await ran(ask, "list", "--limit", "1")
    for words in (
        f"{AT.topic}/0@7",
        "DocumentTooLarge",
        "1 more: --limit 2 shows them",
        "next: upwell dead-letters",
    ):
        assert words in printed.stdout
    assert "secret" not in printed.stdout + done.stdout
    assert (await ran(ask, "list", "customers")).stdout == "no open dead letters\n"
    unknown = await ran(ask, "list", "nothing")
    assert (unknown.exit_code, unknown.stderr) == (2, "upwell: the sink has no collection 'nothing'\n")


async def test_show_has_texts_and_bytes_behind_their_flags(postgres: PostgresSink, ask: Ask) -> None:
    made = message(1, "a secret\x1b[31m title")
    (number,) = await bury(postgres, letter(made, 7))
    plain = await ran(ask, "show", str(number), "--json")
    assert plain.exit_code == 0, plain.output
    assert "secret" not in plain.stdout
    assert made.value is not None
    assert json.loads(plain.stdout)["holds"]["value_bytes"] == len(made.value)
    assert made.value.hex() not in plain.stdout
    text = json.loads((await ran(ask, "show", str(number), "--text", "--json")).stdout)
    assert text["contents"]["text"] == "a secret\x1b[31m title"
    assert text["contents"]["row"]["title"] == "a secret\x1b[31m title"
    assert "value_bytes" not in text
    whole = await ran(ask, "show", str(number), "--bytes")
    assert made.value.hex() in whole.stdout.replace("\n", "")
    assert "text: a secret\N{REPLACEMENT CHARACTER}[31m title" in whole.stdout
    assert "\x1b" not in whole.stdout
    assert (await ran(ask, "show", str(number + 1))).exit_code == 2


async def test_the_rights_of_a_worker_are_enough_for_all_of_it(postgres: PostgresSink, ask: Ask) -> None:
    first, second, third = await bury(
        postgres,
        letter(message(1, "long title of one"), 7),
        letter(message(2, "long title of two"), 8),
        undecodable(3, 9),
    )
    done = await ran(ask, "replay", str(first), str(third))
    assert done.exit_code == 1, done.output
    assert done.stdout == f"dead letter {first} (content [1]) replayed: applied\n"
    assert done.stderr.startswith(
        f"upwell: dead letter {third} (content [3]) stays: the message does not begin"
    )
    assert done.stderr.count("\n") == 1
    done = await ran(ask, "replay", "--collection", "content", "--error-class", "DocumentTooLarge")
    assert (done.exit_code, done.stdout) == (0, f"dead letter {second} (content [2]) replayed: applied\n")
    done = await ran(ask, "waive", str(third), "--reason", "the row is a test's")
    assert done.exit_code == 0, done.output
    assert "until its next change at the source" in done.stdout
    assert (await ran(ask, "replay", "--all")).stdout == "no open dead letters\n"


@pytest.mark.parametrize("words", [("replay", "--all"), ("waive", "1", "--reason", "tested")])
async def test_a_newer_schema_is_left_alone(postgres: PostgresSink, ask: Ask, words: tuple[str, ...]) -> None:
    await bury(postgres, undecodable(1, 7))
    await postgres.rows("INSERT INTO upwell.migration (number, name) VALUES (9999, 'later')")
    assert (await ran(ask, *words)).exit_code == 2
    assert await postgres.dead_letters() == [("intake", "[1]")]


@pytest.mark.parametrize(
    "words",
    [
        "replay",
        "replay 1 --all",
        "replay 1 --collection content",
        "replay 1 --error-class X",
        "waive --reason x",
    ],
)
async def test_what_is_meant_must_be_said(postgres: PostgresSink, ask: Ask, words: str) -> None:
    assert (await ran(ask, *words.split())).exit_code == 2


async def test_a_waiver_needs_a_reason_and_is_audited(postgres: PostgresSink, ask: Ask) -> None:
    await take_in(postgres.store, change(1, 5, "old"))
    (number,) = await bury(postgres, letter(message(1, "a very long title"), 7))
    for words in ([], ["--reason", " "]):
        done = await ran(ask, "waive", str(number), *words)
        assert (done.exit_code, done.stderr) == (
            2,
            "upwell: say why with --reason TEXT: the audit keeps it\n",
        )
    done = await ran(ask, "waive", str(number), "77", "--reason", "no")
    assert done.exit_code == 2
    assert "there is no dead letter 77" in done.stderr
    assert await closed(postgres, number) == (None, True)
    assert (await ran(ask, "waive", str(number), "--reason", "a test's row")).exit_code == 0
    assert await closed(postgres, number) == ("waived", False)
    ((action, key, count, topic, detail),) = await audited(postgres)
    assert (action, key, count, topic, detail["reason"]) == ("waived", "[1]", 0, None, "a test's row")
    user = await postgres.rows("SELECT session_user::text")
    assert (detail["by"],) == user[0]
    again = await ran(ask, "waive", str(number), "--reason", "twice")
    assert (again.exit_code, again.stdout) == (0, f"dead letter {number} is closed already: waived\n")
    assert len(await audited(postgres)) == 1
    assert await postgres.alive() == ["[1]"]
