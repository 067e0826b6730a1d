"""Addresses of a stack: ports chosen once, and `stack.env` for everything that talks to it."""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.stack.errors import PortTaken, StackError

PORTS: Final = ("kafka", "controller", "connect", "registry", "registry_management", "source", "sink")
HOST: Final = "127.0.0.1"
SOURCE_DATABASE: Final = "shop"
SINK_DATABASE: Final = "upwell"
FIRST_PORT: Final = 10240
PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


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
    """Ports of this home: those of its first start, else free ones. Raises PortTaken if one is in use, and then
    keeps nothing: a port that was wanted once and taken does not stand in the way of the next start."""
    ports = {**kept_ports(home), **(wanted or {})}
    for name in PORTS:
        if name not in ports:
            ports[name] = free_port(ports.values())
    names: dict[int, str] = {}
    for name in PORTS:
        other = names.setdefault(ports[name], name)
        if other != name:
            raise PortTaken(f"port {ports[name]} is wanted for {other} and for {name}: give each its own")
        check_free(name, ports[name])
    replace_file(home / "ports.json", json.dumps(ports))
    return ports


def kept_ports(home: Path) -> dict[str, int]:
    """Ports of the first start; empty before it."""
    path = home / "ports.json"
    try:
        return {str(name): int(port) for name, port in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise StackError(f"{path} cannot be read: remove it, and the next start chooses new ports") from error


def free_port(taken: Collection[int] = ()) -> int:
    """A free port below those that the kernel gives to outgoing connections: one of these could take it while its
    component is down, even the client that tries to reach the component again and again."""
    for _ in range(1000):
        port = random.randrange(FIRST_PORT, max(_first_outgoing(), FIRST_PORT + 1000))
        if port not in taken and is_free(port):
            return port
    raise PortTaken(f"no free port between {FIRST_PORT} and {_first_outgoing()}")


def _first_outgoing() -> int:
    try:
        return int(PORT_RANGE.read_text().split()[0])
    except (FileNotFoundError, PermissionError):
        return 32768


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
        replace_file(path, f"user=postgres\npassword={secrets.token_hex(16)}\n")
    return path


def write_environment(
    home: Path, ports: Mapping[str, int], more: Mapping[str, str] | None = None
) -> StackEnvironment:
    """Write `home/stack.env`, mode 0600. `more` is added, and wins."""
    registry = f"http://{HOST}:{ports['registry']}/apis"
    variables = {
        "UPWELL_SOURCE_DSN": f"postgresql://postgres@{HOST}:{ports['source']}/{SOURCE_DATABASE}",
        "UPWELL_SINK_DSN": f"postgresql://postgres@{HOST}:{ports['sink']}/{SINK_DATABASE}",
        "UPWELL_KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{ports['kafka']}",
        "UPWELL_CONNECT_URL": f"http://{HOST}:{ports['connect']}",
        "UPWELL_CONNECT_SECRETS_FILE": str(home / "secrets" / "source.properties"),
        "UPWELL_REGISTRY_URL": f"{registry}/ccompat/v7",
        "UPWELL_REGISTRY_CONVERTER_URL": f"{registry}/registry/v2",
        **(more or {}),
    }
    replace_file(home / "stack.env", "".join(f"{name}={value}\n" for name, value in variables.items()))
    return StackEnvironment(variables)


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by its owner only."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)
