"""Against a running Mooring:
MOORING_URL           the worker
MOORING_TOKEN         a token of it with all scopes, for all sources
MOORING_CALLBACK_URL  the callback URL of a `blnk` source, path token included
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
from world import DEADLINE_S, environment, eventually, post

from mooring_client import (
    Changed,
    CursorExpired,
    Listed,
    Mooring,
    MooringProblem,
    Step,
    answer_portal_launch,
    check_portal_token,
)

VALUES, NEEDS_MOORING = environment("MOORING_URL", "MOORING_TOKEN", "MOORING_CALLBACK_URL")
pytestmark = [pytest.mark.anyio, NEEDS_MOORING]


@pytest.fixture
async def mooring() -> AsyncGenerator[Mooring, None]:
    async with Mooring(VALUES["MOORING_URL"], VALUES["MOORING_TOKEN"]) as mooring:
        yield mooring


class Tenant:
    """An installation of its own for each test."""

    def __init__(self) -> None:
        self.id = f"instapp_{uuid4()}"
        self.api_key = f"blnk_{uuid4()}"
        self.ids = {"installed_app_id": self.id, "app_id": "app_python", "instance_id": f"inst_{self.id}"}

    async def install(self) -> None:
        await self._post(
            api_key=self.api_key,
            api_key_prefix=self.api_key[:8],
            granted_permissions=["data:read"],
            idempotency_key=f"install:{self.id}",
        )

    async def uninstall(self) -> None:
        now = datetime.now(timezone.utc).isoformat()
        await self._post(uninstalled_at=now, idempotency_key=f"uninstall:{self.id}")

    async def _post(self, **more: Any) -> None:
        await post(VALUES["MOORING_CALLBACK_URL"], json.dumps({**self.ids, **more}))


async def next_of(tenant: Tenant, steps: AsyncGenerator[Changed, None] | AsyncGenerator[Step, None]) -> Changed:
    async def look() -> Changed:
        async for step in steps:
            assert isinstance(step, Changed), "it lists again"
            if step.change["installation_id"] == tenant.id:
                return step
        raise AssertionError("the feed ended")

    return await asyncio.wait_for(look(), DEADLINE_S)


async def test_what_becomes_of_an_installation_is_followed_and_its_key_is_opened(mooring: Mooring) -> None:
    tenant = Tenant()
    after = (await mooring.list_page(limit=1))["changes_cursor"]
    async with aclosing(mooring.follow(after=after)) as changes:
        installed = asyncio.create_task(next_of(tenant, changes))
        await tenant.install()
        activated = await installed
        assert activated.change["type"] == "installation.activated"
        assert activated.change["installation"]["status"] == "active"

        found = await mooring.get(tenant.id, wait=5)
        assert (found["status"], found["app_id"], found["granted_permissions"]) == ("active", "app_python", ["data:read"])
        credential = await mooring.credential(tenant.id, source=found["source"])
        assert (credential.secret, credential.installation_id) == (tenant.api_key, tenant.id)
        assert await mooring.current_key(tenant.id) == tenant.api_key

        await tenant.uninstall()
        deactivated = await next_of(tenant, changes)
        assert deactivated.change["type"] == "installation.deactivated"
    with pytest.raises(MooringProblem) as raised:
        await mooring.credential(tenant.id)
    assert (raised.value.code, raised.value.status) == ("no-credential", 404)
    assert [event["type"] async for event in mooring.events(tenant.id, limit=1)] == ["installed", "uninstalled"]

    # A cursor within a page passes over nothing and repeats nothing.
    again = (await mooring.changes(after=activated.cursor, source=found["source"]))["changes"][0]
    assert activated.change["position"] < again["position"] <= deactivated.change["position"]
    later = (await mooring.changes(after=deactivated.cursor))["changes"]
    assert all(change["position"] > deactivated.change["position"] for change in later)


async def test_one_that_is_on_its_way_is_waited_for(mooring: Mooring) -> None:
    tenant = Tenant()
    found = asyncio.create_task(mooring.get(tenant.id, wait=20))
    await tenant.install()
    assert (await found)["installation_id"] == tenant.id


async def test_a_list_and_the_feed_after_it_have_no_hole(mooring: Mooring) -> None:
    before, after = Tenant(), Tenant()
    await before.install()
    await mooring.get(before.id, wait=20)
    async with aclosing(mooring.list_and_follow()) as steps:
        first = await anext(steps)
        assert isinstance(first, Listed)
        listed = {installation["installation_id"] for installation in first.installations}
        assert before.id in listed and after.id not in listed
        await after.install()
        found = await next_of(after, steps)
        assert found.cursor
    everything = [installation["installation_id"] async for installation in mooring.list(limit=1)]
    assert {before.id, after.id} <= set(everything)
    assert len(set(everything)) == len(everything)


async def test_a_cursor_of_another_feed_has_expired_and_then_the_list_begins_again(mooring: Mooring) -> None:
    with pytest.raises(CursorExpired):
        await anext(mooring.follow(after="otherfeed-1"))
    async with aclosing(mooring.list_and_follow(after="otherfeed-1")) as steps:
        assert isinstance(await anext(steps), Listed)


async def test_a_wrong_token_is_a_problem() -> None:
    async with Mooring(VALUES["MOORING_URL"], "not-a-token") as stranger:
        for answer in (stranger.list_page(), anext(stranger.follow())):
            with pytest.raises(MooringProblem) as raised:
                await answer
            assert (raised.value.code, raised.value.status) == ("unauthorized", 401)


async def test_an_id_that_nobody_has_is_a_problem(mooring: Mooring) -> None:
    nobody = f"nobody {uuid4()}/%"
    for wait, expected in ((None, ("installation-not-found", 404)), (51, ("invalid-parameter", 400))):
        with pytest.raises(MooringProblem) as raised:
            await mooring.get(nobody, wait=wait)
        assert (raised.value.code, raised.value.status) == expected


async def test_a_portal_is_opened_for_blnk_and_closes_with_the_installation(mooring: Mooring) -> None:
    tenant = Tenant()
    opening = asyncio.create_task(answer_portal_launch(mooring, {**tenant.ids, "user_id": "user_1"}))
    await tenant.install()
    answer = await opening
    assert answer.status == 200, answer.error
    url: Any = answer.body["portal_url"]
    token = parse_qs(urlsplit(url).query)["token"][0]
    page = await check_portal_token(mooring, token)
    assert page.status == 200 and page.session, page.error
    assert (page.session["installation_id"], page.session["user_id"]) == (tenant.id, "user_1")
    assert page.session["scope"]["instance_id"] == tenant.ids["instance_id"]

    assert (await check_portal_token(mooring, f"{token}x")).status == 401
    assert (await answer_portal_launch(mooring, {**tenant.ids, "instance_id": "another"})).status == 404
    await tenant.uninstall()

    async def has_expired() -> bool:
        return (await check_portal_token(mooring, token)).status == 410

    await eventually("the session ends", has_expired)
    assert (await answer_portal_launch(mooring, tenant.ids)).status == 409
