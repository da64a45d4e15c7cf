import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from .backoff import delay_after
from .errors import CursorExpired, MooringProblem, MooringUnreachable, is_passing
from .types import Change, ChangesPage, Installation, InstallationsPage

WAIT_S = 25
# An answer without changes that came sooner did not wait.
WAITED_S = 0.5

Answer = TypeVar("Answer")
# Told of each failure that is waited out, and in how many seconds the next attempt is.
OnFailure = Callable[[MooringProblem | MooringUnreachable, float], None]
# Reads the page after a cursor.
ReadChanges = Callable[[str | None], Awaitable[ChangesPage]]
ReadPages = Callable[[], AsyncIterator[InstallationsPage]]


@dataclass(frozen=True)
class Changed:
    change: Change
    cursor: str
    """Store it with what the change led to."""


@dataclass(frozen=True)
class Listed:
    """All installations: they take the place of what was known before."""

    installations: list[Installation]
    cursor: str


Step = Listed | Changed


async def follow(read: ReadChanges, after: str | None, on_failure: OnFailure | None) -> AsyncGenerator[Changed, None]:
    cursor = after
    early = 0
    while True:
        began = time.monotonic()
        page = await _until_answered(partial(read, cursor), on_failure)
        for change in page["changes"]:
            yield Changed(change, _cursor_at(page["cursor"], change["position"]))
        cursor = page["cursor"]
        waited = bool(page["changes"]) or time.monotonic() - began >= WAITED_S
        early = 0 if waited else early + 1
        if not waited:
            await asyncio.sleep(delay_after(early, None))


async def list_and_follow(
    pages: ReadPages, read: ReadChanges, after: str | None, on_failure: OnFailure | None
) -> AsyncGenerator[Step, None]:
    while True:
        if after is None:
            listed = await _until_answered(partial(_list, pages), on_failure)
            yield listed
            after = listed.cursor
        try:
            async with aclosing(follow(read, after, on_failure)) as changes:
                async for changed in changes:
                    yield changed
        except CursorExpired:
            after = None


async def _list(pages: ReadPages) -> Listed:
    installations: list[Installation] = []
    cursor: str | None = None
    async for page in pages():
        # What changes while the later pages are read comes after the first cursor.
        cursor = cursor or page["changes_cursor"]
        installations.extend(page["installations"])
    return Listed(installations, cursor or "")


async def _until_answered(ask: Callable[[], Awaitable[Answer]], on_failure: OnFailure | None) -> Answer:
    """Waits out what passes."""
    failures = 0
    while True:
        try:
            return await ask()
        except (MooringProblem, MooringUnreachable) as error:
            if not _may_pass(error):
                raise
            delay = delay_after(failures, error.retry_after if isinstance(error, MooringProblem) else None)
            if on_failure:
                on_failure(error, delay)
        await asyncio.sleep(delay)
        failures += 1


def _may_pass(error: MooringProblem | MooringUnreachable) -> bool:
    """Whoever follows has time, so a fault of the worker is waited out, too."""
    return is_passing(error) or (isinstance(error, MooringProblem) and error.status >= 500)


def _cursor_at(of_page: str, position: int) -> str:
    """A page has the cursor after its last change. It is the name of the feed and a position."""
    return re.sub(r"-\d+$", f"-{position}", of_page)
