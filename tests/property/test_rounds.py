"""The watermark against an omniscient oracle: it never claims more than is true, whatever is late (DESIGN 7, H30-H36).

The model is one source, a connector that confirms partitions one by one, Kafka, intake and embed; the monitor's own
steps are rules like everything else, so each of them may be as late as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.change import TopicPartition
from streams.freshness.rounds import Ends, OpenLetter, Reflected, Round, Rounds

START = datetime(2026, 1, 1, tzinfo=UTC)
TOPIC, CANARY = "t", "canary"
PARTITIONS = 2


@dataclass(eq=False)
class Commit:
    """One transaction of one row. `lsn` 0: its time is taken, but it is not in the write-ahead log yet."""

    at: float
    topic: str
    partition: int
    number: int = 0
    lsn: int = 0
    previous: int = 0
    offset: int | None = None
    reflected: bool = False
    letter: str = ""


@dataclass
class World:
    """Everything that there is; only the oracle sees it whole."""

    now: float = 0.0
    commits: list[Commit] = field(default_factory=list)
    logged: list[Commit] = field(default_factory=list)
    sent: int = 0
    flying: list[Commit] = field(default_factory=list)
    landed: dict[TopicPartition, list[Commit]] = field(default_factory=dict)
    taken: dict[TopicPartition, int] = field(default_factory=dict)

    def log(self, commit: Commit) -> None:
        commit.previous = self.logged[-1].lsn + 5 if self.logged else 0  # a commit comes after its rows
        commit.lsn = 10 * (len(self.logged) + 1)
        self.logged.append(commit)

    def stored(self) -> int:
        """Connect's position: of the last record before the first that is not confirmed (H30); a row carries the commit
        before its own (H31)."""
        done = 0
        for commit in self.logged[: self.sent]:
            if commit.offset is None:
                break
            done = commit.previous
        return done


class Freshness(RuleBasedStateMachine):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.rounds = Rounds(limit=6)
        self.number = 0
        self.watermark: datetime | None = None
        self.read: tuple[list[Round], Ends] | None = None
        self.found = 0
        self.stored = 0

    # -- the world

    @rule(seconds=st.floats(0.01, 3.0))
    def time_passes(self, seconds: float) -> None:
        """A commit's time is taken less than the guard before it is in the log, so whatever is begun comes first."""
        open_since = min((each.at for each in self.world.commits if not each.lsn), default=None)
        limit = seconds if open_since is None else min(seconds, open_since + 0.95 - self.world.now)
        self.world.now += max(0.0, limit)

    @rule(partition=st.integers(0, PARTITIONS - 1))
    def commit_begins(self, partition: int) -> None:
        self.world.commits.append(Commit(self.world.now, TOPIC, partition))

    @rule(pick=st.integers(0, 5))
    def commit_is_logged(self, pick: int) -> None:
        waiting = [each for each in self.world.commits if not each.lsn]
        if waiting:
            self.world.log(waiting[pick % len(waiting)])

    @rule()
    def heartbeat(self) -> None:
        commit = Commit(self.world.now, "heartbeat", 0, reflected=True)
        self.world.commits.append(commit)
        self.world.log(commit)

    @rule(count=st.integers(1, 5))
    def connector_sends(self, count: int) -> None:
        upto = min(self.world.sent + count, len(self.world.logged))
        self.world.flying += self.world.logged[self.world.sent : upto]
        self.world.sent = upto

    @rule(pick=st.integers(0, 5))
    def kafka_confirms(self, pick: int) -> None:
        """In order within a partition only."""
        heads: dict[tuple[str, int], Commit] = {}
        for each in self.world.flying:
            heads.setdefault((each.topic, each.partition), each)
        if heads:
            commit = list(heads.values())[pick % len(heads)]
            self.world.flying.remove(commit)
            log = self.world.landed.setdefault(TopicPartition(commit.topic, commit.partition), [])
            commit.offset = len(log)
            log.append(commit)

    @rule(pick=st.integers(0, 5), letter=st.sampled_from(["", "", "", "dated", "undated"]))
    def intake(self, pick: int, letter: str) -> None:
        ready = [at for at, log in self.world.landed.items() if self.world.taken.get(at, 0) < len(log)]
        if ready:
            at = ready[pick % len(ready)]
            commit = self.world.landed[at][self.world.taken.get(at, 0)]
            self.world.taken[at] = self.world.taken.get(at, 0) + 1
            if commit.topic == TOPIC:
                commit.letter = letter

    @rule(pick=st.integers(0, 5))
    def embed(self, pick: int) -> None:
        """Also a replayed or waived dead letter is reflected then."""
        waiting = [each for each in self._taken() if not each.reflected]
        if waiting:
            waiting[pick % len(waiting)].reflected = True

    def _taken(self) -> list[Commit]:
        return [each for at, log in self.world.landed.items() for each in log[: self.world.taken.get(at, 0)]]

    @rule(
        stuck=st.sampled_from([None, 0, 1]),
        embeds=st.booleans(),
        letter=st.sampled_from(["", "dated", "undated"]),
    )
    def everything_flows(self, stuck: int | None, embeds: bool, letter: str = "") -> None:
        """But for one partition that Kafka does not confirm, and the embedder perhaps; or all become dead letters."""
        self.heartbeat()
        self.connector_sends(len(self.world.logged))
        for commit in list(self.world.flying):
            if commit.topic != TOPIC or commit.partition != stuck:
                self.world.flying.remove(commit)
                log = self.world.landed.setdefault(TopicPartition(commit.topic, commit.partition), [])
                commit.offset = len(log)
                log.append(commit)
        for at, log in self.world.landed.items():
            for commit in log[self.world.taken.get(at, 0) :]:
                commit.letter = letter if commit.topic == TOPIC else ""
            self.world.taken[at] = len(log)
        for commit in self._taken():
            if not commit.letter and (embeds or commit.topic == CANARY):
                commit.reflected = True

    @rule()
    def the_monitor_works(self) -> None:
        self.read_the_canary_topic()
        self.ask_connect()
        self.use_connects_answer()
        self.read_ends()
        self.use_ends()
        self.search_for_the_canary()
        self.evaluate()

    # -- the monitor, each step on its own

    @rule()
    def beat(self) -> None:
        self.number += 1
        commit = Commit(self.world.now, CANARY, 0, number=self.number)
        self.world.commits.append(commit)
        self.world.log(commit)
        self.rounds.begin(self.number, _at(commit.at), self.world.now)

    @rule()
    def read_the_canary_topic(self) -> None:
        for commit in self.world.landed.get(TopicPartition(CANARY, 0), []):
            self.rounds.seen(commit.number, commit.lsn)

    @rule()
    def ask_connect(self) -> None:
        """Its answer may be used much later."""
        self.stored = self.world.stored()

    @rule()
    def use_connects_answer(self) -> None:
        self.rounds.stored(self.stored)

    @rule()
    def read_ends(self) -> None:
        unread = self.rounds.unread()
        ends = {
            TopicPartition(TOPIC, number): len(self.world.landed.get(TopicPartition(TOPIC, number), []))
            for number in range(PARTITIONS)
        }
        self.read = (unread, Ends(ends, dict.fromkeys(ends, 0)))

    @precondition(lambda self: self.read is not None)
    @rule()
    def use_ends(self) -> None:
        assert self.read is not None
        for each in self.read[0]:
            each.ends = self.read[1]
        self.read = None

    @rule()
    def search_for_the_canary(self) -> None:
        done = [each.number for each in self._taken() if each.topic == CANARY and each.reflected]
        self.found = max(done, default=0)

    @rule()
    def evaluate(self) -> None:
        proven = self.rounds.complete("t", self._reflected(), self.found)
        if proven is not None:
            self.watermark = proven[1] if self.watermark is None else max(self.watermark, proven[1])
        self.rounds.forget(["t"])

    def _reflected(self) -> Reflected:
        waiting = [each for each in self._taken() if each.topic == TOPIC and not each.reflected]
        dated = [_at(each.at) for each in waiting if each.letter != "undated"]
        undated = [
            OpenLetter(TOPIC, each.partition, each.offset or 0)
            for each in waiting
            if each.letter == "undated"
        ]
        positions = {at.partition: offset for at, offset in self.world.taken.items() if at.topic == TOPIC}
        return Reflected(TOPIC, positions, min(dated, default=None), undated)

    # -- what must hold

    @invariant()
    def the_watermark_claims_no_more_than_is_true(self) -> None:
        if self.watermark is None:
            return
        for commit in self.world.commits:
            if commit.topic == TOPIC and not commit.reflected:
                assert _at(commit.at) > self.watermark, f"{commit} is not searchable"

    @invariant()
    def rounds_are_bounded(self) -> None:
        assert len(self.rounds.waiting) <= 6


def _at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


TestFreshness = Freshness.TestCase
TestFreshness.settings = settings(max_examples=400, stateful_step_count=50, deadline=None)


def test_a_healthy_line_moves_the_watermark_to_a_second_before_the_round() -> None:
    line = Freshness()
    line.commit_begins(0)
    line.commit_is_logged(0)
    line.time_passes(2.0)
    line.beat()
    line.the_monitor_works()
    assert line.watermark is None, "nothing has flown yet"
    line.everything_flows(stuck=None, embeds=True)
    line.the_monitor_works()
    assert line.watermark == _at(1.0)
    assert not line.rounds.waiting


def test_an_idle_source_needs_the_next_commit() -> None:
    """H31: the canary's own commit is stored with the row after it."""
    line = Freshness()
    line.beat()
    line.connector_sends(1)
    line.kafka_confirms(0)
    line.intake(0, "")
    line.embed(0)
    line.the_monitor_works()
    assert line.watermark is None
    line.everything_flows(stuck=None, embeds=True)
    line.the_monitor_works()
    assert line.watermark == _at(-1.0)
