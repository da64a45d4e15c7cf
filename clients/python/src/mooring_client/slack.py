"""For Slack's SDK: `pip install 'mooring-client[slack]'`."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn, cast

from slack_sdk.oauth.installation_store import Bot, Installation
from slack_sdk.oauth.installation_store.async_installation_store import AsyncInstallationStore

from .client import Mooring
from .errors import MooringProblem
from .times import time_of

# Problems that mean that the app is not installed, or not any more.
_NOT_INSTALLED = ("installation-not-found", "no-credential")

Complete = Callable[[Installation], Installation | Awaitable[Installation]]

# The SDK's types ask for ids that Mooring does not have. Absent they fail where they are needed; made up they would not.
_UNKNOWN = cast(str, None)


class NotHere(Exception):
    """Slack's SDK asked for what Mooring does in its place, or does not do."""


class MooringInstallationStore(AsyncInstallationStore):
    """Installations for Slack's SDK, as Mooring has them: the bot's token, and neither a refresh token nor a user's token.

    `source` is the name of the source in Mooring. `complete` adds what Mooring does not have, such as the ids of the bot by
    Slack's `auth.test`. It is called each time that an installation is found.
    """

    def __init__(self, mooring: Mooring, *, source: str, complete: Complete | None = None) -> None:
        self._mooring = mooring
        self._source = source
        self._complete = complete

    @property
    def logger(self) -> logging.Logger:
        return logging.getLogger(__name__)

    async def async_find_installation(
        self,
        *,
        enterprise_id: str | None,
        team_id: str | None,
        user_id: str | None = None,
        is_enterprise_install: bool | None = False,
    ) -> Installation | None:
        if is_enterprise_install or not team_id:
            raise NotHere("Mooring has installations of workspaces, and none of whole organizations")
        if user_id is not None:
            # Mooring has no tokens of users.
            return None
        try:
            installation, credential = await asyncio.gather(
                self._mooring.get(team_id, source=self._source),
                self._mooring.credential(team_id, source=self._source),
            )
        except MooringProblem as problem:
            if problem.code in _NOT_INSTALLED:
                return None
            raise
        installed_at = installation["installed_at"]
        # Without a refresh token the SDK renews nothing. Mooring does.
        found = Installation(
            app_id=installation["app_id"],
            team_id=team_id,
            bot_token=credential.key,
            bot_scopes=installation["granted_permissions"],
            user_id=_UNKNOWN,
            token_type="bot",
            installed_at=time_of(installed_at) if installed_at else None,
        )
        completed = self._complete(found) if self._complete else found
        return await completed if inspect.isawaitable(completed) else completed

    async def async_find_bot(
        self, *, enterprise_id: str | None, team_id: str | None, is_enterprise_install: bool | None = False
    ) -> Bot | None:
        found = await self.async_find_installation(
            enterprise_id=enterprise_id, team_id=team_id, is_enterprise_install=is_enterprise_install
        )
        return found.to_bot() if found else None

    async def async_save(self, installation: Installation) -> None:
        """The SDK calls it with what its own OAuth brought, which would be lost."""
        self._refuse()

    async def async_save_bot(self, bot: Bot) -> None:
        self._refuse()

    # Bolt calls these when Slack tells of an uninstall. Mooring hears of that from Slack, and ends the installation.

    async def async_delete_installation(
        self, *, enterprise_id: str | None, team_id: str | None, user_id: str | None = None
    ) -> None: ...

    async def async_delete_bot(self, *, enterprise_id: str | None, team_id: str | None) -> None: ...

    def _refuse(self) -> NoReturn:
        raise NotHere(
            f"nothing is stored here: send users to Mooring's /oauth/{self._source}/authorize, whose callback takes the grant"
        )
