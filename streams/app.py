"""The composition root: the only place that knows ports and connectors alike."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

import structlog

from connectors.debezium.naming import Naming
from connectors.encoder import TokenChunker
from connectors.kafka import Kafka, TopicFacts
from connectors.postgres.capture_state import CaptureState, Deployment
from connectors.postgres.source import connect_source
from connectors.postgres.source_schema import placeholder
from connectors.postgres.store import PostgresStore
from connectors.registry import Registry
from schemas.envelope import Decoder
from schemas.errors import (
    KafkaUnavailable,
    LineageMismatch,
    MigrationNeeded,
    ModelHung,
    Retry,
    SettingsError,
)
from schemas.freshness import CANARY, CANARY_TABLE
from schemas.sink import GenerationInfo
from schemas.template import Template
from streams import neighbours
from streams.capture import completion, lineage_of
from streams.completion import Completing, Completion
from streams.embed.listen import listen
from streams.embed.stage import Recipe
from streams.generations import matching
from streams.intake.stage import Intake
from streams.loads import read_ends
from streams.models import encoder_of
from streams.pacing import Pacing
from streams.ports import Encoder
from streams.repairs import Repairing
from streams.settings import Settings
from streams.source_tables import CatalogTables
from streams.vitals import Vitals
from streams.watch import watch
from streams.worker import IntakeNeeds, Parts, Worker

log = structlog.get_logger()

#: Objects that are made before Python's collector looks for rings among them.
COLLECTED_EACH: Final = 20_000
#: Kafka is asked for the ends of our topics, and may take so long.
ENDS_SECONDS: Final = 5.0

Service = Callable[[Callable[[], bool]], Awaitable[None]]


def worker_slot(settings: Settings) -> str:
    """The stable id of this worker: its static membership, its leases, its writer name."""
    return settings.worker.slot or f"{socket.gethostname()}-0"


def supervised_slots(settings: Settings) -> list[str]:
    """The slots of supervised workers, the same at every start; `processes` is a number by now."""
    base = settings.worker.slot or socket.gethostname()
    return [f"{base}-{number}" for number in range(int(settings.worker.processes))]


def run_worker(settings: Settings, load_encoder: Callable[[str], Encoder] | None = None) -> None:
    """Run one worker until it is told to stop. Raises what ended it.

    A neighbour that does not answer may hold up any call for ever, so a stopping worker has a deadline. Nothing is lost
    by it: what is not committed was not acknowledged.
    """
    deadlines: list[threading.Timer] = []

    def on_stopping(exit_code: int) -> None:
        deadline = threading.Timer(settings.worker.drain_seconds, _end, [exit_code])
        deadline.daemon = True
        deadline.start()
        deadlines.append(deadline)

    try:
        _spare_the_collector()
        asyncio.run(_run(settings, load_encoder or (lambda model: encoder_of(settings, model)), on_stopping))
    except ModelHung as error:
        print(f"upwell: {error}", file=sys.stderr)
        _leave(error.exit_code)  # the interpreter would wait for the model's thread
    finally:
        for deadline in deadlines:
            deadline.cancel()


def _end(exit_code: int) -> None:
    log.warning("not drained: a neighbour does not answer; what is not committed is taken in again")
    _leave(exit_code)


def _leave(exit_code: int) -> None:
    """Without waiting for any thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _spare_the_collector() -> None:
    """What is imported stays; Python would look through all of it again and again while events come by the thousand."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECTED_EACH)


async def _run(
    settings: Settings, load: Callable[[str], Encoder], on_stopping: Callable[[int], None]
) -> None:
    slot = worker_slot(settings)
    topics, recorded, started_for = await asyncio.to_thread(lineage_topics, settings)
    settings = _captured_only(settings, [collection for collection, _ in topics.values()])
    secret = await asyncio.to_thread(_placeholder, settings)
    store = await PostgresStore.open(
        settings.sink.dsn,
        writer=slot,
        pool_size=settings.sink.pool_size,
        retention_days=settings.sink.audit_retention_days,
    )
    registry = neighbours.registry(settings)
    try:
        await store.register_worker(slot, socket.gethostname(), os.getpid())
        with contextlib.suppress(
            Retry
        ):  # the embedder does it again; until it has its model, others may have them
            await store.release(slot, died=True)
        decoders = _decoders(settings, topics, await store.key_columns(), secret)
        generations = await store.generations()
        check_generations(settings, generations)
        wakes: list[Callable[[], None]] = []

        def intakes(needs: IntakeNeeds) -> Mapping[str, Intake]:
            wakes.append(needs.wake)
            return _intakes(settings, decoders, store, registry, needs)

        vitals = Vitals()
        repairing = Repairing(settings.source.dsn, settings.sink.dsn, store.repairs_due)
        pacing = Pacing(
            settings.source.dsn,
            settings.sink.dsn,
            neighbours.kafka(settings),
            sorted(topics),
            settings.worker.load_rows_ahead,
            store.is_loading,
        )
        parts = Parts(
            settings=settings,
            slot=slot,
            store=store,
            load_encoder=load,
            make_recipe=lambda generation, encoder: recipe(settings, generation, encoder),
            make_intakes=intakes,
            generations=generations,
            services=(
                _listening(settings, wakes),
                partial(watch, store, started_for, list(settings.collections), vitals.sink_answered),
                store.keep_house,
                repairing.run,
                pacing.run,
                _completing(settings, store).run,
            ),
            on_stopping=on_stopping,
            vitals=vitals,
            read_ends=partial(read_ends, neighbours.kafka(settings, timeout=ENDS_SECONDS), sorted(topics)),
            check_topics=partial(
                check_recorded, neighbours.kafka(settings, timeout=ENDS_SECONDS), recorded, running=True
            ),
        )
        await Worker(parts).run()
    finally:
        await registry.close()
        await store.close()


def _listening(settings: Settings, wakes: list[Callable[[], None]]) -> Service:
    """Wakes the embedder when another process's intake made pending rows."""

    def wake() -> None:
        for each in wakes:
            each()

    return lambda should_stop: listen(settings.sink.dsn, wake, should_stop)


def _captured_only(settings: Settings, collections: Sequence[str]) -> Settings:
    """The settings of what this worker serves."""
    captured = {name: spec for name, spec in settings.served.items() if name in collections}
    return settings.model_copy(update={"collections": captured})


def _completing(settings: Settings, store: PostgresStore) -> Completing:
    def of(state: CaptureState) -> Completion:
        return completion(
            settings, lineage_of(state, settings), state, lambda line: log.info("load", state=line)
        )

    return Completing(settings.sink.dsn, of, partial(store.is_scanned, list(settings.collections)))


def _placeholder(settings: Settings) -> str:
    with connect_source(settings.source.dsn) as connection:
        return placeholder(connection, settings.name)


def lineage_topics(
    settings: Settings,
) -> tuple[dict[str, tuple[str, int]], dict[str, TopicFacts], Deployment]:
    """Topic -> (collection, lineage) of the newest lineage, checked against the broker (H11); what is recorded of them;
    and what a worker that serves them is started for.

    A collection that is in the spec and not captured yet waits for `upwell migrate`: it keeps no other from going on.
    Raises MigrationNeeded if none is captured, LineageMismatch if a topic is not the one that was created.
    """
    with CaptureState.open(settings.sink.dsn) as state:
        state.check_schema()
        started_for = state.deployment()  # first: what changes after it is noticed
        lineage = state.lineage()
        recorded = state.topics(lineage[0]) if lineage else {}
    if lineage is None:
        raise MigrationNeeded("nothing is captured yet: run `upwell connector apply` first")
    naming = Naming(settings.name, lineage[0])
    wanted = {naming.topic(spec.table): name for name, spec in settings.collections.items()}
    missing = sorted(set(wanted) - set(recorded))
    if missing and len(missing) == len(wanted):
        raise MigrationNeeded(f"topic {missing[0]} is not created yet: run `upwell connector apply` first")
    for topic in missing:
        log.warning("not captured yet: run `upwell migrate`", collection=wanted.pop(topic), topic=topic)
    if naming.topic(CANARY_TABLE) in recorded:
        wanted[naming.topic(CANARY_TABLE)] = CANARY
    recorded = {topic: recorded[topic] for topic in wanted}
    check_recorded(neighbours.kafka(settings), recorded)
    served = {topic: (collection, lineage[0]) for topic, collection in wanted.items()}
    return served, recorded, started_for


def check_recorded(kafka: Kafka, recorded: Mapping[str, TopicFacts], *, running: bool = False) -> None:
    """Raise LineageMismatch unless each topic is the recorded one, KafkaUnavailable.

    To a `running` worker one that is not there is only away: it cannot read it, so it cannot misread it.
    """
    found = kafka.describe(list(recorded))
    for topic, then in recorded.items():
        if running and topic not in found:
            raise KafkaUnavailable(f"topic {topic} is not there")
        check_topic(topic, then, found.get(topic))


def check_topic(topic: str, recorded: TopicFacts, found: TopicFacts | None) -> None:
    """Raise LineageMismatch unless the broker's topic is the recorded one."""
    if found == recorded:
        return
    now = "is gone" if found is None else f"has id {found.topic_id} and {found.partitions} partitions"
    raise LineageMismatch(
        f"topic {topic} {now}; upwell created it with id {recorded.topic_id} and {recorded.partitions} partitions: "
        f"offsets mean something else now, run `upwell connector rebuild`"
    )


def check_generations(settings: Settings, fed: Sequence[GenerationInfo]) -> None:
    """Raise MigrationNeeded or GenerationMismatch unless each collection has a generation as the spec says."""
    for name in settings.collections:
        mine = [each for each in fed if each.collection == name]
        if not any(each.is_live for each in mine):
            raise MigrationNeeded(f"collection {name} is not in the sink yet: run `upwell migrate` first")
        matching(settings, name, mine)


def recipe(settings: Settings, generation: GenerationInfo, encoder: Encoder) -> Recipe:
    """How the documents of a generation are made. Raises SettingsError for chunks that the model would cut off."""
    chunker = TokenChunker.of(
        encoder, max_tokens=generation.max_tokens, overlap_tokens=generation.overlap_tokens
    )
    limit = settings.collections[generation.collection].max_document_bytes
    return Recipe(Template(generation.template), chunker, encoder, limit)


def _decoders(
    settings: Settings, topics: Mapping[str, tuple[str, int]], keys: Mapping[str, Sequence[str]], secret: str
) -> Mapping[str, Decoder]:
    """A decoder for each topic. `secret` is the placeholder of unchanged TOASTed values."""
    made = {}
    for topic, (name, lineage) in topics.items():
        if name not in keys:
            raise SettingsError(f"collection {name} is not in the sink: run `upwell migrate` first")
        made[topic] = Decoder(name, settings.collections[name], keys[name], lineage, secret)
    return made


def _intakes(
    settings: Settings,
    decoders: Mapping[str, Decoder],
    store: PostgresStore,
    registry: Registry,
    needs: IntakeNeeds,
) -> Mapping[str, Intake]:
    tables = CatalogTables(settings.source.dsn, settings.sink.dsn, settings.collections)
    return {
        topic: Intake(
            decoder.collection,
            decoder,
            store,
            registry,
            needs.measures,
            positions=needs.positions,
            wake=needs.wake,
            should_stop=needs.should_stop,
            retry_deadline_seconds=settings.worker.retry_deadline_seconds,
            notices=store,
            tables=tables,
            vitals=needs.vitals,
        )
        for topic, decoder in decoders.items()
    }
