from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from urllib.parse import quote

from . import follow as feed
from .credential import Credential
from .transport import RETRIES, TIMEOUT_S, Asked, Query, Token, Transport
from .types import (
    ChangesPage,
    Event,
    EventsPage,
    Installation,
    InstallationsPage,
    PortalLaunch,
    PortalSession,
    PortalUrl,
    RelatedInstallation,
    Status,
)

_PAGE_MAX = 200


class Mooring:
    """What a worker of Mooring answers. Errors are a `MooringProblem` or `MooringUnreachable`.

    `url` is where the worker is, such as `http://worker:8081`. `timeout` is how many seconds a call may take with all its
    attempts, beside what it is told to wait. One object is for one event loop.
    """

    def __init__(self, url: str, token: Token, *, timeout: float = TIMEOUT_S) -> None:
        self._transport = Transport(url, token, timeout)

    async def aclose(self) -> None:
        """Closes its connections."""
        await self._transport.aclose()

    async def __aenter__(self) -> "Mooring":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def list_page(
        self,
        *,
        source: str | None = None,
        status: Status | None = None,
        plan: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> InstallationsPage:
        """One page of installations."""
        query = {"source": source, "status": status, "plan": plan, "cursor": cursor, "limit": limit}
        page: InstallationsPage = await self._transport.ask(Asked("GET", "/v1/installations", query))
        return page

    async def list_pages(
        self,
        *,
        source: str | None = None,
        status: Status | None = None,
        plan: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[InstallationsPage, None]:
        """All pages of installations. The change feed goes on from the `changes_cursor` of the first."""
        while True:
            page = await self.list_page(source=source, status=status, plan=plan, cursor=cursor, limit=limit)
            yield page
            cursor = page["next_cursor"]
            if cursor is None:
                return

    async def list(
        self,
        *,
        source: str | None = None,
        status: Status | None = None,
        plan: str | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[Installation, None]:
        """All installations, page by page as they are needed."""
        async for page in self.list_pages(source=source, status=status, plan=plan, cursor=cursor, limit=limit):
            for installation in page["installations"]:
                yield installation

    async def get(
        self,
        id: str,
        *,
        source: str | None = None,
        app_id: str | None = None,
        place: str | None = None,
        wait: int | None = None,
    ) -> RelatedInstallation:
        """One installation. With `wait` one that is on its way is waited for, so many seconds."""
        query = {"source": source, "app_id": app_id, "place": place, "wait": wait}
        found: RelatedInstallation = await self._transport.ask(Asked("GET", _path_of(id), query, wait=wait or 0))
        return found

    async def events_page(
        self,
        id: str,
        *,
        source: str | None = None,
        app_id: str | None = None,
        place: str | None = None,
        after: int | None = None,
        limit: int | None = None,
    ) -> EventsPage:
        """One page of its events, in log order."""
        query = {"source": source, "app_id": app_id, "place": place, "after": after, "limit": limit}
        page: EventsPage = await self._transport.ask(Asked("GET", f"{_path_of(id)}/events", query))
        return page

    async def events(
        self,
        id: str,
        *,
        source: str | None = None,
        app_id: str | None = None,
        place: str | None = None,
        after: int | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[Event, None]:
        """All its events, in log order."""
        while True:
            page = await self.events_page(id, source=source, app_id=app_id, place=place, after=after, limit=limit)
            for event in page["events"]:
                yield event
            after = page["next_after"]
            if after is None:
                return

    async def credential(
        self, id: str, *, source: str | None = None, app_id: str | None = None, place: str | None = None
    ) -> Credential:
        """Opens its credential. Mooring records who did."""
        query = {"source": source, "app_id": app_id, "place": place}
        return Credential(await self._transport.ask(Asked("GET", f"{_path_of(id)}/credential", query)))

    async def current_key(
        self, id: str, *, source: str | None = None, app_id: str | None = None, place: str | None = None
    ) -> str:
        """What to send to the platform now: its access token if it has one, else its key."""
        return (await self.credential(id, source=source, app_id=app_id, place=place)).key

    async def changes(
        self,
        *,
        after: str | None = None,
        source: str | None = None,
        types: Sequence[str] | None = None,
        wait: int | None = None,
        limit: int | None = None,
    ) -> ChangesPage:
        """One page of the change feed. With `types` only changes of these types."""
        return await self._changes(_changes_query(after, source, types, wait, limit), wait or 0, None)

    def follow(
        self,
        *,
        after: str | None = None,
        source: str | None = None,
        types: Sequence[str] | None = None,
        wait: int = feed.WAIT_S,
        on_failure: feed.OnFailure | None = None,
    ) -> AsyncGenerator[feed.Changed, None]:
        """Each change after a cursor, for as long as it is read. Without `after` from the oldest that is kept.

        One request waits `wait` seconds for a change, 50 at most. `on_failure` is told of each failure that is waited out.
        """
        return feed.follow(self._reader(source, types, wait), after, on_failure)

    def list_and_follow(
        self,
        *,
        after: str | None = None,
        source: str | None = None,
        types: Sequence[str] | None = None,
        wait: int = feed.WAIT_S,
        on_failure: feed.OnFailure | None = None,
    ) -> AsyncGenerator[feed.Step, None]:
        """The whole list, and then each change without a hole.

        It begins with the list unless `after` is given, and lists again when that cursor has expired.
        """

        def pages() -> AsyncGenerator[InstallationsPage, None]:
            return self.list_pages(source=source, limit=_PAGE_MAX)

        return feed.list_and_follow(pages, self._reader(source, types, wait), after, on_failure)

    async def open_portal_session(self, launch: PortalLaunch, *, source: str | None = None) -> PortalUrl:
        """Opens a session of the app's portal for what Blnk posted to its portal generator URL."""
        asked = Asked("POST", "/v1/portal-sessions", {"source": source}, body=launch)
        opened: PortalUrl = await self._transport.ask(asked)
        return opened

    async def introspect_portal_session(self, token: str) -> PortalSession:
        """Whose portal a token opens."""
        # It changes nothing, so it may be asked again.
        asked = Asked("POST", "/v1/portal-sessions/introspect", body={"token": token}, retries=RETRIES)
        session: PortalSession = await self._transport.ask(asked)
        return session

    def _reader(self, source: str | None, types: Sequence[str] | None, wait: int) -> feed.ReadChanges:
        seconds = max(1, wait)

        async def read(after: str | None) -> ChangesPage:
            return await self._changes(_changes_query(after, source, types, seconds, None), seconds, 0)

        return read

    async def _changes(self, query: Query, wait: int, retries: int | None) -> ChangesPage:
        page: ChangesPage = await self._transport.ask(Asked("GET", "/v1/changes", query, wait=wait, retries=retries))
        return page


def _changes_query(
    after: str | None, source: str | None, types: Sequence[str] | None, wait: int | None, limit: int | None
) -> Query:
    type = None if types is None else ",".join(types)
    return {"after": after, "source": source, "type": type, "wait": wait, "limit": limit}


def _path_of(id: str) -> str:
    # `.` and `..` would be resolved away, and no platform has such an id.
    if id in ("", ".", ".."):
        raise ValueError("this is no id of an installation")
    return f"/v1/installations/{quote(id, safe='')}"
