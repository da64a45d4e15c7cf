"""Pushes of a running Mooring:
MOORING_CALLBACK_URL  as for the other tests
MOORING_PUSH_PORT     where this test listens: http://127.0.0.1:<port>/ is the URL of a `worker.push`, with `allow_private`
MOORING_PUSH_KEYS     what verifies its pushes, with spaces between: `whsec_…` of a secret, `whpk_…` of a key pair
"""

import json
from uuid import uuid4

import pytest
from faulty_server import Answer, FaultyServer, Seen
from world import environment, eventually, post

from mooring_client import PushNotGenuine, verify_push

VALUES, NEEDS_MOORING = environment("MOORING_CALLBACK_URL", "MOORING_PUSH_PORT", "MOORING_PUSH_KEYS")


@pytest.mark.anyio
@NEEDS_MOORING
async def test_what_a_worker_pushes_is_genuine_to_each_of_its_keys() -> None:
    id, api_key = f"instapp_{uuid4()}", f"blnk_{uuid4()}"
    install = {
        "installed_app_id": id,
        "app_id": "app_python",
        "instance_id": f"inst_{id}",
        "api_key": api_key,
        "api_key_prefix": "blnk_",
        "granted_permissions": [],
        "idempotency_key": f"install:{id}",
    }
    async with FaultyServer(Answer(), port=int(VALUES["MOORING_PUSH_PORT"])) as endpoint:
        await post(VALUES["MOORING_CALLBACK_URL"], json.dumps(install))

        async def pushed() -> Seen | None:
            return next((seen for seen in endpoint.seen if id in seen.body), None)

        push = await eventually("the push", pushed)
    for key in VALUES["MOORING_PUSH_KEYS"].split(" "):
        genuine = verify_push(push.body, push.headers, key)
        change = genuine.change
        assert (genuine.type, change["type"], change["installation_id"]) == ("installation.activated", genuine.type, id)
        assert change["installation"]["has_credential"] and api_key not in push.body
        with pytest.raises(PushNotGenuine):
            verify_push(f"{push.body} ", push.headers, key)
