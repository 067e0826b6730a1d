"""Dead letters once more: decoded with the spec, template and schemas of now, decided as any change.

The version is the one that the record had when it was consumed, so whatever came after it wins. Each letter is a
transaction of its own, and no worker need stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from schemas.change import Change, JsonValue, Outcome, Undecodable
from schemas.envelope import Decoder, RawMessage
from schemas.errors import (
    Blocked,
    Conflict,
    DeadLetter,
    DecodeError,
    DeploymentChanged,
    RegistryUnavailable,
    SettingsError,
    UpwellError,
)
from schemas.letters import ReplayPlan, StoredLetter
from schemas.sink import IntakePlan, IntakeRequest, IntakeView
from schemas.spec import CollectionSpec
from streams.intake.core import decide, has_truncate, keys_of, keys_with_rows
from streams.ports import ReplayStore

ACCEPTED: Final = frozenset({Outcome.APPLIED, Outcome.UNCHANGED, Outcome.DELETED})
#: Of one letter, while workers write its key.
ATTEMPTS: Final = 20
PAUSE_SECONDS: Final = 0.1

_WHY: Final[Mapping[Outcome, str]] = {
    Outcome.DUPLICATE: "a newer change of the row, or its deletion, was taken in",
    Outcome.IGNORED: "something newer says otherwise: a truncate, what was streamed, or a re-read under way",
}


class Schemas(Protocol):
    """Writer schemas by id, for code without an event loop."""

    def schema(self, schema_id: int) -> str:
        """Raises RegistryUnavailable, also for an id that the registry does not have."""
        ...

    def answers(self) -> None:
        """Raise RegistryUnavailable unless it answers."""
        ...


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one dead letter, in one line; `done` says that it is closed."""

    done: bool
    line: str


class Decoders:
    """A decoder for each collection, made when it is first needed."""

    def __init__(
        self,
        specs: Mapping[str, CollectionSpec],
        key_columns: Mapping[str, Sequence[str]],
        lineage: int,
        *,
        registry: Schemas,
        placeholder: Callable[[], str],
        check: Callable[[str], object] = lambda collection: None,
    ) -> None:
        """`placeholder` asks the source; `check` raises if the collection's spec is that of no generation."""
        self.lineage = lineage
        self._specs, self._key_columns, self._registry = specs, key_columns, registry
        self._placeholder, self._check = placeholder, check
        self._made: dict[str, Decoder] = {}

    def serves(self, collection: str) -> bool:
        """Whether both spec and sink have it."""
        return collection in self._specs and collection in self._key_columns

    def of(self, collection: str) -> Decoder:
        """Raises SettingsError for a collection that it does not serve, and what `check` raises."""
        if not self.serves(collection):
            raise SettingsError(f"collection {collection} is not in the spec")
        if collection not in self._made:
            self._check(collection)
            spec, keys = self._specs[collection], self._key_columns[collection]
            self._made[collection] = Decoder(collection, spec, keys, self.lineage, self._placeholder())
        return self._made[collection]

    def learn(self, decoder: Decoder, message: RawMessage) -> None:
        """Teach it the schemas of a message. Raises RegistryUnavailable if the registry is away, DecodeError if it
        answers and does not have one.
        """
        for schema_id in decoder.needs_schema(message.key, message.value):
            try:
                decoder.learn(schema_id, self._registry.schema(schema_id))
            except RegistryUnavailable as error:
                self._registry.answers()
                raise DecodeError(f"the registry does not give schema id {schema_id}") from error

    def contents(self, letter: StoredLetter) -> dict[str, JsonValue]:
        """What a person may see of it; see `Decoder.contents`. Raises UpwellError that says why nothing can be read."""
        decoder, message = self.of(letter.collection), raw_message(letter)
        self.learn(decoder, message)
        return decoder.contents(message)


def raw_message(letter: StoredLetter) -> RawMessage:
    """The record as it was consumed."""
    assert letter.at is not None
    return RawMessage(
        at=letter.at,
        offset=letter.version.offset,
        key=letter.key_bytes,
        value=letter.value_bytes,
        headers=letter.headers,
    )


def replay_plan(plan: IntakePlan) -> ReplayPlan:
    """What an intake plan of one event is as a replay: its offset was taken in, and has its outcome, long ago."""
    (outcome,) = plan.outcomes
    alone = replace(plan, positions={}, dead_letters=(), ranges=())
    if outcome is Outcome.DEAD_LETTER:
        return ReplayPlan(alone, outcome, None, plan.dead_letters[0])
    return ReplayPlan(alone, outcome, "replayed" if outcome in ACCEPTED else "superseded")


class Replaying:
    """Replays dead letters one by one. Those of `embed` need neither source nor registry."""

    def __init__(self, store: ReplayStore, decoders: Decoders) -> None:
        self._store, self._decoders = store, decoders

    async def run(self, numbers: Sequence[int], tell: Callable[[Replayed], None]) -> bool:
        """Replay those of these ids, in this order; `tell` hears of each. False if any is still open.

        Raises Retry where a neighbour is away, Halt where the spec is not the deployment's; what was told is done.
        """
        all_done = True
        for number in numbers:
            replayed = await self._one(number)
            tell(replayed)
            all_done = all_done and replayed.done
        return all_done

    async def _one(self, number: int) -> Replayed:
        for attempt in range(ATTEMPTS):
            letter = await self._store.letter(number)
            if not letter.is_open:
                return Replayed(True, f"dead letter {number} is closed already: {letter.closed_by}")
            try:
                return await (self._embed(letter) if letter.stage == "embed" else self._intake(letter))
            except Conflict:
                if attempt + 1 == ATTEMPTS:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)
        raise AssertionError("unreachable")

    async def _embed(self, letter: StoredLetter) -> Replayed:
        closed_by = await self._store.embed_again(letter)
        if closed_by == "replayed":
            return Replayed(
                True, f"{_name(letter)} replayed: it is to be embedded in generation {letter.generation}"
            )
        return Replayed(True, f"{_name(letter)} superseded: its row or its generation is gone")

    async def _intake(self, letter: StoredLetter) -> Replayed:
        if letter.version.lineage < self._decoders.lineage:
            return _ended(letter, self._decoders.lineage)
        if not self._decoders.serves(letter.collection):
            return Replayed(False, f"{_name(letter)} stays: its collection is not in the spec")
        try:
            replay = await self._taken_in(letter)
        except DeploymentChanged:
            return _ended(letter, letter.version.lineage + 1)
        except (DeadLetter, Blocked) as error:
            replay = ReplayPlan(IntakePlan(), Outcome.DEAD_LETTER, None, _still(letter, error))
        if replay.still is not None:
            await self._store.keep_open(letter, replay.still)
            return Replayed(False, f"{_name(letter)} stays: {replay.still.error}")
        if replay.closed_by == "replayed":
            return Replayed(True, f"{_name(letter, replay)} replayed: {replay.outcome.value}")
        return Replayed(True, f"{_name(letter, replay)} superseded: {_WHY[replay.outcome]}")

    async def _taken_in(self, letter: StoredLetter) -> ReplayPlan:
        """Raises DeadLetter or Blocked for what is not mended."""
        decoder, message = self._decoders.of(letter.collection), raw_message(letter)
        self._decoders.learn(decoder, message)
        event = decoder.decode(message)

        def complete(change: Change, row: Mapping[str, JsonValue] | None) -> Change | Undecodable:
            return decoder.complete(change, row, message)

        def look(view: IntakeView) -> ReplayPlan:
            return replay_plan(decide([event], view, complete, decoder.render))

        request = IntakeRequest(
            collection=letter.collection,
            positions={},
            keys=keys_of([event]),
            exclusive=has_truncate([event]),
            with_rows=keys_with_rows([event]),
            lineage=letter.version.lineage,
        )
        return await self._store.replay(letter, request, look)


def _name(letter: StoredLetter, replay: ReplayPlan | None = None) -> str:
    """The letter and its row, whose key may be known only now."""
    key = letter.key
    if key is None and replay is not None and replay.plan.writes:
        key = replay.plan.writes[0].key
    return f"dead letter {letter.id} ({letter.collection}{'' if key is None else ' ' + key})"


def _ended(letter: StoredLetter, newest: int) -> Replayed:
    return Replayed(
        False,
        f"{_name(letter)} stays: it is of lineage {letter.version.lineage}, which has ended; lineage {newest} reads "
        "every row again, and closes it once all is read",
    )


def _still(letter: StoredLetter, error: UpwellError) -> Undecodable:
    """What was wrong this time; the record itself stays as it is."""
    assert letter.at is not None
    return Undecodable(
        at=letter.at,
        version=letter.version,
        key=letter.key,
        key_bytes=letter.key_bytes,
        value_bytes=letter.value_bytes,
        headers=letter.headers,
        error_class=type(error).__name__,
        error=" ".join(str(error).split()),
        committed_at=letter.committed_at,
    )
