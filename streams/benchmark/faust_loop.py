"""A bare Faust loop: `python -m streams.benchmark.faust_loop BOOTSTRAP TOPIC COUNT HOME`.

Reads so many messages of a topic from its begin, acknowledges each, and does nothing else. Says how many it was given
since the first ones, and in how many seconds. Settings are those of a worker.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

#: The first messages come while the fetcher is still warming up.
SKIPPED: Final = 200


async def measure(bootstrap: str, topic: str, count: int, home: Path) -> dict[str, float]:
    import faust

    from streams.intake.app import faust_settings

    name = f"bench-bare-{os.getpid()}"
    settings = faust_settings(name, bootstrap, name, home, 30.0)
    loop = asyncio.get_running_loop()
    app = faust.App(**settings, consumer_auto_offset_reset="earliest", loop=loop)
    channel = app.topic(topic, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
    done: asyncio.Future[dict[str, float]] = loop.create_future()

    async def read(stream: Any) -> None:
        seen, begun = 0, 0.0
        unacknowledged = stream.noack()
        async for event in unacknowledged.events():
            await unacknowledged.ack(event)
            seen += 1
            if seen == SKIPPED:
                begun = time.monotonic()
            if seen == count:
                done.set_result({"seconds": time.monotonic() - begun, "messages": seen - SKIPPED})

    app.agent(channel)(read)
    app.finalize()
    await app.start()
    try:
        return await done
    finally:
        await app.stop()


def main() -> None:
    bootstrap, topic, count, home = sys.argv[1:]
    (Path(home) / "faust" / f"bench-bare-{os.getpid()}").mkdir(parents=True, exist_ok=True)
    found = asyncio.run(measure(bootstrap, topic, int(count), Path(home)))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
