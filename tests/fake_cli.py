"""`upwell` with the fake models of `tests.fake_worker`: everything else is real."""

from __future__ import annotations

import connectors.encoder
from streams.cli import main
from tests.fake_worker import load_fake

if __name__ == "__main__":
    connectors.encoder.load_encoder = load_fake  # type: ignore[assignment]
    main()
