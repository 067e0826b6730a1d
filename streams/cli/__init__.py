"""`upwell`: the command line. Each command is a few lines that read settings and call one function."""

from __future__ import annotations

from streams.cli.root import main

__all__ = ["main"]
