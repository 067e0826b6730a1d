"""Ports chosen once and kept, and `stack.env`."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.stack import environment
from infra.stack.environment import (
    HOST,
    PORTS,
    StackEnvironment,
    choose_ports,
    free_port,
    is_free,
    write_environment,
    write_secrets,
)
from infra.stack.errors import PortTaken, StackError

FIVE = {
    "UPWELL_SOURCE_DSN",
    "UPWELL_SINK_DSN",
    "UPWELL_KAFKA_BOOTSTRAP_SERVERS",
    "UPWELL_CONNECT_URL",
    "UPWELL_REGISTRY_URL",
}


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.create_server((HOST, 0)) as server:
        yield int(server.getsockname()[1])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_ports_are_free_and_all_different(tmp_path: Path) -> None:
    ports = choose_ports(tmp_path)
    assert set(ports) == set(PORTS)
    assert len(set(ports.values())) == len(PORTS)
    assert all(is_free(port) for port in ports.values())


def test_the_next_start_keeps_the_ports(tmp_path: Path) -> None:
    assert choose_ports(tmp_path) == choose_ports(tmp_path)


def test_no_outgoing_connection_can_take_a_port(tmp_path: Path) -> None:
    first = int(environment.PORT_RANGE.read_text().split()[0])
    assert max(choose_ports(tmp_path).values()) < max(first, environment.FIRST_PORT + 1000)


def test_a_kept_port_that_is_taken_is_named_with_its_component(tmp_path: Path, taken: int) -> None:
    (tmp_path / "ports.json").write_text(json.dumps({"connect": taken}))
    with pytest.raises(PortTaken) as caught:
        choose_ports(tmp_path)
    assert str(caught.value) == (
        f"port {taken} for connect is in use by another process: stop it, or use another UPWELL_HOME"
    )


def test_a_wanted_port_that_was_taken_is_not_kept(tmp_path: Path, taken: int) -> None:
    kept = choose_ports(tmp_path)
    with pytest.raises(PortTaken):
        choose_ports(tmp_path, {"kafka": taken})
    assert choose_ports(tmp_path) == kept


def test_a_wanted_port_is_kept(tmp_path: Path) -> None:
    port = free_port()
    assert choose_ports(tmp_path, {"kafka": port})["kafka"] == port
    assert choose_ports(tmp_path)["kafka"] == port


def test_one_port_for_two_components_is_refused(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(PortTaken, match=f"port {port} is wanted for kafka and for connect"):
        choose_ports(tmp_path, {"kafka": port, "connect": port})


def test_a_port_taken_on_all_interfaces_is_not_free() -> None:
    with socket.create_server(("", 0)) as server:
        assert not is_free(server.getsockname()[1])


def test_a_chosen_port_is_not_chosen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = iter([20001, 20002])
    monkeypatch.setattr("random.randrange", lambda low, high: next(tried))
    monkeypatch.setattr(environment, "is_free", lambda port: True)
    assert free_port({20001}) == 20002


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kafka": "x"}', '{"kafka": null}'])
def test_ports_that_cannot_be_read_are_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "ports.json").write_text(text)
    with pytest.raises(StackError, match=r"ports\.json cannot be read: remove it"):
        choose_ports(tmp_path)


def test_stack_env_has_the_addresses_and_is_the_owners_alone(tmp_path: Path) -> None:
    written = write_environment(tmp_path, choose_ports(tmp_path))
    assert mode(tmp_path / "stack.env") == 0o600
    assert set(written.variables) >= FIVE
    assert StackEnvironment.load(tmp_path) == written
    assert all("127.0.0.1" in written.variables[name] for name in FIVE)


def test_stack_env_is_the_owners_alone_whatever_was_there(tmp_path: Path) -> None:
    for name in ("stack.env", "stack.env.new"):
        (tmp_path / name).write_text("left by somebody\n")
        (tmp_path / name).chmod(0o666)
    write_environment(tmp_path, choose_ports(tmp_path))
    assert mode(tmp_path / "stack.env") == 0o600
    assert "left by somebody" not in (tmp_path / "stack.env").read_text()


def test_the_secrets_are_made_once_and_are_the_owners_alone(tmp_path: Path) -> None:
    path = write_secrets(tmp_path)
    text = path.read_text()
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert write_secrets(tmp_path).read_text() == text


def test_no_stack_env_is_no_variables(tmp_path: Path) -> None:
    assert StackEnvironment.load(tmp_path).variables == {}
