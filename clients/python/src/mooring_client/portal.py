import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from .client import Mooring
from .errors import MooringProblem
from .types import PortalLaunch, PortalSession, PortalUrl

# Blnk waits about 10 s for the URL, and our answer has to get there, too.
_BLNK_WAITS_S = 9
# What Blnk or a browser can do something about. Other problems are between the app and Mooring.
_PASSED_ON = (400, 404, 409, 422)
# Problems that mean that a token was never issued, and that its time is over.
_NEVER_ISSUED = "no-portal-session"
_EXPIRED = "portal-session-expired"
_UNAVAILABLE = 503

_NOT_STORED = {"cache-control": "no-store"}

PORTAL_PAGE_HEADERS: Mapping[str, str] = {
    **_NOT_STORED,
    "content-security-policy": "frame-ancestors 'self' https://blnkfinance.com https://*.blnkfinance.com",
    "referrer-policy": "no-referrer",
}
"""Of every answer of the portal page, errors included. The page's URL holds the token."""


@dataclass(frozen=True)
class PortalAnswer:
    """What to answer Blnk."""

    status: int
    headers: dict[str, str]
    body: PortalUrl | dict[str, str]
    """As JSON."""
    error: Exception | None = None
    """For your log, if there is no URL."""


@dataclass(frozen=True)
class PortalPage:
    """What the portal page answers."""

    status: int
    """200, 401 if the token was never issued, 410 if it has expired, 503 if Mooring cannot be asked."""
    headers: dict[str, str]
    session: PortalSession | None = None
    """If the status is 200."""
    error: Exception | None = None
    """For your log, if Mooring could not be asked."""


async def answer_portal_launch(mooring: Mooring, body: Any, *, source: str | None = None) -> PortalAnswer:
    """Answers what Blnk posts to the portal generator URL when a user launches the app. `body` is its JSON."""
    headers = dict(_NOT_STORED)
    try:
        opening = mooring.open_portal_session(cast(PortalLaunch, body), source=source)
        return PortalAnswer(200, headers, await asyncio.wait_for(opening, _BLNK_WAITS_S))
    except MooringProblem as problem:
        if _is_of_theirs(problem):
            return PortalAnswer(problem.status, headers, {"error": problem.detail}, problem)
        return _unavailable(problem)
    except Exception as error:
        return _unavailable(error)


async def check_portal_token(mooring: Mooring, token: object) -> PortalPage:
    """Looks up the token in the URL of the portal page."""
    headers = dict(PORTAL_PAGE_HEADERS)
    if not isinstance(token, str) or not token:
        return PortalPage(401, headers)
    try:
        return PortalPage(200, headers, await mooring.introspect_portal_session(token))
    except MooringProblem as problem:
        if problem.code == _NEVER_ISSUED:
            return PortalPage(401, headers)
        if problem.code == _EXPIRED:
            return PortalPage(410, headers)
        return PortalPage(_UNAVAILABLE, headers, error=problem)
    except Exception as error:
        return PortalPage(_UNAVAILABLE, headers, error=error)


def _unavailable(error: Exception) -> PortalAnswer:
    body = {"error": "the portal is not available now"}
    return PortalAnswer(_UNAVAILABLE, dict(_NOT_STORED), body, error)


def _is_of_theirs(problem: MooringProblem) -> bool:
    """A worker that has no such route answers 404, too."""
    return problem.status in _PASSED_ON and problem.code not in ("", "not-found")
