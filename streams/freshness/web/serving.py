"""The page's server: uvicorn in a thread, so that signals stay the main thread's."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from typing import Final

import uvicorn
from fastapi import FastAPI

from schemas.errors import SettingsError

#: Requests and live views that are served at once; more are told so.
CONCURRENT: Final = 200
#: Live views end within a second of a stop.
STOP_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that answers. `port` is the actual one."""

    host: str
    port: int
    server: uvicorn.Server
    thread: threading.Thread

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{f'[{shown}]' if ':' in shown and shown[0] != '[' else shown}:{self.port}/"

    def stop(self) -> None:
        """Returns when the last request has ended or was cut off."""
        self.server.config.app.state.stopping.set()  # type: ignore[union-attr]
        self.server.should_exit = True
        self.thread.join(STOP_SECONDS)


def serve(app: FastAPI, host: str, port: int) -> Serving:
    """Connections are taken from when this returns. Raises SettingsError if the address cannot be had."""
    listening = _listen(host, port)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        limit_concurrency=CONCURRENT,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listening]}, name="upwell page", daemon=True
    )
    thread.start()
    return Serving(host, listening.getsockname()[1], server, thread)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on; they are answered once the server runs."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        raise SettingsError(
            f"the page cannot listen on {host}:{port}: {error.strerror}; see UPWELL_MONITOR_PORT"
        ) from error
    return listening
