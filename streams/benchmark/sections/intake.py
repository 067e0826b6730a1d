"""Changes that leave the text as it is, from a filled topic with capture idle, against a Faust loop without work."""

from __future__ import annotations

from streams.benchmark.bench import Bench
from streams.benchmark.events import bare_loop, fill_topic, take_in
from streams.benchmark.results import Figure, Section, Target


def measure(bench: Bench) -> Section:
    plan = bench.plan
    with bench.stack.deployment("intake") as deployment:
        deployment.filled([bench.corpus.short(number) for number in range(plan.event_documents)], 2)
        deployment.stop_workers()

        def rate(kind: str, workers: int) -> float:
            end = fill_topic(
                deployment,
                "metadata" if kind == "metadata" else "unchanged",
                plan.events,
                plan.event_documents,
            )
            found = take_in(deployment, end, workers)
            bench.tell(f"{kind} changes, {workers} worker processes: {found:.0f} events/s")
            return found

        one_unchanged = rate("unchanged", 1)
        one_metadata = rate("metadata", 1)
        bare = bare_loop(deployment)
        bench.tell(f"a bare Faust loop: {bare:.0f} events/s")
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
        ],
    )
