"""Why a change was slow, in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from streams.freshness.charts import quantity

#: What was going on while a change was in the stage, and what makes that long.
_MEANS: Final = {
    "capture": "on the way from its commit to Kafka: the connector was behind or stood still",
    "queue": "in Kafka until a worker took it in: the workers were stopped or behind",
    "capture_and_queue": "until it was taken in: the connector or the workers were behind or stood still",
    "wait": "in `pending`: the encoders were busy with other texts, or none ran",
    "embed": "with the model: its batch was long, or the processor was short",
    "write": "being written: the sink was slow, or its rows were locked",
}


def why(seconds: float, stages: Mapping[str, float]) -> str:
    """One sentence about the stage that took the greatest part of `seconds`."""
    known = {name: spent for name, spent in stages.items() if name in _MEANS}
    if not known or max(known.values()) <= 0:
        return f"It took {quantity(seconds, 's')}; how long each stage took is not known."
    name = max(known, key=lambda stage: known[stage])
    return f"{quantity(known[name], 's')} of {quantity(seconds, 's')} {_MEANS[name]}."
