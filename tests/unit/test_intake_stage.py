"""Intake over a sink in memory: what waits, what is set aside alone, and what ends the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import pytest

from schemas.change import Change, TopicPartition, Undecodable
from schemas.envelope import Decoder, RawMessage
from schemas.errors import (
    ColumnMissing,
    Conflict,
    GapFound,
    Halt,
    PositionConflict,
    RecordRejected,
    RegistryUnavailable,
    SinkUnavailable,
    UpwellError,
)
from schemas.sink import IntakePlan, IntakeRequest, IntakeView
from schemas.spec import CollectionSpec
from streams.freshness.measures import Measures
from streams.intake import retry, stage
from streams.intake.retry import Stopping, persist
from streams.intake.stage import Intake
from streams.intake.transport import starting_offsets
from streams.vitals import Vitals
from tests.fixtures.envelope import Made, envelope_message
from tests.property.test_simulation import MemoryStore

AT = TopicPartition("src.public.content", 0)
SPEC = CollectionSpec(table="public.content", template="{{ title }}")


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_PAUSE_SECONDS", "LONGEST_PAUSE_SECONDS", "BLOCKED_PAUSE_SECONDS"):
        monkeypatch.setattr(retry, name, 0.002)


@dataclass
class Sink(MemoryStore):
    """Raises `troubles` one by one before it takes anything in; refuses keys as a database does."""

    troubles: list[UpwellError] = field(default_factory=list)
    refused: frozenset[str] = frozenset()
    batches: list[list[str]] = field(default_factory=list)

    async def intake(
        self, request: IntakeRequest, decide: Callable[[IntakeView], IntakePlan]
    ) -> tuple[IntakePlan, datetime]:
        if self.troubles:
            raise self.troubles.pop(0)

        def refusing(view: IntakeView) -> IntakePlan:
            plan = decide(view)
            if any(write.key in self.refused for write in plan.writes):
                raise RecordRejected("value out of range")
            return plan

        plan, visible_at = await super().intake(request, refusing)
        self.batches.append(list(request.keys))
        return plan, visible_at


@dataclass
class FakeRegistry:
    """Writer schemas by id; away for the first `absences` calls."""

    schemas: dict[int, str] = field(default_factory=dict)
    absences: int = 0
    others: Sequence[dict[int, str]] = ()

    async def schema(self, schema_id: int) -> str:
        if self.absences:
            self.absences -= 1
            raise RegistryUnavailable("away")
        return self.others[0][schema_id] if self.others else self.schemas[schema_id]

    async def check_topic(self, topic: str) -> None:
        if self.others:
            self.others = self.others[1:]
            raise RegistryUnavailable(f"no schema of topic {topic}")


class BlockedDecoder(Decoder):
    """Cannot decode the message at offset `blocked` until that is mended."""

    blocked: int | None = None

    def decode(self, message: RawMessage) -> Change | Undecodable:
        if message.offset == self.blocked:
            raise ColumnMissing("column 'title' is gone")
        return super().decode(message)


@dataclass
class Notices:
    """What was said; `trouble` is raised instead, a `silent` sink never answers."""

    said: list[str] = field(default_factory=list)
    tried: int = 0
    trouble: UpwellError | None = None
    silent: bool = False

    async def set_blocked(self, collection: str, reason: str) -> None:
        await self._say(f"{collection}: {reason}")

    async def clear_blocked(self, collection: str) -> None:
        await self._say(f"{collection} goes on")

    async def _say(self, words: str) -> None:
        self.tried += 1
        if self.trouble is not None:
            raise self.trouble
        if self.silent:
            await asyncio.Event().wait()
        self.said.append(words)


@dataclass
class Tables:
    """The source's catalog, as a test has it."""

    fitting: bool = False
    reason: str = ""

    async def fits(self, collection: str) -> bool:
        return self.fitting

    async def retyped(self, collection: str) -> str:
        return self.reason


@dataclass
class Line:
    """A topic with one partition, and the intake that reads it."""

    sink: Sink = field(default_factory=Sink)
    registry: FakeRegistry = field(default_factory=FakeRegistry)
    messages: list[RawMessage] = field(default_factory=list)
    notices: Notices = field(default_factory=Notices)
    tables: Tables = field(default_factory=Tables)
    woken: int = 0
    stopping: bool = False
    vitals: Vitals = field(default_factory=Vitals)

    def __post_init__(self) -> None:
        self.decoder = BlockedDecoder("content", SPEC, ["id"], 1, "__hole_5f3a__")
        self.positions: dict[TopicPartition, int] = {}
        self.intake = Intake(
            "content",
            self.decoder,
            self.sink,
            self.registry,
            Measures(),
            positions=self.positions,
            wake=self._wake,
            should_stop=lambda: self.stopping,
            retry_deadline_seconds=30,
            notices=self.notices,
            tables=self.tables,
            vitals=self.vitals,
        )

    def _wake(self) -> None:
        self.woken += 1

    def row(self, key: int, title: str) -> RawMessage:
        lsn = 100 + len(self.messages)
        made = envelope_message({"id": key, "title": title}, lsn=lsn, sequence=f'["90","{lsn}"]')
        return self.add(made)

    def add(self, made: Made) -> RawMessage:
        self.registry.schemas.update(made.schemas)
        message = RawMessage(AT, len(self.messages), made.key, made.value, (), 1_767_323_046.0)
        self.messages.append(message)
        return message

    @property
    def live(self) -> dict[str, object]:
        records = self.sink.records.items()
        return {key: (state.row or {})["title"] for key, state in records if not state.deleted}


async def test_a_batch_is_stored_and_wakes_the_embedder() -> None:
    line = Line()
    await line.intake.take_in([line.row(1, "tea"), line.row(2, "milk"), line.row(1, "lemon")])
    assert line.live == {"[1]": "lemon", "[2]": "milk"}
    assert line.positions == line.sink.position == {AT: 3}
    assert line.woken == 1
    await line.intake.take_in([line.row(1, "lemon")])
    assert line.woken == 1


@pytest.mark.parametrize("trouble", [SinkUnavailable("away"), Conflict("deadlock")])
async def test_retry_is_in_place_and_loses_nothing(trouble: UpwellError) -> None:
    line = Line()
    line.sink.troubles = [trouble, trouble]
    await line.intake.take_in([line.row(1, "tea"), line.row(2, "milk")])
    assert line.live == {"[1]": "tea", "[2]": "milk"}
    assert line.sink.batches == [["[1]", "[2]"]]
    assert line.positions == {AT: 2}
    assert line.vitals.retries["intake"] == 2


async def test_a_registry_that_is_away_is_waited_for() -> None:
    line = Line()
    line.registry.absences = 2
    await line.intake.take_in([line.row(1, "tea")])
    assert line.live == {"[1]": "tea"}


async def test_another_registry_drains_nothing_into_dead_letters() -> None:
    """It gives a schema for every id, and none is of this topic."""
    line = Line()
    rows = [line.row(1, "tea"), line.row(2, "milk")]
    long = dict.fromkeys(line.registry.schemas, '"long"')
    line.registry.others = [long, long, dict.fromkeys(long, "no schema")]
    await asyncio.wait_for(line.intake.take_in(rows), 5)
    assert line.live == {"[1]": "tea", "[2]": "milk"}
    assert not line.sink.dead
    assert line.vitals.retries["intake"] == 3


async def test_a_row_that_the_sink_refuses_is_found_by_halving() -> None:
    line = Line()
    line.sink.refused = frozenset({"[5]"})
    await line.intake.take_in([line.row(key, f"text {key}") for key in range(8)])
    assert set(line.live) == {f"[{key}]" for key in range(8) if key != 5}
    ((place, letter),) = line.sink.dead.items()
    assert place == (AT, 5)
    assert (letter.key, letter.error_class) == ("[5]", "RecordRejected")
    assert (letter.key_bytes, letter.value_bytes) == (line.messages[5].key, line.messages[5].value)
    assert letter.committed_at is not None
    assert line.positions == line.sink.position == {AT: 8}


async def test_undecodable_bytes_are_set_aside_alone() -> None:
    line = Line()
    odd = RawMessage(AT, 1, b"odd", b"bytes")
    first = line.row(1, "tea")
    line.messages.append(odd)
    await line.intake.take_in([first, odd, line.row(2, "milk")])
    assert set(line.live) == {"[1]", "[2]"}
    assert [letter.error_class for letter in line.sink.dead.values()] == ["BadMagicByte"]


async def test_rows_refused_for_a_column_of_another_type_block_until_the_sink_has_it() -> None:
    line = Line()
    line.sink.refused, line.tables.reason = frozenset({"[1]", "[2]"}), "column 'title' is another"
    taking = asyncio.create_task(line.intake.take_in([line.row(1, "tea"), line.row(2, "milk")]))
    await until(lambda: len(line.notices.said) > 1)
    assert line.notices.said[-1:] == ["content: column 'title' is another"]
    assert not line.sink.dead
    line.sink.refused, line.tables.reason = frozenset(), ""
    await taking
    assert line.live == {"[1]": "tea", "[2]": "milk"}
    assert not line.sink.dead


async def test_what_was_sent_without_a_needed_column_is_read_again_once_the_column_is_back() -> None:
    line = Line()
    lacking = {"id": "long", "body": ["null", "string"]}
    messages = [
        line.add(
            envelope_message(
                {"id": key, "body": "x"}, columns=lacking, lsn=200 + key, sequence='["90","200"]'
            )
        )
        for key in (1, 2)
    ]
    taking = asyncio.create_task(line.intake.take_in(messages))
    await until(lambda: bool(line.notices.said))
    assert line.notices.said[-1].startswith(
        "content: column 'title' that collection 'content' needs is missing"
    )
    line.tables.fitting = True
    await taking
    assert set(line.sink.repairs) == {"[1]", "[2]"}
    assert line.live == {}
    assert line.positions == {AT: 2}


async def test_what_was_read_without_a_needed_column_is_not_read_again_and_again() -> None:
    line = Line(tables=Tables(fitting=True))
    lacking = {"id": "long", "body": ["null", "string"]}
    made = envelope_message({"id": 1, "body": "x"}, op="r", columns=lacking, snapshot="incremental", lsn=None)
    taking = asyncio.create_task(line.intake.take_in([line.add(made)]))
    await until(lambda: bool(line.notices.said), 5)
    line.stopping = True
    with pytest.raises(Stopping):
        await taking
    assert not line.sink.repairs


async def test_a_blocked_message_waits_behind_what_came_before_and_goes_on_when_mended() -> None:
    line = Line()
    line.decoder.blocked = 1
    taking = asyncio.create_task(
        line.intake.take_in([line.row(1, "tea"), line.row(2, "lemon"), line.row(3, "milk")])
    )
    await until(lambda: line.live == {"[1]": "tea"})
    await asyncio.sleep(0.03)
    assert not taking.done()
    assert line.positions == {AT: 1}
    assert line.vitals.blocked == {"content": "column 'title' is gone"}
    line.decoder.blocked = None
    await asyncio.wait_for(taking, 5)
    assert line.live == {"[1]": "tea", "[2]": "lemon", "[3]": "milk"}
    assert line.positions == {AT: 3}
    assert line.vitals.blocked == {}


async def test_a_blocked_collection_is_said_until_it_goes_on() -> None:
    line = Line()
    line.decoder.blocked = 1
    taking = asyncio.create_task(line.intake.take_in([line.row(1, "tea"), line.row(2, "lemon")]))
    await until(lambda: len(line.notices.said) > 2)
    assert set(line.notices.said) == {"content: column 'title' is gone"}
    line.decoder.blocked = None
    await asyncio.wait_for(taking, 5)
    assert line.notices.said[-1] == "content goes on"
    assert line.notices.said.count("content goes on") == 1
    await line.intake.take_in([line.row(3, "milk")])
    assert line.notices.said.count("content goes on") == 1


async def test_a_collection_that_was_not_blocked_says_nothing() -> None:
    line = Line()
    await line.intake.take_in([line.row(1, "tea")])
    assert line.notices.said == []


@pytest.mark.parametrize("trouble", [SinkUnavailable("away"), None])
async def test_a_notice_that_cannot_be_given_holds_up_nothing(
    trouble: UpwellError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sink is away, or says nothing at all."""
    monkeypatch.setattr(stage, "NOTICE_SECONDS", 0.005)
    line = Line()
    line.notices.trouble, line.notices.silent = trouble, trouble is None
    line.decoder.blocked = 0
    taking = asyncio.create_task(line.intake.take_in([line.row(1, "tea")]))
    await until(lambda: line.notices.tried > 2)
    line.decoder.blocked = None
    await asyncio.wait_for(taking, 5)
    assert line.live == {"[1]": "tea"}


async def test_a_value_that_was_not_sent_holds_up_only_what_comes_after_it() -> None:
    line = Line()
    good, hole = line.row(1, "tea"), line.row(2, "__hole_5f3a__")
    taking = asyncio.create_task(line.intake.take_in([good, hole]))
    try:
        await until(lambda: line.live == {"[1]": "tea"}, 0.5)
    finally:
        line.stopping = True
        with pytest.raises(Stopping):
            await asyncio.wait_for(taking, 5)


async def test_stopping_ends_a_retry_and_acknowledges_nothing() -> None:
    line = Line()
    line.sink.troubles = [SinkUnavailable("away")] * 10_000
    taking = asyncio.create_task(line.intake.take_in([line.row(1, "tea")]))
    await asyncio.sleep(0.02)
    assert not taking.done()
    line.stopping = True
    with pytest.raises(Stopping):
        await asyncio.wait_for(taking, 5)
    assert line.positions == {}
    assert line.sink.records == {}


async def test_a_halt_is_not_retried() -> None:
    line = Line()
    line.sink.troubles = [Halt("wrong")]
    with pytest.raises(Halt):
        await line.intake.take_in([line.row(1, "tea")])
    assert line.sink.plans == []


async def test_retry_ends_at_its_deadline() -> None:
    async def away() -> None:
        raise SinkUnavailable("away")

    with pytest.raises(Halt, match="gave up after 0 s: away"):
        await asyncio.wait_for(
            persist(away, should_stop=lambda: False, deadline_seconds=0.01, where="here"), 5
        )


async def test_another_owner_ends_the_worker_and_nothing_is_written() -> None:
    line = Line()
    await line.intake.take_in([line.row(1, "tea")])
    line.sink.position[AT] = 7
    with pytest.raises(PositionConflict):
        await line.intake.take_in([line.row(2, "milk")])
    assert line.live == {"[1]": "tea"}
    assert line.sink.position == {AT: 7}


async def test_h21_a_sink_restored_under_a_running_worker() -> None:
    """The retry must not commit: what lies between the restored position and the batch would never come again."""
    line = Line()
    await line.intake.take_in([line.row(1, "one")])
    backup = (dict(line.sink.records), dict(line.sink.position))
    await line.intake.take_in([line.row(2, "two"), line.row(3, "three")])
    line.sink.troubles = [SinkUnavailable("restoring")]
    line.sink.records, line.sink.position = dict(backup[0]), dict(backup[1])
    with pytest.raises(PositionConflict):
        await line.intake.take_in([line.row(4, "four")])
    assert (line.sink.records, line.sink.position) == backup
    restarted = Line(line.sink, line.registry, line.messages)
    restarted.positions.update(await line.sink.positions([AT.topic]))
    await restarted.intake.take_in(line.messages[restarted.positions[AT] :])
    assert line.live == {"[1]": "one", "[2]": "two", "[3]": "three", "[4]": "four"}


async def test_h21_another_position_is_not_tried_again() -> None:
    """The retry would find the sink as it is by then."""

    async def attempt() -> None:
        raise PositionConflict("restored")

    with pytest.raises(PositionConflict):
        await persist(attempt, should_stop=lambda: True, deadline_seconds=30, where="here")


async def test_a_commit_whose_answer_was_lost_ends_the_worker() -> None:
    """The retry finds the position moved; a restart begins behind it. Nothing is lost or done twice."""

    class Deaf(Sink):
        async def intake(
            self, request: IntakeRequest, decide: Callable[[IntakeView], IntakePlan]
        ) -> tuple[IntakePlan, datetime]:
            await super().intake(request, decide)
            raise SinkUnavailable("the connection broke at COMMIT")

    line = Line(Deaf())
    with pytest.raises(PositionConflict):
        await line.intake.take_in([line.row(1, "tea")])
    assert line.live == {"[1]": "tea"}
    assert line.sink.position == {AT: 1}
    assert line.positions == {}


def test_where_to_begin() -> None:
    other = TopicPartition(AT.topic, 1)
    assert starting_offsets({AT: 7}, {AT: 5, other: 3}) == {AT: 7, other: 3}
    assert starting_offsets({AT: 7}, {AT: 7}) == {AT: 7}


def test_h23_a_log_that_starts_above_the_position_is_a_gap() -> None:
    with pytest.raises(GapFound, match="3 changes are lost"):
        starting_offsets({AT: 7}, {AT: 10})


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Poll with a deadline."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
