"""Settings: which source wins, and one clear line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import SettingsError
from streams.settings import Settings, load, read_environment_file, variables
from tests.fixtures.certificates import Authority

COLLECTION = """
[collections.content]
table = "public.content"
template = "{{ title }}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".upwell").mkdir()
    return tmp_path


def loaded(
    folder: Path,
    text: str = COLLECTION,
    *,
    environment: dict[str, str] | None = None,
    flags: list[tuple[tuple[str, ...], object]] | None = None,
) -> Settings:
    spec = folder / "upwell.toml"
    spec.write_text(text)
    return load(spec, environment=environment or {}, flags=flags or [])


def complaint(folder: Path, text: str = COLLECTION, environment: dict[str, str] | None = None) -> str:
    """The one line that is said."""
    with pytest.raises(SettingsError) as caught:
        loaded(folder, text, environment=environment)
    line = str(caught.value)
    assert line
    assert "\n" not in line
    return line


def test_each_source_overrides_the_one_before(folder: Path) -> None:
    text = "[kafka]\npartitions = 2\n" + COLLECTION
    stack, environment = folder / ".upwell" / "stack.env", {"UPWELL_KAFKA_PARTITIONS": "4"}
    assert loaded(folder).kafka.partitions == 4
    assert loaded(folder, text).kafka.partitions == 2
    stack.write_text("UPWELL_KAFKA_PARTITIONS=3\n")
    assert loaded(folder, text).kafka.partitions == 3
    environment["UPWELL_KAFKA_PARTITIONS"] = "5"
    assert loaded(folder, text, environment=environment).kafka.partitions == 5
    flags: list[tuple[tuple[str, ...], object]] = [(("kafka", "partitions"), 6)]
    assert loaded(folder, text, environment=environment, flags=flags).kafka.partitions == 6


def _files(folder: Path) -> dict[str, str]:
    """By setting, without UPWELL_, a file that it accepts."""
    authority = Authority(folder)
    cert_file, key_file = authority.issue("client")
    secret = folder / "secret"
    secret.write_text("s3cret")
    passwords = ("SOURCE", "SINK", "KAFKA_SASL", "CONNECT", "REGISTRY")
    return {
        **{f"{name}_PASSWORD_FILE": str(secret) for name in passwords},
        **{f"{name}_CA_FILE": str(authority.ca_file) for name in ("KAFKA_SSL", "CONNECT", "REGISTRY")},
        "KAFKA_SSL_CERT_FILE": str(cert_file),
        "KAFKA_SSL_KEY_FILE": str(key_file),
    }


def _beside(files: dict[str, str]) -> dict[str, dict[str, str]]:
    """By variable, what has to be set beside it."""
    named = {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_SASL_USERNAME": "somebody"}
    sasl = {**named, "KAFKA_SASL_PASSWORD": "s3cret"}
    encrypted = {
        "REGISTRY_URL": "https://x",
        "REGISTRY_CONVERTER_URL": "https://x",
        "CONNECT_URL": "https://x",
    }
    beside = {
        "SOURCE_PASSWORD_FILE": {"SOURCE_DSN": "host=x"},
        "SINK_PASSWORD_FILE": {"SINK_DSN": "host=x"},
        "KAFKA_SECURITY_PROTOCOL": sasl,
        "KAFKA_SASL_USERNAME": sasl,
        "KAFKA_SASL_PASSWORD": named,
        "KAFKA_SASL_PASSWORD_FILE": named,
        "KAFKA_SSL_CA_FILE": sasl,
        "KAFKA_SSL_CERT_FILE": {**sasl, "KAFKA_SSL_KEY_FILE": files["KAFKA_SSL_KEY_FILE"]},
        "KAFKA_SSL_KEY_FILE": {**sasl, "KAFKA_SSL_CERT_FILE": files["KAFKA_SSL_CERT_FILE"]},
    }
    for section in ("CONNECT", "REGISTRY"):
        beside[f"{section}_USERNAME"] = {f"{section}_PASSWORD": "s3cret"}
        beside[f"{section}_PASSWORD"] = {f"{section}_USERNAME": "somebody"}
        beside[f"{section}_PASSWORD_FILE"] = {f"{section}_USERNAME": "somebody"}
        beside[f"{section}_CA_FILE"] = encrypted
    prefixed = {name: {f"UPWELL_{key}": text for key, text in near.items()} for name, near in beside.items()}
    return {f"UPWELL_{name}": near for name, near in prefixed.items()}


def test_every_variable_sets_what_it_names(folder: Path) -> None:
    special = {
        "UPWELL_NAME": "other",
        "UPWELL_MODEL_NAME": "hub:a/b",
        "UPWELL_MODEL_RUNTIME": "torch",
        "UPWELL_CONNECT_CONVERTER": "confluent",
        "UPWELL_CONNECT_HEARTBEAT_INTERVAL_MS": "100",
        "UPWELL_WORKER_BACKFILL_SHARE": "1",
        "UPWELL_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "UPWELL_KAFKA_SASL_MECHANISM": "PLAIN",
        "UPWELL_MONITOR_REBUILD": "true",
        "UPWELL_KAFKA_MAX_MESSAGE_BYTES": "2000000",
    }
    files = _files(folder)
    beside = _beside(files)
    for name, place in variables().items():
        text = special.get(name) or files.get(name.removeprefix("UPWELL_"), "7")
        found: object = loaded(folder, environment={**beside.get(name, {}), name: text})
        default: object = Settings()
        for part in place:
            found, default = getattr(found, part), getattr(default, part)
        assert found != default, name
        assert found == type(default)(text), name  # type: ignore[call-arg]


def test_the_home_is_beside_the_spec_unless_told(folder: Path) -> None:
    assert loaded(folder).home == folder / ".upwell"
    other = folder / "other"
    other.mkdir()
    (other / "stack.env").write_text("UPWELL_NAME=elsewhere\n")
    found = loaded(folder, environment={"UPWELL_HOME": str(other)})
    assert (found.home, found.name, found.group_id) == (other, "elsewhere", "upwell-elsewhere")


def test_the_spec_is_named_by_a_variable(folder: Path) -> None:
    spec = folder / "here.toml"
    spec.write_text(COLLECTION)
    assert list(load(None, environment={"UPWELL_SPEC": str(spec)}).collections) == ["content"]


def test_an_environment_file() -> None:
    path = Path(__file__).with_name("no-such.env")
    assert read_environment_file(path) == {}


def test_lines_of_an_environment_file(tmp_path: Path) -> None:
    path = tmp_path / "stack.env"
    path.write_text("# ports\n\nUPWELL_NAME = 'a'\nUPWELL_SINK_DSN=\"host=x user=y\"\nnonsense\n")
    assert read_environment_file(path) == {"UPWELL_NAME": "a", "UPWELL_SINK_DSN": "host=x user=y"}


def test_an_unknown_variable(folder: Path) -> None:
    assert "UPWELL_KAFKA_PARTITION " in complaint(folder, environment={"UPWELL_KAFKA_PARTITION": "3"})
    loaded(folder, environment={"HOME": "/x", "UPWELLX": "1", "UPWELL_CACHE": "/y"})


def test_an_unknown_variable_in_stack_env(folder: Path) -> None:
    (folder / ".upwell" / "stack.env").write_text("UPWELL_NONSENSE=1\n")
    line = complaint(folder)
    assert "UPWELL_NONSENSE" in line
    assert "stack.env" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1\n", "colour"),
        ("[kafka]\npartition = 1\n", "kafka.partition"),
        (COLLECTION + "colour = 1\n", "collections.content.colour"),
        (COLLECTION + "exclude = ['title']\n", "column 'title' is excluded"),
        (COLLECTION + "slo = {threshold_seconds = 5}\n", "collections.content.slo.threshold_seconds"),
        (COLLECTION.replace("public.content", "content"), "write schema.table"),
        (COLLECTION.replace("[collections.content]", "[collections.pending]"), "'pending' is reserved"),
        (COLLECTION.replace("{{ title }}", "{{ title"), "template"),
        ("[model]\nname = 'minilm'\n", "write path:DIR, package:MODULE or hub:NAME"),
        ("[connect]\nconverter = 'json'\n", "connect.converter"),
        ("name = 'Not one'\n", "is not an identifier"),
        ("[kafka\n", "cannot be read"),
        ("[worker]\nbatch_size = 'many'\n", "worker.batch_size"),
        ("kafka = 3\n", "kafka"),
    ],
)
def test_one_line_says_what_is_wrong_in_the_file(folder: Path, text: str, said: str) -> None:
    assert said in complaint(folder, text)


def test_a_threshold_that_nothing_can_show(folder: Path) -> None:
    """DESIGN 7: what rounds, heartbeat and flush take; 15 s by default, and less where they are more often."""
    spec = COLLECTION + "slo = {{threshold_seconds = {}}}\n"
    line = complaint(folder, spec.format(14.9))
    assert "collections.content.slo.threshold_seconds 14.9 is below the 15 s" in line
    (folder / "upwell.toml").write_text(spec.format(15))
    assert load(folder / "upwell.toml", environment={}).collections["content"].slo.threshold_seconds == 15
    often = {"UPWELL_MONITOR_ROUND_SECONDS": "1", "UPWELL_CONNECT_HEARTBEAT_INTERVAL_MS": "200"}
    (folder / "upwell.toml").write_text(spec.format(7.4))
    assert load(folder / "upwell.toml", environment=often).collections["content"].slo.threshold_seconds == 7.4


def test_one_line_says_what_is_wrong_in_a_variable(folder: Path) -> None:
    line = complaint(folder, environment={"UPWELL_SINK_POOL_SIZE": "s3cret"})
    assert "sink.pool_size" in line
    assert "s3cret" not in line


def test_a_missing_spec(folder: Path) -> None:
    with pytest.raises(SettingsError, match="no spec at") as caught:
        load(folder / "none.toml", environment={})
    assert "\n" not in str(caught.value)


def test_a_section_that_is_no_table_and_a_variable_of_it(folder: Path) -> None:
    assert "kafka" in complaint(folder, "kafka = 3\n", {"UPWELL_KAFKA_PARTITIONS": "3"})
