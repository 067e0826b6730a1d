"""Registry and Connect behind TLS and basic authentication: who is let in, and what is said to who is not."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from connectors.access import HttpAccess
from connectors.debezium.connect import Connect
from connectors.registry import BlockingRegistry, Registry
from schemas.errors import RegistryUnavailable, SettingsError
from tests.fixtures.certificates import Authority
from tests.fixtures.guarded import Guarded

PASSWORD: Final = "hünter2€"

Ask = Callable[[str, HttpAccess], object]


class Schema(BaseHTTPRequestHandler):
    """Whatever is asked, a schema is the answer; Connect's client takes it for a config."""

    def do_GET(self) -> None:
        body = json.dumps({"schema": '"string"'}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def proxy(authority: Authority) -> Iterator[Guarded]:
    plain = ThreadingHTTPServer(("127.0.0.1", 0), Schema)
    threading.Thread(target=plain.serve_forever, daemon=True).start()
    with Guarded(plain.server_address[1], *authority.issue("server"), "somebody", PASSWORD) as guarded:
        yield guarded
    plain.shutdown()
    plain.server_close()


def in_a_loop(url: str, access: HttpAccess) -> object:
    async def ask() -> str:
        registry = Registry(url, access)
        try:
            return await registry.schema(1)
        finally:
            await registry.close()

    return asyncio.run(ask())


def blocking(url: str, access: HttpAccess) -> object:
    return BlockingRegistry(url, access).schema(1)


def answers(url: str, access: HttpAccess) -> object:
    BlockingRegistry(url, access).answers()
    return None


def connect(url: str, access: HttpAccess) -> object:
    return Connect(url, access).config("any")


CLIENTS: Final = [in_a_loop, blocking, answers, connect]


@pytest.mark.parametrize("ask", CLIENTS)
def test_who_has_the_password_is_let_in(proxy: Guarded, authority: Authority, ask: Ask) -> None:
    before = proxy.let_in
    ask(proxy.url, HttpAccess("somebody", PASSWORD, str(authority.ca_file)))
    assert proxy.let_in == before + 1


@pytest.mark.parametrize("ask", CLIENTS)
@pytest.mark.parametrize("user", ["somebody", ""])
def test_who_has_not_is_told_which_setting_to_mend(
    proxy: Guarded, authority: Authority, ask: Ask, user: str
) -> None:
    with pytest.raises(SettingsError, match=r"refuses our user \(401\): mend (registry|connect)\.username"):
        ask(proxy.url, HttpAccess(user, "notthis", str(authority.ca_file)))


@pytest.mark.parametrize("ask", CLIENTS)
def test_a_stranger_gets_no_password(proxy: Guarded, tmp_path: Path, ask: Ask) -> None:
    seen = proxy.let_in, proxy.turned_away
    stranger = Authority(tmp_path, "another")
    with pytest.raises(SettingsError, match=r"its certificate is not one of (registry|connect)\.ca_file's"):
        ask(proxy.url, HttpAccess("somebody", PASSWORD, str(stranger.ca_file)))
    assert seen == (proxy.let_in, proxy.turned_away)


@pytest.mark.parametrize("ask", CLIENTS)
def test_the_environment_does_not_overrule_the_settings_ca(
    proxy: Guarded, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(Authority(tmp_path, "another").ca_file))
    ask(proxy.url, HttpAccess("somebody", PASSWORD, str(authority.ca_file)))


def test_a_registry_without_tls_is_merely_away(authority: Authority) -> None:
    plain = ThreadingHTTPServer(("127.0.0.1", 0), Schema)
    threading.Thread(target=plain.serve_forever, daemon=True).start()
    access = HttpAccess("somebody", PASSWORD, str(authority.ca_file))
    for ask in (in_a_loop, blocking):
        with pytest.raises(RegistryUnavailable):
            ask(f"https://127.0.0.1:{plain.server_address[1]}", access)
    plain.shutdown()
    plain.server_close()
