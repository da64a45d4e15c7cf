import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from faulty_server import Answer, FaultyServer, Seen, problem
from slack_bolt.authorization import AuthorizeResult
from slack_bolt.authorization.async_authorize import AsyncInstallationStoreAuthorize
from slack_bolt.context.async_context import AsyncBoltContext
from slack_sdk.oauth.installation_store import Installation
from slack_sdk.web.async_client import AsyncWebClient

from mooring_client import Mooring, MooringProblem
from mooring_client.slack import Complete, MooringInstallationStore, NotHere

pytestmark = pytest.mark.anyio

WORKSPACE: dict[str, Any] = {"enterprise_id": None, "team_id": "T1"}
INSTALLATION = {
    "app_id": "A1",
    "installation_id": "T1",
    "granted_permissions": ["chat:write", "commands"],
    "installed_at": "2026-11-27T10:00:00Z",
}


def opened(expires_at: str | None = None, **tokens: str) -> Answer:
    body = {"source": "slack", "installation_id": "T1", "credential": json.dumps(tokens), "expires_at": expires_at}
    return Answer(body)


@asynccontextmanager
async def started(
    credential: Answer, complete: Complete | None = None
) -> AsyncGenerator[tuple[FaultyServer, MooringInstallationStore], None]:
    """A worker that knows one workspace."""

    def answer(seen: Seen) -> Answer:
        return credential if "/credential" in seen.url else Answer(INSTALLATION)

    async with FaultyServer(answer) as worker, Mooring(worker.url, "token") as mooring:
        yield worker, MooringInstallationStore(mooring, source="slack", complete=complete)


async def authorize(store: MooringInstallationStore) -> AuthorizeResult | None:
    """As Bolt does for a request of Slack."""

    async with FaultyServer(Answer({"ok": True, "bot_id": "B1", "user_id": "U1", "team_id": "T1"})) as slack:
        # With these Bolt would renew tokens itself.
        authorized = AsyncInstallationStoreAuthorize(
            logger=logging.getLogger(), installation_store=store, client_id="client", client_secret="secret"
        )
        context = AsyncBoltContext()
        context["client"] = AsyncWebClient(base_url=f"{slack.url}/")
        result = await authorized(context=context, **WORKSPACE, user_id="U9")
        assert all(it.url.endswith("/auth.test") for it in slack.seen), "Bolt renews nothing"
    return result


async def test_bolt_gets_the_bots_token() -> None:
    async with started(opened(access_token="xoxb-1")) as (worker, store):
        result = await authorize(store)
        assert result and (result.bot_token, result.bot_id, result.bot_user_id) == ("xoxb-1", "B1", "U1")
        assert (result.user_token, result.bot_scopes) == (None, ["chat:write", "commands"])
        asked = sorted(it.url for it in worker.seen)
        assert asked == ["/v1/installations/T1/credential?source=slack", "/v1/installations/T1?source=slack"]


async def test_a_token_that_ends_soon_is_not_renewed_by_the_sdk() -> None:
    soon = (datetime.now(timezone.utc) + timedelta(minutes=1)).isoformat()
    async with started(opened(soon, access_token="xoxe.xoxb-1", refresh_token="xoxe-1")) as (_, store):
        result = await authorize(store)
        assert result and result.bot_token == "xoxe.xoxb-1"
        found = await store.async_find_installation(**WORKSPACE)
        assert found and "xoxe-1" not in str(found.to_dict())


async def test_an_installation_has_what_mooring_knows_and_what_is_added() -> None:
    async with started(opened(access_token="xoxb-1")) as (_, store):
        found = await store.async_find_installation(**WORKSPACE)
        assert found and (found.team_id, found.app_id, found.bot_scopes) == ("T1", "A1", ["chat:write", "commands"])
        assert found.installed_at == datetime(2026, 11, 27, 10, tzinfo=timezone.utc).timestamp()
        assert not any((found.bot_id, found.bot_user_id, found.user_id))

    async def complete(installation: Installation) -> Installation:
        installation.bot_id, installation.bot_user_id = "B1", "U1"
        return installation

    async with started(opened(access_token="xoxb-1"), complete) as (_, store):
        bot = await store.async_find_bot(**WORKSPACE)
        assert bot and (bot.bot_token, bot.bot_id, bot.bot_user_id) == ("xoxb-1", "B1", "U1")


@pytest.mark.parametrize("name", ["no-credential", "installation-not-found"])
async def test_who_has_not_installed_the_app_is_not_found(name: str) -> None:
    async with started(problem(404, name)) as (_, store):
        assert await store.async_find_installation(**WORKSPACE) is None
        assert await store.async_find_bot(**WORKSPACE) is None
        assert await authorize(store) is None


async def test_a_fault_is_not_the_same() -> None:
    async with started(problem(401, "unauthorized")) as (_, store):
        with pytest.raises(MooringProblem, match="unauthorized"):
            await store.async_find_installation(**WORKSPACE)


async def test_users_have_no_installation_of_their_own() -> None:
    async with started(opened(access_token="xoxb-1")) as (worker, store):
        assert await store.async_find_installation(**WORKSPACE, user_id="U9") is None
        assert not worker.seen


async def test_a_whole_organization_is_not_in_mooring() -> None:
    async with started(opened(access_token="xoxb-1")) as (_, store):
        for team_id in (None, "T1"):
            with pytest.raises(NotHere):
                await store.async_find_installation(enterprise_id="E1", team_id=team_id, is_enterprise_install=True)


async def test_a_grant_of_the_sdks_own_oauth_is_refused_and_an_uninstall_is_left_to_mooring() -> None:
    installation = Installation(team_id="T1", bot_token="xoxb-secret", user_id="U1")
    async with started(opened(access_token="xoxb-1")) as (worker, store):
        with pytest.raises(NotHere, match="/oauth/slack/authorize"):
            await store.async_save(installation)
        with pytest.raises(NotHere, match="/oauth/slack/authorize"):
            await store.async_save_bot(installation.to_bot())
        await store.async_delete_all(**WORKSPACE)
        assert not worker.seen
