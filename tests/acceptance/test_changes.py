"""Every kind of change that Postgres and Debezium can make, on the whole line: the sink then says what the source says.

One deployment with tables of its own for all of it. Each test makes its changes and then compares source and sink once;
what is in one collection never holds up another.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

import psycopg
import pytest
import requests
from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as ClientPartition

from connectors.kafka import Kafka
from tests.acceptance.plain import fake_encode, one
from tests.acceptance.test_workers import AUDITED
from tests.deployment import Deployment, Stack, until
from tests.oracle import Compared, Difference, Row, TextOf, compare_table

pytestmark = [pytest.mark.acceptance, pytest.mark.long]

#: Column, type, and values that differ from what one thinks of.
TYPES: Final = (
    ("small", "smallint", ["-32768"]),
    ("whole", "integer", ["2147483647"]),
    ("big", "bigint", ["-9223372036854775808"]),
    ("price", "numeric(10,2)", ["12345678.90", "0", "-0.01"]),
    ("free", "numeric", ["123456789012345678901234567890.12345678901234567890", "1e-7"]),
    ("cash", "money", ["1234567.89", "-5.5"]),
    ("single", "real", ["0.1", "NaN", "1e-30", "16777216"]),
    ("double", "double precision", ["1e300", "-Infinity", "-0", "123456789012345.678"]),
    ("flag", "boolean", ["true", "false"]),
    ("day", "date", ["2024-02-29", "0044-03-15 BC", "-infinity", "infinity"]),
    ("at_time", "time", ["23:59:59.999999", "24:00"]),
    ("at_timetz", "timetz", ["12:00:00.5+00"]),
    ("stamp", "timestamp", ["2024-02-29 12:00:00.5", "infinity", "0044-03-15 BC 01:02:03.4"]),
    (
        "stamptz",
        "timestamptz",
        ["2024-02-29 12:00:00.123456+02", "infinity", "-infinity", "20000-01-01 00:00:00+00"],
    ),
    ("span", "interval", ["1 year 2 mons 3 days 04:05:06.789", "-1 year +2 days -00:00:00.000001", "0"]),
    ("uid", "uuid", ["00112233-4455-6677-8899-aabbccddeeff"]),
    ("mood", "shop.mood", ["très bien"]),
    ("moods", "shop.mood[]", ['{ok,"très bien"}', "{}"]),
    ("mail", "shop.mail", ["a@b"]),
    ("positive", "shop.positive", ["1.5"]),
    ("words", "text[]", ['{a,NULL,"b, c",""}', "{}"]),
    ("numbers", "integer[]", ["{1,NULL,-3}"]),
    ("prices", "numeric(8,2)[]", ["{1.50,NULL}"]),
    ("days", "date[]", ["{2024-02-29,NULL}"]),
    ("stamps", "timestamptz[]", ['{"2024-02-29 12:00:00+02",NULL}']),
    ("flags", "boolean[]", ["{t,NULL,f}"]),
    ("uids", "uuid[]", ["{00112233-4455-6677-8899-aabbccddeeff,NULL}"]),
    ("doc", "json", ['{"b": 1.5, "a": [null, "x"]}']),
    ("docb", "jsonb", ['{"b": 1.5, "a": [null, "x", {"y": 1e2}]}', '"text"', "[]"]),
    ("docs", "jsonb[]", ['{"{\\"a\\": 1}",NULL}']),
    ("raw", "bytea", ["\\x00ff10", ""]),
    ("code", "char(5)", ["ab", ""]),
    ("name", "varchar(20)", ["Zoë"]),
    ("bits", "bit(5)", ["10110", "00000"]),
    ("ip", "inet", ["192.168.0.1/24", "::1"]),
    ("net", "cidr", ["10.0.0.0/8"]),
    ("mac", "macaddr", ["08:00:2b:01:02:03"]),
    ("span_of", "int4range", ["[1,5)", "empty"]),
    ("point_at", "point", ["(1.5,2)"]),
)
COLUMNS: Final = tuple(name for name, _, _ in TYPES)
#: Debezium sends an interval as ISO 8601 has it; Postgres prints it otherwise.
PRINTED: Final = tuple(name for name in COLUMNS if name != "span")
NUMERALS: Final = str.maketrans("", "", "$,")

TABLES: Final = f"""
CREATE SCHEMA shop;
CREATE TYPE shop.mood AS ENUM ('ok', 'très bien');
CREATE DOMAIN shop.mail AS text CHECK (VALUE ~ '@');
CREATE DOMAIN shop.positive AS numeric(12,3) CHECK (VALUE > 0);
CREATE TABLE shop.every (id bigint PRIMARY KEY, {", ".join(f"{name} {kind}" for name, kind, _ in TYPES)},
                         total numeric GENERATED ALWAYS AS (price * 2) STORED);
CREATE TABLE shop.page (site text, path text, title text, body text, rank int, PRIMARY KEY (site, path));
CREATE TABLE shop.number (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, body text, seen int DEFAULT 0);
CREATE TABLE shop.item (id int PRIMARY KEY, code uuid, price numeric(8,2), sold date, note text);
CREATE TABLE shop.long (id int PRIMARY KEY, title text, body text, tags text[], doc jsonb);
CREATE TABLE shop.large (id int PRIMARY KEY, body text);
CREATE TABLE shop.moving (id int PRIMARY KEY, title text, body text, price int, spare text);
ALTER TABLE shop.every REPLICA IDENTITY FULL;
ALTER TABLE shop.page REPLICA IDENTITY FULL;
ALTER TABLE shop.number REPLICA IDENTITY FULL;
ALTER TABLE shop.long REPLICA IDENTITY FULL;
ALTER TABLE shop.long ALTER body SET STORAGE EXTERNAL, ALTER tags SET STORAGE EXTERNAL, ALTER doc SET STORAGE EXTERNAL;
ALTER TABLE shop.item ALTER note SET STORAGE EXTERNAL;
ALTER TABLE shop.large REPLICA IDENTITY FULL;
ALTER TABLE shop.moving REPLICA IDENTITY FULL;
"""
LOADING: Final = "SELECT count(*) FROM upwell.collection WHERE load_state <> 'complete'"
LIMIT: Final = 8_500_000
SPEC: Final = f"""
name = "{{name}}"

[collections.every]
table = "shop.every"
template = '''
{chr(10).join(f"{name}: {{{{{{{{ {name} }}}}}}}}" for name in PRINTED)}
'''
metadata = [{", ".join(f'"{name}"' for name in COLUMNS)}]

[collections.page]
table = "shop.page"
template = "{{{{{{{{ title }}}}}}}}|{{{{{{{{ body }}}}}}}}"
metadata = ["title", "rank"]

[collections.number]
table = "shop.number"
template = "{{{{{{{{ body }}}}}}}}"
metadata = ["seen"]

[collections.item]
table = "shop.item"
template = "{{{{{{{{ code }}}}}}}} {{{{{{{{ price }}}}}}}}"
metadata = ["sold", "price"]

[collections.long]
table = "shop.long"
template = "{{{{{{{{ title }}}}}}}} {{{{{{{{ body }}}}}}}} {{{{{{{{ tags }}}}}}}} {{{{{{{{ doc.text }}}}}}}}"
metadata = ["tags", "doc"]

[collections.large]
table = "shop.large"
template = "{{{{{{{{ body }}}}}}}}"
max_document_bytes = {LIMIT}

[collections.moving]
table = "shop.moving"
template = "{{{{{{{{ title }}}}}}}} {{{{{{{{ body }}}}}}}}"
metadata = ["price"]
"""


def plain(value: Any) -> str:
    """As the README says that a document has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=float)
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value if item is not None)
    return "" if value is None else str(value)


def every_text(row: Row) -> str:
    told = {**row, "cash": (row["cash"] or "").translate(NUMERALS)}
    return "\n".join(f"{name}: {plain(told[name])}" for name in PRINTED)


def long_text(row: Row) -> str:
    return " ".join((row["title"], row["body"], ", ".join(row["tags"]), row["doc"]["text"]))


def of(*columns: str, between: str = " ") -> TextOf:
    return lambda row: between.join(plain(row[column]) for column in columns)


COMPARED: Final = {
    each.collection: each
    for each in (
        Compared("every", "shop.every", every_text, COLUMNS),
        Compared("page", "shop.page", of("title", "body", between="|"), ("title", "rank"), ("site", "path")),
        Compared("number", "shop.number", of("body"), ("seen",)),
        Compared("item", "shop.item", of("code", "price"), ("sold", "price")),
        Compared("long", "shop.long", long_text, ("tags", "doc")),
        Compared("large", "shop.large", of("body"), ()),
        Compared("moving", "shop.moving", of("title", "body"), ("price",)),
    )
}


@pytest.fixture(scope="module")
def line(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Deployment.create(stack, tmp_path_factory.mktemp("changes"), SPEC) as made:
        with made.source() as source:
            source.execute(TABLES)
        made.cli = "tests.fake_cli"
        made.upwell("migrate")
        made.upwell("connector", "apply", seconds=180)
        made.start_worker(module="tests.fake_worker", arguments=("--processes", "1"))
        with made.sink() as sink:
            until(lambda: one(sink, LOADING) == 0, 120, "a worker that has completed the loads")
        yield made


@pytest.fixture
def source(line: Deployment) -> Iterator[psycopg.Connection[Any]]:
    with line.source() as connection:
        yield connection


def equal(line: Deployment, *collections: str, seconds: float = 90) -> None:
    """Once everything has arrived, the sink says what the source says, and each offset has its one outcome."""
    found: dict[str, Difference] = {}

    def same() -> bool:
        found.clear()
        for name in collections:
            difference = compare_table(line.source_dsn, line.sink_dsn, COMPARED[name])
            if difference:
                found[name] = difference
        with line.sink() as sink:
            if one(sink, "SELECT count(*) FROM upwell.repair WHERE collection = ANY(%s)", list(collections)):
                return False
        return not found

    try:
        until(same, seconds, "source and sink equal")
    except AssertionError:
        raise AssertionError(f"{found or 'keys in doubt'}: {line.workers[-1].tail()}") from None
    for name in collections:
        difference = compare_table(line.source_dsn, line.sink_dsn, COMPARED[name], fake_encode)
        assert not difference, (name, difference)
    with line.sink() as sink:
        for topic, partition, taken_in, audited in sink.execute(AUDITED).fetchall():
            assert taken_in == audited, f"{topic}/{partition}: each offset has one outcome"


def test_every_type_in_template_and_metadata(line: Deployment, source: psycopg.Connection[Any]) -> None:
    """A row for each value, one with nothing but NULL, one with all; then a change of another column of them."""
    first = {name: values[0] for name, _, values in TYPES}
    names, marks = ", ".join(first), ", ".join(["%s"] * len(first))
    source.execute(f"INSERT INTO shop.every (id, {names}) VALUES (0, {marks})", list(first.values()))
    alone = [(name, value) for name, _, values in TYPES for value in values]
    for number, (name, value) in enumerate([*alone, ("flag", None)], 1):
        source.execute(f"INSERT INTO shop.every (id, {name}) VALUES (%s, %s)", (number, value))
    source.execute("UPDATE shop.every SET flag = NOT flag WHERE id = 0")
    equal(line, "every")


#: What is between these and the key must not matter: quotes, separators, spaces, control characters, other scripts.
KEYS: Final = (
    "", " ", "a/b", "a,b", '"', "'", "\\", "{}", "[1]", "null", "%s", "\t\n", "\x01\x1f\x7f", "é", "e\u0301",
    "日本", "\u202eabc", "😀", "\ufeff", "x" * 300,
)  # fmt: skip


def test_statements_and_transactions(line: Deployment, source: psycopg.Connection[Any]) -> None:
    """Many rows at once, several changes of one key, what is rolled back, COPY, keys of any characters."""
    row = "INSERT INTO shop.page VALUES (%s, %s, %s, %s, %s)"
    with source.cursor() as cursor:
        cursor.executemany(
            row, [(site, path, "t", f"{site}:{path}", 1) for site in KEYS for path in KEYS[:4]]
        )
        with cursor.copy("COPY shop.page FROM STDIN") as copy:
            for number in range(300):
                copy.write_row(("copied", str(number), "Copied", f"row {number}", number))
    source.execute("UPDATE shop.page SET body = body || ' again' WHERE site = 'copied' AND rank % 3 = 0")
    source.execute("DELETE FROM shop.page WHERE site = 'copied' AND rank % 3 = 1")
    source.execute(
        "INSERT INTO shop.page SELECT 'copied', n::text, 'Upserted', 'u', n FROM generate_series(290, 310) n "
        "ON CONFLICT (site, path) DO UPDATE SET title = excluded.title, rank = excluded.rank"
    )
    source.execute(
        "MERGE INTO shop.page p USING (VALUES ('5', 'kept'), ('6', 'gone'), ('777', 'new')) v(path, what) "
        "ON p.site = 'copied' AND p.path = v.path WHEN MATCHED AND what = 'gone' THEN DELETE "
        "WHEN MATCHED THEN UPDATE SET title = what WHEN NOT MATCHED THEN INSERT VALUES ('copied', v.path, what, 'x', 0)"
    )
    with source.transaction():
        for title in ("one", "two", "three"):
            source.execute(row, ("tx", "live", title, title, 1))
            source.execute("UPDATE shop.page SET body = body || '!' WHERE (site, path) = ('tx', 'live')")
            source.execute("DELETE FROM shop.page WHERE (site, path) = ('tx', 'live')")
            source.execute(row, ("tx", "gone", title, title, 1))
            source.execute("DELETE FROM shop.page WHERE (site, path) = ('tx', 'gone')")
        source.execute(row, ("tx", "live", "four", "four", 4))
    with source.transaction(force_rollback=True):
        source.execute("UPDATE shop.page SET title = 'rolled back'")
        source.execute(row, ("tx", "never", "rolled back", "", 0))
    with source.transaction():
        source.execute("UPDATE shop.page SET title = 'before the savepoint' WHERE site = 'tx'")
        with source.transaction(force_rollback=True):
            source.execute("DELETE FROM shop.page")
            source.execute(row, ("tx", "sub", "rolled back", "", 0))
        with source.transaction():
            source.execute(row, ("tx", "sub", "after the savepoint", "", 0))
        source.execute(
            "DO $$ BEGIN DELETE FROM shop.page; RAISE 'no'; EXCEPTION WHEN OTHERS THEN NULL; END $$"
        )
    equal(line, "page")
    with line.sink() as sink:
        told = "SELECT count(*) FROM upwell.record_page WHERE _row::text LIKE '%%rolled back%%'"
        assert one(sink, told) == 0


def test_h1_a_lower_lsn_commits_later(line: Deployment, source: psycopg.Connection[Any]) -> None:
    """T2 inserts k and waits for T1, which deletes it and commits: the insert has the lower lsn, and is newer."""
    source.execute("INSERT INTO shop.page VALUES ('h1', 'k', 'old', '', 0), ('h1', 'other', 'x', '', 0)")
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
        "AND query LIKE '%%(''h1'', ''k'', ''new''%%'"
    )

    def insert() -> None:
        with line.source() as second:
            second.execute("INSERT INTO shop.page VALUES ('h1', 'k', 'new', '', 0)")

    second = threading.Thread(target=insert)
    with line.source() as first, first.transaction():
        first.execute("UPDATE shop.page SET title = 'older' WHERE (site, path) = ('h1', 'k')")
        second.start()
        until(lambda: one(source, waiting) == 1, 30, "the second transaction waits")
        first.execute("DELETE FROM shop.page WHERE (site, path) = ('h1', 'k')")
    second.join()
    equal(line, "page")
    with line.sink() as sink:
        assert one(sink, "SELECT title FROM upwell.page WHERE (site, path) = ('h1', 'k')") == "new"


def test_keys_that_change(line: Deployment, source: psycopg.Connection[Any]) -> None:
    """a -> b, there and back, swapped, shifted in one statement up and down, moved within a transaction."""
    move = "UPDATE shop.page SET site = %s, path = %s WHERE site = %s AND path = %s"
    source.execute(
        "INSERT INTO shop.page SELECT 'moves', n::text, 'Moves', 'm' || n, n FROM generate_series(1, 9) n"
    )
    source.execute("INSERT INTO shop.number SELECT n, 'number ' || n FROM generate_series(1, 60) n")
    source.execute(move, ("moved", "é/\n", "moves", "1"))
    source.execute(move, ("moves", "2b", "moves", "2"))
    source.execute(move, ("moves", "2", "moves", "2b"))
    with source.transaction():
        source.execute(move, ("moves", "3b", "moves", "3"))
        source.execute(move, ("moves", "3", "moves", "3b"))
        source.execute("DELETE FROM shop.page WHERE (site, path) = ('moves', '4')")
        source.execute(move, ("moves", "4", "moves", "5"))
        source.execute("UPDATE shop.page SET body = 'changed and moved' WHERE (site, path) = ('moves', '6')")
        source.execute(move, ("moves", "6b", "moves", "6"))
        source.execute("DELETE FROM shop.page WHERE (site, path) = ('moves', '6b')")
        source.execute(move, ("moves", "6", "moves", "7"))
    with source.transaction(force_rollback=True):
        source.execute(move, ("never", "x", "moves", "8"))
    source.execute("UPDATE shop.number SET id = CASE id WHEN 1 THEN 2 ELSE 1 END WHERE id <= 2")
    with source.transaction():
        source.execute("UPDATE shop.number SET id = -3 WHERE id = 3")
        source.execute("UPDATE shop.number SET id = 3 WHERE id = 4")
        source.execute("UPDATE shop.number SET id = 4 WHERE id = -3")
    source.execute("DELETE FROM shop.number WHERE id IN (30, 35)")
    source.execute("UPDATE shop.number SET id = id + 1 WHERE id BETWEEN 10 AND 29")
    source.execute("UPDATE shop.number SET id = id - 1 WHERE id > 35")
    source.execute("UPDATE shop.number SET id = 200 - id, body = 'turned ' || id WHERE id > 50")
    equal(line, "page", "number")


def test_truncate(line: Deployment, source: psycopg.Connection[Any]) -> None:
    """Of one table and of two in one statement; rows before and after it in every partition, and in its transaction."""
    fill = "INSERT INTO shop.number SELECT n, %s || n FROM generate_series(%s::int, %s::int) n"
    pages = (
        "INSERT INTO shop.page SELECT 'cut', n::text, 'Cut', %s, n FROM generate_series(%s::int, %s::int) n"
    )
    source.execute(fill, ("before ", 1000, 1200))
    with source.transaction():
        source.execute(fill, ("within ", 1300, 1320))
        source.execute("TRUNCATE shop.number, shop.page")
        source.execute(fill, ("after ", 1190, 1310))
        source.execute(pages, ("after", 1, 60))
    source.execute("UPDATE shop.number SET body = 'newer' WHERE id % 5 = 0")
    with source.transaction(force_rollback=True):
        source.execute("TRUNCATE shop.number, shop.page")
    source.execute("TRUNCATE shop.page")
    source.execute(pages, ("once more", 40, 80))
    with source.transaction():
        source.execute("TRUNCATE shop.page")
        source.execute(pages, ("twice", 50, 55))
        source.execute("TRUNCATE shop.page")
        source.execute(pages, ("last", 51, 99))
    equal(line, "page", "number")


TOLD: Final = (
    "SELECT coalesce(string_agg(x::text, ''), '') FROM upwell.record_{} x",
    "SELECT coalesce(string_agg(chunk_text, ''), '') FROM upwell.{}",
    "SELECT coalesce(string_agg(a::text, ''), '') FROM upwell.audit a WHERE '{}' <> ''",
    "SELECT coalesce(string_agg(error, ''), '') FROM upwell.dead_letter d WHERE '{}' <> ''",
)


def equal_of(line: Deployment, collection: str) -> None:
    """Nothing else is looked at."""
    compared = COMPARED[collection]
    until(lambda: not compare_table(line.source_dsn, line.sink_dsn, compared), 60, f"{collection} equal")


def no_placeholder(line: Deployment, collection: str) -> None:
    with line.source() as source, line.sink() as sink:
        placeholder = one(source, "SELECT placeholder FROM upwell.deployment")
        for told in TOLD:
            assert placeholder not in one(sink, told.format(collection))
    assert placeholder not in line.workers[-1].log.read_text()


def test_long_values_that_do_not_change(line: Deployment, source: psycopg.Connection[Any]) -> None:
    """Out of line, under FULL and under the default identity: other columns, the key, and the long ones themselves."""
    words = " ".join(f"word{number}" for number in range(700))
    source.execute(
        "INSERT INTO shop.long SELECT n, 'Long ' || n, %s::text, array_fill(%s::text, '{3}'), "
        "jsonb_build_object('text', 'a' || %s::text, 'n', n) FROM generate_series(1, 12) n",
        (words, words[:900], words[:3000]),
    )
    source.execute(
        "INSERT INTO shop.item SELECT n, gen_random_uuid(), n, '2024-01-01', %s FROM generate_series(1, 12) n",
        (words,),
    )
    assert one(
        source, "SELECT pg_relation_size(reltoastrelid) > 0 FROM pg_class WHERE oid = 'shop.long'::regclass"
    )
    source.execute("UPDATE shop.long SET title = 'Other ' || id WHERE id <= 4")
    source.execute("UPDATE shop.long SET id = id + 100 WHERE id IN (3, 5)")
    source.execute("UPDATE shop.long SET tags = tags || ARRAY['one more'] WHERE id = 6")
    source.execute("UPDATE shop.long SET doc = doc || '{\"n\": -1}' WHERE id = 7")
    source.execute("UPDATE shop.long SET body = '__debezium_unavailable_value' WHERE id = 8")
    source.execute(
        "UPDATE shop.long SET tags = ARRAY['__debezium_unavailable_value'], title = 'x' WHERE id = 9"
    )
    source.execute("UPDATE shop.item SET price = price + 0.5 WHERE id <= 4")
    source.execute("UPDATE shop.item SET id = id + 100 WHERE id IN (3, 5)")
    source.execute("UPDATE shop.item SET sold = 'infinity', note = '' WHERE id = 6")
    with source.transaction():
        source.execute("UPDATE shop.item SET id = 200 WHERE id = 7")
        source.execute("UPDATE shop.item SET price = 0 WHERE id = 200")
        source.execute("DELETE FROM shop.item WHERE id = 8")
        source.execute("UPDATE shop.item SET id = 8 WHERE id = 9")
    equal(line, "long", "item")
    no_placeholder(line, "long")
    no_placeholder(line, "item")


TEXTS: Final = (
    "", " ", "\t\r\n", "\u3000\u00a0\u2028", None, "😀👩‍👩‍👧", "é", "e\u0301", "ﬁ", "\u202eabc\u202c def", "\ufeffx",
    "a\ufeff",
    "\x01\x02\x1b[31mred\x7f", "__debezium_unavailable_value", "{{ id }}", "<b>&amp;</b>", "'; DROP TABLE x; --",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629", "日本語", "a\u200db", "\U0010fffd\ufffd", "ß" * 5000, "\\N",
    "%s %(x)s", "NULL",
)  # fmt: skip


def test_texts(line: Deployment, source: psycopg.Connection[Any]) -> None:
    """To nothing and back, too: a row without a text has no vector, and keeps none."""
    with source.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO shop.number VALUES (%s, %s)", [(5000 + n, text) for n, text in enumerate(TEXTS)]
        )
    for number, text in ((5100, ""), (5101, " \n"), (5102, None)):
        source.execute("INSERT INTO shop.number VALUES (%s, 'something')", (number,))
        source.execute("UPDATE shop.number SET body = %s WHERE id = %s", (text, number))
    source.execute("UPDATE shop.number SET body = 'something' WHERE id IN (5000, 5004)")
    equal(line, "number")
    with line.sink() as sink:
        assert one(sink, "SELECT count(*) FROM upwell.number WHERE id BETWEEN 5100 AND 5102") == 0
        assert one(sink, "SELECT count(DISTINCT chunk_text) FROM upwell.number WHERE id IN (5006, 5007)") == 2
        stored = "SELECT _row ->> 'body' FROM upwell.record_number WHERE _key = '[5009]'"
        assert one(sink, stored) == "\u202eabc\u202c def"


def words_of(size: int) -> str:
    """So many bytes in few tokens, and so in few chunks: a word of more than a hundred letters is one token."""
    return ("x" * 59_999 + " ") * (size // 60_000)


def test_documents_of_8_mb_and_one_above_the_limit(line: Deployment, source: psycopg.Connection[Any]) -> None:
    """Under FULL an update carries its text twice. Above `max_document_bytes`: a dead letter; its neighbours go on."""
    insert = "INSERT INTO shop.large VALUES (%s, %s)"
    source.execute(insert, (1, "first " + words_of(8 * 1024 * 1024)))
    source.execute(insert, (2, "small"))
    source.execute(insert, (3, words_of(LIMIT + 600_000)))
    source.execute(insert, (4, "after it"))
    source.execute("UPDATE shop.large SET body = 'other ' || body WHERE id = 1")
    with line.sink() as sink:
        letter = "SELECT error FROM upwell.dead_letter WHERE collection = 'large' AND key = '[3]' AND closed_at IS NULL"
        error = until(lambda: one(sink, letter), 150, "the dead letter")
        assert (
            error
            == f"the document has {len(words_of(LIMIT + 600_000).strip())} bytes, max_document_bytes is {LIMIT}"
        )
    source.execute("UPDATE shop.large SET body = 'short now' WHERE id = 3")
    equal(line, "large", seconds=150)


def test_a_row_above_the_message_limit_is_said_and_the_limit_can_be_raised(
    line: Deployment, source: psycopg.Connection[Any]
) -> None:
    """Debezium's task FAILS: nothing is skipped, and nothing goes on until the limit is raised."""
    source.execute("INSERT INTO shop.large VALUES (9, %s)", (words_of(24 * 1024 * 1024),))
    source.execute("INSERT INTO shop.number VALUES (9000, 'behind it')")
    said = until(lambda: failure(line), 150, "the task FAILED")
    assert "a row takes 25" in said
    assert "more than UPWELL_KAFKA_MAX_MESSAGE_BYTES allows" in said
    line.environment["UPWELL_KAFKA_MAX_MESSAGE_BYTES"] = str(40 * 1024 * 1024)
    told = line.upwell("connector", "apply", "--no-load", seconds=180).stdout
    assert "topics take messages of 41943040 bytes now" in told
    with line.sink() as sink:
        error = "SELECT error FROM upwell.dead_letter WHERE collection = 'large' AND key = '[9]'"
        assert "max_document_bytes" in until(lambda: one(sink, error), 150, "it is a dead letter now")
    source.execute("DELETE FROM shop.large WHERE id = 9")
    equal(line, "large", "number")


def failure(line: Deployment) -> str:
    """What `upwell status` says of a connector that FAILED."""
    told = " ".join(line.upwell("status", check=False).stdout.split())
    return told if "FAILED" in told else ""


def blocked(line: Deployment, collection: str) -> str:
    with line.sink() as sink:
        query = (
            "SELECT reason FROM upwell.blocked "
            "WHERE collection = %s AND seen_at > clock_timestamp() - interval '20 s'"
        )
        return one(sink, query, collection) or ""


def test_columns_come_and_go(line: Deployment, source: psycopg.Connection[Any]) -> None:
    """What nobody needs may change as it likes. A column of the template that is gone blocks its collection alone,
    which goes on by itself when it is back: keys that were changed meanwhile are read again.
    """
    source.execute(
        "INSERT INTO shop.moving SELECT n, 'Title ' || n, 'Body ' || n, n, 'spare' FROM generate_series(1, 9) n"
    )
    source.execute("ALTER TABLE shop.moving ADD extra text")
    source.execute("UPDATE shop.moving SET title = 'with extra', extra = 'x' WHERE id = 1")
    source.execute("ALTER TABLE shop.moving ADD rated int NOT NULL DEFAULT 5")
    source.execute("UPDATE shop.moving SET rated = 6 WHERE id = 2")
    source.execute("ALTER TABLE shop.moving RENAME extra TO other")
    source.execute("UPDATE shop.moving SET title = 'with other', other = 'y' WHERE id = 3")
    source.execute("ALTER TABLE shop.moving ALTER rated TYPE text USING 'r' || rated, DROP spare")
    source.execute("UPDATE shop.moving SET title = 'without spare' WHERE id = 4")
    equal(line, "moving")

    source.execute("ALTER TABLE shop.moving RENAME body TO content")
    source.execute("UPDATE shop.moving SET content = 'changed meanwhile' WHERE id <= 3")
    source.execute(
        "INSERT INTO shop.moving VALUES (20, 'new meanwhile', 'x', 1), (21, 'gone meanwhile', 'x', 1)"
    )
    source.execute("UPDATE shop.moving SET id = 22 WHERE id = 5")
    source.execute("DELETE FROM shop.moving WHERE id IN (6, 21)")
    reason = until(lambda: blocked(line, "moving"), 60, "it is blocked")
    assert reason.startswith("column 'body' that collection 'moving' needs is missing in schema id ")
    told = " ".join(line.upwell("status", check=False).stdout.split())
    assert "moving is blocked for" in told
    source.execute("INSERT INTO shop.number VALUES (9100, 'another collection goes on')")
    equal_of(line, "number")
    source.execute("ALTER TABLE shop.moving RENAME content TO body")
    source.execute("UPDATE shop.moving SET title = 'changed afterwards' WHERE id = 2")
    equal(line, "moving")
    assert blocked(line, "moving") == ""


def test_a_column_of_another_type(line: Deployment, source: psycopg.Connection[Any]) -> None:
    """What the sink's column cannot hold blocks; `migrate` brings the new type, and values that no event told of."""
    source.execute("ALTER TABLE shop.moving ALTER price TYPE text USING 'EUR ' || price")
    source.execute("UPDATE shop.moving SET title = 'in euros' WHERE id = 2")
    source.execute("INSERT INTO shop.moving VALUES (30, 'new in euros', 'x', 'EUR 30')")
    reason = until(lambda: blocked(line, "moving"), 60, "it is blocked")
    assert reason == (
        "column 'price' of shop.moving is text now, in the sink it is integer: run `upwell migrate`"
    )
    with line.sink() as sink:
        letters = "SELECT count(*) FROM upwell.dead_letter WHERE collection = 'moving'"
        assert one(sink, letters) == 0
        source.execute("ALTER TABLE shop.moving ADD stars int DEFAULT 4")
        spec = line.directory / "upwell.toml"
        spec.write_text(spec.read_text().replace('metadata = ["price"]', 'metadata = ["price", "stars"]'))
        told = line.upwell("migrate").stdout
        assert "moving: price is text now" in told
        compared = replace(COMPARED["moving"], metadata=("price", "stars"))
        until(
            lambda: not compare_table(line.source_dsn, line.sink_dsn, compared),
            90,
            "all rows as they are now",
        )
        assert one(sink, letters) == 0


def test_a_value_that_the_log_did_not_have(line: Deployment, source: psycopg.Connection[Any]) -> None:
    """FULL taken away while a long value is neither sent nor stored: blocked until it is set again; then read again."""
    long = "many words " * 400
    source.execute("INSERT INTO shop.long VALUES (50, 'x', %s, '{}', '{\"text\": \"t\"}')", (long,))
    source.execute("INSERT INTO shop.long VALUES (51, 'x', %s, '{}', '{\"text\": \"t\"}')", (long,))
    equal(line, "long")
    source.execute("ALTER TABLE shop.long REPLICA IDENTITY DEFAULT")
    source.execute("UPDATE shop.long SET title = 'the rest is stored' WHERE id = 50")
    source.execute("UPDATE shop.long SET id = 52 WHERE id = 51")
    reason = until(lambda: blocked(line, "long"), 60, "it is blocked")
    assert reason == (
        "column 'body' of collection 'long' is unavailable and not stored: set REPLICA IDENTITY FULL on shop.long"
    )
    source.execute("ALTER TABLE shop.long REPLICA IDENTITY FULL")
    equal(line, "long")
    no_placeholder(line, "long")


def test_schema_ids_in_mid_stream(line: Deployment, source: psycopg.Connection[Any]) -> None:
    """One that the registry does not know yet is waited for, by its collection alone; another's is a dead letter."""
    source.execute("INSERT INTO shop.item VALUES (900, gen_random_uuid(), 9, '2024-01-01', 'x')")
    equal_of(line, "item")
    topic = f"{line.name}_1.shop.item"
    message = last_message(line, topic)
    value = json.loads(registered(line, f"{topic}-value")["schema"])
    other = register(line, {"type": "record", "name": "Other", "fields": [{"name": "a", "type": "int"}]})
    coming = other + 6  # the converter may register some meanwhile
    produce(line, message, other, b"\x02")
    produce(line, message, coming, message.value()[5:])
    with line.sink() as sink:
        letter = "SELECT error FROM upwell.dead_letter WHERE collection = 'item' AND error_class = 'MalformedEnvelope'"
        assert "is no Debezium envelope" in until(lambda: one(sink, letter), 60, "the dead letter")
    retried = f"does not give schema {coming} (status 404)"
    until(lambda: retried in line.workers[-1].log.read_text(), 60, "it is waited for")
    source.execute("UPDATE shop.item SET price = 77 WHERE id = 900")
    source.execute("INSERT INTO shop.number VALUES (9200, 'another collection goes on')")
    equal_of(line, "number")
    while (newest := register(line, {**value, "doc": f"the same again {secrets.token_hex(4)}"})) < coming:
        assert newest > other
    assert newest == coming
    equal(line, "item")


def last_message(line: Deployment, topic: str) -> Any:
    """The newest record of a topic that has a value."""
    servers = line.environment["UPWELL_KAFKA_BOOTSTRAP_SERVERS"]
    ends = Kafka(servers).end_offsets([topic])
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "last", "enable.auto.commit": False})
    consumer.assign([ClientPartition(topic, at.partition, 0) for at in ends])
    found = [consumer.poll(10) for _ in range(sum(ends.values()))]
    consumer.close()
    with_value = [message for message in found if message is not None and message.value() is not None]
    return max(with_value, key=lambda message: message.timestamp()[1])


def produce(line: Deployment, like: Any, schema_id: int, body: bytes) -> None:
    """A record of the same key in the same partition, with a value of our own."""
    producer = Producer({"bootstrap.servers": line.environment["UPWELL_KAFKA_BOOTSTRAP_SERVERS"]})
    value = b"\0" + schema_id.to_bytes(4, "big") + body
    producer.produce(like.topic(), value, like.key(), partition=like.partition())
    assert producer.flush(30) == 0


def registered(line: Deployment, subject: str) -> Any:
    registry = line.environment["UPWELL_REGISTRY_URL"]
    return requests.get(f"{registry}/subjects/{subject}/versions/latest", timeout=30).json()


def register(line: Deployment, schema: dict[str, Any]) -> int:
    """A schema under a subject of its own; returns its id."""
    url = f"{line.environment['UPWELL_REGISTRY_URL']}/subjects/{line.name}-{len(json.dumps(schema))}/versions"
    return int(requests.post(url, json={"schema": json.dumps(schema)}, timeout=30).json()["id"])
