import copy
import json
from datetime import datetime, timezone

import pytest
from fastapi.encoders import jsonable_encoder

from mooring_client import Credential


def of(credential: str, expires_at: str | None = None) -> Credential:
    return Credential(
        {"source": "blnk", "installation_id": "instapp_1", "credential": credential, "expires_at": expires_at}
    )


def test_a_key_is_given_as_it_is() -> None:
    credential = of("blnk_secret_key")
    assert (credential.secret, credential.key) == ("blnk_secret_key", "blnk_secret_key")
    assert (credential.access_token, credential.fields, credential.expires_at) == (None, None, None)


def test_tokens_are_read() -> None:
    credential = of('{"access_token":"at-1","refresh_token":"rt-1"}', "2026-11-27T10:00:00.5Z")
    assert (credential.key, credential.access_token, credential.refresh_token) == ("at-1", "at-1", "rt-1")
    assert credential.expires_at == datetime(2026, 11, 27, 10, 0, 0, 500_000, timezone.utc)
    assert of("k", "2026-11-27T10:00:00Z").expires_at == datetime(2026, 11, 27, 10, tzinfo=timezone.utc)
    assert of('{"access_token":"at-1"}').refresh_token is None


def test_several_secrets_are_fields() -> None:
    assert of('{"/user":"ann","/password":"p"}').fields == {"/user": "ann", "/password": "p"}
    for other in ("[1]", '"a"', "1", "null", "{"):
        assert of(other).fields is None


@pytest.mark.parametrize("secret", ["blnk_secret_key", '{"access_token":"blnk_secret_key"}'])
def test_nothing_shows_the_secret(secret: str) -> None:
    credential = of(secret)
    shown = f"{credential} {credential!r} {[credential]} {'%s' % credential}"
    assert "blnk_secret_key" not in shown
    assert "instapp_1" in shown and "redacted" in shown
    for reveals in (vars, json.dumps, jsonable_encoder):
        with pytest.raises((TypeError, ValueError)) as raised:
            reveals(credential)
        assert "blnk_secret_key" not in repr(raised.value)
    assert copy.deepcopy(credential).secret == secret
