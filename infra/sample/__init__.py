"""The sample shop: 300 content pieces and 1,000 customers, reproducible from a seed, and edits to watch.

It stands for somebody's application and knows nothing of upwell.
"""

from __future__ import annotations

from infra.sample.content import content
from infra.sample.customers import customers
from infra.sample.live import LiveChange, live_changes
from infra.sample.load import load
from infra.sample.rows import ContentRow, CustomerRow
from infra.sample.searches import SEARCHES, DemoSearch

__all__ = [
    "SEARCHES",
    "ContentRow",
    "CustomerRow",
    "DemoSearch",
    "LiveChange",
    "content",
    "customers",
    "live_changes",
    "load",
]
