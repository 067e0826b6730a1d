"""The size of a batch: found in spite of other load, once, by one process, and never at the price of a late start."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tokenizers import Tokenizer

from connectors.encoder import calibration
from connectors.encoder.batches import BATCH_TOKENS
from connectors.encoder.calibration import (
    CALIBRATION,
    CANDIDATES,
    LEAST_ROUNDS,
    SECONDS,
    Calibration,
    Round,
    calibrated,
    judge,
    measure,
    processor,
    read,
)
from connectors.encoder.onnx import OnnxEncoder
from tests.fixtures.model import tokenizer_json

SLOW = Calibration(is_done=True)


class Machine:
    """Seconds of a call, and a clock that they move."""

    def __init__(self, *, token_seconds: float = 0.0001, best: int = 0, gain: float = 1.2) -> None:
        self.now, self.calls = 0.0, list[int]()
        self.token_seconds, self.best, self.gain = token_seconds, best, gain
        self.load = random.Random(1)

    def call(self, tokens: int) -> float:
        seconds = tokens * self.token_seconds / (self.gain if tokens == self.best else 1)
        seconds *= self.load.choice([1, 1, 1, 1, 1, 2.5])
        self.now += seconds
        self.calls.append(tokens)
        return seconds

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize("best", CANDIDATES)
def test_the_best_is_found_beside_other_load(best: int) -> None:
    machine = Machine(best=best)
    found = judge([], measure(machine.call, machine.clock))
    assert found.tokens == best
    assert len(found.rounds) >= LEAST_ROUNDS


def test_the_default_stays_where_another_is_hardly_better() -> None:
    machine = Machine(best=256, gain=1.03)
    found = judge([], measure(machine.call, machine.clock))
    assert found.tokens == BATCH_TOKENS
    assert 1 < found.gains["256"] < calibration.LEAST_GAIN


@pytest.mark.parametrize("token_seconds", [0.00002, 0.0002, 0.0005, 0.002])
def test_it_never_takes_long(token_seconds: float) -> None:
    machine = Machine(token_seconds=token_seconds, best=256)
    measure(machine.call, machine.clock)
    assert machine.now <= SECONDS + sum(CANDIDATES) * token_seconds * 2.5


def test_a_busy_machine_does_one_round_at_a_load_until_there_are_enough(tmp_path: Path) -> None:
    """Core time says that the model is quick, the clock that each round lasts long."""
    machine, rounds = Machine(best=256), list[Round]()
    for _ in range(LEAST_ROUNDS):
        measured = measure(machine.call, lambda: machine.now * 50)
        assert measured is not None
        assert len(measured) == 1
        found = judge(rounds, measured)
        rounds = list(found.rounds)
        assert found.is_done == (len(rounds) == LEAST_ROUNDS)
        assert found.tokens == (256 if found.is_done else BATCH_TOKENS)
    (tmp_path / CALIBRATION).write_text(json.dumps({"a": {"rounds": rounds[:1]}}))
    assert len(calibrated(tmp_path, "a", machine.call).rounds) > LEAST_ROUNDS


def test_a_large_model_keeps_the_default_and_is_measured_with_two_small_calls() -> None:
    machine = Machine(token_seconds=0.01, best=256)
    assert judge([], measure(machine.call, machine.clock)) == SLOW
    assert machine.calls == [min(CANDIDATES)] * 2


def test_it_is_measured_once_for_each_key(tmp_path: Path) -> None:
    machine = Machine()
    first = calibrated(tmp_path, "a", lambda tokens: 10.0)
    assert first == calibrated(tmp_path, "a", machine.call)
    assert machine.calls == []
    assert set(read(tmp_path)) == {"a"}
    calibrated(tmp_path, "b", lambda tokens: 10.0)
    assert read(tmp_path) == {"a": first, "b": SLOW}


def test_two_that_start_at_once_measure_once(tmp_path: Path) -> None:
    measured, found = list[int](), list[Calibration]()
    began = threading.Barrier(2)

    def slow(tokens: int) -> float:
        measured.append(tokens)
        return 10.0

    def start() -> None:
        began.wait(10)
        found.append(calibrated(tmp_path, "a", slow))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(10)
    assert len(measured) == 2
    assert found == [SLOW, SLOW]


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"a": 1}', '{"a": {"token": 3}}', '{"a": {"rounds": [{"512": 1}]}}']
)
def test_a_file_that_is_none_is_made_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / CALIBRATION).write_text(content)
    assert calibrated(tmp_path, "a", lambda tokens: 10.0) == SLOW
    assert json.loads((tmp_path / CALIBRATION).read_text())["a"]["tokens"] == BATCH_TOKENS


def test_where_nothing_can_be_kept_nothing_is_measured(tmp_path: Path) -> None:
    machine = Machine()
    assert calibrated(tmp_path / "absent", "a", machine.call) == Calibration()
    assert machine.calls == []


def test_the_processors_name(tmp_path: Path) -> None:
    facts = tmp_path / "cpuinfo"
    facts.write_text("processor\t: 0\nmodel name\t: AMD EPYC 7\n")
    assert processor(facts) == "AMD EPYC 7"
    assert processor(tmp_path / "absent")


@pytest.mark.parametrize("direction", ["left", "right"])
@pytest.mark.parametrize(("multiple", "length"), [(None, None), (8, None), (None, 20)])
def test_batches_are_padded_as_the_tokenizer_pads(
    direction: str, multiple: int | None, length: int | None
) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_json()))
    tokenizer.enable_padding(
        pad_id=7, pad_type_id=1, pad_to_multiple_of=multiple, length=length, direction=direction
    )
    texts = ["a lamp", "a lamp of brass with a shade", "shade"]
    wanted = tokenizer.encode_batch(texts)
    fed: dict[str, Any] = {}

    class Session:
        def run(self, outputs: None, feed: dict[str, Any]) -> tuple[Any]:
            fed.update(feed)
            return (np.ones((len(texts), 2), dtype=np.float32),)

    encoder = object.__new__(OnnxEncoder)
    manifest = SimpleNamespace(prompt="", inputs=("input_ids", "attention_mask", "token_type_ids"))
    encoder._use(tokenizer, cast("Any", manifest), Session())
    _, prepared = encoder._prepared(texts)
    encoder._embed(list(prepared))
    assert fed["input_ids"].tolist() == [each.ids for each in wanted]
    assert fed["attention_mask"].tolist() == [each.attention_mask for each in wanted]
    assert fed["token_type_ids"].tolist() == [each.type_ids for each in wanted]
