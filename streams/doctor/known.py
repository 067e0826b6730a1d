"""What the sink knows of the deployment, which the checks of the other neighbours compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from connectors.kafka import TopicFacts
from connectors.postgres.capture_state import CaptureState
from schemas.errors import MigrationNeeded, UpwellError
from streams.settings import Settings


@dataclass(frozen=True, slots=True)
class Known:
    """`lineage` is None before `connector apply`, and where `away` says why it is not known.

    `models`: model, dimension and chunk limit of the live generations, by collection.
    """

    lineage: int | None = None
    topic_prefix: str = ""
    topics: Mapping[str, TopicFacts] = field(default_factory=dict)
    models: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)
    away: str = ""


def known_of(settings: Settings) -> Known:
    """Ask the sink; never raises for what a neighbour is to blame for."""
    try:
        with CaptureState.open(settings.sink.dsn) as state:
            lineage = state.lineage()
            models = {
                name: (fed[0].model, fed[0].dimension, fed[0].max_tokens)
                for name, fed in state.generations().items()
                if fed[0].is_live
            }
            topics = state.topics(lineage[0]) if lineage is not None else {}
    except MigrationNeeded:
        return Known()
    except UpwellError:
        return Known(away="the sink, which knows what was captured, cannot be asked")
    if lineage is None:
        return Known(models=models)
    return Known(lineage[0], lineage[1], topics, models)
