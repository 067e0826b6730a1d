"""Workers follow the generations in the sink: what they embed for, which models they load, and what is fatal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.errors import DimensionMismatch, ModelUnavailable, SinkUnavailable
from schemas.sink import GenerationInfo
from schemas.template import Template
from streams.embed.recipes import RecipeBook, Recipes
from streams.embed.stage import Recipe
from streams.ports import Encoder
from tests.fakes.encoder import FakeEncoder
from tests.fakes.store import FakeStore
from tests.property.test_simulation import WordChunker

LIVE = GenerationInfo("content", 1, "f1", "path:fake-4", 4, "{{ title }}", 9, 0, "live")
NEW = replace(LIVE, number=2, fingerprint="f2", model="path:fake-3", dimension=3, state="filling")


class Line:
    """A recipe book over a sink in memory; `missing` models cannot be loaded."""

    def __init__(self, *generations: GenerationInfo) -> None:
        self.store = FakeStore(list(generations))
        self.missing: set[str] = set()
        self.loaded: list[str] = []
        self.used: list[Recipes] = []
        self.at = 0.0
        self.book = RecipeBook(self.store, {"content"}, self.load, self.make, lambda: self.at)

    def load(self, name: str) -> Encoder:
        self.loaded.append(name)
        if name in self.missing:
            raise ModelUnavailable(f"model {name} cannot be loaded")
        return FakeEncoder(int(name[-1]), name=name)  # type: ignore[return-value]

    def make(self, generation: GenerationInfo, encoder: Encoder) -> Recipe:
        return Recipe(Template(generation.template), WordChunker(), encoder, 1000)

    async def look(self, *generations: GenerationInfo) -> None:
        self.store.generation_infos = list(generations)
        await self.book.refresh(self.used.append)

    def places(self) -> list[list[int]]:
        return [sorted(number for _, number in used) for used in self.used]


async def test_a_start_waits_for_the_live_model_only() -> None:
    line = Line(LIVE, NEW)
    assert set(await line.book.live([NEW, LIVE])) == {("content", 1)}
    assert line.loaded == ["path:fake-4"]


async def test_a_new_generation_is_embedded_for_without_a_restart() -> None:
    line = Line(LIVE)
    await line.book.live([LIVE])
    await line.look(LIVE)
    assert line.used == [], "nothing is new"
    await line.look(LIVE, NEW)
    assert line.places() == [[1, 2]]
    assert line.used[-1]["content", 2].encoder.name == "path:fake-3"
    assert not line.used[-1]["content", 2].is_live
    await line.look(replace(LIVE, state="retired"), replace(NEW, state="live"))
    assert {at[1]: each.is_live for at, each in line.used[-1].items()} == {1: False, 2: True}
    await line.look(replace(NEW, state="live"))
    assert line.places()[-1] == [2]
    assert line.loaded == ["path:fake-4", "path:fake-3"]
    await line.look(replace(NEW, state="live"), replace(LIVE, number=3, state="filling"))
    assert line.loaded[2:] == ["path:fake-4"], "what no generation needs was forgotten"


async def test_a_collection_of_another_deployments_spec_is_left_alone() -> None:
    line = Line(LIVE)
    await line.book.live([LIVE])
    await line.look(LIVE, replace(NEW, collection="customers"))
    assert line.used == []


async def test_a_model_that_is_missing_is_told_and_tried_again_and_holds_nobody_up() -> None:
    line = Line(LIVE)
    await line.book.live([LIVE])
    line.missing = {NEW.model}
    await line.look(LIVE, NEW)
    assert line.used == []
    assert line.store.problems == ["generation 2 of content (filling): model path:fake-3 cannot be loaded"]
    line.at = 4.9
    await line.look(LIVE, NEW)
    assert line.loaded.count(NEW.model) == 1, "not yet"
    line.at = 5.0
    await line.look(LIVE, NEW)
    assert line.loaded.count(NEW.model) == 2
    line.at, line.missing = 15.0, set()
    await line.look(LIVE, NEW)
    assert line.places() == [[1, 2]]
    assert line.store.problems == []


async def test_a_wrong_dimension_is_a_problem_while_it_fills_and_fatal_once_it_is_live() -> None:
    line, wrong = Line(LIVE), replace(NEW, dimension=7)
    await line.book.live([LIVE])
    await line.look(LIVE, wrong)
    assert "3 dimensions" in line.store.problems[0]
    with pytest.raises(DimensionMismatch, match="upwell generation create content"):
        await line.look(replace(LIVE, state="retired"), replace(wrong, state="live"))


async def test_the_live_model_missing_at_the_start_is_fatal() -> None:
    line = Line(LIVE)
    line.missing = {LIVE.model}
    with pytest.raises(ModelUnavailable):
        await line.book.live([LIVE])


async def test_vectors_are_copied_from_a_live_generation_of_the_same_model_only() -> None:
    line = Line(LIVE)
    await line.book.live([LIVE])
    same = replace(NEW, model=LIVE.model, dimension=4, template="{{ body }}")
    await line.look(LIVE, same)
    assert line.used[-1]["content", 2].copy_from == 1
    assert line.used[-1]["content", 1].copy_from is None
    await line.look(LIVE, replace(NEW, number=3))
    assert line.used[-1]["content", 3].copy_from is None


async def test_a_sink_that_is_away_changes_nothing() -> None:
    line, looks = Line(LIVE), iter([False, True])
    await line.book.live([LIVE])

    async def away() -> list[GenerationInfo]:
        raise SinkUnavailable("sink database: away")

    line.store.generations = away  # type: ignore[method-assign]
    await line.book.follow(line.used.append, lambda: next(looks, True))
    assert line.used == []
