"""Slack's own SDK against a running Mooring:
MOORING_URL, MOORING_TOKEN, MOORING_INGEST_URL  as for HighLevel
MOORING_SLACK_SOURCE          a source as deploy/sources/slack.toml has it
MOORING_SLACK_PORT            where it listens as Slack: `oauth.token_url` is http://127.0.0.1:<port>/api/oauth.v2.access
MOORING_SLACK_SIGNING_SECRET  the secret of its `verification.hmac`
"""

import json
import logging
import time
from typing import Any
from uuid import uuid4

import pytest
from faulty_server import Answer, FaultyServer, Seen
from slack_bolt.authorization import AuthorizeResult
from slack_bolt.authorization.async_authorize import AsyncInstallationStoreAuthorize
from slack_bolt.context.async_context import AsyncBoltContext
from slack_sdk.signature import SignatureVerifier
from slack_sdk.web.async_client import AsyncWebClient
from world import environment, eventually, grant, post

from mooring_client import Mooring
from mooring_client.slack import MooringInstallationStore

VALUES, NEEDS_MOORING = environment(
    "MOORING_URL",
    "MOORING_TOKEN",
    "MOORING_INGEST_URL",
    "MOORING_SLACK_SOURCE",
    "MOORING_SLACK_PORT",
    "MOORING_SLACK_SIGNING_SECRET",
)
APP_ID = "A0123456789"


def granted(team: str) -> dict[str, Any]:
    """What Slack answers: https://docs.slack.dev/reference/methods/oauth.v2.access"""
    return {
        "ok": True,
        "access_token": f"xoxb-{team}",
        "token_type": "bot",
        "scope": "commands,chat:write",
        "bot_user_id": "U1",
        "app_id": APP_ID,
        "team": {"name": "A team", "id": team},
        "enterprise": None,
        "is_enterprise_install": False,
        "authed_user": {"id": "U2"},
    }


async def uninstalled(team: str) -> None:
    now = str(int(time.time()))
    body = json.dumps(
        {
            "team_id": team,
            "api_app_id": APP_ID,
            "event": {"type": "app_uninstalled"},
            "type": "event_callback",
            "event_id": str(uuid4()),
            "event_time": int(now) + 1,
        }
    )
    signature = SignatureVerifier(VALUES["MOORING_SLACK_SIGNING_SECRET"]).generate_signature(timestamp=now, body=body)
    url = f"{VALUES['MOORING_INGEST_URL']}/callbacks/{VALUES['MOORING_SLACK_SOURCE']}"
    await post(url, body, {"x-slack-request-timestamp": now, "x-slack-signature": str(signature)})


@pytest.mark.anyio
@NEEDS_MOORING
async def test_a_workspace_that_granted_access_is_authorized_until_it_uninstalls_the_app() -> None:
    team, source = f"T{uuid4()}", VALUES["MOORING_SLACK_SOURCE"]

    def answer(seen: Seen) -> Answer:
        if seen.url.endswith("/auth.test"):
            return Answer({"ok": True, "bot_id": "B1", "user_id": "U1", "team_id": team})
        return Answer(granted(team))

    async with (
        FaultyServer(answer, port=int(VALUES["MOORING_SLACK_PORT"])) as slack,
        Mooring(VALUES["MOORING_URL"], VALUES["MOORING_TOKEN"]) as mooring,
    ):
        store = MooringInstallationStore(mooring, source=source)

        async def authorize() -> AuthorizeResult | None:
            # One lives for one app, and keeps no token unless it is told to.
            authorized = AsyncInstallationStoreAuthorize(logger=logging.getLogger(), installation_store=store)
            context = AsyncBoltContext()
            context["client"] = AsyncWebClient(base_url=f"{slack.url}/api/")
            return await authorized(context=context, enterprise_id=None, team_id=team, user_id="U9")

        await grant(VALUES["MOORING_INGEST_URL"], source, "code-1")
        await mooring.get(team, source=source, wait=20)
        result = await authorize()
        assert result and (result.bot_token, result.bot_id) == (f"xoxb-{team}", "B1")
        found = await store.async_find_installation(enterprise_id=None, team_id=team)
        assert found and (found.app_id, found.bot_scopes) == (APP_ID, ["commands", "chat:write"])

        await uninstalled(team)

        async def has_ended() -> bool:
            return (await mooring.get(team, source=source))["status"] == "inactive"

        await eventually("the end", has_ended)
        assert await authorize() is None
        assert await store.async_find_installation(enterprise_id=None, team_id=team) is None
