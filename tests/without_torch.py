"""`upwell` in a process that cannot import torch, nor what brings it along: whoever tries fails."""

from __future__ import annotations

import sys

for library in ("torch", "transformers", "sentence_transformers"):
    sys.modules[library] = None  # type: ignore[assignment]

if __name__ == "__main__":
    from streams.cli import main

    main()
