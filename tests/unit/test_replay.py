"""Replaying with a fake store: what is tried again, what stops, and which line says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

import streams.replay
from schemas.change import Outcome, TopicPartition, Undecodable, Version
from schemas.errors import (
    Conflict,
    DeploymentChanged,
    GenerationMismatch,
    RecordRejected,
    RegistryUnavailable,
    SinkUnavailable,
    UnresolvedPlaceholder,
    UpwellError,
)
from schemas.letters import ReplayPlan, StoredLetter
from schemas.sink import Fence, IntakeRequest, IntakeView
from schemas.spec import CollectionSpec
from streams.replay import ATTEMPTS, Decoders, Replayed, Replaying
from tests.fixtures.envelope import envelope_message

AT = TopicPartition("src.public.content", 0)
SPEC = CollectionSpec(table="public.content", template="{{ title }}")
MADE = envelope_message({"id": 1, "title": "Tea"})
LETTER = StoredLetter(
    id=7,
    collection="content",
    stage="intake",
    at=AT,
    version=Version(1, 5),
    generation=None,
    key="[1]",
    key_bytes=MADE.key,
    value_bytes=MADE.value,
    headers=(),
    error_class="DocumentTooLarge",
    error="too long",
    committed_at=None,
    created_at=datetime(2026, 3, 1, tzinfo=UTC),
)


@dataclass
class Store:
    """One letter; raises `troubles` one by one, before it writes anything."""

    stored: StoredLetter = LETTER
    view: IntakeView = field(default_factory=lambda: IntakeView(None, {}))
    troubles: list[UpwellError] = field(default_factory=list)
    plans: list[ReplayPlan] = field(default_factory=list)
    requests: list[IntakeRequest] = field(default_factory=list)
    kept: list[Undecodable] = field(default_factory=list)

    async def letter(self, number: int) -> StoredLetter:
        return replace(self.stored, id=number)

    async def replay(
        self, letter: StoredLetter, request: IntakeRequest, decide: Callable[[IntakeView], ReplayPlan]
    ) -> ReplayPlan:
        self.requests.append(request)
        if self.troubles:
            raise self.troubles.pop(0)
        self.plans.append(decide(self.view))
        return self.plans[-1]

    async def embed_again(self, letter: StoredLetter) -> str:
        if self.troubles:
            raise self.troubles.pop(0)
        return "replayed"

    async def keep_open(self, letter: StoredLetter, still: Undecodable) -> None:
        self.kept.append(still)


class Registry:
    def schema(self, schema_id: int) -> str:
        return MADE.schemas[schema_id]

    def answers(self) -> None:
        return


def unreachable() -> str:
    raise AssertionError("the source was asked")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.replay, "PAUSE_SECONDS", 0)


async def run(store: Store, *numbers: int, decoders: Decoders | None = None) -> tuple[bool, list[str]]:
    told: list[Replayed] = []
    found = decoders or Decoders(
        {"content": SPEC}, {"content": ["id"]}, 1, registry=Registry(), placeholder=lambda: "__hole__"
    )
    done = await Replaying(store, found).run(numbers or (7,), told.append)
    return done, [each.line for each in told]


async def test_the_request_moves_no_position_and_has_the_letter_s_lineage() -> None:
    store = Store()
    assert await run(store) == (True, ["dead letter 7 (content [1]) replayed: applied"])
    assert store.requests == [IntakeRequest("content", {}, ["[1]"], lineage=1)]
    (plan,) = store.plans
    assert (plan.plan.positions, list(plan.plan.ranges), plan.closed_by) == ({}, [], "replayed")
    assert plan.plan.writes[0].state.version == Version(1, 5)


async def test_a_truncate_takes_the_collection_alone() -> None:
    made = envelope_message(None, "t", key_values={}, lsn=300)
    store = Store(replace(LETTER, key=None, key_bytes=None, value_bytes=made.value))
    assert await run(store) == (True, ["dead letter 7 (content) replayed: deleted"])
    assert store.requests == [IntakeRequest("content", {}, [], exclusive=True, lineage=1)]


async def test_a_fence_supersedes() -> None:
    store = Store(view=IntakeView(Fence(1, 200), {}))
    done, (line,) = await run(store)
    assert done
    assert "superseded: something newer says otherwise" in line
    assert (store.plans[0].outcome, list(store.plans[0].plan.writes)) == (Outcome.IGNORED, [])


async def test_conflicts_are_tried_again_but_not_for_ever() -> None:
    store = Store(troubles=[Conflict("busy")] * 2)
    assert (await run(store))[0]
    assert len(store.requests) == 3
    with pytest.raises(Conflict):
        await run(Store(troubles=[Conflict("busy")] * ATTEMPTS))


async def test_a_sink_that_goes_away_ends_it_and_what_was_told_is_done() -> None:
    told: list[Replayed] = []
    store = Store()

    def tell(replayed: Replayed) -> None:
        told.append(replayed)
        store.troubles.append(SinkUnavailable("away"))

    decoders = Decoders(
        {"content": SPEC}, {"content": ["id"]}, 1, registry=Registry(), placeholder=lambda: "__hole__"
    )
    with pytest.raises(SinkUnavailable):
        await Replaying(store, decoders).run((7, 8), tell)
    assert [each.line for each in told] == ["dead letter 7 (content [1]) replayed: applied"]


@pytest.mark.parametrize("error", [RecordRejected("too great"), UnresolvedPlaceholder("not\nstored")])
async def test_what_is_refused_or_blocked_stays_and_the_next_one_is_replayed(error: UpwellError) -> None:
    store = Store(troubles=[error])
    done, lines = await run(store, 7, 8)
    assert not done
    assert lines[0] == f"dead letter 7 (content [1]) stays: {' '.join(str(error).split())}"
    assert lines[1].endswith("replayed: applied")
    ((kept),) = store.kept
    assert (kept.error_class, kept.value_bytes) == (type(error).__name__, MADE.value)


async def test_a_lineage_that_begins_meanwhile() -> None:
    done, (line,) = await run(Store(troubles=[DeploymentChanged("lineage 2")]))
    assert not done
    assert "lineage 1, which has ended; lineage 2 reads every row again" in line


async def test_a_collection_that_the_spec_does_not_have_stays() -> None:
    done, (line,) = await run(Store(replace(LETTER, collection="gone")))
    assert (done, line) == (False, "dead letter 7 (gone [1]) stays: its collection is not in the spec")


async def test_a_spec_of_no_generation_replays_nothing() -> None:
    def check(collection: str) -> None:
        raise GenerationMismatch("changed")

    decoders = Decoders(
        {"content": SPEC}, {"content": ["id"]}, 1, registry=Registry(), placeholder=unreachable, check=check
    )
    store = Store()
    with pytest.raises(GenerationMismatch):
        await run(store, decoders=decoders)
    assert not store.plans


async def test_a_text_of_the_embed_stage_needs_neither_source_nor_registry() -> None:
    class Away(Registry):
        def schema(self, schema_id: int) -> str:
            raise RegistryUnavailable("away")

    decoders = Decoders({"content": SPEC}, {"content": ["id"]}, 1, registry=Away(), placeholder=unreachable)
    letter = replace(LETTER, stage="embed", at=None, generation=2, key_bytes=None, value_bytes=None)
    store = Store(letter, troubles=[Conflict("busy")])
    done, (line,) = await run(store, decoders=decoders)
    assert (done, line) == (
        True,
        "dead letter 7 (content [1]) replayed: it is to be embedded in generation 2",
    )
