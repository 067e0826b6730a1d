"""A worker is started for a lineage, its topics and columns; when these change, it is started again with the new ones.

What makes a change safe is in the transactions: nothing of an ended lineage is taken in, and a collection that is gone
is not found. This service only makes workers notice within a second, also when nothing arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Final

from connectors.postgres.capture_state import Deployment
from connectors.postgres.store import PostgresStore
from schemas.errors import DeploymentChanged, Retry

POLL_SECONDS: Final = 1.0


async def watch(
    store: PostgresStore,
    started_for: Deployment,
    served: Collection[str],
    answered: Callable[[], None],
    should_stop: Callable[[], bool],
) -> None:
    """Until told to stop. `served`: the worker's collections. Raises DeploymentChanged.

    The sink being away is no matter here; `answered` is called when it is not.
    """
    while not should_stop():
        try:
            changed = started_for.difference(await store.deployment(), served)
            answered()
        except Retry:
            changed = ""
        if changed:
            raise DeploymentChanged(f"{changed}: this worker starts again")
        await asyncio.sleep(POLL_SECONDS)
