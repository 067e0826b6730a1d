"""`upwell reconcile` on the whole line: silent beside live traffic, exact about damage, and it mends what it finds."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.acceptance.plain import FAKE, ROWS, all_searchable, fake_encode, one
from tests.deployment import SPEC, Deployment, Stack, until
from tests.oracle import compare

pytestmark = [pytest.mark.acceptance, pytest.mark.long]

MORE: Final = """
[collections.notes]
table = "shop.notes"
template = "{{{{ body }}}}"
metadata = ["stars"]
chunk = {{ max_tokens = 126 }}

[collections.typed]
table = "shop.typed"
template = "{{{{ b1 }}}} {{{{ mo }}}} {{{{ iv }}}} {{{{ js }}}} {{{{ hidden }}}}"
metadata = ["si", "ii", "bi", "n", "np", "r", "d", "bo", "t", "vc", "c5", "u", "da", "ti", "tz", "ts", "tt", "by",
            "b8", "ne", "mc", "m", "jb", "ta", "na", "ma", "za", "ia", "m3"]
chunk = {{ max_tokens = 126 }}
"""
TABLES: Final = """
CREATE SCHEMA shop;
CREATE TABLE shop.content (id bigint PRIMARY KEY, title text, body text, tags text[], locale text, published boolean,
                           price numeric(10,2), updated_at timestamptz);
CREATE TABLE shop.customers (id bigint PRIMARY KEY, full_name text, email text, segment text, interests text[],
                             notes text, marketing_consent boolean, updated_at timestamptz);
CREATE TABLE shop.notes (tenant text, slug text, body text, stars int, PRIMARY KEY (tenant, slug));
CREATE TYPE shop.mood AS ENUM ('good', 'so so');
CREATE DOMAIN shop.cents AS bigint;
CREATE TABLE shop.typed (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), si smallint, ii integer, bi bigint, n numeric, np numeric(12,3),
    r real, d double precision, bo boolean, t text, vc varchar(20), c5 char(5), u uuid, da date, ti time, tz timetz,
    ts timestamp, tt timestamptz, by bytea, b1 bit, b8 bit(8), ne inet, mc macaddr, m shop.mood, mo money, iv interval,
    js json, jb jsonb, ta text[], na numeric[], ma shop.mood[], za timestamptz[], ia int[], m3 shop.cents,
    hidden point);
ALTER TABLE shop.content REPLICA IDENTITY FULL;
ALTER TABLE shop.customers REPLICA IDENTITY FULL;
ALTER TABLE shop.notes REPLICA IDENTITY FULL;
ALTER TABLE shop.typed REPLICA IDENTITY FULL;
INSERT INTO shop.notes VALUES ('it''s', 'a "quoted" \\ one', 'first note', 1), ('ä,b', '🦊', 'second note', 2),
                              ('a,b', 'c', 'third note', 3), ('a', 'b,c', '', 4), ('', '[1]', 'fifth note', 5);
"""
#: Columns of one row each, the others NULL; and one with all.
TYPED: Final = """
INSERT INTO shop.typed (si) VALUES (NULL);
INSERT INTO shop.typed (si, ii, bi, n, np, r, d, bo, t, vc, c5, u, da, ti, tz, ts, tt, by, b1, b8, ne, mc, m, mo, iv,
                        js, jb, ta, na, ma, za, ia, m3, hidden)
VALUES (-1, 2147483647, -9223372036854775808, 12345678901234567890.1230, 1.5, 0.1, 0.1, true, E'a\\nb "c" \\\\ 🦊', 'x',
        'ab', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2024-02-29', '23:59:59.123456', '10:00:00.5+02',
        '2024-02-29 01:02:03.1', '2024-02-29 01:02:03.10+05:30', '\\x00ff', B'1', B'00000101', '10.0.0.1/8',
        '08:00:2b:01:02:03', 'so so', 12.50, '1 year 2 mons 3 days 04:05:06.000007',
        '{"b": 1.10, "a": "\\u00e9 \\ud83e\\udd8a"}',
        '{"long": 1234567890.12345678901234567890, "i": 123456789012345678901234567890, "s": "1.50",
          "z": [1.0, 0.10, -0.0, 1e30, 5e-9]}',
        ARRAY['a', NULL, '', 'b,c "d"'], ARRAY[1.50, 2]::numeric[], ARRAY['good', 'so so']::shop.mood[],
        ARRAY['2024-02-29 01:02:03+05', NULL]::timestamptz[], '{1,NULL,3}', 5, '(1,2)');
INSERT INTO shop.typed (r, d, da, ti, tz, ts, tt, iv, n, np) VALUES
       ('NaN', 'Infinity', '-infinity', '24:00:00', '24:00:00+00', 'infinity', 'infinity', '-1 mons', 0.000, 0),
       ('-0', '-0', 'infinity', '00:00', '00:00:00-12', '0044-03-15 01:00:00 BC', '0044-03-15 01:00:00+00 BC', '0',
        1e20, 1),
       ('-Infinity', 1e-320, '12024-01-01', '00:00:00.000001', NULL, '-infinity', '-infinity', '0.000001', 1e-20, -1),
       (1e-30, 123456789012345678, NULL, NULL, NULL, '12024-01-01 00:00:00.000001', '12024-01-01 00:00:00.000001+00',
        '-1 days +00:00:00.1', 100, 100);
"""


@pytest.fixture(scope="module")
def line(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Loaded with 300 rows of content, a few of each other table; a worker with the fake model."""
    with Deployment.create(stack, tmp_path_factory.mktemp("reconcile"), SPEC + MORE) as deployment:
        deployment.cli = "tests.fake_cli"
        with deployment.source() as source:
            source.execute(TABLES.encode())
            source.execute(TYPED.encode())
            source.execute(ROWS, (1, 300))
        deployment.upwell("migrate")
        deployment.upwell("connector", "apply", seconds=180)
        assert refused(deployment) == (2, "content is not loaded yet (loading)")
        deployment.start_worker(**FAKE)  # type: ignore[arg-type]
        deployment.upwell("connector", "apply", "--wait", "120", seconds=180)
        yield deployment


def refused(deployment: Deployment) -> tuple[int, str]:
    done = deployment.upwell("reconcile", "content", check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip().removeprefix("upwell: ").split(":")[0]


def answer(deployment: Deployment, collection: str, *words: str) -> tuple[int, dict[str, Any]]:
    done = deployment.upwell(
        "reconcile", collection, "--json", "--wait", "100", *words, check=False, seconds=240
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, dict(json.loads(done.stdout))


KINDS: Final = ("missing", "extra", "stale", "missing_vector", "extra_vector", "wrong_vector")


def wrong(found: dict[str, Any]) -> dict[str, list[str]]:
    """Keys by kind, of kinds that have any."""
    return {kind: [each["key"] for each in found[kind]["keys"]] for kind in KINDS if found[kind]["count"]}


def test_every_type_prints_the_same_on_both_sides(line: Deployment) -> None:
    with line.source() as source:  # and as streaming sends them; a snapshot loses the era of a date
        source.execute("UPDATE shop.typed SET t = 'streamed'")
        source.execute("INSERT INTO shop.typed (da, ts) VALUES ('0044-03-15 BC', '0044-03-15 01:00 BC')")
    code, found = answer(line, "typed", "--sample", "0")
    assert (code, wrong(found)) == (0, {})
    assert found["rows"]["source"] == 7
    assert found["in_flight"]["count"] == 0
    assert list(found["not_compared"]) == ["hidden"]


class Traffic:
    """Inserts, updates of a few hot rows, deletions and key changes, all the time."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment, self._stop, self.rounds = deployment, threading.Event(), 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with self._deployment.source() as source:
            while not self._stop.is_set():
                self.rounds += 1
                new = 1000 + self.rounds
                source.execute(ROWS, (new, new))
                source.execute("UPDATE shop.content SET title = title || '.' WHERE id IN (1, %s)", (new - 3,))
                source.execute("DELETE FROM shop.content WHERE id = %s", (new - 5,))
                source.execute("UPDATE shop.content SET id = -id WHERE id = %s", (new - 7,))
                self._stop.wait(0.2)


def test_live_traffic_is_no_difference_and_damage_is_found_and_mended(line: Deployment) -> None:
    with Traffic(line) as traffic:
        until(lambda: traffic.rounds > 5, 30, "traffic flows")
        code, found = answer(line, "content")
        assert (code, wrong(found)) == (0, {})
        assert found["sampled"] == 100
        damaged = damage(line)
        code, found = answer(line, "content", "--sample", "10000", "--repair")
        assert (code, wrong(found)) == (0, damaged), found
        assert found["repaired"] == {**{kind: len(damaged[kind]) for kind in KINDS}, "left": {}}
    until(lambda: all_searchable(line), 60, "all searchable")
    until(
        lambda: not compare(line.source_dsn, line.sink_dsn, "content", fake_encode), 30, "the oracle agrees"
    )
    with line.sink() as sink:
        assert one(sink, "SELECT count(*) FROM upwell.audit WHERE action = 'reconciled'") == 1
        assert one(sink, "SELECT count(*) FROM upwell.repair") == 0


def damage(deployment: Deployment) -> dict[str, list[str]]:
    """One of each kind, all of rows that the traffic leaves alone; the keys by kind."""
    record, vectors = "upwell.record_content", "upwell.embedding_content_g1"
    chunk = "chunk_no, chunk_hash, chunk_text, embedding, embedded_at"
    with deployment.sink() as sink:
        for statement in (
            f"CREATE TEMP TABLE ghost AS SELECT * FROM {record} WHERE id = 103",
            "UPDATE ghost SET _key = '[99999]', id = 99999, _row = _row || '{\"id\": 99999}'",
            f"INSERT INTO {record} SELECT * FROM ghost",
            f"INSERT INTO {vectors} SELECT '[99999]', {chunk} FROM {vectors} WHERE key = '[103]'",
            f"DELETE FROM {record} WHERE id = 101",
            f"UPDATE {record} SET _deleted = true, _row = NULL WHERE id = 102",
            f"DELETE FROM {vectors} WHERE key IN ('[101]', '[102]', '[105]')",
            f'UPDATE {record} SET _row = _row || \'{{"price": "7.00"}}\', price = 7 WHERE id = 104',
            f"INSERT INTO {vectors} SELECT '[88888]', {chunk} FROM {vectors} WHERE key = '[106]'",
            f"UPDATE {vectors} e SET embedding = o.embedding FROM {vectors} o "
            "WHERE e.key = '[107]' AND o.key = '[108]'",
        ):
            sink.execute(statement.encode())
    return {
        "missing": ["[101]", "[102]"],
        "extra": ["[99999]"],
        "stale": ["[104]"],
        "missing_vector": ["[105]"],
        "extra_vector": ["[88888]"],
        "wrong_vector": ["[107]"],
    }


def test_keys_of_any_characters_are_read_again(line: Deployment) -> None:
    with line.sink() as sink:
        sink.execute("DELETE FROM upwell.embedding_notes_g1; DELETE FROM upwell.record_notes")
    done = line.upwell("reconcile", "notes", "--repair", "--sample", "0")
    assert "5 missing in the sink" in done.stdout
    assert "nothing is wrong any more" in done.stdout
    with line.source() as source, line.sink() as sink:
        rows = "SELECT tenant, slug, body FROM shop.notes WHERE body <> '' ORDER BY body"
        there = "SELECT tenant, slug, chunk_text FROM upwell.notes ORDER BY chunk_text"
        wanted = source.execute(rows).fetchall()
        until(lambda: sink.execute(there.encode()).fetchall() == wanted, 30, "all notes searchable")


def test_without_a_worker_nothing_is_certain(line: Deployment) -> None:
    """Last: the worker does not come back."""
    line.workers[0].stop()
    with line.source() as source:
        source.execute("UPDATE shop.content SET title = 'later' WHERE id = 200")
    done = line.upwell("reconcile", "content", "--sample", "0", "--wait", "5", check=False)
    assert done.returncode == 3
    assert "nothing is certain: 1 changes wait for a worker to take them in" in done.stderr.splitlines()[-1]
    with line.sink() as sink:
        sink.execute("UPDATE upwell.worker SET seen_at = now() - interval '1 minute'")
    done = line.upwell("reconcile", "content", "--repair", check=False)
    assert (done.returncode, done.stderr.strip()) == (
        3,
        "upwell: no worker runs, so nothing would be taken in again: start `upwell worker`",
    )
