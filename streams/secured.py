"""The parts of the settings that keep neighbours and upwell sure of each other: TLS, users, passwords.

Everything is checked at the start. A password is read from its file once; none is in a repr or a message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from connectors.access import HttpAccess, KafkaSecurity, Mechanism, Protocol, read_secret, tls_context
from schemas.errors import SettingsError
from schemas.spec import Strict

T = TypeVar("T")


def _with_secret(given: Any, name: str) -> Any:
    """Read `{name}_file` into `name`, once, at the start. Raises ValueError if both are given."""
    if not isinstance(given, dict) or not given.get(f"{name}_file"):
        return given
    if given.get(name):
        raise ValueError(f"{name} and {name}_file are both set: keep one")
    return {**given, name: _said(read_secret, str(given[f"{name}_file"]))}


def _said(check: Callable[..., T], *arguments: str) -> T:
    """Call a check of ours; pydantic adds the section's name to what it says."""
    try:
        return check(*arguments)
    except SettingsError as error:
        raise ValueError(str(error)) from None


class SecuredDatabase(Strict):
    """A Postgres server. The DSN carries TLS (`sslmode`, `sslrootcert`, `sslcert`, `sslkey`)."""

    dsn: str = Field("", repr=False)
    password_file: str = Field("", description="file with the password of `dsn`, instead of one in it")

    @model_validator(mode="before")
    @classmethod
    def _with_password(cls, given: Any) -> Any:
        """Put the file's password into the DSN, so that whoever connects needs nothing else."""
        if not isinstance(given, dict) or not given.get("password_file"):
            return given
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict, make_conninfo

        try:
            found = conninfo_to_dict(str(given.get("dsn") or ""))
        except ProgrammingError:
            return given  # said elsewhere, without its pieces
        if not found:
            raise ValueError("password_file is set, but no dsn")
        secret = _with_secret({**given, "password": found.get("password")}, "password")["password"]
        return {**given, "dsn": make_conninfo(**{**found, "password": secret})}


class SecuredKafka(Strict):
    """The brokers."""

    bootstrap_servers: str = Field("127.0.0.1:9092", description="brokers as `host:port`, comma between")
    security_protocol: Protocol = Field(
        "PLAINTEXT", description="`PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`"
    )
    sasl_mechanism: Mechanism = Field(
        "SCRAM-SHA-512", description="`PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`"
    )
    sasl_username: str = Field("", description="who upwell is to the brokers")
    sasl_password: SecretStr = Field(SecretStr(""), description="its password")
    sasl_password_file: str = Field("", description="file with that password, instead")
    ssl_ca_file: str = Field(
        "", description="CA of the brokers' certificates, PEM; if not set, the system's CAs"
    )
    ssl_cert_file: str = Field("", description="upwell's own certificate, PEM, where brokers ask for one")
    ssl_key_file: str = Field("", description="its key, PEM, without a pass phrase")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        return _with_secret(given, "sasl_password")

    @model_validator(mode="after")
    def _checked(self) -> Self:
        """Half of a pair, or what the protocol would silently leave unused."""
        security, protocol = self.security(), self.security_protocol
        credentials = bool(self.sasl_username), bool(security.password)
        if security.sasl and not all(credentials):
            raise ValueError(f"{protocol} needs sasl_username, and sasl_password or sasl_password_file")
        if not security.sasl and any(credentials):
            raise ValueError(
                f"a SASL user or password is set, but security_protocol {protocol} sends none: set SASL_SSL"
            )
        files = self.ssl_ca_file, self.ssl_cert_file, self.ssl_key_file
        if not security.encrypted and any(files):
            raise ValueError(
                f"an ssl file is set, but security_protocol {protocol} does not encrypt: set SSL or SASL_SSL"
            )
        if bool(self.ssl_cert_file) != bool(self.ssl_key_file):
            raise ValueError("ssl_cert_file and ssl_key_file belong together: set both, or none")
        _said(security.context)
        return self

    def security(self) -> KafkaSecurity:
        """The same as every client takes it."""
        return KafkaSecurity(
            self.security_protocol,
            self.sasl_mechanism,
            self.sasl_username,
            self.sasl_password.get_secret_value(),
            self.ssl_ca_file,
            self.ssl_cert_file,
            self.ssl_key_file,
        )


class SecuredHttp(Strict):
    """A neighbour with an HTTP interface."""

    url: str = ""
    username: str = ""
    password: SecretStr = Field(SecretStr(""), description="its password")
    password_file: str = Field("", description="file with that password, instead")
    ca_file: str = ""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        return _with_secret(given, "password")

    @model_validator(mode="after")
    def _checked(self) -> Self:
        access = self.access()
        if bool(access.username) != bool(access.password):
            raise ValueError("username and password (or password_file) belong together: set both, or none")
        if ":" in access.username:
            raise ValueError("a username with ':' in it is no name for basic authentication")
        for url in self._urls():
            self._check_url(url, access)
        if access.ca_file:
            _said(tls_context, access.ca_file)
        return self

    def _check_url(self, url: str, access: HttpAccess) -> None:
        """Whatever stands in a URL is shown in messages and given to Connect."""
        if "@" in urlsplit(url).netloc:
            raise ValueError("a user or password in a URL would be shown: set username and password_file")
        if access.ca_file and not url.startswith("https://"):
            raise ValueError(f"ca_file is set, but {url} is not encrypted: write https://")

    def _urls(self) -> tuple[str, ...]:
        return (self.url,)

    def access(self) -> HttpAccess:
        """The same as every client takes it."""
        return HttpAccess(self.username, self.password.get_secret_value(), self.ca_file)
