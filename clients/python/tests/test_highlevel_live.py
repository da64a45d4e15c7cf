"""HighLevel's own SDK against a running Mooring that renews tokens:
MOORING_URL, MOORING_TOKEN  the worker, with `every_ms` of `worker.token_renewal` at most a second
MOORING_INGEST_URL          ingest
MOORING_HL_SOURCE           its source of the platform `highlevel`, with `oauth.state = "when_present"` and the app id `my-app`
MOORING_HL_PORT             where this test listens as HighLevel: `oauth.token_url` is http://127.0.0.1:<port>/oauth/token
MOORING_HL_SIGNING_SEED     the seed of the Ed25519 key that callbacks are signed with, in hexadecimal digits
"""

import base64
import json
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from faulty_server import Answer, FaultyServer, Seen
from world import come_back, environment, eventually, post

from mooring_client import Mooring
from mooring_client.highlevel import MooringHighLevel, MooringSessionStorage

VALUES, NEEDS_MOORING = environment(
    "MOORING_URL",
    "MOORING_TOKEN",
    "MOORING_INGEST_URL",
    "MOORING_HL_SOURCE",
    "MOORING_HL_PORT",
    "MOORING_HL_SIGNING_SEED",
)
APP_ID = "my-app"
# Each client tests with a location of its own.
LOCATION = "loc_python"
# Of the first token. Mooring renews it half of that before its end.
FIRST_EXPIRES_IN_S = 6


async def nothing() -> None: ...


class FakeHighLevel:
    """HighLevel: it grants tokens, and its API takes only the newest."""

    def __init__(self) -> None:
        self.used_at_api: list[str] = []
        self.grants: list[str] = []
        self.before_answer: Callable[[], Awaitable[None]] = nothing

    async def answer(self, seen: Seen) -> Answer:
        if seen.url == "/oauth/token":
            return self._token({name: values[0] for name, values in parse_qs(seen.body).items()})
        token = seen.headers["authorization"].removeprefix("Bearer ")
        self.used_at_api.append(token)
        await self.before_answer()
        is_newest = token == f"at-{len(self.grants)}"
        return Answer({"contact": {"id": "c_1"}}) if is_newest else Answer({"message": "Invalid JWT"}, 401)

    def _token(self, asked: dict[str, str]) -> Answer:
        is_right = asked.get("code") == "abc" or asked.get("refresh_token") == f"rt-{len(self.grants)}"
        if not is_right:
            return Answer({"error": "invalid_grant"}, 400)
        self.grants.append(asked["grant_type"])
        count = len(self.grants)
        return Answer(
            {
                "access_token": f"at-{count}",
                "refresh_token": f"rt-{count}",
                "token_type": "Bearer",
                "expires_in": FIRST_EXPIRES_IN_S if count == 1 else 86_399,
                "scope": "contacts.readonly",
                "userType": "Location",
                "locationId": LOCATION,
                "companyId": "co_1",
                "userId": "u_1",
            }
        )


async def uninstall() -> None:
    timestamp = datetime.now(timezone.utc).isoformat()
    said = {"type": "UNINSTALL", "appId": APP_ID, "locationId": LOCATION, "webhookId": str(uuid4()), "timestamp": timestamp}
    body = json.dumps(said)
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VALUES["MOORING_HL_SIGNING_SEED"]))
    signature = base64.b64encode(key.sign(body.encode())).decode()
    url = f"{VALUES['MOORING_INGEST_URL']}/callbacks/{VALUES['MOORING_HL_SOURCE']}"
    await post(url, body, {"x-ghl-signature": signature})


@pytest.mark.anyio
@NEEDS_MOORING
async def test_the_sdk_goes_on_while_mooring_renews_its_tokens_and_stops_when_the_app_is_uninstalled() -> None:
    platform, source = FakeHighLevel(), VALUES["MOORING_HL_SOURCE"]
    async with (
        FaultyServer(platform.answer, port=int(VALUES["MOORING_HL_PORT"])) as api,
        Mooring(VALUES["MOORING_URL"], VALUES["MOORING_TOKEN"]) as mooring,
    ):
        storage = MooringSessionStorage(mooring, source=source, app_id=APP_ID)
        highlevel = MooringHighLevel(
            client_id=f"{APP_ID}-1", client_secret="unused", session_storage=storage, log_level="none"
        )
        highlevel.get_http_client().base_url = api.url

        async def read_contact() -> Any:
            return await highlevel.contacts.get_contact("c_1", {"headers": {"location-id": LOCATION}})

        def holds(token: str | None) -> Callable[[], Awaitable[bool]]:
            async def look() -> bool:
                return await storage.get_access_token(LOCATION) == token

            return look

        await come_back(VALUES["MOORING_INGEST_URL"], source, {"code": "abc"})
        await eventually("the granted token", holds("at-1"))
        assert await read_contact() == {"contact": {"id": "c_1"}}
        assert platform.used_at_api == ["at-1"]

        # The SDK's request is on its way with the old token while Mooring renews it.
        async def renewed() -> None:
            await eventually("the renewed token", holds("at-2"))

        platform.before_answer = renewed
        assert await read_contact() == {"contact": {"id": "c_1"}}
        assert platform.used_at_api == ["at-1", "at-1", "at-2"]
        assert await read_contact() == {"contact": {"id": "c_1"}}
        assert platform.grants == ["authorization_code", "refresh_token"], "only Mooring renewed, and once"

        await uninstall()
        await eventually("the end of the session", holds(None))
        used = len(platform.used_at_api)
        with pytest.raises(Exception, match="(?i)token"):
            await read_contact()
        assert len(platform.used_at_api) == used, "nothing is sent without a token"
        installation = await mooring.get(f"{APP_ID}:location:{LOCATION}", source=source)
        assert installation["status"] == "inactive"
        await highlevel.close()
