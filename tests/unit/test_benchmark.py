"""The benchmark's pure parts: texts that can be had again, results that can be kept, compared and drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from schemas.errors import SettingsError
from streams.benchmark import chart
from streams.benchmark.comparison import compare, unlike
from streams.benchmark.corpus import LONG_EVERY, Corpus, sentences
from streams.benchmark.plan import QUICK, SECTIONS, USUAL, planned
from streams.benchmark.processes import resident_mib, spent, usage
from streams.benchmark.results import Figure, Machine, Results, Section, Target, quantile, quantiles
from streams.benchmark.sections.memory import slope_per_hour
from streams.cli.root import cli

MACHINE = Machine("a processor <fast>", 2, 24_000, 0.1, {"python": "3.11.7"}, "abc")
RATE = Figure("backfill.mixed.rate", "source to searchable", 20.0, "documents/s", "more")
RATIO = Figure("backfill.mixed.to_onnx", "to bare", 0.9, "times", "more", Target("at least", 0.85))
DELAY = Figure(
    "idle.p50",
    "commit to searchable, p50",
    0.06,
    "s",
    "less",
    Target("under", 0.07),
    {"p50": 0.06, "p95": 0.09},
)
CORES = Figure("backfill.mixed.cores", "cores in use", 1.9, "cores")


def results(*sections: Section, **other: object) -> Results:
    made = Results("2026-01-01T12:00:00+00:00", 1, False, "c0ffee", MACHINE, sections)
    return replace(made, **other)  # type: ignore[arg-type]


BACKFILL = Section("backfill", (RATE, RATIO, CORES), notes=("a note",), seconds=12.5)
IDLE = Section("idle", (DELAY,))
MEMORY = Section("memory", series={"worker 0": [(0.0, 200.0), (5.0, 201.0)]})


def changed(section: Section, values: Mapping[str, float]) -> Section:
    figures = [replace(each, value=values.get(each.name, each.value)) for each in section.figures]
    return replace(section, figures=tuple(figures))


# Corpus


def test_the_same_seed_gives_the_same_texts_and_another_one_others() -> None:
    texts = [Corpus(1).mixed(number) for number in range(50)]
    assert texts == [Corpus(1).mixed(number) for number in range(50)]
    assert texts != [Corpus(2).mixed(number) for number in range(50)]
    assert Corpus(1).identity(50) == Corpus(1).identity(50) != Corpus(2).identity(50)


def test_no_sentence_is_in_two_documents_or_twice_in_one() -> None:
    """Equal chunks are embedded once: they would make a backfill look faster than it is."""
    for number in range(2 * LONG_EVERY):
        text = Corpus(1).mixed(number)
        assert text[-1] in ".!?"
        said = re.split(rf"(?<=\({number}\)[.!?])\s+", text)
        assert len(set(said)) == len(said)
        assert all(sentence[:-1].endswith(f" ({number})") for sentence in said)
        assert all(len(sentence.split()) < 45 for sentence in said)


def test_lengths_reach_from_one_sentence_to_twenty_chunks() -> None:
    words = sorted(len(Corpus(1).mixed(number).split()) for number in range(LONG_EVERY))
    assert words[0] < 40
    assert words[-1] > 20 * 254 / 2  # a word has one to two tokens
    assert max(len(Corpus(1).short(number).split()) for number in range(LONG_EVERY)) < 45


def test_sentences_are_prose() -> None:
    assert len(sentences()) > 2000
    assert all(sentence[0].isupper() and sentence[-1] in ".!?" for sentence in sentences())
    assert not any(">>>" in sentence for sentence in sentences())


# Results


def test_results_survive_json() -> None:
    before = results(BACKFILL, IDLE, MEMORY)
    assert Results.from_json(before.to_json()).to_json() == before.to_json()
    kept = json.loads(before.to_json())
    assert kept["sections"][0]["figures"][1]["holds"] is True
    assert kept["sections"][0]["figures"][0]["holds"] is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1}', '{"format": 99}', '{"format": 1, "machine": 3}']
)
def test_what_is_no_result_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ValueError):
        Results.from_json(text)


def test_a_section_holds_if_it_was_measured_and_meets_its_targets() -> None:
    assert BACKFILL.holds
    assert not changed(BACKFILL, {RATIO.name: 0.84}).holds
    assert not replace(BACKFILL, problem="a worker ended").holds
    assert not results(BACKFILL, Section("idle", problem="no")).holds


@pytest.mark.parametrize(
    ("target", "value", "holds"),
    [
        (Target("at least", 2), 2, True),
        (Target("at least", 2), 1.99, False),
        (Target("at most", 2), 2, True),
        (Target("under", 2), 2, False),
        (Target("under", 2), float("nan"), False),
        (Target("at least", 2), float("inf"), False),
    ],
)
def test_targets(target: Target, value: float, holds: bool) -> None:
    assert target.holds(value) is holds


def test_quantiles_are_samples() -> None:
    samples = [float(number) for number in range(100, 0, -1)]
    assert quantiles(samples) == {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100, "count": 100}
    assert quantile([3.0], 0.01) == 3.0


# Comparison


@pytest.mark.parametrize(
    ("values", "lost"),
    [
        ({}, set()),
        ({RATE.name: 18.1, DELAY.name: 0.0659}, set()),
        ({RATE.name: 17.9}, {RATE.name}),
        ({RATE.name: 40.0, DELAY.name: 0.01}, set()),
        ({DELAY.name: 0.0661}, {DELAY.name}),
        ({CORES.name: 0.1}, set()),
    ],
)
def test_a_loss_is_what_became_worse_by_more_than_is_allowed(
    values: dict[str, float], lost: set[str]
) -> None:
    before = results(BACKFILL, IDLE)
    after = results(changed(BACKFILL, values), changed(IDLE, values))
    found = compare(before, after, 0.1)
    assert [change.figure.name for change in found] == [RATE.name, RATIO.name, CORES.name, DELAY.name]
    assert {change.figure.name for change in found if change.lost} == lost


def test_what_is_not_measured_any_more_is_lost_and_what_did_not_run_is_not_compared() -> None:
    found = compare(results(BACKFILL, IDLE), results(Section("backfill", problem="no")), 0.1)
    assert [(change.figure.name, change.after, change.lost) for change in found] == [
        (RATE.name, None, True),
        (RATIO.name, None, True),
        (CORES.name, None, False),
    ]


def test_runs_that_are_unlike_are_said_to_be() -> None:
    assert unlike(results(), results()) == []
    other = results(quick=True, corpus="beef", machine=replace(MACHINE, cores=4))
    assert len(unlike(results(), other)) == 3


# Plan


def test_sections_are_named_or_the_usual_ones() -> None:
    assert planned("", quick=False, seed=1).sections == USUAL
    assert planned("search, chunks", quick=True, seed=1).sections == ("chunks", "search")
    assert set(SECTIONS) - set(USUAL) == {"memory"}
    assert planned("", quick=True, seed=3, documents=70, minutes=2.0).minutes == 2.0
    for wrong in ("nothing", "search,nothing", ","):
        with pytest.raises(SettingsError):
            planned(wrong, quick=False, seed=1)
    with pytest.raises(SettingsError):
        planned("", quick=True, seed=1, rows=QUICK.few_rows)


# Chart


def parsed(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert not re.search(r"\b(nan|inf)\b", svg, re.IGNORECASE)
    return root


def test_the_page_has_what_was_measured_and_each_target() -> None:
    svg = chart.page(results(BACKFILL, IDLE, MEMORY, Section("rows", problem="too <few>")))
    words = " | ".join(text.text or "" for text in parsed(svg).iter("{http://www.w3.org/2000/svg}text"))
    for said in (
        "upwell, source to searchable",
        "20 documents/s",
        "Memory over time, worker 0",
        "a processor <fast>",
    ):
        assert said in words
    assert "holds: to bare: 0.9 times, at least 0.85 times" in words
    assert "NOT MEASURED: rows: too <few>" in words
    assert "Share of CPU" not in words
    assert parsed(chart.page(results())) is not None


def test_no_panel_lies_on_another() -> None:
    root = parsed(chart.page(results(BACKFILL, IDLE, MEMORY)))
    boxes = [
        tuple(float(each.get(name, 0)) for name in ("x", "y", "width", "height"))
        for each in root.findall("{http://www.w3.org/2000/svg}svg")
    ]
    assert len(boxes) == 3
    for number, (x, y, _, height) in enumerate(boxes):
        for other_x, other_y, _, other_height in boxes[:number]:
            assert x != other_x or y >= other_y + other_height or other_y >= y + height


# Processes, memory


def test_usage_of_this_process() -> None:
    import os

    before = usage({"self": [os.getpid()]})
    total = sum(number * number for number in range(2_000_000))
    after = usage({"self": [os.getpid()]})
    assert total > 0
    assert spent(before, after)["self"] > 0
    assert after["self"].resident_mib >= resident_mib(os.getpid()) * 0.5 > 1
    assert usage({"none": [2**22 + 1]})["none"].cpu_seconds == 0


def test_slopes_are_of_the_second_half() -> None:
    points = [(float(at), 500.0 - at) for at in range(100)] + [
        (float(at), 400.0 + at) for at in range(100, 200)
    ]
    assert slope_per_hour(points) == pytest.approx(3600)


# The command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nothing"], "there is no section 'nothing'"),
        (["--compare", "missing.json"], "cannot be read: No such file"),
        (["--compare", "broken.json"], "broken.json cannot be compared with"),
        (["--compare", "other.json"], "no result of this benchmark"),
        (["--quick", "--rows", "10"], "--rows has to be more than"),
        (["--loss", "2"], "not in the range"),
        (["--documents", "0"], "not in the range"),
        (["--minutes", "0"], "not in the range"),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text('{"documents": 3}')
    done = CliRunner().invoke(cli, ["benchmark", *arguments])
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"broken.json", "other.json"}
