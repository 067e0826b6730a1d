"""Every kind of change that Postgres and Debezium can produce, at random, by plain SQL at the source.

Each text begins with a number that only grows, `n17 ...`: a newer state of a row has a greater one. Everything is drawn
from one seeded generator. What a source that goes away leaves undone is not done again: who compares, asks the source.
"""

from __future__ import annotations

import contextlib
import random
import string
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg import sql

from tests.acceptance.plain import one
from tests.chaos.background import Background
from tests.deployment import Deployment

#: Keys that single changes use; those of shifts have a range of their own, because they may be in doubt for a moment.
KEYS: Final = range(10, 200)
SHIFTED: Final = range(1000, 1012)
#: Numbers are taken from the source's sequence in blocks.
BLOCK: Final = 1000
MOST_EXTRA_COLUMNS: Final = 3

SETUP: Final = """
CREATE SEQUENCE shop.numbers INCREMENT 1000;
ALTER TABLE shop.content DROP CONSTRAINT content_pkey;
ALTER TABLE shop.content ADD PRIMARY KEY (id) DEFERRABLE INITIALLY IMMEDIATE;
"""
WORDS: Final = tuple(
    word
    for line in (
        "coffee winter walk garden kettle bicycle harbour window paper river evening apple mountain letter",
        "morning thread candle bridge copper market silver forest pepper bottle needle meadow",
    )
    for word in line.split()
)


@dataclass(frozen=True)
class Table:
    """`text`: columns of the template, of which the first carries the number. `other`: assignments that leave them."""

    name: str
    text: tuple[str, str]
    other: str
    insert: str

    @property
    def update(self) -> str:
        first, second = self.text
        return f"UPDATE shop.{self.name} SET {first} = %(title)s, {second} = %(body)s WHERE id = %(id)s"

    @property
    def columns(self) -> str:
        return f"(id, {', '.join(self.text)})"


CONTENT: Final = Table(
    "content",
    ("title", "body"),
    "price = coalesce(price, 0) + 1, published = NOT coalesce(published, true)",
    "INSERT INTO shop.content (id, title, body, tags, locale, published, price, updated_at) VALUES "
    "(%(id)s, %(title)s, %(body)s, ARRAY[%(word)s, 'b'], 'en', true, 1, clock_timestamp())",
)
CUSTOMERS: Final = Table(
    "customers",
    ("full_name", "notes"),
    "email = %(email)s, marketing_consent = NOT coalesce(marketing_consent, true)",
    "INSERT INTO shop.customers (id, full_name, email, segment, interests, notes, marketing_consent, updated_at) "
    "VALUES (%(id)s, %(title)s, %(email)s, 'regular', ARRAY[%(word)s], %(body)s, true, clock_timestamp())",
)

Operation = Callable[["Workload"], None]


@dataclass
class Workload(Background):
    """Runs in a thread of its own. `counts`: committed operations by name; `changes`: rows that they changed."""

    deployment: Deployment
    seed: int
    email: str
    per_second: float
    counts: dict[str, int] = field(default_factory=dict)
    changes: int = 0
    _go_on: threading.Event = field(default_factory=threading.Event)
    _working: threading.Lock = field(default_factory=threading.Lock)
    _number: int = 0
    _last: int = 0
    failed: Exception | None = None

    def __enter__(self) -> Workload:
        self.draw = random.Random(f"{self.seed}:{sum(self.counts.values())}")
        self._go_on.set()
        return super().__enter__()

    def pause(self) -> None:
        """Nothing is written any more, when this returns, until `go_on`."""
        self._go_on.clear()
        with self._working:
            pass

    def go_on(self) -> None:
        self._go_on.set()

    @property
    def unseen(self) -> list[str]:
        return [name for name in OPERATIONS if not self.counts.get(name)]

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            try:
                with self.deployment.source() as source:
                    self.source = source
                    self._operate()
            except (psycopg.OperationalError, psycopg.InterfaceError):
                continue  # the source is away
            except Exception as error:
                self.failed = error
                return

    def _operate(self) -> None:
        first = self.unseen
        self.draw.shuffle(first)
        names, weights = list(OPERATIONS), [weight for weight, _ in OPERATIONS.values()]
        while not self._stop.wait(self.draw.expovariate(self.per_second)):
            with self._working:
                if not self._go_on.is_set():
                    continue
                name = first.pop() if first else self.draw.choices(names, weights)[0]
                OPERATIONS[name][1](self)
                self.counts[name] = self.counts.get(name, 0) + 1

    # What operations are made of.

    def number(self) -> int:
        if self._number == self._last:
            self._number = one(self.source, "SELECT nextval('shop.numbers')")
            self._last = self._number + BLOCK - 1
        self._number += 1
        return self._number

    def table(self) -> Table:
        return self.draw.choice([CONTENT, CONTENT, CUSTOMERS])

    def values(self, key: int) -> dict[str, Any]:
        """A new text for a key."""
        words = " ".join(self.draw.choices(WORDS, k=self.draw.choice([3, 5, 8, 8, 8, 12, 20, 120])))
        title = f"n{self.number()} {self.draw.choice(WORDS)}"
        return {
            "id": key,
            "title": title,
            "body": words,
            "word": self.draw.choice(WORDS),
            "email": self.email,
        }

    def keys(self, table: Table) -> list[int]:
        rows = self.source.execute(
            f"SELECT id FROM shop.{table.name} WHERE id BETWEEN {KEYS.start} AND {KEYS.stop - 1} ORDER BY id".encode()
        )
        return [key for (key,) in rows]

    def there(self, table: Table, count: int = 1) -> list[int]:
        """So many keys that have rows; they are made if need be."""
        found = self.keys(table)
        while len(found) < count:
            key = self.away(table)[0]
            self.do(table.insert, self.values(key))
            found.append(key)
        return self.draw.sample(found, count)

    def away(self, table: Table, count: int = 1) -> list[int]:
        """So many keys that have none; rows are deleted if need be."""
        taken = self.keys(table)
        free = [key for key in KEYS if key not in set(taken)]
        while len(free) < count or len(taken) > 150:
            key = taken.pop(self.draw.randrange(len(taken)))
            self.do(f"DELETE FROM shop.{table.name} WHERE id = %s", [key])
            free.append(key)
        return self.draw.sample(free, count)

    def do(
        self, statement: str, values: Any = None, connection: psycopg.Connection[Any] | None = None
    ) -> None:
        done = (connection or self.source).execute(statement.encode(), values)
        self.changes += max(done.rowcount, 0)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        with self.source.transaction():
            yield

    def extra_columns(self, table: Table) -> list[str]:
        rows = self.source.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = 'shop' AND table_name = %s "
            "AND column_name LIKE 'extra%%' ORDER BY 1",
            [table.name],
        )
        return [name for (name,) in rows]


def insert(work: Workload) -> None:
    table = work.table()
    work.do(table.insert, work.values(work.away(table)[0]))


def update_text(work: Workload) -> None:
    table = work.table()
    work.do(table.update, work.values(work.there(table)[0]))


def update_other_columns(work: Workload) -> None:
    table = work.table()
    work.do(
        f"UPDATE shop.{table.name} SET {table.other}, updated_at = clock_timestamp() WHERE id = %(id)s",
        {"id": work.there(table)[0], "email": work.email},
    )


def delete(work: Workload) -> None:
    table = work.table()
    work.do(f"DELETE FROM shop.{table.name} WHERE id = %s", work.there(table))


def delete_and_insert_again(work: Workload) -> None:
    table = work.table()
    (key,) = work.there(table)
    work.do(f"DELETE FROM shop.{table.name} WHERE id = %s", [key])
    work.do(table.insert, work.values(key))


def several_changes_of_one_key_at_once(work: Workload) -> None:
    table = work.table()
    (key,) = work.away(table)
    with work.together():
        work.do(table.insert, work.values(key))
        work.do(table.update, work.values(key))
        work.do(f"DELETE FROM shop.{table.name} WHERE id = %s", [key])
        work.do(table.insert, work.values(key))
        work.do(table.update, work.values(key))


def key_change_and_back(work: Workload) -> None:
    table = work.table()
    (old,), (new,) = work.there(table), work.away(table)
    statement = (
        f"UPDATE shop.{table.name} SET id = %(new)s, {table.text[0]} = %(title)s, {table.text[1]} = %(body)s "
        "WHERE id = %(id)s"
    )
    work.do(statement, {**work.values(old), "new": new})
    if work.draw.random() < 0.5:
        work.do(statement, {**work.values(new), "new": old})


def swap(work: Workload) -> None:
    """By way of a third key, which is negative."""
    table = work.table()
    one_key, other = work.there(table, 2)
    statement = f"UPDATE shop.{table.name} SET id = %(new)s, {table.text[0]} = %(title)s WHERE id = %(id)s"
    with work.together():
        for old, new in ((one_key, -one_key), (other, one_key), (-one_key, other)):
            work.do(statement, {**work.values(old), "new": new})


def shift_in_one_statement(work: Workload) -> None:
    """Upwards within their range; the first is new again, the last goes."""
    last = SHIFTED.stop - 1
    work.do("DELETE FROM shop.content WHERE id = %s", [last])
    work.do(
        f"UPDATE shop.content SET id = id + 1, title = %(title)s WHERE id BETWEEN {SHIFTED.start} AND {last}",
        work.values(0),
    )
    work.do(CONTENT.insert, work.values(SHIFTED.start))


def several_rows_in_one_statement(work: Workload) -> None:
    table = work.table()
    first, second = table.text
    keys = work.there(table, 5)  # rows that are made for it have smaller numbers than it writes
    work.do(
        f"UPDATE shop.{table.name} SET {first} = %(title)s, {second} = %(body)s || id WHERE id = ANY(%(ids)s)",
        {**work.values(0), "ids": keys},
    )


def copy(work: Workload) -> None:
    table = work.table()
    keys = work.away(table, 5)
    rows = [work.values(key) for key in keys]
    with (
        work.source.cursor() as cursor,
        cursor.copy(f"COPY shop.{table.name} {table.columns} FROM STDIN".encode()) as out,
    ):
        for row in rows:
            out.write_row((row["id"], row["title"], row["body"]))
    work.changes += len(rows)


def rolled_back(work: Workload) -> None:
    table = work.table()
    (key,) = work.there(table)
    with work.source.transaction(force_rollback=True):
        work.source.execute(table.update.encode(), work.values(key))
        work.source.execute(f"DELETE FROM shop.{table.name} WHERE id <> 1".encode())


def savepoint_rolled_back(work: Workload) -> None:
    table = work.table()
    first, second = work.there(table, 2)
    with work.together():
        work.do(table.update, work.values(first))
        with work.source.transaction(force_rollback=True):
            work.do(f"DELETE FROM shop.{table.name} WHERE id = ANY(%s)", [[first, second]])
        work.do(table.update, work.values(second))


def interleaved_transactions(work: Workload) -> None:
    """H1: the delete that commits first has a higher lsn than the insert that waits for it and commits last."""
    table = work.table()
    (key,) = work.there(table)
    with contextlib.closing(work.deployment.source()) as other:
        other.execute("SET lock_timeout = '20s'")
        earlier, later = work.values(key), work.values(key)
        waiting = threading.Thread(target=_insert_late, args=(other, table.insert, later), daemon=True)
        with work.together():
            work.do(table.update, earlier)
            waiting.start()
            time.sleep(0.05)  # most of the time it waits by now, and the rest of the time nothing is lost
            work.do(f"DELETE FROM shop.{table.name} WHERE id = %s", [key])
        waiting.join(30)


def _insert_late(other: psycopg.Connection[Any], statement: str, values: dict[str, Any]) -> None:
    """Where the key is taken after all there is no row, and none is needed."""
    with contextlib.suppress(psycopg.Error):
        other.execute(statement.encode(), values)


def unchanged_long_value(work: Workload) -> None:
    """More than 100 kB that do not compress, then a change beside it. Long words are one token each."""
    table = work.table()
    values = work.values(work.there(table)[0])
    letters = work.draw.choices(string.ascii_letters + string.digits, k=105_000)
    values["body"] = " ".join("".join(letters[at : at + 120]) for at in range(0, len(letters), 120))
    work.do(table.update, values)
    work.do(f"UPDATE shop.{table.name} SET {table.other} WHERE id = %(id)s", values)


def empty_text(work: Workload) -> None:
    table = work.table()
    nothing = work.draw.choice(["", "   \n\t ", None])
    first, second = table.text
    work.do(
        f"UPDATE shop.{table.name} SET {first} = %(nothing)s, {second} = %(nothing)s"
        + (", tags = NULL" if table is CONTENT else "")
        + " WHERE id = %(id)s",
        {"nothing": nothing, "id": work.there(table)[0]},
    )


def truncate(work: Workload) -> None:
    work.do("TRUNCATE shop.content")
    work.changes += 1


def truncate_and_insert_at_once(work: Workload) -> None:
    with work.together():
        work.do("TRUNCATE shop.content")
        for key in work.draw.sample(KEYS, 20):
            work.do(CONTENT.insert, work.values(key))
    work.changes += 1


def add_column(work: Workload) -> None:
    _alter(work, "text")


def add_column_with_default(work: Workload) -> None:
    _alter(work, "text NOT NULL DEFAULT 'given'")


def _alter(work: Workload, kind: str) -> None:
    table = work.table()
    if len(work.extra_columns(table)) >= MOST_EXTRA_COLUMNS:
        drop_column(work, table)
    work.do(f"ALTER TABLE shop.{table.name} ADD COLUMN extra{work.number()} {kind}")
    work.do(table.update, work.values(work.there(table)[0]))


def drop_column(work: Workload, table: Table | None = None) -> None:
    """One that no template uses."""
    table = table or work.table()
    if not work.extra_columns(table):
        work.do(f"ALTER TABLE shop.{table.name} ADD COLUMN extra{work.number()} text")
    name = work.draw.choice(work.extra_columns(table))
    work.source.execute(
        sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(
            sql.Identifier("shop", table.name), sql.Identifier(name)
        )
    )
    work.do(table.update, work.values(work.there(table)[0]))


def repeated_text(work: Workload) -> None:
    """Two keys with the same text: one vector is that of the other."""
    table = work.table()
    keys = work.away(table, 2)
    values = work.values(keys[0])
    work.do(table.insert, values)
    work.do(table.insert, {**values, "id": keys[1]})


#: By name: how often, and what.
OPERATIONS: Final[dict[str, tuple[float, Operation]]] = {
    "insert": (20, insert),
    "update of the text": (25, update_text),
    "update of other columns": (15, update_other_columns),
    "delete": (12, delete),
    "delete and insert again": (6, delete_and_insert_again),
    "several changes of one key at once": (3, several_changes_of_one_key_at_once),
    "key change and back": (4, key_change_and_back),
    "swap": (3, swap),
    "shift in one statement": (2, shift_in_one_statement),
    "several rows in one statement": (4, several_rows_in_one_statement),
    "COPY": (2, copy),
    "rolled back": (2, rolled_back),
    "savepoint rolled back": (2, savepoint_rolled_back),
    "interleaved transactions": (2, interleaved_transactions),
    "unchanged long value": (0.3, unchanged_long_value),
    "empty text": (3, empty_text),
    "truncate": (0.05, truncate),
    "truncate and insert at once": (0.05, truncate_and_insert_at_once),
    "added column": (0.1, add_column),
    "added column with a default": (0.1, add_column_with_default),
    "dropped column": (0.1, drop_column),
    "repeated text": (6, repeated_text),
}
