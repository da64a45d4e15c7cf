import base64
import binascii
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .types import Change

_TOLERANCE_S = 300
_SHARED = "whsec_"
_PUBLIC = "whpk_"
_PUBLIC_KEY_BYTES = 32


@dataclass(frozen=True)
class Push:
    """A change that Mooring pushed."""

    id: str
    """The same for each copy of a change."""
    type: str
    timestamp: str
    change: Change


class PushHeaders(Protocol):
    """The headers of a request, as web frameworks and dictionaries have them."""

    def items(self) -> Iterable[tuple[str, object]]: ...


class PushNotGenuine(Exception):
    """No key that was given signed this, or its time is not now."""


@dataclass(frozen=True)
class _Signed:
    id: str
    timestamp: str
    signatures: str
    body: bytes


_Check = Callable[[_Signed], bool]


def verify_push(body: bytes | str, headers: PushHeaders, keys: str | Sequence[str]) -> Push:
    """A push, if one of the keys signed it at most five minutes ago.

    `body` is the raw body, as it came. Keys are those of Standard Webhooks: `whsec_…` for signatures `v1`, and `whpk_…` for
    `v1a`. Of two keys one is enough, so that they can be rotated.
    """
    given = [keys] if isinstance(keys, str) else keys
    if not given:
        raise ValueError("give at least one key")
    checks = [_check_with(key) for key in given]
    signed = _Signed(
        id=_header(headers, "webhook-id"),
        timestamp=_header(headers, "webhook-timestamp"),
        signatures=_header(headers, "webhook-signature"),
        body=body.encode() if isinstance(body, str) else bytes(body),
    )
    _require_now(signed.timestamp)
    if not any(is_genuine(signed) for is_genuine in checks):
        raise PushNotGenuine("no signature is of a key that was given")
    return _push_of(signed)


def _check_with(key: str) -> _Check:
    if key.startswith(_SHARED):
        return _shared_secret(key)
    if key.startswith(_PUBLIC):
        return _public_key(key)
    raise ValueError(f"a key begins with {_SHARED} or {_PUBLIC}")


def _shared_secret(key: str) -> _Check:
    """By the official library, which is loaded only if a key is a shared secret."""
    from standardwebhooks import Webhook, WebhookVerificationError

    if not _base64_of(key[len(_SHARED) :]):
        raise ValueError(f"{_SHARED} is followed by a secret in base64")
    webhook = Webhook(key)

    def is_genuine(signed: _Signed) -> bool:
        # One by one: the library raises a ValueError at the first that is malformed, and looks at no other.
        return any(verifies(signed, signature) for signature in signed.signatures.split(" "))

    def verifies(signed: _Signed, signature: str) -> bool:
        headers = {"webhook-id": signed.id, "webhook-timestamp": signed.timestamp, "webhook-signature": signature}
        try:
            webhook.verify(signed.body, headers, json_parse=False)
        except (WebhookVerificationError, ValueError):
            return False
        return True

    return is_genuine


def _public_key(key: str) -> _Check:
    """That library passes over all signatures but `v1`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = _base64_of(key[len(_PUBLIC) :])
    if len(raw) != _PUBLIC_KEY_BYTES:
        raise ValueError(f"{_PUBLIC} is followed by {_PUBLIC_KEY_BYTES} bytes in base64")
    public_key = Ed25519PublicKey.from_public_bytes(raw)

    def is_genuine(signed: _Signed) -> bool:
        content = f"{signed.id}.{signed.timestamp}.".encode() + signed.body
        for one in signed.signatures.split(" "):
            version, _, signature = one.partition(",")
            if version != "v1a":
                continue
            try:
                public_key.verify(_base64_of(signature), content)
            except InvalidSignature:
                continue
            return True
        return False

    return is_genuine


def _base64_of(text: str) -> bytes:
    """Nothing, if it is no base64."""
    padded = text + "=" * (-len(text) % 4)
    try:
        return base64.b64decode(padded, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _require_now(timestamp: str) -> None:
    is_now = re.fullmatch("[0-9]{1,12}", timestamp) and abs(int(time.time()) - int(timestamp)) <= _TOLERANCE_S
    if not is_now:
        raise PushNotGenuine("the time is not within five minutes of now")


def _header(headers: PushHeaders, name: str) -> str:
    found = [value for given, value in headers.items() if given.lower() == name]
    if len(found) != 1 or not isinstance(found[0], str) or not found[0]:
        raise PushNotGenuine(f"the header {name} is not there once")
    return found[0]


def _push_of(signed: _Signed) -> Push:
    said = json.loads(signed.body)
    return Push(signed.id, said["type"], said["timestamp"], said["data"])
