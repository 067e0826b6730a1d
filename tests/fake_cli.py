"""`upwell` with the fake model of `tests.fake_worker`; all else is real. Torch, which takes ten seconds, is not loaded.

What its `worker` supervises are fake workers.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import connectors.encoder

if TYPE_CHECKING:
    from tests.fake_worker import SlowEncoder


def load_fake(name: str, **options: Any) -> SlowEncoder:
    from tests import fake_worker

    return fake_worker.load_fake(name)


# Before any module of streams takes the name.
connectors.encoder.load_encoder = load_fake  # type: ignore[assignment]

if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        os.execv(sys.executable, [sys.executable, "-m", "tests.fake_worker", *sys.argv[2:]])
    from streams.cli import main

    main()
