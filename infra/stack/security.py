"""A stack whose Kafka and Postgres let in only who has a password, over TLS: for tests, and to try settings with.

The registry and Connect's REST interface stay as they are, on the loopback interface: a proxy stands before them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlencode

from infra.stack.environment import HOST, SINK_DATABASE, SOURCE_DATABASE, replace_file


@dataclass(frozen=True, slots=True)
class Security:
    """Files are PEM; `cert_file` and `key_file` are the servers'. Nobody needs escaping in user and passwords.

    `postgres_programs`: folder of a `postgres` with TLS, which the wheel's has not. `certified`: role that has to show
    a certificate of its own name beside its password.
    """

    ca_file: str
    cert_file: str
    key_file: str
    postgres_programs: str
    certified: str
    kafka_user: str
    kafka_password: str = field(repr=False)
    postgres_password: str = field(repr=False)

    @classmethod
    def load(cls, home: Path) -> Self | None:
        """The one that this home was started with first, None if it is an open one."""
        path = home / "security.json"
        return cls(**json.loads(path.read_text())) if path.exists() else None

    def save(self, home: Path) -> None:
        replace_file(home / "security.json", json.dumps(dataclasses.asdict(self)))

    def server_settings(self, directory: Path) -> list[str]:
        """Settings of a Postgres server; writes who may come in, in a file beside its directory."""
        rules = directory.with_name(f"{directory.name}.hba")
        replace_file(
            rules,
            f"hostssl all {self.certified} {HOST}/32 scram-sha-256 clientcert=verify-full\n"
            f"hostssl all all {HOST}/32 scram-sha-256\n",
        )
        files = {"ca": self.ca_file, "cert": self.cert_file, "key": self.key_file}
        return ["ssl=on", f"hba_file={rules}", *(f"ssl_{name}_file={path}" for name, path in files.items())]

    def dsn(self, port: int, database: str) -> str:
        """The superuser's."""
        tls = urlencode({"sslmode": "verify-full", "sslrootcert": self.ca_file})
        return (
            f"postgresql://postgres:{quote(self.postgres_password, safe='')}@{HOST}:{port}/{database}?{tls}"
        )

    def broker_settings(self, home: Path, listener: str, controller: str) -> str:
        """Lines of Kafka's settings: clients by SCRAM over TLS, the controller in the open."""
        keys = home / "kafka-keys.pem"
        replace_file(keys, Path(self.key_file).read_text() + Path(self.cert_file).read_text())
        return f"""listeners=SASL_SSL://{listener},CONTROLLER://{controller}
advertised.listeners=SASL_SSL://{listener}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL
inter.broker.listener.name=SASL_SSL
sasl.enabled.mechanisms=SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={self._jaas()}
ssl.keystore.type=PEM
ssl.keystore.location={keys}
ssl.truststore.type=PEM
ssl.truststore.location={self.ca_file}
"""

    def connect_settings(self) -> str:
        """Lines of Connect's: for the worker itself, and for the clients of its connectors."""
        lines = {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.jaas.config": self._jaas(),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.ca_file,
        }
        sides = ("", "producer.", "consumer.", "admin.")
        return "".join(f"{side}{name}={value}\n" for side in sides for name, value in lines.items())

    def _jaas(self) -> str:
        module = "org.apache.kafka.common.security.scram.ScramLoginModule"
        return f'{module} required username="{self.kafka_user}" password="{self.kafka_password}";'

    def client_config(self) -> dict[str, str]:
        """Of a confluent-kafka client."""
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": self.kafka_user,
            "sasl.password": self.kafka_password,
            "ssl.ca.location": self.ca_file,
        }

    def variables(self, ports: Mapping[str, int]) -> dict[str, str]:
        """What `stack.env` says beside the addresses, or instead of them."""
        return {
            "UPWELL_SOURCE_DSN": self.dsn(ports["source"], SOURCE_DATABASE),
            "UPWELL_SINK_DSN": self.dsn(ports["sink"], SINK_DATABASE),
            "UPWELL_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "UPWELL_KAFKA_SASL_USERNAME": self.kafka_user,
            "UPWELL_KAFKA_SASL_PASSWORD": self.kafka_password,
            "UPWELL_KAFKA_SSL_CA_FILE": self.ca_file,
        }
