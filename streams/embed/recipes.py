"""For which generations this worker embeds: follows the sink, so that no worker is restarted for a new generation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from schemas.errors import DimensionMismatch, Retry
from schemas.sink import GenerationInfo
from streams.embed.stage import Recipe
from streams.ports import Encoder, WorkerStore

log = structlog.get_logger()

POLL_SECONDS: Final = 1.0
FIRST_RETRY_SECONDS: Final = 5.0
LONGEST_RETRY_SECONDS: Final = 300.0

Recipes = Mapping[tuple[str, int], Recipe]


@dataclass(frozen=True, slots=True)
class _Failure:
    """A model that could not be loaded, and when to try again, by the monotonic clock."""

    error: Exception
    again_at: float
    pause_seconds: float


class RecipeBook:
    """Recipes of the generations that are fed, and the models that they need, each loaded once, in a thread of its own.

    A live generation that cannot be embedded for is fatal. Any other is a problem that is told in the sink and tried
    again, and holds nobody up.
    """

    def __init__(
        self,
        store: WorkerStore,
        collections: Collection[str],
        load: Callable[[str], Encoder],
        make: Callable[[GenerationInfo, Encoder], Recipe],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._collections, self._load, self._make = store, collections, load, make
        self._monotonic = monotonic
        self._encoders: dict[str, Encoder] = {}
        self._failures: dict[str, _Failure] = {}
        self._made: dict[tuple[str, int], Recipe] = {}
        self._used: Recipes = {}
        self._told: list[str] = []

    async def live(self, fed: Sequence[GenerationInfo]) -> Recipes:
        """Recipes of the live generations. Raises ModelUnavailable, DimensionMismatch, SettingsError."""
        mine = self._mine(fed)
        for each in mine:
            if each.is_live:
                await self._learn(each)
        self._used = self._recipes(mine)
        return self._used

    async def follow(self, use: Callable[[Recipes], None], should_stop: Callable[[], bool]) -> None:
        """Look every second, and have `use` take what is new. Raises what is fatal for a live generation."""
        while not should_stop():
            try:
                await self.refresh(use)
            except Retry as error:
                log.info("generations not read", error=str(error))
            await asyncio.sleep(POLL_SECONDS)

    async def refresh(self, use: Callable[[Recipes], None]) -> None:
        """One look. What can be embedded for already does not wait for a model that is still to be loaded."""
        mine = self._mine(await self._store.generations())
        needed = {each.model for each in mine}
        self._encoders = {name: each for name, each in self._encoders.items() if name in needed}
        self._made = {at: self._made[at] for each in mine if (at := _place(each)) in self._made}
        self._offer(mine, use)
        problems = []
        for each in mine:
            try:
                await self._learn(each)
                self._offer(mine, use)
            except Exception as error:
                if each.is_live:
                    raise
                problems.append(f"generation {each.number} of {each.collection} ({each.state}): {error}")
        if problems != self._told:
            for problem in problems:
                log.error("generation not embedded", error=problem)
            await self._store.set_problems(problems)
            self._told = problems

    def _mine(self, fed: Sequence[GenerationInfo]) -> list[GenerationInfo]:
        """Of collections in this worker's spec, live ones first."""
        mine = [each for each in fed if each.collection in self._collections]
        return sorted(mine, key=lambda each: not each.is_live)

    def _offer(self, mine: Sequence[GenerationInfo], use: Callable[[Recipes], None]) -> None:
        recipes = self._recipes(mine)
        if recipes != self._used:
            log.info("generations", embedded=[list(at) for at in sorted(recipes)])
            self._used = recipes
            use(recipes)

    def _recipes(self, mine: Sequence[GenerationInfo]) -> Recipes:
        """Of what is learnt. Vectors are copied from a live generation of the same model, where texts are the same."""
        live = {each.collection: each for each in mine if each.is_live}
        found: dict[tuple[str, int], Recipe] = {}
        for each in mine:
            made, other = self._made.get(_place(each)), live.get(each.collection)
            if made is not None:
                alike = other is not None and _vectors(other) == _vectors(each) and not each.is_live
                copy_from = other.number if other is not None and alike else None
                found[_place(each)] = replace(made, is_live=each.is_live, copy_from=copy_from)
        return found

    async def _learn(self, generation: GenerationInfo) -> None:
        if _place(generation) not in self._made:
            encoder = await self._encoder(generation.model)
            if encoder.dimension != generation.dimension:
                raise DimensionMismatch(
                    f"model {encoder.name} has {encoder.dimension} dimensions, generation {generation.number} of "
                    f"{generation.collection} has {generation.dimension}: restore the model, or run upwell generation "
                    f"create {generation.collection}"
                )
            self._made[_place(generation)] = await asyncio.to_thread(self._make, generation, encoder)

    async def _encoder(self, name: str) -> Encoder:
        """Raises what loading raised; that is tried again later and later."""
        failure = self._failures.get(name)
        if failure is not None and self._monotonic() < failure.again_at:
            raise failure.error
        if name not in self._encoders:
            try:
                self._encoders[name] = await asyncio.to_thread(self._load, name)
            except Exception as error:
                pause = FIRST_RETRY_SECONDS if failure is None else failure.pause_seconds * 2
                pause = min(pause, LONGEST_RETRY_SECONDS)
                self._failures[name] = _Failure(error, self._monotonic() + pause, pause)
                raise
            self._failures.pop(name, None)
        return self._encoders[name]


def _place(generation: GenerationInfo) -> tuple[str, int]:
    return generation.collection, generation.number


def _vectors(generation: GenerationInfo) -> tuple[str, int]:
    """Generations with the same make the same vector of a text."""
    return generation.model, generation.dimension
