"""The monitor's page and its HTTP interface (DESIGN 10): `make_app` and `serve`."""

from streams.freshness.web.app import make_app
from streams.freshness.web.board import Board
from streams.freshness.web.reads import Reads, SinkReads
from streams.freshness.web.serving import Serving, serve

__all__ = ["Board", "Reads", "Serving", "SinkReads", "make_app", "serve"]
