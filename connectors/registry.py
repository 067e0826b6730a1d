"""Writer schemas by id, from a registry's Confluent API.

Ids are immutable, so an answer is kept for ever. An id that the registry does not know yet, or a registry
that does not answer, is "not now": the record is neither skipped nor dead-lettered.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

import aiohttp
import requests

from connectors.access import PLAIN_HTTP, HttpAccess, tls_context, untrusted
from schemas.errors import RegistryUnavailable, SettingsError

TIMEOUT_SECONDS: Final = 10.0


class Registry:
    """Implements `SchemaRegistry` of streams/ports.py. One per event loop; `close` it with the loop."""

    def __init__(
        self, url: str, access: HttpAccess = PLAIN_HTTP, *, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self._url, self._access = url.rstrip("/"), access
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._known: dict[int, str] = {}

    async def schema(self, schema_id: int) -> str:
        """The Avro schema as JSON text. Raises RegistryUnavailable, also for an id that is not known yet."""
        known = self._known.get(schema_id)
        if known is None:
            known = self._known[schema_id] = await self._fetch(schema_id)
        return known

    async def check_topic(self, topic: str) -> None:
        """As the port says."""
        status, _ = await self._get(f"/subjects/{quote(f'{topic}-value', safe='')}/versions")
        if status == 200:
            return
        self._known.clear()
        raise RegistryUnavailable(
            f"registry at {self._url} has no schema of topic {topic} (status {status}): it is not the one that "
            f"Connect writes to"
        )

    async def _fetch(self, schema_id: int) -> str:
        return _schema_text(self._url, schema_id, *await self._get(f"/schemas/ids/{schema_id}"))

    async def _get(self, path: str) -> tuple[int, object]:
        """Status, and body where it is 200."""
        if self._session is None:
            self._session = self._new_session()
        try:
            async with self._session.get(self._url + path) as response:
                _check_let_in(self._url, response.status)
                body = await response.json(content_type=None) if response.status == 200 else {}
                return response.status, body
        except aiohttp.ClientConnectorCertificateError as error:
            raise _untrusted(self._url) from error
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise RegistryUnavailable(f"registry at {self._url}: {type(error).__name__}") from error

    def _new_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=tls_context(self._access.ca_file))
        return aiohttp.ClientSession(timeout=self._timeout, connector=connector, headers=self._access.headers)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


class BlockingRegistry:
    """The same for code without an event loop (the command line)."""

    def __init__(
        self, url: str, access: HttpAccess = PLAIN_HTTP, *, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self._url, self._access = url.rstrip("/"), access
        self._timeout = timeout_seconds
        self._known: dict[int, str] = {}

    def schema(self, schema_id: int) -> str:
        """As `Registry.schema`."""
        known = self._known.get(schema_id)
        if known is None:
            known = self._known[schema_id] = self._fetch(schema_id)
        return known

    def answers(self) -> None:
        """Raise RegistryUnavailable unless it answers, SettingsError if it does not let us in."""
        response = self._get("/subjects")
        if response.status_code != 200:
            raise RegistryUnavailable(f"registry at {self._url}: HTTP {response.status_code}")

    def subjects(self) -> list[str]:
        """Names under which schemas are registered."""
        return [str(name) for name in self.json("/subjects")]

    def newest_id(self, subject: str) -> int:
        """Id of a subject's newest schema."""
        return int(self.json(f"/subjects/{quote(subject, safe='')}/versions/latest")["id"])

    def json(self, path: str) -> Any:
        """Whatever the registry gives there. Raises RegistryUnavailable."""
        response = self._get(path)
        try:
            if response.status_code == 200:
                return response.json()
        except ValueError as error:
            raise RegistryUnavailable(f"registry at {self._url}: {type(error).__name__}") from error
        raise RegistryUnavailable(f"registry at {self._url}: HTTP {response.status_code} for {path}")

    def _fetch(self, schema_id: int) -> str:
        response = self._get(f"/schemas/ids/{schema_id}")
        try:
            body = response.json() if response.status_code == 200 else {}
        except ValueError as error:
            raise RegistryUnavailable(f"registry at {self._url}: {type(error).__name__}") from error
        return _schema_text(self._url, schema_id, response.status_code, body)

    def _get(self, path: str) -> requests.Response:
        try:
            response = requests.get(self._url + path, timeout=self._timeout, **self._access.for_requests)
        except requests.exceptions.SSLError as error:
            if not untrusted(error):
                raise RegistryUnavailable(f"registry at {self._url}: {type(error).__name__}") from error
            raise _untrusted(self._url) from error
        except requests.RequestException as error:
            raise RegistryUnavailable(f"registry at {self._url}: {type(error).__name__}") from error
        _check_let_in(self._url, response.status_code)
        return response


def _check_let_in(url: str, status: int) -> None:
    if status in (401, 403):
        raise SettingsError(
            f"registry at {url} refuses our user ({status}): mend registry.username and its password"
        )


def _untrusted(url: str) -> SettingsError:
    return SettingsError(f"registry at {url}: its certificate is not one of registry.ca_file's")


def _schema_text(url: str, schema_id: int, status: int, body: object) -> str:
    if status != 200 or not isinstance(body, dict) or not isinstance(body.get("schema"), str):
        raise RegistryUnavailable(f"registry at {url} does not give schema {schema_id} (status {status})")
    return str(body["schema"])
