"""Addresses of a stack: ports chosen once, and `stack.env` for everything that talks to it."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.stack.errors import PortTaken

PORTS: Final = ("kafka", "controller", "connect", "registry", "registry_management", "source", "sink")
HOST: Final = "127.0.0.1"
SOURCE_DATABASE: Final = "shop"
SINK_DATABASE: Final = "upwell"


@dataclass(frozen=True, slots=True)
class StackEnvironment:
    """What `stack.env` holds."""

    variables: dict[str, str]

    @classmethod
    def load(cls, home: Path) -> StackEnvironment:
        """Read `home/stack.env`; empty if there is none."""
        path = home / "stack.env"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return cls(dict(line.split("=", 1) for line in lines if "=" in line))


def is_free(port: int) -> bool:
    """Whether nothing listens on the port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def choose_ports(home: Path, wanted: Mapping[str, int] | None = None) -> dict[str, int]:
    """Ports of this home: those of its first start, else free ones. Raises PortTaken for a wanted one in use."""
    path = home / "ports.json"
    kept: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    ports = {**kept, **(wanted or {})}
    sockets = []
    for name in PORTS:
        if name not in ports:
            # Held until all are chosen, so that no two components get the same one.
            held = socket.socket()
            held.bind((HOST, 0))
            sockets.append(held)
            ports[name] = held.getsockname()[1]
    for held in sockets:
        held.close()
    path.write_text(json.dumps(ports))
    return ports


def check_free(name: str, port: int) -> None:
    """Raise PortTaken if somebody else listens there."""
    if not is_free(port):
        raise PortTaken(
            f"port {port} for {name} is in use by another process: stop it, or use another UPWELL_HOME"
        )


def write_secrets(home: Path) -> Path:
    """User and password for Connect's file provider; the local servers trust, so the password only has to be one."""
    folder = home / "secrets"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / "source.properties"
    if not path.exists():
        _write_private(path, f"user=postgres\npassword={secrets.token_hex(16)}\n")
    return path


def write_environment(home: Path, ports: Mapping[str, int]) -> StackEnvironment:
    """Write `home/stack.env`, mode 0600."""
    registry = f"http://{HOST}:{ports['registry']}/apis"
    variables = {
        "UPWELL_SOURCE_DSN": f"postgresql://postgres@{HOST}:{ports['source']}/{SOURCE_DATABASE}",
        "UPWELL_SINK_DSN": f"postgresql://postgres@{HOST}:{ports['sink']}/{SINK_DATABASE}",
        "UPWELL_KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{ports['kafka']}",
        "UPWELL_CONNECT_URL": f"http://{HOST}:{ports['connect']}",
        "UPWELL_CONNECT_SECRETS_FILE": str(home / "secrets" / "source.properties"),
        "UPWELL_REGISTRY_URL": f"{registry}/ccompat/v7",
        "UPWELL_REGISTRY_CONVERTER_URL": f"{registry}/registry/v2",
    }
    _write_private(home / "stack.env", "".join(f"{name}={value}\n" for name, value in variables.items()))
    return StackEnvironment(variables)


def _write_private(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)
