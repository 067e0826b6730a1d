"""What is in flight is no difference: each step of the proof with the history that needs it (ADR 0013)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import pytest

from schemas.change import Version
from schemas.reconcile import Difference, Document, Kind, Seen, Stored
from schemas.template import Template
from streams.reconcile.core import Verified, verify
from streams.reconcile.report import Report
from streams.reconcile.vectors import needs_vector, wrong_vectors
from tests.fakes.encoder import FakeEncoder

OLD, NEW = Stored(Version(1, 1), False, "old", 7), Stored(Version(1, 2), False, "new", 8)


@dataclass
class Script:
    """One key: what each side says at each read, the last for ever; `order` tells what was asked in turn."""

    sink: list[Stored]
    source: list[Seen]
    order: list[str] = field(default_factory=list)

    def verify(self) -> Verified:
        script = self

        class Sink:
            def read(self, keys: Collection[str]) -> Mapping[str, Stored]:
                script.order.append("sink")
                return dict.fromkeys(keys, script.sink[0] if len(script.sink) == 1 else script.sink.pop(0))

        class Source:
            def read(self, keys: Mapping[str, int | None]) -> Mapping[str, Seen]:
                script.order.append("source")
                return dict.fromkeys(
                    keys, script.source[0] if len(script.source) == 1 else script.source.pop(0)
                )

        return verify(["[1]"], Sink(), Source(), lambda: self.order.append("round"))


def kinds(found: Verified) -> list[Kind]:
    return [each.kind for each in found.different]


def test_the_source_is_read_between_the_two_reads_of_the_sink_and_the_round_after_it() -> None:
    script = Script([OLD], [Seen("new")])
    assert kinds(script.verify()) == [Kind.STALE]
    assert script.order == ["sink", "source", "round", "sink"]


def test_equal_rows_need_no_round() -> None:
    script = Script([OLD], [Seen("old")])
    assert script.verify() == Verified()
    assert script.order == ["sink", "source"]


def test_what_arrives_in_the_round_is_no_difference() -> None:
    assert Script([OLD, NEW], [Seen("new")]).verify() == Verified()


def test_a_version_that_has_moved_is_looked_at_again() -> None:
    """The sink has gone past what was read at the source; the next read there shows the same."""
    assert Script([OLD, NEW], [Seen("between"), Seen("new")]).verify() == Verified()


def test_a_commit_that_the_source_does_not_show_yet_is_waited_for() -> None:
    assert Script([NEW], [Seen("old", visible=False), Seen("new")]).verify() == Verified()


def test_a_key_in_doubt_is_given_time() -> None:
    doubtful = Stored(Version(1, 1), False, "old", 7, in_doubt=True)
    gone = Stored(Version(1, 1), True)
    assert Script([doubtful, doubtful, gone], [Seen()]).verify() == Verified()


DOCUMENT = Document("[1]", Version(1, 1), {"title": "a lantern"})


@pytest.mark.parametrize(("row", "needed"), [({"title": "x"}, True), ({"title": " "}, False), ({}, False)])
def test_a_blank_text_needs_no_vector(row: dict[str, str], needed: bool) -> None:
    assert needs_vector(Document("[1]", Version(1, 1), dict(row)), Template("{{ title }}")) is needed


@pytest.mark.parametrize(
    ("texts", "of", "wrong"),
    [
        (["a lantern"], "a lantern", 0),
        (["a lantern"], "a kettle", 1),
        (["a kettle"], "a kettle", 1),
        ([], "", 1),
    ],
)
def test_a_vector_of_another_text_is_wrong(texts: list[str], of: str, wrong: int) -> None:
    class Whole:
        def chunks(self, document: str) -> list[str]:
            return [document]

    encoder = FakeEncoder(dimension=4)
    vectors = [str([float(each) for each in encoder.vector(of)])] * len(texts)
    document = Document("[1]", Version(1, 1), DOCUMENT.row, texts, vectors)
    assert len(list(wrong_vectors([document], Template("{{ title }}"), Whole(), encoder))) == wrong  # type: ignore[arg-type]


def test_the_answer_for_a_machine() -> None:
    report = Report(
        "content", found={Kind.MISSING: [Difference(Kind.MISSING, "[1]", notes=("open dead letter 3",))]}
    )
    answer = report.answer()
    assert list(answer) == [
        *(
            "collection",
            "rows",
            "ranges",
            "missing",
            "extra",
            "stale",
            "missing_vector",
            "extra_vector",
            "wrong_vector",
        ),
        *("in_flight", "beyond", "not_compared", "sampled", "repaired", "seconds"),
    ]
    assert answer["missing"] == {"count": 1, "keys": [{"key": "[1]", "notes": ["open dead letter 3"]}]}
    assert not report.is_fine


def test_what_is_repaired_is_fine_and_what_was_not_looked_at_is_not() -> None:
    found = {Kind.MISSING: [Difference(Kind.MISSING, "[1]")]}
    assert Report("content", found=found, repaired={Kind.MISSING: 1}).is_fine
    assert not Report("content", found=found, repaired={Kind.MISSING: 1}, left=found).is_fine
    assert not Report("content", beyond=1).is_fine
