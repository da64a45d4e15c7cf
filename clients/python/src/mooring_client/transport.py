import asyncio
import inspect
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlencode

import httpx

from .backoff import delay_after
from .errors import MooringProblem, MooringUnreachable, is_passing, problem_of

# Further attempts of a request that changes nothing.
RETRIES = 3
TIMEOUT_S = 10.0

# Called before each attempt if it is a function, because workload identities rotate. What it raises is raised.
Token = str | Callable[[], str | Awaitable[str]]

Query = Mapping[str, str | int | None]


@dataclass(frozen=True)
class Asked:
    method: Literal["GET", "POST"]
    path: str
    query: Query = field(default_factory=dict)
    # It may be a secret.
    body: object = field(default=None, repr=False)
    # How long the worker may wait before it answers.
    wait: int = 0
    retries: int | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Transport:
    def __init__(self, url: str, token: Token, timeout: float) -> None:
        self._base = _base_of(url)
        self._token = token
        self._timeout = timeout
        # One time limit is for a call as a whole. A worker redirects nobody, and another host must not see what is sent here.
        self._http = httpx.AsyncClient(timeout=None, follow_redirects=False)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def ask(self, asked: Asked) -> Any:
        """The JSON of a success."""
        until = time.monotonic() + self._timeout + asked.wait
        retries = asked.retries
        if retries is None:
            retries = RETRIES if asked.method == "GET" else 0
        failures = 0
        while True:
            try:
                return await self._attempt(asked, until)
            except (MooringProblem, MooringUnreachable) as error:
                if failures >= retries or not is_passing(error):
                    raise
                delay = delay_after(failures, error.retry_after if isinstance(error, MooringProblem) else None)
                if time.monotonic() + delay >= until:
                    raise
            await asyncio.sleep(delay)
            failures += 1

    async def _attempt(self, asked: Asked, until: float) -> Any:
        token = await self._current_token()
        try:
            exchange = self._exchange(asked, token)
            response = await asyncio.wait_for(exchange, max(0.0, until - time.monotonic()))
        except asyncio.TimeoutError as error:
            raise MooringUnreachable(f"{asked}: no answer in time", timed_out=True) from error
        except httpx.HTTPError as error:
            raise MooringUnreachable(f"{asked}: no answer") from error
        if not response.is_success:
            raise problem_of(response)
        answer = _json_in(response.content)
        if answer is _NO_JSON:
            raise MooringUnreachable(f"{asked}: the answer is not JSON")
        return answer

    async def _exchange(self, asked: Asked, token: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}", "accept": "application/json"}
        url = self._base + asked.path + _query_string(asked.query)
        if asked.body is None:
            return await self._http.request(asked.method, url, headers=headers)
        return await self._http.request(asked.method, url, headers=headers, json=asked.body)

    async def _current_token(self) -> str:
        given = self._token() if callable(self._token) else self._token
        token = (await given if inspect.isawaitable(given) else given).strip()
        # The HTTP library would repeat it in its error.
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise ValueError("the token is empty, or no text that a header may hold")
        return token


_NO_JSON = object()


def _json_in(body: bytes) -> Any:
    # What the parser raises holds the answer, which may be a secret. It must not be the context of another error.
    try:
        return json.loads(body)
    except ValueError:
        return _NO_JSON


def _base_of(url: str) -> str:
    parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("the URL of a worker begins with http:// or https://")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ValueError("the URL of a worker has neither a user nor a query nor a fragment")
    return str(parsed).rstrip("/")


def _query_string(query: Query) -> str:
    parameters = [(name, str(value)) for name, value in query.items() if value is not None]
    return f"?{urlencode(parameters)}" if parameters else ""
