import json
from typing import Any

import pytest
from faulty_server import Answer, FaultyServer, problem

from mooring_client import Mooring, answer_portal_launch, check_portal_token

pytestmark = pytest.mark.anyio

POSTED = {"installed_app_id": "i", "app_id": "a", "instance_id": "n", "organization_id": "o", "user_id": None}
URL_ANSWER = {"portal_url": "https://app.example.com/portal?token=t", "expires_at": "2026-11-27T10:00:00Z"}
SESSION = {"source": "blnk", "app_id": "a", "installation_id": "i", "user_id": None}
CSP = "frame-ancestors 'self' https://blnkfinance.com https://*.blnkfinance.com"


async def test_what_blnk_posted_is_passed_on_and_it_is_answered_the_url() -> None:
    async with FaultyServer(Answer(URL_ANSWER)) as server, Mooring(server.url, "token") as mooring:
        answer = await answer_portal_launch(mooring, POSTED, source="blnk")
        assert (answer.status, answer.headers, answer.body) == (200, {"cache-control": "no-store"}, URL_ANSWER)
        assert json.loads(server.seen[0].body) == POSTED


@pytest.mark.parametrize(
    ("status", "name"), [(404, "installation-not-found"), (409, "installation-not-active"), (422, "invalid-field")]
)
async def test_blnk_is_told_what_is_about_its_request(status: int, name: str) -> None:
    async with FaultyServer(problem(status, name)) as server, Mooring(server.url, "token") as mooring:
        answer = await answer_portal_launch(mooring, POSTED)
    assert (answer.status, answer.body) == (status, {"error": f"it is {name}"})


@pytest.mark.parametrize(
    "other",
    [
        problem(401, "unauthorized"),
        problem(403, "insufficient-scope"),
        problem(404, "not-found"),
        Answer(hang_up=True),
    ],
)
async def test_blnk_is_told_nothing_else(other: Answer) -> None:
    async with FaultyServer(other) as server, Mooring(server.url, "token", timeout=0.3) as mooring:
        answer = await answer_portal_launch(mooring, POSTED)
    assert (answer.status, answer.body) == (503, {"error": "the portal is not available now"})
    assert answer.error, "the app can log it"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Answer(SESSION), 200),
        (problem(404, "no-portal-session"), 401),
        (problem(410, "portal-session-expired"), 410),
        (problem(404, "not-found"), 503),
        (problem(401, "unauthorized"), 503),
        (Answer(hang_up=True), 503),
    ],
)
async def test_the_page_answers_by_its_token_and_always_says_who_may_frame_it(answer: Answer, status: int) -> None:
    async with FaultyServer(answer) as server, Mooring(server.url, "token", timeout=0.3) as mooring:
        page = await check_portal_token(mooring, "token-of-portal")
    assert page.status == status
    assert (page.headers["content-security-policy"], page.headers["cache-control"]) == (CSP, "no-store")
    expected: Any = SESSION if status == 200 else None
    assert page.session == expected
    assert (page.error is not None) == (status == 503)
    assert "token-of-portal" not in f"{page.error} {page.error!r}"


@pytest.mark.parametrize("none", [None, "", ["a", "b"]])
async def test_without_a_token_nobody_is_asked(none: Any) -> None:
    async with FaultyServer(Answer()) as server, Mooring(server.url, "token") as mooring:
        assert (await check_portal_token(mooring, none)).status == 401
        assert not server.seen
