import base64
import json
import time
from datetime import datetime, timezone
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.datastructures import Headers

from mooring_client import Push, PushNotGenuine, verify_push

SECRET = "whsec_" + base64.b64encode(bytes([7] * 32)).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(bytes([8] * 32)).decode()
PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes([9] * 32))
PUBLIC = "whpk_" + base64.b64encode(PRIVATE.public_key().public_bytes_raw()).decode()
OTHER_PUBLIC = "whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="

CHANGE = {"position": 42, "type": "installation.activated", "installation_id": "Grüße"}
BODY = json.dumps({"type": CHANGE["type"], "timestamp": "2026-11-27T10:00:00Z", "data": CHANGE}, ensure_ascii=False)
ID = "msg_1"


def now() -> int:
    return int(time.time())


def headers(signature: str, at: int | None = None) -> dict[str, str]:
    return {"webhook-id": ID, "webhook-timestamp": str(at or now()), "webhook-signature": signature}


def v1(at: int | None = None, secret: str = SECRET) -> str:
    return Webhook(secret).sign(ID, datetime.fromtimestamp(at or now(), timezone.utc), BODY)


def v1a(at: int | None = None) -> str:
    return "v1a," + base64.b64encode(PRIVATE.sign(f"{ID}.{at or now()}.{BODY}".encode())).decode()


def refused(given: dict[str, Any], keys: str | list[str], body: str = BODY) -> None:
    with pytest.raises(PushNotGenuine):
        verify_push(body, given, keys)


def test_a_push_of_a_known_key_is_read() -> None:
    expected: Any = Push(ID, "installation.activated", "2026-11-27T10:00:00Z", CHANGE)  # type: ignore[arg-type]
    assert verify_push(BODY, headers(v1()), SECRET) == expected
    assert verify_push(BODY.encode(), headers(v1a()), PUBLIC) == expected
    assert verify_push(BODY.encode(), Headers(headers(v1())), [SECRET]) == expected
    assert verify_push(BODY, httpx.Headers(headers(v1a())), PUBLIC) == expected
    assert verify_push(BODY, {name.upper(): value for name, value in headers(v1()).items()}, SECRET) == expected


def test_one_of_several_signatures_and_one_of_several_keys_are_enough() -> None:
    both = headers(f"{v1(secret=OTHER_SECRET)} {v1a()} {v1()}")
    for keys in (SECRET, PUBLIC, [OTHER_SECRET, SECRET], [OTHER_PUBLIC, PUBLIC], [OTHER_PUBLIC, SECRET]):
        assert verify_push(BODY, both, keys).id == ID


@pytest.mark.parametrize("malformed", ["v1", ",", "v1,", "v1,a", "v1,ü", "v1a,ü", ""])
def test_a_signature_that_is_malformed_hides_no_other(malformed: str) -> None:
    for signature, key in ((v1(), SECRET), (v1a(), PUBLIC)):
        assert verify_push(BODY, headers(f"{malformed} {signature}"), key).id == ID


def test_what_another_key_signed_or_was_changed_is_refused() -> None:
    refused(headers(v1()), OTHER_SECRET)
    refused(headers(v1a()), OTHER_PUBLIC)
    for signature, key in ((v1(), SECRET), (v1a(), PUBLIC)):
        refused(headers(signature), key, BODY.replace("42", "43"))
        refused({**headers(signature), "webhook-id": "msg_2"}, key)
        refused(headers(signature, now() - 7), key)


def test_a_signature_counts_for_its_own_kind_of_key() -> None:
    refused(headers(v1()), PUBLIC)
    refused(headers(v1a()), SECRET)
    refused(headers(v1a().replace("v1a", "v1")), SECRET)
    refused(headers(v1a().replace("v1a", "v1")), PUBLIC)
    for nothing in ("v1a", "v1a,", "v1", "v1,", ",", " ", "v1a,AAAA", "v1,ü", "v1a,ü"):
        refused(headers(nothing), [PUBLIC, SECRET])


def test_a_time_that_is_not_now_is_refused() -> None:
    for at in (now() - 310, now() + 310):
        refused(headers(v1(at), at), SECRET)
        refused(headers(v1a(at), at), PUBLIC)
    for nonsense in ("soon", "9" * 5_000, "٣", "-1", "1e9"):
        refused({**headers(v1a()), "webhook-timestamp": nonsense}, PUBLIC)
    earlier = now() - 290
    assert verify_push(BODY, headers(v1a(earlier), earlier), PUBLIC).id == ID


def test_headers_that_are_missing_or_come_twice_are_refused() -> None:
    given = headers(v1())
    for name in given:
        refused({other: value for other, value in given.items() if other != name}, SECRET)
        refused({**given, name: ["a", "b"]}, SECRET)
        refused({**given, name.upper(): "a"}, SECRET)
    twice = Headers(raw=[(name.encode(), value.encode()) for name, value in [*given.items(), ("webhook-id", "other")]])
    with pytest.raises(PushNotGenuine):
        verify_push(BODY, twice, SECRET)


@pytest.mark.parametrize("key", ["secret-key", "", "whsec_", "whsec_ü", "whpk_" + base64.b64encode(bytes(31)).decode()])
def test_a_key_that_is_none_is_the_mistake_of_who_gave_it_and_is_not_repeated(key: str) -> None:
    with pytest.raises(ValueError) as raised:
        verify_push(BODY, headers(v1()), key)
    assert key in ("", "whsec_") or key not in str(raised.value)
    with pytest.raises(ValueError):
        verify_push(BODY, headers(v1()), [])


def test_the_official_library_passes_over_signatures_that_are_labelled_v1a() -> None:
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Webhook(SECRET).verify(BODY, headers(v1().replace("v1,", "v1a,")))
