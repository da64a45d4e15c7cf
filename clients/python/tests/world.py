import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

DEADLINE_S = 30
_LOOK_EVERY_S = 0.05

Found = TypeVar("Found")


def environment(*names: str) -> tuple[dict[str, str], pytest.MarkDecorator]:
    """The values of these variables, and what skips a test without them."""
    missing = [name for name in names if not os.environ.get(name)]
    values = {name: os.environ.get(name, "") for name in names}
    return values, pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not set: it needs a running Mooring")


async def eventually(what: str, look: Callable[[], Awaitable[Found | None]]) -> Found:
    """What `look` finds at last."""
    until = asyncio.get_running_loop().time() + DEADLINE_S
    while True:
        found = await look()
        if found:
            return found
        assert asyncio.get_running_loop().time() < until, f"in vain: {what}"
        await asyncio.sleep(_LOOK_EVERY_S)


async def post(url: str, body: str, headers: dict[str, str] | None = None) -> None:
    """Sends a callback as a platform does."""
    async with httpx.AsyncClient() as http:
        sent = {"content-type": "application/json", **(headers or {})}
        answer = await http.post(url, content=body, headers=sent)
    assert answer.status_code == 200, answer.text


async def grant(ingest: str, source: str, code: str) -> None:
    """Goes where the browser of a user goes who grants access."""
    async with httpx.AsyncClient() as browser:
        begun = await browser.get(f"{ingest}/oauth/{source}/authorize")
        cookie = begun.headers.get("set-cookie", "").split(";")[0]
        state = parse_qs(urlsplit(begun.headers["location"]).query)["state"][0]
    await come_back(ingest, source, {"code": code, "state": state}, cookie)


async def come_back(ingest: str, source: str, query: dict[str, str], cookie: str = "") -> None:
    """Comes back from the platform, with a code."""
    # The cookie is for https, which a browser would insist on.
    async with httpx.AsyncClient() as browser:
        headers = {"cookie": cookie} if cookie else {}
        answer = await browser.get(f"{ingest}/oauth/{source}/callback", params=query, headers=headers)
    assert answer.status_code in (200, 303), f"{answer.status_code} {answer.text}"
