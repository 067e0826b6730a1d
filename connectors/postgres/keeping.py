"""How a worker's connections to the sink are kept: either end hears within half a minute that the other is gone, and
every transaction is READ COMMITTED, whatever the server's defaults are.

A worker whose machine or network dies in the middle of a transaction leaves its locks with a backend that waits for the
next statement: for two hours, by the system's keepalives. And under REPEATABLE READ a statement after a lock would see
what was before it (H7, H14, H15, H19).
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from connectors.postgres.sql import Queries

SQL: Final = Queries.load("sink")

#: Seconds, seconds, probes, milliseconds: the client's side, by libpq's names.
CLIENT: Final = {
    "keepalives_idle": "5",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
#: The server's side, of this session. A socket in the file system knows when its other end is gone, and ignores them.
SERVER: Final = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "default_transaction_isolation": "read committed",
}


def kept(dsn: str) -> str:
    """The DSN with the client's side; what it says itself stays."""
    return make_conninfo(
        dsn, **{name: value for name, value in CLIENT.items() if name not in conninfo_to_dict(dsn)}
    )


async def keep(connection: psycopg.AsyncConnection[Any]) -> None:
    """Set the server's side of a new connection, which is in autocommit."""
    await connection.execute(SQL["keep"], {"names": list(SERVER), "values": list(SERVER.values())})
