"""The verdict on one collection: from what was seen to one sentence that names the broken part. Pure (DESIGN 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from schemas.freshness import State, Verdict

#: A neighbour that has not answered for this long is not reached.
SILENT_SECONDS: Final = 10.0
#: After a watermark was wrong, nobody should believe the next one at once.
VIOLATION_SECONDS: Final = 300.0
#: Rounds that may be under way while all is well: a heartbeat, a flush and a look.
ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Whether a neighbour answers. `silent_seconds`: since its next answer was due; `error`: what it said instead."""

    silent_seconds: float = 0.0
    error: str = ""

    @property
    def reached(self) -> bool:
        return self.silent_seconds < SILENT_SECONDS

    @property
    def why(self) -> str:
        return self.error or "it does not answer"


@dataclass(frozen=True, slots=True)
class Connector:
    """The connector's state by Connect, for `since_seconds`. `cause`: of a failure, one line without secrets."""

    state: str
    since_seconds: float = 0.0
    cause: str = ""

    @property
    def running(self) -> bool:
        return self.state == "RUNNING"


@dataclass(frozen=True, slots=True)
class Canary:
    """Seconds since the oldest canary that is not yet in Kafka, settled, and searchable; None if there is none."""

    missing_seconds: float | None = None
    unsettled_seconds: float | None = None
    unsearchable_seconds: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What all collections share. `round_seconds`: how often a round begins; `up_seconds`: of the monitor;
    `rebuilds`: whether it rebuilds by itself.
    """

    neighbours: Mapping[str, Neighbour]
    connector: Connector | None
    canary: Canary
    workers: int
    problems: Sequence[str] = ()
    gap: str = ""
    round_seconds: float = 5.0
    up_seconds: float = 3600.0
    rebuilds: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """One collection. `staleness_seconds`: age of its watermark by the source's clock, None if it has none.

    `measured`: whether this monitor has finished a round for it. `behind`: records in Kafka that are not taken in, None
    if not known. `oldest_*`: seconds since the commit. `progress`: of a load, in words;
    `loaded_seconds`: since this monitor saw it become complete, None if it did not.
    """

    name: str
    threshold_seconds: float
    load_state: str = "complete"
    progress: str = ""
    staleness_seconds: float | None = None
    measured: bool = True
    behind: int | None = 0
    pending: int = 0
    oldest_pending_seconds: float | None = None
    dead_letters: int = 0
    oldest_dead_letter_seconds: float | None = None
    blocked: str = ""
    lost: str = ""
    violated_seconds: float | None = None
    loaded_seconds: float | None = None


def judge(standing: Standing, pipeline: Pipeline) -> Verdict:
    """What cannot be known comes first, then what is lost, then what is not there yet, then what is late."""
    for name, mend in (("source", "UPWELL_SOURCE_DSN"), ("sink", "UPWELL_SINK_DSN")):
        neighbour = pipeline.neighbours.get(name, Neighbour())
        if not neighbour.reached:
            return Verdict(
                State.UNKNOWN,
                f"the monitor cannot reach the {name} for {_seconds(neighbour.silent_seconds)}: {neighbour.why}; "
                f"start it, or mend {mend}; see RUNBOOK: {name}",
            )
    if standing.violated_seconds is not None and standing.violated_seconds < VIOLATION_SECONDS:
        return Verdict(
            State.UNKNOWN,
            f"the watermark was wrong: a change from before it was taken in {_seconds(standing.violated_seconds)} ago; "
            f"see RUNBOOK: violation",
        )
    gap = pipeline.gap or standing.lost
    if gap:
        step = "the monitor rebuilds it" if pipeline.rebuilds else "run `upwell connector rebuild`"
        return Verdict(State.STALE, f"GAP, changes are lost: {gap}; {step}; see RUNBOOK: gap")
    if standing.load_state != "complete":
        trouble = next(_hindrances(standing, pipeline), "")
        progress = standing.progress or "its table is not loaded yet"
        return Verdict(State.INCOMPLETE, f"{progress}; {trouble}" if trouble else progress)
    return _by_age(standing, pipeline)


def _hindrances(standing: Standing, pipeline: Pipeline) -> Iterator[str]:
    """What keeps a load from going on."""
    yield from _capture(pipeline)
    if not pipeline.workers or standing.blocked:
        yield from _intake(standing, pipeline)


def _by_age(standing: Standing, pipeline: Pipeline) -> Verdict:
    age, threshold = standing.staleness_seconds, standing.threshold_seconds
    if age is not None and age <= threshold:
        return Verdict(State.FRESH, f"every change up to {_seconds(age)} ago is searchable")
    grace = threshold + ROUNDS * pipeline.round_seconds
    if not standing.measured and standing.loaded_seconds is not None and standing.loaded_seconds < grace:
        return Verdict(State.INCOMPLETE, "its table is loaded; the first round since is under way")
    if not standing.measured and pipeline.up_seconds < grace:
        return Verdict(
            State.UNKNOWN,
            f"the monitor runs for {_seconds(pipeline.up_seconds)} and has not finished a round yet; it takes about "
            f"{_seconds(ROUNDS * pipeline.round_seconds)}",
        )
    late = "no change is known to be searchable" if age is None else f"{_seconds(age)} behind the source"
    reason = next(_reasons(standing, pipeline), "no round has completed; see RUNBOOK: rounds")
    return Verdict(State.STALE, f"{late}: {reason}")


def _reasons(standing: Standing, pipeline: Pipeline) -> Iterator[str]:
    """What is wrong, what is nearest to the source first."""
    yield from _capture(pipeline)
    yield from _intake(standing, pipeline)
    yield from _embed(standing, pipeline)


def _capture(pipeline: Pipeline) -> Iterator[str]:
    patience = ROUNDS * pipeline.round_seconds
    connect, connector = pipeline.neighbours.get("connect", Neighbour()), pipeline.connector
    if not connect.reached:
        yield (
            f"Kafka Connect does not answer for {_seconds(connect.silent_seconds)}: {connect.why}; "
            f"see RUNBOOK: connect"
        )
    elif connector is not None and "FAILED" in connector.state:
        yield (
            f"Connect task 0 FAILED {_seconds(connector.since_seconds)} ago: {connector.cause or 'no trace'}; "
            f"see RUNBOOK: connector"
        )
    elif connector is not None and not connector.running and connector.since_seconds > patience:
        yield (
            f"the connector is {connector.state} for {_seconds(connector.since_seconds)}; "
            f"run `upwell connector apply`; see RUNBOOK: connector"
        )
    kafka = pipeline.neighbours.get("kafka", Neighbour())
    if not kafka.reached:
        yield f"Kafka does not answer for {_seconds(kafka.silent_seconds)}: {kafka.why}; see RUNBOOK: kafka"
    missing, unsettled = pipeline.canary.missing_seconds, pipeline.canary.unsettled_seconds
    if missing is not None and missing > patience:
        yield (
            f"replication stands still though the connector runs: a canary that was committed {_seconds(missing)} ago "
            f"is not in Kafka; see RUNBOOK: replication"
        )
    if unsettled is not None and unsettled > patience:
        yield (
            f"the connector has not stored its position for {_seconds(unsettled)}: what is in Kafka may have a gap; "
            f"see RUNBOOK: replication"
        )


def _intake(standing: Standing, pipeline: Pipeline) -> Iterator[str]:
    waiting = f"; {standing.behind} changes wait in Kafka" if standing.behind else ""
    if not pipeline.workers:
        yield f"no worker runs{waiting}; run `upwell worker`; see RUNBOOK: workers"
    if standing.blocked:
        yield f"BLOCKED: {standing.blocked}{waiting}; it goes on by itself when mended; see RUNBOOK: blocked"
    registry = pipeline.neighbours.get("registry", Neighbour())
    if standing.behind and not registry.reached:
        yield f"the schema registry does not answer: {registry.why}{waiting}; see RUNBOOK: registry"
    if standing.behind:
        yield (
            f"{standing.behind} changes wait in Kafka and {pipeline.workers} workers run; run more of them; "
            f"see RUNBOOK: intake"
        )


def _embed(standing: Standing, pipeline: Pipeline) -> Iterator[str]:
    for problem in pipeline.problems:
        yield f"a worker cannot embed: {problem}; see RUNBOOK: workers"
    letter = standing.oldest_dead_letter_seconds
    if standing.dead_letters and (letter is None or letter > standing.threshold_seconds):
        since = "" if letter is None else f", the oldest of a change {_seconds(letter)} ago"
        yield (
            f"{standing.dead_letters} dead letters{since}; run `upwell dead-letters list {standing.name}`; "
            f"see RUNBOOK: dead letters"
        )
    oldest = standing.oldest_pending_seconds
    if oldest is not None and oldest > standing.threshold_seconds:
        yield (
            f"{standing.pending} texts wait to be embedded, the oldest for {_seconds(oldest)}, and {pipeline.workers} "
            f"workers run; run more of them; see RUNBOOK: backlog"
        )
    if pipeline.canary.error:
        yield f"the canary is not found as it should be: {pipeline.canary.error}; see RUNBOOK: canary"
    unsearchable = pipeline.canary.unsearchable_seconds
    if unsearchable is not None and unsearchable > ROUNDS * pipeline.round_seconds:
        yield (
            f"embedding stands still: a canary that was committed {_seconds(unsearchable)} ago is not searchable; "
            f"see RUNBOOK: canary"
        )


def _seconds(seconds: float) -> str:
    """Whole seconds up to three minutes, then minutes, then hours: nobody reads 86,412 s."""
    if seconds < 180:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
