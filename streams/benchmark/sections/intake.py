"""Changes that leave the text as it is, from a filled topic with capture idle, against a Faust loop without work."""

from __future__ import annotations

from statistics import mean, median
from typing import Final

from streams.benchmark.bench import Bench
from streams.benchmark.events import EventKind, Filled, bare_loop, fill_topic, take_in
from streams.benchmark.results import Figure, Section, Target

#: The machine's speed changes meanwhile: each is measured so many times, in turns.
TURNS: Final = 2


def measure(bench: Bench) -> Section:
    plan = bench.plan
    with bench.stack.deployment("intake") as deployment:
        # By one worker: Kafka keeps the partitions of a second one that stops for its session, and nobody reads them.
        deployment.filled([bench.corpus.short(number) for number in range(plan.event_documents)], 1)
        deployment.stop_workers()

        filled: list[Filled] = []

        def rate(kind: EventKind, workers: int) -> float:
            # As many for each: the first one reads alone until the second one has joined.
            filled.append(fill_topic(deployment, kind, workers * plan.events, plan.event_documents))
            found = take_in(deployment, filled[-1].end, workers)
            bench.tell(f"{kind} changes, {workers} worker processes: {found:.0f} events/s")
            return found

        def loop() -> float:
            found = bare_loop(deployment)
            bench.tell(f"a bare Faust loop: {found:.0f} events/s")
            return found

        turns = [(rate("unchanged", 1), loop(), rate("metadata", 1), loop()) for _ in range(TURNS)]
        one_unchanged = mean(turn[0] for turn in turns)
        one_metadata = mean(turn[2] for turn in turns)
        bare = mean(found for turn in turns for found in (turn[1], turn[3]))
        two_unchanged = rate("unchanged", 2)
    return Section(
        "intake",
        [
            Figure("intake.bare", "a bare Faust noack loop, one process", bare, "events/s"),
            Figure("intake.unchanged", "unchanged texts, one worker", one_unchanged, "events/s", "more"),
            Figure(
                "intake.unchanged_to_bare",
                "unchanged texts, one worker, to the bare loop",
                one_unchanged / bare,
                "times",
                "more",
                Target("at least", 0.7),
            ),
            Figure("intake.metadata", "metadata alone, one worker", one_metadata, "events/s", "more"),
            Figure(
                "intake.metadata_to_bare",
                "metadata alone, one worker, to the bare loop",
                one_metadata / bare,
                "times",
                "more",
                Target("at least", 0.7),
            ),
            Figure("intake.two", "unchanged texts, two workers", two_unchanged, "events/s", "more"),
            Figure(
                "intake.two_to_one",
                "unchanged texts, two workers to one",
                two_unchanged / one_unchanged,
                "times",
                "more",
                Target("at least", 1.3),
            ),
            Figure(
                "intake.capture",
                "committed at the source and captured meanwhile",
                median(each.events_per_second for each in filled),
                "events/s",
                "more",
            ),
            Figure(
                "intake.wal", "log at the source", median(each.wal_bytes for each in filled), "bytes/event"
            ),
        ],
    )
