"""What a neighbour is told to let us in, and what makes us believe that it is the right one.

Secrets are fields without a repr: neither a log line nor a traceback that shows the object shows them.
"""

from __future__ import annotations

import base64
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from schemas.errors import SettingsError

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


@dataclass(frozen=True, slots=True)
class KafkaSecurity:
    """How every client of ours talks to the brokers. Files are PEM; an empty `ca_file` is the system's CAs."""

    protocol: Protocol = "PLAINTEXT"
    mechanism: Mechanism = "SCRAM-SHA-512"
    username: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @property
    def encrypted(self) -> bool:
        return self.protocol in ("SSL", "SASL_SSL")

    @property
    def sasl(self) -> bool:
        return self.protocol in ("SASL_PLAINTEXT", "SASL_SSL")

    def librdkafka(self) -> dict[str, str]:
        """Settings of a confluent-kafka client, the password among them."""
        found: dict[str, str] = {"security.protocol": self.protocol}
        if self.sasl:
            found |= {
                "sasl.mechanism": self.mechanism,
                "sasl.username": self.username,
                "sasl.password": self.password,
            }
        if self.encrypted:
            files = {
                "ssl.ca.location": self.ca_file,
                "ssl.certificate.location": self.cert_file,
                "ssl.key.location": self.key_file,
            }
            found |= {name: path for name, path in files.items() if path}
        return found

    def context(self) -> ssl.SSLContext | None:
        """For clients that use Python's TLS; None without TLS. Raises SettingsError for a file that will not do."""
        return tls_context(self.ca_file, self.cert_file, self.key_file) if self.encrypted else None


@dataclass(frozen=True, slots=True)
class HttpAccess:
    """How an HTTP neighbour (registry, Connect) is asked. An empty `username` sends none."""

    username: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""

    @property
    def for_requests(self) -> dict[str, Any]:
        """Arguments of each request: the CA of a session would be overruled by the environment's.

        In bytes, because requests would write text as Latin-1.
        """
        basic = (self.username.encode(), self.password.encode()) if self.username else None
        return {"auth": basic, "verify": self.ca_file or True}

    @property
    def headers(self) -> dict[str, str]:
        """Basic authentication for a client that wants headers."""
        if not self.username:
            return {}
        basic = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        return {"Authorization": f"Basic {basic}"}


PLAIN_KAFKA: Final = KafkaSecurity()
PLAIN_HTTP: Final = HttpAccess()


def tls_context(ca_file: str = "", cert_file: str = "", key_file: str = "") -> ssl.SSLContext:
    """A client's TLS that checks the server's certificate and name. Raises SettingsError naming the file."""
    if ca_file:
        check_readable(ca_file)
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except ssl.SSLError as error:
        raise SettingsError(f"{ca_file} holds no certificate in PEM ({error.reason})") from None
    if cert_file:
        _add_own(context, cert_file, key_file)
    return context


def _add_own(context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    check_readable(cert_file)
    check_readable(key_file)

    def no_phrase() -> str:
        # Without a callback OpenSSL would ask the terminal.
        raise SettingsError(f"{key_file} is encrypted: give a key without a pass phrase, readable by us only")

    try:
        context.load_cert_chain(cert_file, key_file, password=no_phrase)
    except ssl.SSLError as error:
        raise SettingsError(
            f"{cert_file} and {key_file} are no certificate and key in PEM that belong together ({error.reason})"
        ) from None


def check_readable(path: str) -> None:
    """Raise SettingsError unless the file can be read."""
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None


def read_secret(path: str) -> str:
    """The secret that a file holds, without the line's end. Raises SettingsError; no message shows the content."""
    try:
        secret = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not UTF-8") from None
    if not secret or "\n" in secret or "\0" in secret:
        raise SettingsError(f"{path} must hold one line, the password")
    return secret


def untrusted(error: BaseException) -> bool:
    """Whether a certificate that we do not trust is behind it; no class of requests says so."""
    return "CERTIFICATE_VERIFY_FAILED" in str(error)
