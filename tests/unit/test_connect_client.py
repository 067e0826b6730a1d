"""The REST client against a small server that answers as Connect does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from connectors.debezium import connect as module
from connectors.debezium.config import CONNECTOR_CLASS
from connectors.debezium.connect import Connect, redacted, root_cause
from schemas.errors import ConnectUnavailable, SettingsError

Answer = tuple[int, Any]


class FakeConnect:
    """`answers`: by "METHOD path", the answers to give in turn; the last one stays. `seen`: requests with bodies."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.seen: list[tuple[str, Any]] = []

    def answer(self, request: str, body: Any) -> Answer:
        self.seen.append((request, body))
        answers = self.answers.get(request, [(404, {"error_code": 404, "message": "not found"})])
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture
def fake() -> FakeConnect:
    return FakeConnect()


@pytest.fixture
def client(fake: FakeConnect, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, value = fake.answer(f"{self.command} {self.path}", body)
            data = json.dumps(value).encode() if value is not None else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            return

    monkeypatch.setattr(module, "REBALANCE_SECONDS", 2.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield Connect(f"http://127.0.0.1:{server.server_address[1]}/")
    server.shutdown()
    thread.join()
    server.server_close()


CONFIG = {"name": "upwell-shop", "slot.name": "upwell_shop_1"}
VALIDATE = f"PUT /connector-plugins/{CONNECTOR_CLASS}/config/validate"


def test_validation_names_every_wrong_key_in_one_line(fake: FakeConnect, client: Connect) -> None:
    configs = [
        {
            "value": {
                "name": "database.hostname",
                "errors": ["Error while validating\nconnector config: refused"],
            }
        },
        {"value": {"name": "slot.name", "errors": []}},
        {"value": {"name": "topic.prefix", "errors": ["is required", "password=hunter2 is odd"]}},
    ]
    fake.answers[VALIDATE] = [(200, {"error_count": 2, "configs": configs})]
    with pytest.raises(SettingsError) as caught:
        client.validate(CONFIG)
    line = str(caught.value)
    assert (
        "database.hostname: Error while validating connector config: refused; topic.prefix: is required"
        in line
    )
    assert "hunter2" not in line
    assert "\n" not in line


def test_a_valid_config_passes(fake: FakeConnect, client: Connect) -> None:
    fake.answers[VALIDATE] = [(200, {"configs": [{"value": {"name": "slot.name", "errors": []}}]})]
    client.validate(CONFIG)


def test_apply_creates_then_is_a_no_op(fake: FakeConnect, client: Connect) -> None:
    fake.answers["PUT /connectors/upwell-shop/config"] = [(201, {})]
    assert client.apply(CONFIG) is True
    assert fake.seen[-1] == ("PUT /connectors/upwell-shop/config", CONFIG)
    fake.answers["GET /connectors/upwell-shop/config"] = [(200, CONFIG)]
    assert client.apply(CONFIG) is False
    assert fake.seen[-1][0].startswith("GET")


def test_a_rebalance_is_waited_out(fake: FakeConnect, client: Connect) -> None:
    busy = (409, {"error_code": 409, "message": "rebalance in process"})
    fake.answers["PUT /connectors/upwell-shop/pause"] = [busy, busy, (202, None)]
    client.pause("upwell-shop")
    assert len(fake.seen) == 3


def test_a_rebalance_that_does_not_end_is_not_now(fake: FakeConnect, client: Connect) -> None:
    fake.answers["PUT /connectors/upwell-shop/stop"] = [(409, {"message": "rebalance in process"})]
    with pytest.raises(ConnectUnavailable, match="rebalance in process"):
        client.stop("upwell-shop")


def test_nobody_listens() -> None:
    with pytest.raises(ConnectUnavailable, match="does not answer"):
        Connect("http://127.0.0.1:9", timeout=(0.5, 0.5)).status("upwell-shop")


def test_a_server_error_is_not_now(fake: FakeConnect, client: Connect) -> None:
    fake.answers["GET /connectors/upwell-shop/status"] = [(500, {"message": "request timed out"})]
    with pytest.raises(ConnectUnavailable, match="request timed out"):
        client.status("upwell-shop")


def test_a_refusal_is_a_settings_error(fake: FakeConnect, client: Connect) -> None:
    fake.answers["PUT /connectors/upwell-shop/config"] = [(400, {"message": "Connector config is invalid"})]
    with pytest.raises(SettingsError, match="Connector config is invalid"):
        client.apply(CONFIG)


def test_the_cause_of_a_failed_task_is_its_deepest_one(fake: FakeConnect, client: Connect) -> None:
    trace = (
        "org.apache.kafka.connect.errors.ConnectException: An exception occurred\n\tat a.B.c(B.java:1)\n"
        "Caused by: io.debezium.DebeziumException: middle\n\tat a.B.d(B.java:2)\n"
        "Caused by: org.postgresql.util.PSQLException: slot is gone, password=hunter2\n\t... 5 more\n"
    )
    answer = {
        "name": "upwell-shop",
        "connector": {"state": "RUNNING", "worker_id": "w"},
        "tasks": [{"id": 0, "state": "FAILED", "worker_id": "w", "trace": trace}],
    }
    fake.answers["GET /connectors/upwell-shop/status"] = [(200, answer)]
    status = client.status("upwell-shop")
    assert (status.connector, status.task, status.running, status.failed) == (
        "RUNNING",
        "FAILED",
        False,
        True,
    )
    assert status.cause == "org.postgresql.util.PSQLException: slot is gone, password=***"


def test_a_connector_that_is_not_there(client: Connect) -> None:
    assert client.status("upwell-shop").connector == "ABSENT"
    assert client.offsets("upwell-shop", "shop_1") == {}
    client.delete("upwell-shop")


def test_offsets_of_the_one_partition(fake: FakeConnect, client: Connect) -> None:
    stored = {"offsets": [{"partition": {"server": "shop_1"}, "offset": {"lsn": 9, "lsn_commit": 7}}]}
    fake.answers["GET /connectors/upwell-shop/offsets"] = [(200, stored)]
    assert client.offsets("upwell-shop", "shop_1") == {"lsn": 9, "lsn_commit": 7}


def test_restart_asks_for_tasks_and_only_failed_ones(fake: FakeConnect, client: Connect) -> None:
    fake.answers["POST /connectors/upwell-shop/restart?includeTasks=true&onlyFailed=true"] = [(202, {})]
    client.restart("upwell-shop")


def test_a_trace_without_causes_is_its_first_line() -> None:
    assert root_cause("a.b.C: it broke\n\tat x.Y.z(Y.java:1)") == "a.b.C: it broke"
    assert root_cause("") == ""


def test_a_row_that_is_too_large_is_said_in_our_own_words() -> None:
    said = (
        "org.apache.kafka.connect.errors.ConnectException: Unrecoverable exception from producer send callback\n"
        "Caused by: org.apache.kafka.common.errors.RecordTooLargeException: The message is 25165938 bytes when "
        "serialized which is larger than 20971520, which is the value of the max.request.size configuration.\n"
    )
    assert root_cause(said) == (
        "a row takes 25165938 bytes, before and after its change, more than UPWELL_KAFKA_MAX_MESSAGE_BYTES allows"
    )


def test_secrets_are_not_shown() -> None:
    line = redacted("jdbc user=a password=x1 postgres://me:x2@host/db sasl token: x3")
    assert not any(secret in line for secret in ("x1", "x2", "x3"))
