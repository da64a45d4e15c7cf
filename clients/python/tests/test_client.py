import asyncio
import json
import pickle
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from faulty_server import Answer, FaultyServer, problem

from mooring_client import Mooring, MooringProblem, MooringUnreachable
from mooring_client.types import PortalLaunch

pytestmark = pytest.mark.anyio

TOKEN = "token-that-is-secret"
PAGE: dict[str, Any] = {"installations": [], "next_cursor": None, "changes_cursor": "f-1"}


@asynccontextmanager
async def started(*answers: Answer, timeout: float = 10) -> AsyncGenerator[tuple[FaultyServer, Mooring], None]:
    async with FaultyServer(*answers) as server, Mooring(server.url, TOKEN, timeout=timeout) as mooring:
        yield server, mooring


async def test_a_problem_says_what_mooring_said() -> None:
    candidates = [{"source": "shop", "app_id": "app_1", "place": "here", "status": "active"}]
    async with started(problem(409, "ambiguous-installation", candidates=candidates)) as (_, mooring):
        with pytest.raises(MooringProblem) as raised:
            await mooring.get("a")
    error = raised.value
    assert error.type == "urn:mooring:problem:ambiguous-installation"
    assert (error.code, error.status, error.detail) == ("ambiguous-installation", 409, "it is ambiguous-installation")
    assert (error.candidates, error.retry_after) == (candidates, None)
    assert str(error) == "409 ambiguous-installation: it is ambiguous-installation"
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.candidates) == (str(error), candidates)


async def test_an_error_that_is_not_of_mooring_is_a_problem_without_a_code() -> None:
    async with started(Answer("<html>", 404, {"content-type": "text/html"})) as (_, mooring):
        with pytest.raises(MooringProblem) as raised:
            await mooring.get("a")
    assert (raised.value.type, raised.value.code, raised.value.status) == ("about:blank", "", 404)


async def test_no_answer_is_another_error_than_a_problem() -> None:
    async with started(Answer(hang_up=True), timeout=0.8) as (server, mooring):
        with pytest.raises(MooringUnreachable) as raised:
            await mooring.get("a")
        assert not raised.value.timed_out
        assert len(server.seen) > 1, "it is asked again"
    async with started(Answer(hang=True), timeout=0.2) as (_, mooring):
        with pytest.raises(MooringUnreachable) as raised:
            await mooring.get("a")
        assert raised.value.timed_out


async def test_an_answer_that_is_not_json_is_none_and_is_not_repeated() -> None:
    async with started(Answer('{"credential":"blnk_secret_key'), timeout=0.2) as (_, mooring):
        with pytest.raises(MooringUnreachable) as raised:
            await mooring.credential("a")
    error: BaseException | None = raised.value
    while error:
        # It holds all that it parsed.
        assert not isinstance(error, json.JSONDecodeError)
        assert "blnk_secret" not in repr(error)
        error = error.__cause__ or error.__context__


async def test_a_request_that_reads_is_sent_again_and_not_before_retry_after() -> None:
    busy = problem(503, "database-unavailable", {"retry-after": "1"})
    async with started(busy, Answer(PAGE)) as (server, mooring):
        began = time.monotonic()
        assert await mooring.list_page() == PAGE
        assert time.monotonic() - began >= 1
        assert len(server.seen) == 2


async def test_a_retry_after_beyond_the_timeout_is_told_at_once() -> None:
    async with started(problem(429, "rate-limited", {"retry-after": "60"})) as (server, mooring):
        with pytest.raises(MooringProblem) as raised:
            await mooring.list_page()
        assert (raised.value.code, raised.value.retry_after) == ("rate-limited", 60)
        assert len(server.seen) == 1


async def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=120), usegmt=True)
    async with started(problem(503, "database-unavailable", {"retry-after": date})) as (_, mooring):
        with pytest.raises(MooringProblem) as raised:
            await mooring.list_page()
    assert raised.value.retry_after and 110 < raised.value.retry_after <= 120


async def test_it_gives_up_after_a_few_attempts() -> None:
    async with started(problem(503, "database-unavailable")) as (server, mooring):
        with pytest.raises(MooringProblem, match="503"):
            await mooring.list_page()
        assert len(server.seen) == 4


async def test_what_no_repetition_helps_is_asked_once() -> None:
    async with started(problem(403, "insufficient-scope")) as (server, mooring):
        with pytest.raises(MooringProblem, match="insufficient-scope"):
            await mooring.credential("a")
        assert len(server.seen) == 1


async def test_a_portal_session_is_opened_once_and_looked_up_again() -> None:
    ids: PortalLaunch = {"installed_app_id": "i", "app_id": "a", "instance_id": "n"}
    async with started(problem(503, "database-unavailable")) as (server, mooring):
        with pytest.raises(MooringProblem, match="503"):
            await mooring.open_portal_session(ids, source="blnk")
        assert [it.url for it in server.seen] == ["/v1/portal-sessions?source=blnk"]
        assert json.loads(server.seen[0].body) == ids
        with pytest.raises(MooringProblem, match="503"):
            await mooring.introspect_portal_session("t")
        assert len(server.seen) == 5


async def test_a_redirect_is_not_followed() -> None:
    async with started(Answer(status=307, headers={"location": "/elsewhere"})) as (server, mooring):
        with pytest.raises(MooringProblem, match="307"):
            await mooring.list_page()
        assert len(server.seen) == 1


async def test_the_caller_may_cancel() -> None:
    async with started(Answer(hang=True)) as (server, mooring):
        task = asyncio.create_task(mooring.get("a"))
        while not server.seen:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_token_that_rotates_is_asked_for_each_time_and_none_is_shown() -> None:
    numbers = iter(range(1, 9))

    async def token() -> str:
        return f"token-{next(numbers)}\n"

    async with FaultyServer(Answer(PAGE)) as server:
        for given in (token, lambda: f"token-{next(numbers)}"):
            async with Mooring(f"{server.url}/", given) as mooring:
                await mooring.list_page()
                await mooring.list_page()
        sent = [it.headers["authorization"] for it in server.seen]
        assert sent == [f"Bearer token-{number}" for number in (1, 2, 3, 4)]
        async with Mooring(server.url, "secret\0token") as mooring:
            with pytest.raises(ValueError) as raised:
                await mooring.list_page()
    assert "secret" not in repr(raised.value)
    assert TOKEN not in repr(mooring)


async def test_ids_and_parameters_are_written_as_the_api_reads_them() -> None:
    async with started(Answer()) as (server, mooring):
        await mooring.get("app:location:a/b c?", source="high level", wait=5)
        await mooring.changes(after="f-1", types=["installation.activated", "credential.replaced"])
        assert [it.url for it in server.seen] == [
            "/v1/installations/app%3Alocation%3Aa%2Fb%20c%3F?source=high+level&wait=5",
            "/v1/changes?after=f-1&type=installation.activated%2Ccredential.replaced",
        ]
        for id in ("", ".", ".."):
            with pytest.raises(ValueError):
                await mooring.get(id)


@pytest.mark.parametrize("url", ["worker:8081", "ftp://worker", "http://", "http://user:password@worker", "http://worker?a=b"])
async def test_a_url_that_cannot_be_a_workers_is_refused(url: str) -> None:
    with pytest.raises(ValueError) as raised:
        Mooring(url, TOKEN)
    assert "password" not in str(raised.value)


async def test_a_list_goes_on_until_there_is_no_page() -> None:
    def page(id: str, next_cursor: str | None) -> Answer:
        return Answer({**PAGE, "installations": [{"installation_id": id}], "next_cursor": next_cursor})

    async with started(page("a", "n1"), page("b", None)) as (server, mooring):
        assert [it["installation_id"] async for it in mooring.list(source="blnk")] == ["a", "b"]
        assert [it.url for it in server.seen] == ["/v1/installations?source=blnk", "/v1/installations?source=blnk&cursor=n1"]


async def test_all_events_are_read_page_by_page() -> None:
    def page(sequence: int, next_after: int | None) -> Answer:
        body: dict[str, Any] = {"events": [{"sequence": sequence}], "next_after": next_after}
        return Answer(body)

    async with started(page(1, 1), page(2, None)) as (server, mooring):
        assert [it["sequence"] async for it in mooring.events("a")] == [1, 2]
        assert server.seen[1].url == "/v1/installations/a/events?after=1"
