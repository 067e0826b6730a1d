"""Kafka Connect's REST interface, as far as upwell uses it.

Every answer that means "not now" (no connection, 409 while a rebalance lasts, 5xx) is ConnectUnavailable
once the retries are used up; every answer that means "this will never do" is SettingsError.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import requests

from connectors.access import PLAIN_HTTP, HttpAccess, untrusted
from connectors.debezium.config import CONNECTOR_CLASS
from schemas.errors import ConnectUnavailable, SettingsError

#: Validation opens a database connection, so it may take Debezium's own connect timeout.
TIMEOUT_SECONDS: Final = (5.0, 60.0)
REBALANCE_SECONDS: Final = 60.0

_SECRET: Final = re.compile(r"(?i)\b(password|passwd|secret|token|basic\.auth\.user\.info)\b(\s*[=:]\s*)\S+")
#: The producer refuses a record before it is sent; Kafka's broker says no size.
_TOO_LARGE: Final = re.compile(
    r"RecordTooLargeException: The message is (\d+) bytes when serialized which is larger than"
)
_URL_SECRET: Final = re.compile(r"(?i)(://[^\s:/@]+:)[^\s@]+@")


@dataclass(frozen=True, slots=True)
class ConnectorStatus:
    """State of the connector and its one task: RUNNING, FAILED, PAUSED, STOPPED, UNASSIGNED, RESTARTING or
    ABSENT.

    `cause` is the root of a failure in one line without secrets, "" if nothing failed.
    """

    name: str
    connector: str
    task: str
    cause: str = ""

    @property
    def running(self) -> bool:
        return self.connector == "RUNNING" and self.task == "RUNNING"

    @property
    def failed(self) -> bool:
        return "FAILED" in (self.connector, self.task)


class Connect:
    """One Connect cluster. Blocking; for the command line and the monitor, never for an event loop."""

    def __init__(
        self, url: str, access: HttpAccess = PLAIN_HTTP, *, timeout: tuple[float, float] = TIMEOUT_SECONDS
    ) -> None:
        self._url, self._access = url.rstrip("/"), access
        self._timeout = timeout
        self._session = requests.Session()

    def validate(self, config: dict[str, str]) -> None:
        """Ask the plugin itself. Raises SettingsError with every problem in one line, each naming its key."""
        found = self.problems(config)
        problems = [f"{name}: {error}" for name, errors in found.items() for error in errors]
        if problems:
            raise SettingsError(f"Connect refuses the connector: {'; '.join(problems)}")

    def plugins(self) -> dict[str, str]:
        """Version of each class on Connect's plugin path, connectors and converters alike."""
        found = self._call("GET", "/connector-plugins?connectorsOnly=false")
        return {plugin["class"]: str(plugin.get("version") or "") for plugin in found}

    def version(self) -> str:
        return str(self._call("GET", "/").get("version", ""))

    def problems(self, config: dict[str, str]) -> dict[str, list[str]]:
        """What Connect finds wrong, by setting; also of a config that is not whole. Creates nothing."""
        path = f"/connector-plugins/{config.get('connector.class', CONNECTOR_CLASS)}/config/validate"
        values = [
            entry.get("value") or {} for entry in self._call("PUT", path, json=config).get("configs", [])
        ]
        return {
            str(value["name"]): [redacted(" ".join(str(error).split())) for error in value["errors"]]
            for value in values
            if value.get("errors")
        }

    def apply(self, config: dict[str, str]) -> bool:
        """Create or update; False if Connect already has exactly this config."""
        name = config["name"]
        if self.config(name) == config:
            return False
        self._call("PUT", f"/connectors/{quote(name)}/config", json=config)
        return True

    def config(self, name: str) -> dict[str, str] | None:
        """The config as Connect keeps it, references unresolved; None if there is no such connector."""
        answer: dict[str, str] | None = self._call("GET", f"/connectors/{quote(name)}/config", absent=True)
        return answer

    def status(self, name: str) -> ConnectorStatus:
        """Never raises for a connector that does not exist: its state is ABSENT."""
        answer = self._call("GET", f"/connectors/{quote(name)}/status", absent=True)
        if answer is None:
            return ConnectorStatus(name, "ABSENT", "ABSENT")
        tasks = answer.get("tasks") or []
        task = tasks[0] if tasks else {}
        traces = (answer["connector"].get("trace"), task.get("trace"))
        cause = next((root_cause(trace) for trace in traces if trace), "")
        return ConnectorStatus(name, answer["connector"]["state"], task.get("state", "UNASSIGNED"), cause)

    def offsets(self, name: str, topic_prefix: str) -> dict[str, Any]:
        """The stored offset of a lineage (`lsn`, `lsn_proc`, `lsn_commit`, ...), {} before the first."""
        answer = self._call("GET", f"/connectors/{quote(name)}/offsets", absent=True) or {}
        for stored in answer.get("offsets") or []:
            if (stored.get("partition") or {}).get("server") == topic_prefix:
                return dict(stored.get("offset") or {})
        return {}

    def restart(self, name: str, *, only_failed: bool = True) -> None:
        """Restart the connector and its task; Connect never restarts a FAILED task itself."""
        parameters = f"includeTasks=true&onlyFailed={str(only_failed).lower()}"
        self._call("POST", f"/connectors/{quote(name)}/restart?{parameters}")

    def pause(self, name: str) -> None:
        self._call("PUT", f"/connectors/{quote(name)}/pause")

    def resume(self, name: str) -> None:
        self._call("PUT", f"/connectors/{quote(name)}/resume")

    def stop(self, name: str) -> None:
        """Stop the task but keep the connector: its offsets may then be deleted."""
        self._call("PUT", f"/connectors/{quote(name)}/stop")

    def delete_offsets(self, name: str) -> None:
        self._call("DELETE", f"/connectors/{quote(name)}/offsets")

    def delete(self, name: str) -> None:
        """Idempotent. Slot and publication stay at the source."""
        self._call("DELETE", f"/connectors/{quote(name)}", absent=True)

    def _call(self, method: str, path: str, *, json: object = None, absent: bool = False) -> Any:
        """One request, repeated while Connect rebalances (409). `absent`: 404 is an answer, None."""
        deadline = time.monotonic() + REBALANCE_SECONDS
        while True:
            response = self._request(method, path, json)
            if response.status_code != requests.codes.conflict or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if absent and response.status_code == requests.codes.not_found:
            return None
        if response.status_code == requests.codes.conflict or response.status_code >= 500:
            raise ConnectUnavailable(f"Connect at {self._url}: {_message(response)}")
        if response.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
            raise SettingsError(
                f"Connect at {self._url} refuses our user ({response.status_code}): "
                "mend connect.username and its password"
            )
        if not response.ok:
            what = f"{method} {path.split('?', maxsplit=1)[0]}"
            raise SettingsError(f"Connect at {self._url} refuses {what}: {_message(response)}")
        return response.json() if response.content else None

    def _request(self, method: str, path: str, json: object) -> requests.Response:
        try:
            return self._session.request(
                method,
                self._url + path,
                json=json,
                timeout=self._timeout,
                **self._access.for_requests,
            )
        except requests.RequestException as error:
            if untrusted(error):
                raise SettingsError(
                    f"Connect at {self._url}: its certificate is not one of connect.ca_file's"
                ) from error
            reason = type(error).__name__
            raise ConnectUnavailable(
                f"Connect does not answer at {redacted(self._url)} ({reason})"
            ) from error


def _message(response: requests.Response) -> str:
    try:
        text = str(response.json().get("message", ""))
    except (ValueError, AttributeError):
        text = response.text[:200]
    return f"{response.status_code} {redacted(' '.join(text.split()))}".strip()


def root_cause(trace: str) -> str:
    """The deepest `Caused by:` of a Java stack trace, else its first line; one line, secrets out."""
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    line = causes[-1] if causes else (lines[0] if lines else "")
    size = _TOO_LARGE.search(line)
    if size:
        return (
            f"a row takes {size[1]} bytes, before and after its change, more than "
            f"UPWELL_KAFKA_MAX_MESSAGE_BYTES allows"
        )
    return redacted(line)[:500]


def redacted(text: str) -> str:
    """Passwords in `key=value` pairs and in URLs become ***."""
    return _URL_SECRET.sub(r"\1***@", _SECRET.sub(r"\1\2***", text))
