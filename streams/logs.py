"""Logs: JSON when not a terminal, readable lines when one. No secret is ever passed to a logger (promise 7)."""

from __future__ import annotations

import logging
import sys

import structlog


def set_up() -> None:
    """Send structlog and the libraries' warnings to stderr."""
    terminal = sys.stderr.isatty()
    shared: list[structlog.types.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=renderer, foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared]
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # Compares monotonic with epoch time and so cries wolf (reference: Faust, known false positives).
    logging.getLogger("faust.transport.drivers.aiokafka").setLevel(logging.ERROR)
