"""Faults at random: each is done, lasts a while, and is undone. Fault number i of a seed is always the same."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from confluent_kafka import Producer
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from infra.stack.processes import born, wait_gone
from tests.acceptance.plain import one
from tests.chaos.line import COMPONENTS, PROCESSES, Line, send
from tests.deployment import WorkerProcess, until

POISON: Final = b"chaos: no Avro"
EVERYTHING: Final = (*COMPONENTS, *PROCESSES)
STOP_SECONDS: Final = 30.0
#: A monitor that has just healed the same waits for minutes before it does it again.
HEAL_SECONDS: Final = 420.0


@dataclass(frozen=True)
class Pace:
    """How long faults and the quiet between them last, in seconds."""

    faults: Sequence[float]
    quiet: tuple[float, float]


LONG: Final = Pace((1, 1, 2, 2, 3, 5, 8, 12, 20), (1.0, 10.0))
SHORT: Final = Pace((0.5, 1), (0.5, 1.5))


@dataclass
class Nemesis:
    """What it breaks, it mends. `killed`: how often each was killed with -9; `counts`: faults by name."""

    line: Line
    seed: int
    pace: Pace
    done: int = 0
    killed: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def strike(self, name: str = "") -> str:
        """The next fault, or that one; a line that says what it was.

        Raises Violated when what must survive it does not.
        """
        self.begin(name)
        what = FAULTS[self.name][1](self, self.random.choice(self.pace.faults))
        self.line.run_on()
        self.done += 1
        self.counts[self.name] = self.counts.get(self.name, 0) + 1
        return f"fault {self.done:3}: {what}"

    def begin(self, name: str = "") -> None:
        """Draw the next fault."""
        self.random = random.Random(f"{self.seed}:{self.done}")
        self.name = name or self._name()

    def quiet_seconds(self) -> float:
        return random.Random(f"{self.seed}:quiet:{self.done}").uniform(*self.pace.quiet)

    def _name(self) -> str:
        """The first ones kill everything once, the next are one of each other kind; in an order of the seed."""
        order = random.Random(f"{self.seed}")
        must = [f"kill {name}" for name in EVERYTHING]
        others = [name for name in FAULTS if name not in must and (self.line.gaps or name != "slot dropped")]
        order.shuffle(must)
        order.shuffle(others)
        deck = [*must, *others]
        if self.done < len(deck):
            return deck[self.done]
        return self.random.choices(deck, [FAULTS[name][0] for name in deck])[0]

    def mend(self) -> None:
        """Undo whatever a run that was killed may have left."""
        self.line.run_on()
        self.set_read_only(False)
        saved = self.line.deployment.directory / "connector.json"
        if saved.exists():
            self.line.connector("/config", "PUT", json=json.loads(saved.read_text()))
            saved.unlink()
        self.line.connector("/resume", "PUT")

    # What faults are made of.

    def killing(self, name: str) -> None:
        if self.line.kill(name):
            self.killed[name] = self.killed.get(name, 0) + 1

    def stop_component(self, name: str, number: signal.Signals) -> None:
        pid = self.line.component(name)
        if pid is None:
            return
        birth = born(pid)
        send(pid, number)
        if not wait_gone(pid, birth, STOP_SECONDS):
            send(pid, signal.SIGKILL)
            wait_gone(pid, birth, STOP_SECONDS)

    def admin(self, side: str) -> tuple[psycopg.Connection[Any], str]:
        """Connection to another database of the server, and the name of ours."""
        variable = f"UPWELL_{side.upper()}_DSN"
        database = str(conninfo_to_dict(self.line.deployment.environment[variable])["dbname"])
        return psycopg.connect(self.line.deployment.stack.variables[variable], autocommit=True), database

    def terminate(self, side: str) -> int:
        """Every session of our database, the walsender's too; how many those were."""
        connection, database = self.admin(side)
        with connection:
            return int(
                one(
                    connection,
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s",
                    database,
                )
            )

    def set_read_only(self, on: bool) -> None:
        connection, database = self.admin("sink")
        change = "SET default_transaction_read_only = on" if on else "RESET default_transaction_read_only"
        with connection:
            connection.execute(
                sql.SQL("ALTER DATABASE {} {}").format(sql.Identifier(database), sql.SQL(change))
            )

    @contextlib.contextmanager
    def holding(self, side: str, statement: str) -> Iterator[None]:
        """A lock in an open transaction; not at all where it cannot be had in ten seconds."""
        deployment = self.line.deployment
        with deployment.source() if side == "source" else deployment.sink() as connection:
            with contextlib.suppress(psycopg.errors.LockNotAvailable), connection.transaction():
                connection.execute("SET LOCAL lock_timeout = '10s'")
                connection.execute(statement.encode())
                yield
                return
            yield

    def waive(self) -> None:
        """Dead letters of records that this nemesis has produced, and of no others."""
        with self.line.deployment.sink() as sink:
            letters = sink.execute(
                "SELECT id::text FROM upwell.dead_letter WHERE closed_at IS NULL AND value_bytes = %s",
                [POISON],
            ).fetchall()
        if letters:
            names = [letter for (letter,) in letters]
            self.line.deployment.upwell("dead-letters", "waive", *names, "--reason", "chaos")


Strike = Callable[[Nemesis, float], str]


def kill(name: str) -> Strike:
    def strike(nemesis: Nemesis, seconds: float) -> str:
        until(lambda: nemesis.line.pids(name), STOP_SECONDS, f"{name} runs")
        nemesis.killing(name)
        time.sleep(seconds)
        return f"{name} killed for {seconds:g} s"

    return strike


def freeze(name: str) -> Strike:
    def strike(nemesis: Nemesis, seconds: float) -> str:
        nemesis.line.freeze(name)
        time.sleep(seconds)
        nemesis.line.thaw()
        return f"{name} frozen for {seconds:g} s"

    return strike


def stop(name: str, number: signal.Signals = signal.SIGTERM, how: str = "") -> Strike:
    def strike(nemesis: Nemesis, seconds: float) -> str:
        if name in COMPONENTS:
            nemesis.stop_component(name, number)
        else:
            nemesis.line.stop(name)
        time.sleep(seconds)
        return f"{name} stopped{how} for {seconds:g} s"

    return strike


def several(nemesis: Nemesis, seconds: float) -> str:
    names = nemesis.random.sample(EVERYTHING, nemesis.random.choice([2, 2, 3]))
    said = []
    for name in names:
        if nemesis.random.random() < 0.6:
            nemesis.killing(name)
            said.append(f"{name} killed")
        else:
            nemesis.line.freeze(name)
            said.append(f"{name} frozen")
    time.sleep(seconds)
    return f"{', '.join(said)} for {seconds:g} s"


def everything_killed(nemesis: Nemesis, seconds: float) -> str:
    """And started again in any order."""
    order = list(EVERYTHING)
    nemesis.random.shuffle(order)
    for name in order:
        nemesis.killing(name)
    time.sleep(seconds)
    line = nemesis.line
    starts = {"stack": line.up, "supervisor": line.start_supervisor, "monitor": line.start_monitor}
    order = nemesis.random.sample(list(starts), len(starts))
    for name in order:
        starts[name]()
        time.sleep(nemesis.random.uniform(0, 2))
    return f"everything killed for {seconds:g} s; started again: {', '.join(order)}"


def everything_frozen(nemesis: Nemesis, seconds: float) -> str:
    order = list(EVERYTHING)
    nemesis.random.shuffle(order)
    frozen = [pid for name in order for pid in nemesis.line.freeze(name)]
    time.sleep(seconds)
    nemesis.random.shuffle(frozen)
    for pid in frozen:
        send(pid, signal.SIGCONT)
        time.sleep(0.02)
    return f"everything frozen for {seconds:g} s"


def broken_config(nemesis: Nemesis, seconds: float) -> str:
    """Its task fails, and the monitor's restarts do not help until it is put back; then they must."""
    line = nemesis.line
    config = line.connector("/config")
    saved = line.deployment.directory / "connector.json"
    saved.write_text(json.dumps(config))
    line.connector("/config", "PUT", json={**config, "publication.name": "gone"})
    time.sleep(seconds)
    line.connector("/config", "PUT", json=config)
    saved.unlink()
    return f"connector's config broken for {seconds:g} s"


def connector(verb: str) -> Strike:
    def strike(nemesis: Nemesis, seconds: float) -> str:
        nemesis.line.connector(f"/{verb}", "PUT")
        time.sleep(seconds)
        nemesis.line.connector("/resume", "PUT")
        return f"connector: {verb} for {seconds:g} s"

    return strike


def restarted_connector(nemesis: Nemesis, seconds: float) -> str:
    nemesis.line.connector("/restart?includeTasks=true", "POST")
    return "connector restarted with its task"


def poison(nemesis: Nemesis, seconds: float) -> str:
    line = nemesis.line
    topic = f"{line.topic_prefix()}.shop.{nemesis.random.choice(['content', 'customers'])}"
    partition = nemesis.random.randrange(4)
    settings = {
        "bootstrap.servers": line.deployment.environment["UPWELL_KAFKA_BOOTSTRAP_SERVERS"],
        "log_level": 0,
    }
    producer = Producer(settings)
    producer.produce(topic, value=POISON, partition=partition)
    producer.flush(30)
    time.sleep(seconds)
    nemesis.waive()
    return f"a record that nobody can read in {topic}/{partition}, waived after {seconds:g} s"


def storm(nemesis: Nemesis, seconds: float) -> str:
    """Workers that join and are killed, or leave, again and again."""
    extra: list[WorkerProcess] = []
    rounds = nemesis.random.choice([2, 3, 4]) if nemesis.pace is LONG else 1
    for number in range(rounds):
        extra.append(nemesis.line.start_extra(f"storm{number % 2}"))
        time.sleep(nemesis.random.uniform(1, 6))
        if len(extra) > 1 or rounds == 1:
            extra.pop(0).kill()
    for worker in extra:
        worker.kill()
    return f"a storm of {rounds} workers that joined and were killed"


def read_only(nemesis: Nemesis, seconds: float) -> str:
    nemesis.set_read_only(True)
    nemesis.terminate("sink")
    time.sleep(seconds)
    nemesis.set_read_only(False)
    nemesis.terminate("sink")
    return f"sink read-only for {seconds:g} s"


def hold(side: str, what: str, statement: str) -> Strike:
    def strike(nemesis: Nemesis, seconds: float) -> str:
        with contextlib.suppress(psycopg.OperationalError), nemesis.holding(side, statement):
            time.sleep(seconds)
        return f"{what} for {seconds:g} s"

    return strike


def terminated(side: str) -> Strike:
    def strike(nemesis: Nemesis, seconds: float) -> str:
        return f"{nemesis.terminate(side)} sessions of the {side} terminated"

    return strike


def walsender(nemesis: Nemesis, seconds: float) -> str:
    with nemesis.line.deployment.source() as source:
        source.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
    return "walsender terminated"


def slot_dropped(nemesis: Nemesis, seconds: float) -> str:
    """Changes are lost for good, and nobody but the monitor mends it."""
    line = nemesis.line
    prefix = line.topic_prefix()
    slot = f"upwell_{prefix}"

    def dropped() -> bool:
        with line.deployment.source() as source:
            source.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s",
                [slot],
            )
            with contextlib.suppress(psycopg.errors.ObjectInUse):
                source.execute(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                    [slot],
                )
                return True
            return False

    until(dropped, 60, f"slot {slot} dropped")
    started = time.monotonic()
    until(lambda: _rebuilt(line, prefix), HEAL_SECONDS, f"a lineage after {prefix}, complete")
    return f"slot {slot} dropped; rebuilt by itself after {time.monotonic() - started:.0f} s"


def _rebuilt(line: Line, before: str) -> bool:
    time.sleep(0.3)
    with line.deployment.sink() as sink:
        loaded = one(sink, "SELECT bool_and(load_state = 'complete') FROM upwell.collection")
    return bool(loaded) and line.topic_prefix() != before


#: By name: how often, and what.
FAULTS: Final[dict[str, tuple[float, Strike]]] = {
    **{f"kill {name}": (3, kill(name)) for name in EVERYTHING},
    **{f"freeze {name}": (2, freeze(name)) for name in EVERYTHING},
    "stop source": (1.5, stop("source", signal.SIGINT, " (fast)")),
    "stop source at once": (1.5, stop("source", signal.SIGQUIT, " (immediate)")),
    "stop sink": (1.5, stop("sink", signal.SIGINT, " (fast)")),
    "stop sink at once": (1.5, stop("sink", signal.SIGQUIT, " (immediate)")),
    **{f"stop {name}": (1.5, stop(name)) for name in ("kafka", "connect", "registry")},
    **{f"stop {name}": (1.5, stop(name)) for name in ("supervisor", "monitor")},
    "several at once": (6, several),
    "everything killed": (3, everything_killed),
    "everything frozen": (2, everything_frozen),
    "config broken": (2, broken_config),
    "connector paused": (2, connector("pause")),
    "connector stopped": (2, connector("stop")),
    "connector restarted": (2, restarted_connector),
    "poison": (3, poison),
    "storm": (3, storm),
    "read-only": (2, read_only),
    "record locked": (
        2,
        hold("sink", "record_content locked", "LOCK TABLE upwell.record_content IN ACCESS EXCLUSIVE MODE"),
    ),
    "table locked": (
        2,
        hold("source", "shop.content locked", "LOCK TABLE shop.content IN ACCESS EXCLUSIVE MODE"),
    ),
    "collection locked": (
        2,
        hold(
            "sink",
            "collection's lock held",
            "SELECT pg_advisory_xact_lock(hashtext('upwell.collection'), hashtext('content'))",
        ),
    ),
    "old transaction": (
        1,
        hold("source", "an old transaction held open", "SELECT pg_current_xact_id()"),
    ),
    "walsender": (3, walsender),
    "sink sessions": (2, terminated("sink")),
    "source sessions": (2, terminated("source")),
    "slot dropped": (2, slot_dropped),
}
