import json
from typing import Any

from .times import time_of
from .types import CredentialBody

_REDACTED = "[redacted]"


class Credential:
    """An opened credential. No log, no repr and no `vars` shows its secret."""

    # Without `__dict__`: frameworks make JSON of what is in it.
    __slots__ = ("_secret", "expires_at", "installation_id", "source")

    def __init__(self, body: CredentialBody) -> None:
        self.source = body["source"]
        self.installation_id = body["installation_id"]
        expires_at = body["expires_at"]
        self.expires_at = None if expires_at is None else time_of(expires_at)
        """When the access token ends, if it does."""
        self._secret = body["credential"]

    @property
    def secret(self) -> str:
        """As Mooring answered it: the key of the platform, or a JSON object."""
        return self._secret

    @property
    def key(self) -> str:
        """What to send to the platform: the access token if there is one, else the whole secret."""
        token = self.access_token
        return self._secret if token is None else token

    @property
    def access_token(self) -> str | None:
        return self._text("access_token")

    @property
    def refresh_token(self) -> str | None:
        """Only if the caller's token has the scope for it."""
        return self._text("refresh_token")

    @property
    def fields(self) -> dict[str, Any] | None:
        """Of a secret that is a JSON object: its fields."""
        try:
            value = json.loads(self._secret)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def _text(self, name: str) -> str | None:
        value = (self.fields or {}).get(name)
        return value if isinstance(value, str) else None

    def __repr__(self) -> str:
        return f"Credential({self.source!r}, {self.installation_id!r}, {_REDACTED})"
