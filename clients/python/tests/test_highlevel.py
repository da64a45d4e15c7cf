import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from faulty_server import Answer, FaultyServer, Seen, problem
from highlevel.error import GHLError

from mooring_client import Mooring, MooringProblem
from mooring_client.highlevel import MooringHighLevel, MooringSessionStorage, NotStored

pytestmark = pytest.mark.anyio


def credential(**tokens: str) -> Answer:
    return Answer(
        {
            "source": "highlevel",
            "installation_id": "i",
            "credential": json.dumps(tokens),
            "expires_at": "2000-01-01T00:00:00Z",
        }
    )


NOT_FOUND = problem(404, "installation-not-found")


@asynccontextmanager
async def started(*answers: Answer) -> AsyncGenerator[tuple[FaultyServer, MooringSessionStorage], None]:
    async with FaultyServer(*answers) as worker, Mooring(worker.url, "token", timeout=0.5) as mooring:
        yield worker, MooringSessionStorage(mooring, source="highlevel", app_id="my-app")


async def test_the_session_of_a_location_has_its_access_token_and_no_refresh_token() -> None:
    async with started(credential(access_token="at-1", refresh_token="rt-1")) as (worker, storage):
        expected = {"access_token": "at-1", "token_type": "Bearer", "userType": "Location", "locationId": "loc_1"}
        assert await storage.get_session("loc_1") == expected
        assert worker.seen[0].url == "/v1/installations/my-app%3Alocation%3Aloc_1/credential?source=highlevel"
        assert await storage.get_access_token("loc_1") == "at-1"
        # The SDK would spend it.
        storage_of_sdk: Any = storage
        assert await storage_of_sdk.get_refresh_token("loc_1") is None


async def test_what_is_no_location_is_a_company() -> None:
    async with started(NOT_FOUND, credential(access_token="at-1")) as (worker, storage):
        expected = {"access_token": "at-1", "token_type": "Bearer", "userType": "Company", "companyId": "co_1"}
        assert await storage.get_session("co_1") == expected
        assert "my-app%3Acompany%3Aco_1" in worker.seen[1].url


async def test_there_is_no_session_of_who_is_unknown_or_gone_and_a_fault_is_not_the_same() -> None:
    async with started(NOT_FOUND) as (_, storage):
        assert await storage.get_session("x") is None
        assert await storage.get_access_token("x") is None
    async with started(problem(404, "no-credential")) as (worker, storage):
        assert await storage.get_session("x") is None
        assert len(worker.seen) == 1
    async with started(problem(409, "ambiguous-installation")) as (_, storage):
        with pytest.raises(MooringProblem, match="ambiguous-installation"):
            await storage.get_session("x")


async def test_the_app_is_that_of_the_client_id_unless_it_is_given() -> None:
    async with FaultyServer(NOT_FOUND) as worker, Mooring(worker.url, "token") as mooring:
        storage = MooringSessionStorage(mooring, source="highlevel")
        with pytest.raises(ValueError, match="app_id"):
            await storage.get_session("x")
        storage.set_client_id("app1-suffix")
        await storage.get_session("x:y")
        assert "app1%3Alocation%3Ax%253Ay" in worker.seen[0].url


async def test_a_grant_that_would_be_lost_is_refused_and_what_the_sdk_stores_by_itself_is_passed_over() -> None:
    async with started(NOT_FOUND) as (worker, storage):
        for name in ("refresh_token", "refreshToken"):
            with pytest.raises(NotStored, match="/oauth/highlevel/authorize") as raised:
                await storage.set_session("loc_1", {"access_token": "at", name: "rt-secret"})
            assert "rt-secret" not in str(raised.value)
        await storage.set_session("loc_1", {"access_token": "at"})
        await storage.delete_session("loc_1")
        assert not worker.seen


def sdk(storage: MooringSessionStorage, api_url: str) -> MooringHighLevel:
    highlevel = MooringHighLevel(
        client_id="my-app-1", client_secret="secret", session_storage=storage, log_level="none"
    )
    highlevel.get_http_client().base_url = api_url
    return highlevel


async def read_contact(highlevel: MooringHighLevel) -> Any:
    return await highlevel.contacts.get_contact("c_1", {"headers": {"location-id": "loc_1"}})


async def test_after_a_401_the_sdk_goes_on_with_the_token_that_mooring_has_by_then_and_renews_none_itself() -> None:
    def is_newest(seen: Seen) -> Answer:
        is_right = seen.headers["authorization"] == "Bearer at-2"
        return Answer({"contact": {"id": "c_1"}}) if is_right else Answer(status=401)

    tokens = [credential(access_token=f"at-{it}", refresh_token=f"rt-{it}") for it in (1, 2)]
    async with started(*tokens) as (_, storage), FaultyServer(is_newest) as api:
        highlevel = sdk(storage, api.url)
        assert await read_contact(highlevel) == {"contact": {"id": "c_1"}}
        asked = [(it.url, it.headers["authorization"]) for it in api.seen]
        assert asked == [("/contacts/c_1", "Bearer at-1"), ("/contacts/c_1", "Bearer at-2")]
        await highlevel.close()


async def test_a_token_that_stays_refused_is_an_error_of_the_sdk() -> None:
    tokens = credential(access_token="at-1", refresh_token="rt-1")
    async with started(tokens) as (_, storage), FaultyServer(Answer(status=401)) as api:
        highlevel = sdk(storage, api.url)
        with pytest.raises(GHLError) as raised:
            await read_contact(highlevel)
        assert raised.value.status_code == 401
        assert [it.url for it in api.seen] == ["/contacts/c_1", "/contacts/c_1"], "no token is renewed by the SDK"
        await highlevel.close()
