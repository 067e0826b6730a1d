"""The runbook's symptoms are what the code prints: somebody will search for them at night."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.said import quoted, said
from tests.unit.test_readme import anchors

ROOT: Final = Path(__file__).parents[2]
RUNBOOK: Final = (ROOT / "infra" / "RUNBOOK.md").read_text(encoding="utf-8")
FIRST_CELLS: Final = re.findall(r"^\| (.+?) \| .+ \| .+ \|$", RUNBOOK, re.MULTILINE)
SYMPTOMS: Final = sorted({piece for cell in FIRST_CELLS for piece in quoted(cell)})

ALERTS: Final = [
    rule["alert"]
    for group in yaml.safe_load((ROOT / "infra" / "prometheus" / "alerts.yaml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
SAID: Final = "\n".join([said(), *ALERTS])


def test_there_are_symptoms() -> None:
    assert len(SYMPTOMS) >= 30


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_a_symptom_is_what_the_code_prints(symptom: str) -> None:
    assert symptom in SAID


def test_every_alert_has_its_row() -> None:
    assert set(ALERTS) == {symptom for symptom in SYMPTOMS if symptom.startswith("Upwell")}


def test_every_part_that_a_verdict_names_has_its_heading() -> None:
    """`see RUNBOOK: dead letters`; of `{name}` the code has source and sink."""
    named = set(re.findall(r"see RUNBOOK: ([a-z]+(?: [a-z]+)?)", SAID))
    assert {"connector", "dead letters", "violation"} <= named
    assert {part.replace(" ", "-") for part in named | {"source", "sink"}} <= anchors(RUNBOOK)


def test_commands_of_the_runbook_exist() -> None:
    from tests.unit.test_readme import ALL

    for words in re.findall(r"`upwell ([a-z -]+?)(?: [A-Z-]|`)", RUNBOOK):
        assert any(words == path or words.startswith(f"{path} ") for path in ALL), words
