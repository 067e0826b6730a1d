"""What a check is, and how the checks of one neighbour are run: one that fails keeps no other from running."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from schemas.errors import UpwellError

T = TypeVar("T")

NEIGHBOURS: Final = ("spec", "source", "sink", "kafka", "connect", "registry", "model")


class State(StrEnum):
    """Only FAIL is bad. NOT_YET: a command of ours makes it."""

    OK = "ok"
    NOT_YET = "not yet"
    WARN = "warn"
    FAIL = "FAIL"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One line. `next_step` is empty where there is nothing to do."""

    neighbour: str
    name: str
    state: State
    says: str
    next_step: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A check without its place. `name` where one question has several answers."""

    state: State
    says: str
    next_step: str = ""
    name: str = ""

    def of(self, name: str) -> Verdict:
        return Verdict(self.state, self.says, self.next_step, name)


def ok(says: str) -> Verdict:
    return Verdict(State.OK, says)


def not_yet(says: str, command: str) -> Verdict:
    return Verdict(State.NOT_YET, says, f"run `{command}`")


def warn(says: str, next_step: str) -> Verdict:
    return Verdict(State.WARN, says, next_step)


def fail(says: str, next_step: str) -> Verdict:
    return Verdict(State.FAIL, says, next_step)


def skipped(because: str) -> Verdict:
    return Verdict(State.SKIPPED, f"because {because}")


def bad(checks: Iterable[Check]) -> list[Check]:
    """Those that make the exit code 1."""
    return [check for check in checks if check.state is State.FAIL]


#: Name of a check, and what finds its verdicts. None is asked before the one ahead of it has answered.
Questions = Sequence[tuple[str, Callable[[T], Verdict | Iterable[Verdict]]]]


def ask_all(
    neighbour: str, reach: Callable[[], AbstractContextManager[T]], mend: str, questions: Questions[T]
) -> list[Check]:
    """Every check of a neighbour. If it cannot be reached, the first says so with `mend` and the others are skipped."""
    found: list[Check] = []
    try:
        with reach() as it:
            found.append(Check(neighbour, "reachable", State.OK, "answers"))
            for name, question in questions:
                found += [_placed(neighbour, name, verdict) for verdict in _verdicts(question, it)]
    except UpwellError as error:
        if found:
            raise
        found.append(Check(neighbour, "reachable", State.FAIL, line_of(error), mend))
        away = skipped(f"{neighbour} cannot be reached")
        found += [_placed(neighbour, name, away) for name, _ in questions]
    return found


def _placed(neighbour: str, name: str, verdict: Verdict) -> Check:
    return Check(neighbour, verdict.name or name, verdict.state, verdict.says, verdict.next_step)


def _verdicts(question: Callable[[T], Verdict | Iterable[Verdict]], it: T) -> Iterator[Verdict]:
    """What a question finds. A question that cannot be answered is a failure of its own, and of no other."""
    try:
        found = question(it)
        yield from [found] if isinstance(found, Verdict) else list(found)
    except UpwellError as error:
        yield fail(line_of(error), "mend what the line says, then run `upwell doctor` again")


def line_of(error: UpwellError) -> str:
    """An error's message in one line, without the password of a URL in it."""
    from connectors.debezium.connect import redacted

    return redacted(" ".join(str(error).split()))
