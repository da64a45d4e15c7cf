import json
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from math import ceil
from typing import Any

import httpx

from .types import Candidate

_URN = "urn:mooring:problem:"
_PASSING = (429, 502, 503, 504)


class MooringProblem(Exception):
    """Mooring answered, and the answer is a problem (RFC 9457)."""

    def __init__(
        self,
        type: str,
        title: str,
        status: int,
        detail: str,
        candidates: Sequence[Candidate] = (),
        retry_after: int | None = None,
    ) -> None:
        # An exception is copied and pickled by these.
        super().__init__(type, title, status, detail, candidates, retry_after)
        self.type = type
        """Stable, such as `urn:mooring:problem:no-credential`. An answer that is not Mooring's has `about:blank`."""
        self.title = title
        self.status = status
        self.detail = detail
        """For people."""
        self.candidates = candidates
        """Of `ambiguous-installation`: the installations that have this id."""
        self.retry_after = retry_after
        """In how many seconds to ask again, if the answer says so."""

    @property
    def code(self) -> str:
        """The last part of `type`, such as `no-credential`. Empty if the answer is not Mooring's."""
        return _short_name(self.type)

    def __str__(self) -> str:
        return f"{self.status} {self.code or self.title}: {self.detail}"


class CursorExpired(MooringProblem):
    """The changes after a cursor are gone. List the installations, and follow from the `changes_cursor` of the first page."""


class MooringUnreachable(Exception):
    """There is no answer, or none that a worker gives. Its cause, if there is one, says why."""

    def __init__(self, message: str, timed_out: bool = False) -> None:
        super().__init__(message, timed_out)
        self.message = message
        self.timed_out = timed_out

    def __str__(self) -> str:
        return self.message


def problem_of(response: httpx.Response) -> MooringProblem:
    said = _object_in(response.content)

    def text(name: str, otherwise: str) -> str:
        value = said.get(name)
        return value if isinstance(value, str) else otherwise

    type = text("type", "about:blank")
    candidates = said.get("candidates")
    kind = CursorExpired if _short_name(type) == "cursor-expired" else MooringProblem
    return kind(
        type,
        text("title", response.reason_phrase),
        response.status_code,
        text("detail", "the answer says no more"),
        candidates if isinstance(candidates, list) else [],
        seconds_of(response.headers.get("retry-after")),
    )


def is_passing(error: MooringProblem | MooringUnreachable) -> bool:
    """Whether the same request may succeed a little later."""
    return isinstance(error, MooringUnreachable) or error.status in _PASSING


def seconds_of(retry_after: str | None) -> int | None:
    """`Retry-After` is a number of seconds or a date (RFC 9110, section 10.2.3)."""
    given = (retry_after or "").strip()
    if re.fullmatch("[0-9]{1,9}", given):
        return int(given)
    try:
        date = parsedate_to_datetime(given)
    except (TypeError, ValueError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0, ceil((date - datetime.now(timezone.utc)).total_seconds()))


def _short_name(type: str) -> str:
    return type[len(_URN) :] if type.startswith(_URN) else ""


def _object_in(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
