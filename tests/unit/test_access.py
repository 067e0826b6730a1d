"""TLS, users and passwords of neighbours: what is refused at the start, what each client gets, what nobody sees."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

import faust
import pytest
from psycopg.conninfo import conninfo_to_dict

from connectors.access import HttpAccess, KafkaSecurity
from connectors.debezium.config import ConnectorConfig, converters
from connectors.debezium.naming import Naming
from connectors.kafka import client_config
from schemas.errors import SettingsError
from streams.capture import secrets_file, write_secrets
from streams.intake.app import credentials, faust_settings
from streams.settings import Settings, load
from tests.fixtures.certificates import Authority

SECRET: Final = "hunter2"
SASL: Final = {
    "UPWELL_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "UPWELL_KAFKA_SASL_USERNAME": "somebody",
    "UPWELL_KAFKA_SASL_PASSWORD": SECRET,
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> tuple[str, str]:
    """A certificate and its key."""
    cert_file, key_file = authority.issue("client")
    return str(cert_file), str(key_file)


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings of these variables alone, UPWELL_ left out."""
    spec = tmp_path / "upwell.toml"
    spec.write_text("")

    def loaded(**variables: str) -> Settings:
        return load(spec, environment={f"UPWELL_{name}": value for name, value in variables.items()})

    return loaded


def sasl(**more: str) -> dict[str, str]:
    return {**{name.removeprefix("UPWELL_"): value for name, value in SASL.items()}, **more}


def secret_file(folder: Path, text: str = f"{SECRET}\n") -> str:
    path = folder / "password"
    path.write_text(text)
    return str(path)


# Refused at the start, in one line that names what to mend


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"KAFKA_SECURITY_PROTOCOL": "TLS"}, "kafka.security_protocol"),
        (sasl(KAFKA_SASL_MECHANISM="GSSAPI"), "kafka.sasl_mechanism"),
        (sasl(KAFKA_SASL_USERNAME=""), "kafka: SASL_SSL needs sasl_username"),
        (sasl(KAFKA_SASL_PASSWORD=""), "kafka: SASL_SSL needs sasl_username, and sasl_password"),
        (sasl(KAFKA_SECURITY_PROTOCOL="PLAINTEXT"), "security_protocol PLAINTEXT sends none"),
        (sasl(KAFKA_SECURITY_PROTOCOL="SSL"), "security_protocol SSL sends none"),
        (sasl(KAFKA_SASL_PASSWORD_FILE="/nowhere"), "sasl_password and sasl_password_file are both set"),
        (sasl(KAFKA_SSL_CA_FILE="/nowhere"), "/nowhere cannot be read: No such file"),
        (sasl(KAFKA_SSL_CERT_FILE="/nowhere"), "ssl_cert_file and ssl_key_file belong together"),
        (sasl(KAFKA_SSL_KEY_FILE="/nowhere"), "ssl_cert_file and ssl_key_file belong together"),
        ({"KAFKA_SSL_CA_FILE": "/nowhere"}, "security_protocol PLAINTEXT does not encrypt"),
        ({"REGISTRY_USERNAME": "somebody"}, "registry: username and password (or password_file)"),
        ({"CONNECT_PASSWORD": SECRET}, "connect: username and password (or password_file)"),
        ({"CONNECT_USERNAME": "a:b", "CONNECT_PASSWORD": SECRET}, "no name for basic authentication"),
        ({"CONNECT_CA_FILE": "/nowhere"}, "is not encrypted: write https://"),
        ({"CONNECT_CA_FILE": "/nowhere", "CONNECT_URL": "https://x"}, "/nowhere cannot be read"),
        ({"REGISTRY_URL": f"https://a:{SECRET}@x"}, "registry: a user or password in a URL would be shown"),
        ({"REGISTRY_CONVERTER_URL": f"https://a:{SECRET}@x"}, "registry: a user or password in a URL"),
        ({"SOURCE_PASSWORD_FILE": "/nowhere"}, "source: password_file is set, but no dsn"),
        ({"SINK_PASSWORD_FILE": "/nowhere", "SINK_DSN": "host=x"}, "sink: /nowhere cannot be read"),
        (
            {"SINK_PASSWORD_FILE": "/nowhere", "SINK_DSN": f"host=x password={SECRET}"},
            "sink: password and password_file are both set",
        ),
    ],
)
def test_what_cannot_work_is_said_at_the_start(
    settings: Callable[..., Settings], variables: dict[str, str], said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(**variables)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n", f"{SECRET}\nmore\n"])
def test_a_file_that_holds_no_password(settings: Callable[..., Settings], tmp_path: Path, text: str) -> None:
    path = secret_file(tmp_path, text)
    with pytest.raises(SettingsError, match="must hold one line, the password") as caught:
        settings(**sasl(KAFKA_SASL_PASSWORD="", KAFKA_SASL_PASSWORD_FILE=path))
    assert SECRET not in str(caught.value)


def test_files_that_are_no_certificates(
    settings: Callable[..., Settings], authority: Authority, pair: tuple[str, str]
) -> None:
    cert_file, key_file = pair
    locked_cert, locked_key = authority.issue("locked", phrase=SECRET)
    for files, said in (
        ({"KAFKA_SSL_CA_FILE": key_file}, "holds no certificate in PEM"),
        ({"KAFKA_SSL_CERT_FILE": cert_file, "KAFKA_SSL_KEY_FILE": str(authority.ca_file)}, "belong together"),
        ({"KAFKA_SSL_CERT_FILE": str(authority.ca_file), "KAFKA_SSL_KEY_FILE": key_file}, "belong together"),
        ({"KAFKA_SSL_CERT_FILE": str(locked_cert), "KAFKA_SSL_KEY_FILE": str(locked_key)}, "is encrypted"),
    ):
        with pytest.raises(SettingsError, match=said):
            settings(**sasl(**files))


# The same to every client


def test_plain_is_what_it_was(settings: Callable[..., Settings]) -> None:
    plain = settings()
    assert plain.kafka.security() == KafkaSecurity()
    assert plain.registry.access() == plain.connect.access() == HttpAccess()
    assert client_config("x:1")["security.protocol"] == "PLAINTEXT"
    assert credentials(KafkaSecurity()) is None
    assert HttpAccess().headers == {}
    assert HttpAccess().for_requests == {"auth": None, "verify": True}


def test_sasl_over_tls(
    settings: Callable[..., Settings], authority: Authority, pair: tuple[str, str], tmp_path: Path
) -> None:
    ca_file = str(authority.ca_file)
    security = settings(
        **sasl(
            KAFKA_SASL_PASSWORD="",
            KAFKA_SASL_PASSWORD_FILE=secret_file(tmp_path),
            KAFKA_SSL_CA_FILE=ca_file,
            KAFKA_SSL_CERT_FILE=pair[0],
            KAFKA_SSL_KEY_FILE=pair[1],
        )
    ).kafka.security()
    assert (
        client_config("x:1", security).items()
        >= {
            "bootstrap.servers": "x:1",
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": "somebody",
            "sasl.password": SECRET,
            "ssl.ca.location": ca_file,
            "ssl.certificate.location": pair[0],
            "ssl.key.location": pair[1],
        }.items()
    )
    given = faust_settings("g", "x:1", "s", tmp_path, 30, security=security)["broker_credentials"]
    assert isinstance(given, faust.SASLCredentials)
    assert (given.protocol.value, given.mechanism.value) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (given.username, given.password) == ("somebody", SECRET)
    assert given.ssl_context is not None
    assert given.ssl_context.verify_mode is ssl.CERT_REQUIRED
    assert given.ssl_context.check_hostname


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_sasl_without_tls(settings: Callable[..., Settings], mechanism: str) -> None:
    plain = sasl(KAFKA_SECURITY_PROTOCOL="SASL_PLAINTEXT", KAFKA_SASL_MECHANISM=mechanism)
    given = credentials(settings(**plain).kafka.security())
    assert given is not None
    assert given.protocol.value == "SASL_PLAINTEXT"
    assert given.mechanism.value == mechanism


def test_tls_without_sasl(settings: Callable[..., Settings], authority: Authority) -> None:
    security = settings(
        KAFKA_SECURITY_PROTOCOL="SSL", KAFKA_SSL_CA_FILE=str(authority.ca_file)
    ).kafka.security()
    assert isinstance(credentials(security), faust.SSLCredentials)
    assert not [name for name in client_config("x:1", security) if name.startswith("sasl")]


def test_basic_authentication_in_any_script() -> None:
    access = HttpAccess("jose", "pä€s", "/ca.pem")
    assert access.headers == {"Authorization": "Basic am9zZTpww6TigqxzI=".replace("I=", "")}
    assert access.for_requests == {"auth": (b"jose", "pä€s".encode()), "verify": "/ca.pem"}


def test_a_password_file_completes_the_dsn(settings: Callable[..., Settings], tmp_path: Path) -> None:
    path = secret_file(tmp_path, "it's a \\ secret\n")
    found = settings(
        SINK_DSN="postgresql://me@db:5433/sink?sslmode=verify-full", SINK_PASSWORD_FILE=path
    ).sink.dsn
    assert conninfo_to_dict(found) == {
        "user": "me",
        "host": "db",
        "port": "5433",
        "dbname": "sink",
        "sslmode": "verify-full",
        "password": "it's a \\ secret",
    }


# What Connect is given


def converter(kind: str) -> dict[str, str]:
    user, password = "${file:/s:registry_user}", "${file:/s:registry_password}"
    return converters(kind, "https://r", user=user, password=password, ca_file="/ca.pem")


@pytest.mark.parametrize("side", ["key", "value"])
def test_the_converters_get_references(side: str) -> None:
    apicurio, confluent = converter("apicurio"), converter("confluent")
    assert apicurio[f"{side}.converter.apicurio.auth.username"] == "${file:/s:registry_user}"
    assert apicurio[f"{side}.converter.apicurio.auth.password"] == "${file:/s:registry_password}"
    assert apicurio[f"{side}.converter.apicurio.rest.request.ssl.ca-bundle.location"] == "/ca.pem"
    assert confluent[f"{side}.converter.basic.auth.credentials.source"] == "USER_INFO"
    assert (
        confluent[f"{side}.converter.basic.auth.user.info"]
        == "${file:/s:registry_user}:${file:/s:registry_password}"
    )
    assert confluent[f"{side}.converter.schema.registry.ssl.truststore.type"] == "PEM"
    assert confluent[f"{side}.converter.schema.registry.ssl.truststore.location"] == "/ca.pem"


def test_a_key_with_a_pass_phrase_is_a_reference() -> None:
    config = ConnectorConfig(
        naming=Naming("shop", 1),
        host="db",
        port=5432,
        database="shop",
        tables=("shop.content",),
        placeholder="__upwell_unavailable_0123__",
        secrets_file="/s",
        registry_url="https://r",
        ssl={"database.sslkey": "/k"},
        ssl_password=True,
        registry_user=True,
    )
    rendered = config.render()
    assert rendered["database.sslkey"] == "/k"
    assert rendered["database.sslpassword"] == "${file:/s:sslpassword}"
    assert rendered["value.converter.apicurio.auth.password"] == "${file:/s:registry_password}"


def test_the_secrets_file_has_what_is_referred_to(settings: Callable[..., Settings]) -> None:
    given = settings(
        SOURCE_DSN=f"host=db user=me password={SECRET} sslpassword=phrase",
        REGISTRY_USERNAME="somebody",
        REGISTRY_PASSWORD="hunter3",
    )
    assert not write_secrets(given), "it is new"
    path = secrets_file(given)
    lines = dict(line.split("=", 1) for line in path.read_text().splitlines())
    assert lines == {
        "user": "me",
        "password": SECRET,
        "sslpassword": "phrase",
        "registry_user": "somebody",
        "registry_password": "hunter3",
    }
    assert path.stat().st_mode & 0o777 == 0o600
    assert not write_secrets(given)
    assert write_secrets(settings(SOURCE_DSN="host=db user=me password=another")), "it is another password"


# What nobody sees


def test_no_repr_shows_a_secret(settings: Callable[..., Settings]) -> None:
    given = settings(
        **sasl(),
        SOURCE_DSN=f"postgresql://me:{SECRET}@db/shop",
        SINK_DSN=f"host=db password={SECRET}",
        REGISTRY_USERNAME="somebody",
        REGISTRY_PASSWORD=SECRET,
        CONNECT_USERNAME="somebody",
        CONNECT_PASSWORD=SECRET,
    )
    parts = [given, given.kafka.security(), given.registry.access(), given.connect.access()]
    parts += [credentials(given.kafka.security())]
    assert SECRET not in "".join(f"{part!r} {part}" for part in parts)
    assert SECRET not in json.dumps(given.model_dump(mode="json", exclude={"source", "sink"}))
