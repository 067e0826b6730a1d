"""Who may see what: the Host header against DNS rebinding, and the token for keys and texts.

On a loopback bind whoever can reach the page is on this machine, unless a proxy says that it forwards for somebody.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

COOKIE: Final = "upwell_session"
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
#: A proxy adds one of these.
FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-real-ip")


@dataclass(frozen=True, slots=True)
class Access:
    """`names`: what this machine is called, beside loopback and the address that it listens on."""

    host: str
    token: str
    names: frozenset[str] = frozenset()

    @classmethod
    def of(cls, host: str, token: str) -> Access:
        """With this machine's own names."""
        own = {socket.gethostname(), socket.getfqdn()}
        return cls(host, token, frozenset(name.lower().rstrip(".") for name in own if name))

    def answers_to(self, header: str, own_address: str | None) -> bool:
        """Whether a Host header names us. `own_address`: where the connection arrived, believed only if it is an
        address: a name of anybody's may lead to us, an address is nobody's name.
        """
        name = host_of(header)
        own = own_address if own_address is not None and is_address(own_address) else None
        return name is not None and (
            name in LOOPBACK_NAMES or name in self.names or name in {self.host.lower(), own}
        )

    def open_to(self, headers: Mapping[str, str], cookie: str | None) -> bool:
        """Whether keys and texts are shown."""
        if is_loopback(self.host) and not any(name in headers for name in FORWARDED):
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.right(given.strip()):
            return True
        return bool(self.token) and cookie is not None and _same(cookie, self.session())

    def right(self, given: str) -> bool:
        """Whether it is the token. No token set: nothing is."""
        return bool(self.token) and _same(given, self.token)

    def session(self) -> str:
        """What the cookie holds: proof of the token, not the token."""
        return hmac.new(self.token.encode(), b"upwell page", hashlib.sha256).hexdigest()


def host_of(header: str) -> str | None:
    """The name of a Host header without its port, None if it is none."""
    text = header.strip().lower()
    if text.startswith("["):
        name, closed, rest = text[1:].partition("]")
        return name if closed and _is_port(rest) else None
    name, colon, port = text.partition(":")
    name = name.rstrip(".")
    return name if name and _is_port(colon + port) else None


def _is_port(text: str) -> bool:
    return text == "" or (text[0] == ":" and text[1:].isascii() and text[1:].isdecimal())


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    return host.lower() == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def _same(one: str, other: str) -> bool:
    """In constant time."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))
