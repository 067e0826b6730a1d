"""Every neighbour secured: SASL over TLS to Kafka, TLS and passwords to Postgres (the source also wants a certificate),
TLS and basic authentication to registry and Connect. One stack of its own; the last test looks where secrets went.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from connectors.access import HttpAccess
from connectors.debezium.connect import Connect
from infra import stack as local
from infra.stack.environment import kept_ports
from streams.cli.root import cli
from tests.acceptance.plain import ROWS, TABLES, one
from tests.deployment import Deployment, Stack, WorkerProcess, until
from tests.fixtures.certificates import Authority
from tests.fixtures.guarded import Guarded
from tests.fixtures.tls_postgres import programs

pytestmark = pytest.mark.acceptance

#: The source's user, who shows a certificate; also how its database sees the connector.
OWNER: Final = "shop_owner"
USER: Final = "upwell"
SPEC: Final = """
name = "secured"

[collections.content]
table = "shop.content"
template = "{{ title }}"
"""


@dataclass
class Secured:
    """A secured stack and a deployment on it. `passwords` by who asks for them."""

    deployment: Deployment
    authority: Authority
    passwords: dict[str, str]
    proxies: dict[str, Guarded]
    said: list[str] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.deployment.stack.home

    def upwell(self, line: str, **changed: str) -> Result:
        """A command in this process, with some variables changed (without UPWELL_); what it says is kept."""
        environment = self.deployment.environment | {f"UPWELL_{key}": text for key, text in changed.items()}
        spec = str(self.deployment.directory / "upwell.toml")
        done = CliRunner().invoke(cli, ["--spec", spec, *line.split()], env=environment)
        self.said.append(done.output)
        return done

    def succeed(self, line: str) -> str:
        done = self.upwell(line)
        assert done.exit_code == 0, done.output
        return done.output

    def worker(self, slot: str, **changed: str) -> WorkerProcess:
        variables = {f"UPWELL_{key}": text for key, text in changed.items()}
        return self.deployment.start_worker(slot, module="tests.fake_worker", arguments=(), **variables)

    def connected(self, neighbour: str, password: str) -> psycopg.Connection[Any]:
        """A connection to source or sink, as upwell makes one."""
        dsn = self.deployment.environment[f"UPWELL_{neighbour.upper()}_DSN"]
        return psycopg.connect(make_conninfo(dsn, password=self.passwords[password]), autocommit=True)

    def titles(self) -> dict[int, str]:
        with self.connected("sink", "postgres") as sink:
            return dict(sink.execute("SELECT id, chunk_text FROM upwell.content").fetchall())


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """The stack, the proxies before registry and Connect, the source's owner, and every setting in the environment."""
    directory, home = tmp_path_factory.mktemp("secured"), Path(tempfile.mkdtemp(prefix="upwell-test-"))
    authority = Authority(directory / "certificates")
    server = authority.issue("server")
    names = ("kafka", "postgres", "source", "registry", "connect")
    passwords = {name: f"{name}{secrets.token_hex(12)}" for name in names}
    security = local.Security(
        ca_file=str(authority.ca_file),
        cert_file=str(server[0]),
        key_file=str(server[1]),
        postgres_programs=str(programs()),
        certified=OWNER,
        kafka_user=USER,
        kafka_password=passwords["kafka"],
        postgres_password=passwords["postgres"],
    )
    try:
        local.up(home, progress=lambda line: None, security=security)
        ports = kept_ports(home)
        with contextlib.ExitStack() as proxies:
            guarded = {
                name: proxies.enter_context(Guarded(ports[name], *server, USER, passwords[name]))
                for name in ("registry", "connect")
            }
            with psycopg.connect(security.dsn(ports["source"], "shop"), autocommit=True) as admin:
                made = "CREATE ROLE {} LOGIN REPLICATION PASSWORD {}"
                admin.execute(sql.SQL(made).format(sql.Identifier(OWNER), sql.Literal(passwords["source"])))
                admin.execute(sql.SQL("ALTER DATABASE shop OWNER TO {}").format(sql.Identifier(OWNER)))
            environment = _environment(directory, home, authority, passwords, guarded)
            (directory / "upwell.toml").write_text(SPEC)
            deployment = Deployment("secured", directory, Stack(home, {}), environment)
            yield Secured(deployment, authority, passwords, guarded)
            for worker in deployment.workers:
                if worker.process.poll() is None:
                    worker.kill()
    finally:
        local.down(home)
        if not os.environ.get("UPWELL_TEST_KEEP"):
            shutil.rmtree(home, ignore_errors=True)


def _environment(
    directory: Path,
    home: Path,
    authority: Authority,
    passwords: dict[str, str],
    guarded: dict[str, Guarded],
) -> dict[str, str]:
    """Every password by its file; the files alone hold them."""
    ports, folder = kept_ports(home), directory / "secrets"
    folder.mkdir(mode=0o700)
    for name, password in passwords.items():
        (folder / name).write_text(f"{password}\n")
    cert_file, key_file = authority.issue(OWNER)
    tls = {"sslmode": "verify-full", "sslrootcert": str(authority.ca_file)}
    own = urlencode({**tls, "sslcert": str(cert_file), "sslkey": str(key_file)})
    access = {"USERNAME": USER, "CA_FILE": str(authority.ca_file)}
    variables = {
        "HOME": str(home),
        "SOURCE_DSN": f"postgresql://{OWNER}@127.0.0.1:{ports['source']}/shop?{own}",
        "SOURCE_PASSWORD_FILE": str(folder / "source"),
        "SINK_DSN": f"postgresql://postgres@127.0.0.1:{ports['sink']}/upwell?{urlencode(tls)}",
        "SINK_PASSWORD_FILE": str(folder / "postgres"),
        "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{ports['kafka']}",
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_USERNAME": USER,
        "KAFKA_SASL_PASSWORD": "",
        "KAFKA_SASL_PASSWORD_FILE": str(folder / "kafka"),
        "KAFKA_SSL_CA_FILE": str(authority.ca_file),
        "CONNECT_URL": guarded["connect"].url,
        "CONNECT_SECRETS_FILE": "",
        "REGISTRY_URL": f"{guarded['registry'].url}/apis/ccompat/v7",
        "REGISTRY_CONVERTER_URL": f"{guarded['registry'].url}/apis/registry/v2",
        **{f"{name.upper()}_{key}": text for name in guarded for key, text in access.items()},
        **{f"{name.upper()}_PASSWORD_FILE": str(folder / name) for name in guarded},
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith("UPWELL_")}
    return {**kept, **{f"UPWELL_{name}": text for name, text in variables.items()}}


def test_the_whole_line(secured: Secured) -> None:
    """A row that was there, a new one, an update and a delete."""
    with secured.connected("source", "source") as source:
        source.execute(TABLES)
        source.execute(ROWS, (1, 20))
        secured.succeed("migrate")
        secured.succeed("connector apply")
        worker = secured.worker("line")
        monitor = secured.deployment.start_worker("monitor", arguments=("monitor", "--port", "0"))
        until(lambda: len(secured.titles()) == 20, 60, f"the first load searchable: {worker.tail()}")
        source.execute(ROWS, (21, 21))
        source.execute("UPDATE shop.content SET title = 'Another piece' WHERE id = 1")
        source.execute("DELETE FROM shop.content WHERE id = 2")
        changed = {1: "Another piece", 21: "Piece 21"}
        until(
            lambda: (titles := secured.titles()).items() >= changed.items() and 2 not in titles,
            60,
            f"live changes searchable: {worker.tail()}",
        )
    with secured.connected("sink", "postgres") as sink:
        fresh = "SELECT bool_and(verdict = 'FRESH') FROM upwell.freshness"
        until(lambda: one(sink, fresh), 60, f"FRESH: {monitor.tail()}")
    secured.succeed("status")
    secured.succeed("report")
    assert monitor.stop() == 0, monitor.tail()
    assert worker.stop() == 0
    assert secured.proxies["registry"].let_in
    assert not secured.proxies["registry"].turned_away
    assert not secured.proxies["connect"].turned_away


WRONG: Final = {
    "source password": (
        "migrate source",
        {"SOURCE_PASSWORD_FILE": "{wrong}"},
        "source database refuses the login: ",
    ),
    "source CA": ("migrate source", {"SOURCE_DSN": "{source_of_another_ca}"}, "certificate verify failed"),
    "source certificate": ("migrate source", {"SOURCE_DSN": "{source_without_cert}"}, "client certificate"),
    "source TLS": ("migrate source", {"SOURCE_DSN": "{source_in_the_open}"}, "no pg_hba.conf entry"),
    "sink password": ("report", {"SINK_PASSWORD_FILE": "{wrong}"}, "sink database refuses the login: "),
    "sink CA": ("report", {"SINK_DSN": "{sink_of_another_ca}"}, "certificate verify failed"),
    "Kafka password": ("worker", {"KAFKA_SASL_PASSWORD_FILE": "{wrong}"}, "refuse each other: "),
    "Kafka CA": ("worker", {"KAFKA_SSL_CA_FILE": "{another_ca}"}, "refuse each other: "),
    "Connect password": ("connector status", {"CONNECT_PASSWORD_FILE": "{wrong}"}, "refuses our user (401)"),
    "Connect CA": (
        "connector status",
        {"CONNECT_CA_FILE": "{another_ca}"},
        "is not one of connect.ca_file's",
    ),
}


@pytest.fixture(scope="module")
def mistakes(secured: Secured) -> dict[str, str]:
    """What a setting may be mistaken for."""
    folder = secured.deployment.directory / "mistakes"
    another = Authority(folder, "another")
    wrong = folder / "wrong"
    wrong.write_text("notthis\n")
    source, sink = (secured.deployment.environment[f"UPWELL_{name}_DSN"] for name in ("SOURCE", "SINK"))
    bare = {
        name: str(text)
        for name, text in conninfo_to_dict(source).items()
        if name not in ("sslcert", "sslkey")
    }
    return {
        "wrong": str(wrong),
        "another_ca": str(another.ca_file),
        "source_of_another_ca": make_conninfo(source, sslrootcert=str(another.ca_file)),
        "sink_of_another_ca": make_conninfo(sink, sslrootcert=str(another.ca_file)),
        "source_without_cert": make_conninfo(**bare),
        "source_in_the_open": make_conninfo(source, sslmode="disable"),
    }


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_setting_is_one_clear_line(secured: Secured, mistakes: dict[str, str], what: str) -> None:
    """Exit 2, at once: it will not help to try again."""
    command, changed, said = WRONG[what]
    done = secured.upwell(command, **{name: text.format(**mistakes) for name, text in changed.items()})
    assert done.exit_code == 2, done.output
    assert done.output.startswith("upwell: "), done.output
    assert done.output.count("\n") == 1, done.output
    assert said in done.output


@pytest.mark.long
def test_a_worker_that_the_registry_does_not_let_in_halts(secured: Secured, mistakes: dict[str, str]) -> None:
    """With nothing acknowledged: the next worker takes the change in."""
    worker = secured.worker("line", REGISTRY_PASSWORD_FILE=mistakes["wrong"])
    with secured.connected("source", "source") as source:
        source.execute(ROWS, (31, 31))
    until(lambda: worker.process.poll() is not None, 60, f"the worker's end: {worker.tail()}")
    assert worker.process.returncode == 2, worker.tail()
    assert "refuses our user (401)" in worker.tail(1)
    assert "Traceback" not in worker.log.read_text()
    after = secured.worker("line")
    until(lambda: 31 in secured.titles(), 60, f"the change taken in: {after.tail()}")
    assert after.stop() == 0


def test_no_secret_is_where_none_belongs(secured: Secured) -> None:
    """In what was said, in the connector's config, and in every file of the stack and of the deployment."""
    access = HttpAccess(USER, secured.passwords["connect"], str(secured.authority.ca_file))
    config = Connect(secured.proxies["connect"].url, access).config("upwell-secured")
    assert config is not None
    needles = [password.encode() for password in secured.passwords.values()]
    needles += [base64.b64encode(f"{USER}:".encode() + needle) for needle in needles]
    said = "".join([*secured.said, json.dumps(config)]).encode()
    assert not [needle for needle in needles if needle in said]
    folder, home = secured.deployment.directory, secured.home
    files = [path for top in (folder, home) for path in top.rglob("*") if path.is_file()]
    holding = {path for path in files if any(needle in path.read_bytes() for needle in needles)}
    properties = ("connect", "kafka", "kafka-format")
    assert holding == {
        *((folder / "secrets").iterdir()),
        *(home / f"{name}.properties" for name in properties),
        home / "connect" / "secured.properties",
        home / "security.json",
        home / "stack.env",
    }
    shown = {path for path in holding if path.parent != folder / "secrets" and path.stat().st_mode & 0o077}
    assert not shown
