"""For HighLevel's SDK: `pip install 'mooring-client[highlevel]'`."""

from typing import Any, NoReturn

from highlevel import HighLevel
from highlevel.constants import UserType
from highlevel.storage import ISessionData, SessionStorage

from .client import Mooring
from .errors import MooringProblem

# How the parts of an installation id are named, by whose session it is.
_KINDS = (
    ("location", UserType.LOCATION, "locationId"),
    ("company", UserType.COMPANY, "companyId"),
)


class NotStored(Exception):
    """Somebody meant to keep tokens in the storage."""


class MooringSessionStorage(SessionStorage):  # type: ignore[misc]
    """Sessions of HighLevel's SDK, as Mooring has them.

    It writes nothing, and gives no refresh token out: if the SDK renewed a token, the refresh token that Mooring holds would
    be spent. The SDK asks for the session before each request.

    `source` is the name of the source in Mooring. `app_id` is the app's id; without it what precedes the first `-` of the
    client id that the SDK is given.
    """

    def __init__(self, mooring: Mooring, *, source: str, app_id: str | None = None) -> None:
        super().__init__()
        self._mooring = mooring
        self._source = source
        self._app_id = app_id

    def set_client_id(self, client_id: str) -> None:
        """The SDK calls it with its client id."""
        self._app_id = self._app_id or client_id.split("-")[0]

    async def get_session(self, resource_id: str) -> ISessionData | None:
        """`resource_id` is the id of a location or a company."""
        for kind, user_type, id_field in _KINDS:
            try:
                credential = await self._mooring.credential(self._id_of(kind, resource_id), source=self._source)
            except MooringProblem as problem:
                if problem.code == "installation-not-found":
                    continue
                if problem.code == "no-credential":
                    return None
                raise
            # Without `expire_at`. With one the SDK would renew a token in its last 30 s, which it cannot.
            return ISessionData(
                {"access_token": credential.key, "token_type": "Bearer", "userType": user_type, id_field: resource_id}
            )
        return None

    async def get_access_token(self, resource_id: str) -> str | None:
        session = await self.get_session(resource_id)
        return session["access_token"] if session else None

    async def get_refresh_token(self, resource_id: str) -> None:
        return None

    async def set_session(self, resource_id: str, session_data: ISessionData) -> None:
        """The SDK calls it by itself when its webhook middleware has seen an INSTALL and exchanged an agency's token for a
        location's. Mooring does that, too, so nothing is lost. Such tokens have no refresh token. Those of a user's grant
        have one: the app has exchanged the code itself, and would lose it.
        """
        if self.normalize_session_data(session_data).get("refresh_token"):
            self._refuse()

    async def delete_session(self, resource_id: str) -> None:
        """The SDK calls it by itself at an UNINSTALL. Mooring hears of that from HighLevel, and ends the session."""

    async def init(self) -> None: ...

    async def disconnect(self) -> None: ...

    async def create_collection(self, collection_name: str) -> None: ...

    async def get_collection(self, collection_name: str) -> None:
        return None

    def _refuse(self) -> NoReturn:
        raise NotStored(
            f"nothing is stored here: send users to Mooring's /oauth/{self._source}/authorize, whose callback takes the grant"
        )

    def _id_of(self, kind: str, resource_id: str) -> str:
        if not self._app_id:
            raise ValueError("give the storage an app_id, or the SDK a client_id")
        return ":".join(_encode_part(part) for part in (self._app_id, kind, resource_id))


class MooringHighLevel(HighLevel):  # type: ignore[misc]
    """HighLevel's SDK, which after a 401 goes on with the token that Mooring has by then.

    The SDK reads the session once more after a 401, but repeats the request only with a token that it renewed itself. This
    takes the token of the session that it has just read. It never renews one.
    """

    async def _refresh_token_if_needed(self, resource_id: str, session_data: Any) -> str | None:
        token = session_data.get("access_token")
        return f"Bearer {token}" if token else None


def _encode_part(part: str) -> str:
    """As Mooring writes a part of an id."""
    return part.replace("%", "%25").replace(":", "%3A")
