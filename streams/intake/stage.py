"""The shell of intake: one collection's batches through decode, decision and ONE sink transaction.

Commit order, the only one in which a crash anywhere loses nothing (DESIGN 4):
  1. decode and fold the batch;
  2. one sink transaction: records, pending, audit, dead letters, positions;
  3. after COMMIT, the caller acknowledges to Faust, in arrival order (display only: the sink's positions decide).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

from schemas.change import Change, JsonValue, TopicPartition, Undecodable
from schemas.envelope import Decoder, RawMessage
from schemas.errors import Blocked, ColumnRetyped, RecordRejected, UpwellError
from schemas.sink import IntakePlan, IntakeRequest
from streams.freshness.measures import Measures
from streams.intake.core import decide, has_truncate, keys_of, keys_with_rows
from streams.intake.retry import persist
from streams.ports import BlockedStore, IntakeStore, SchemaRegistry, SourceTables
from streams.vitals import Vitals

T = TypeVar("T")

NOTICE_SECONDS: Final = 1.0


class _HeldUp(Exception):
    """One event of a batch is blocked: those before it need not wait."""


class Intake:
    """Takes in the batches of one collection. Not shared between tasks."""

    def __init__(
        self,
        collection: str,
        decoder: Decoder,
        store: IntakeStore,
        registry: SchemaRegistry,
        measures: Measures,
        *,
        positions: dict[TopicPartition, int],
        wake: Callable[[], None],
        should_stop: Callable[[], bool],
        retry_deadline_seconds: float,
        notices: BlockedStore | None = None,
        tables: SourceTables | None = None,
        vitals: Vitals | None = None,
    ) -> None:
        self.collection, self._decoder, self._store, self._registry = collection, decoder, store, registry
        self._measures, self._positions, self._wake = measures, positions, wake
        self._should_stop, self._retry_deadline_seconds = should_stop, retry_deadline_seconds
        self._notices, self._is_blocked = notices, False
        self._tables = tables
        self._vitals = vitals or Vitals()

    async def take_in(self, messages: Sequence[RawMessage]) -> None:
        """Return when every message's outcome is committed. Raises what ends the worker (Halt, Stopping)."""
        rest = list(messages)
        while rest:
            events, rest = await self._decoded(rest)
            if events:
                await self._commit(events)

    async def _decoded(
        self, messages: Sequence[RawMessage]
    ) -> tuple[list[tuple[RawMessage, Change | Undecodable]], list[RawMessage]]:
        """The longest prefix that can be decoded, and the rest; waits while the first message is blocked."""
        events: list[tuple[RawMessage, Change | Undecodable]] = []
        for index, message in enumerate(messages):
            try:
                events.append((message, await self._decode(message)))
            except Blocked:
                if events:
                    return events, list(messages[index:])
                events.append((message, await self._persist(partial(self._decode, message), message)))
        return events, []

    async def _decode(self, message: RawMessage) -> Change | Undecodable:
        for schema_id in self._decoder.needs_schema(message.key, message.value):
            schema = await self._persist(partial(self._registry.schema, schema_id), message)
            self._decoder.learn(schema_id, schema)
        try:
            return self._decoder.decode(message)
        except Blocked as error:
            return await self._doubted(message, error)

    async def _doubted(self, message: RawMessage, error: Blocked) -> Change:
        """What cannot be used as it was sent, once the table is again as it has to be; until then `error` is raised."""
        if self._tables is None or not await self._tables.fits(self.collection):
            raise error
        change = self._decoder.doubt(message)
        if change.origin.snapshot:  # read again it would lack the same: a column that Debezium leaves out
            raise error
        return change

    async def _commit(self, events: Sequence[tuple[RawMessage, Change | Undecodable]]) -> None:
        """Write a batch; an event that the sink refuses or that is blocked is found by halving.

        Alone, the refused one becomes a dead letter and the blocked one waits to be mended.
        """
        try:
            await self._write(events)
        except (RecordRejected, _HeldUp) as error:
            if len(events) > 1:
                middle = len(events) // 2
                await self._commit(events[:middle])
                await self._commit(events[middle:])
                return
            message, event = events[0]
            if await self._was_retyped(message):
                await self._commit(events)
                return
            await self._write([(message, _rejected(message, event, error))])

    async def _was_retyped(self, message: RawMessage) -> bool:
        """One row that the sink refuses is a dead letter. Of a column that has another type now all would be: wait
        until the sink has it, too. Returns whether that was so.
        """
        waited = False

        async def attempt() -> bool:
            nonlocal waited
            reason = await self._tables.retyped(self.collection) if self._tables is not None else ""
            if reason:
                waited = True
                raise ColumnRetyped(reason)
            return waited

        return await self._persist(attempt, message)

    async def _write(self, pairs: Sequence[tuple[RawMessage, Change | Undecodable]]) -> None:
        messages = {(message.at, message.offset): message for message, _ in pairs}
        events = [event for _, event in pairs]

        def complete(change: Change, row: Mapping[str, JsonValue] | None) -> Change | Undecodable:
            return self._decoder.complete(change, row, messages[change.at, change.version.offset])

        async def attempt() -> tuple[IntakePlan, datetime]:
            try:
                return await self._store.intake(
                    self._request(events), lambda view: decide(events, view, complete, self._decoder.render)
                )
            except Blocked as error:
                if len(events) > 1:
                    raise _HeldUp from error
                events[0] = await self._doubted(pairs[0][0], error)
                return await self._store.intake(
                    self._request(events), lambda view: decide(events, view, complete)
                )

        plan, visible_at = await self._persist(attempt, pairs[0][0])
        self._positions.update(plan.positions)
        self._measures.taken_in(self.collection, events, plan, visible_at)
        if any(write.embed == "pending" for write in plan.writes):
            self._wake()
        await self._goes_on()

    async def _stands_still(self, error: Blocked) -> None:
        """Let everybody see it. Whether the sink hears of it is no matter to intake."""
        self._is_blocked = True
        if self._notices is not None:
            await _briefly(self._notices.set_blocked(self.collection, str(error)))

    async def _goes_on(self) -> None:
        if self._is_blocked and self._notices is not None:
            await _briefly(self._notices.clear_blocked(self.collection))
        self._is_blocked = False

    def _request(self, events: Sequence[Change | Undecodable]) -> IntakeRequest:
        partitions = sorted({event.at for event in events})
        return IntakeRequest(
            collection=self.collection,
            positions={at: self._positions.get(at) for at in partitions},
            keys=keys_of(events),
            exclusive=has_truncate(events),
            with_rows=keys_with_rows(events),
            lineage=max(event.version.lineage for event in events),
        )

    async def _persist(self, attempt: Callable[[], Awaitable[T]], message: RawMessage) -> T:
        done = await persist(
            attempt,
            should_stop=self._should_stop,
            deadline_seconds=self._retry_deadline_seconds,
            where=f"{self.collection} {message.at.topic}/{message.at.partition}@{message.offset}",
            on_blocked=self._stands_still,
            on_trouble=partial(self._vitals.trouble, self.collection),
        )
        self._vitals.mended(self.collection)
        return done


async def _briefly(call: Awaitable[None]) -> None:
    """A notice that cannot be given soon is not given."""
    with contextlib.suppress(UpwellError, TimeoutError):
        async with asyncio.timeout(NOTICE_SECONDS):
            await call


def _rejected(message: RawMessage, event: Change | Undecodable, error: Exception) -> Undecodable:
    """The dead letter of a row that the sink refused."""
    return Undecodable(
        at=message.at,
        version=event.version,
        key=event.key,
        key_bytes=message.key,
        value_bytes=message.value,
        headers=tuple(message.headers),
        error_class=type(error).__name__,
        error=str(error),
        committed_at=event.origin.committed_at if isinstance(event, Change) else event.committed_at,
    )
