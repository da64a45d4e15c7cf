"""What the API takes and answers, under the names that this package uses."""

from typing import Literal

from .openapi import (
    Candidate,
    Change,
    ChangesPage,
    Event,
    EventsPage,
    Installation,
    InstallationsPage,
    PortalLaunch,
    PortalSession,
    PortalUrl,
    RelatedInstallation,
)
from .openapi import Credential as CredentialBody
from .openapi import Problem as ProblemBody

Status = Literal["pending", "active", "suspended", "superseded", "inactive", "unconfirmed", "unverified"]

__all__ = [
    "Candidate",
    "Change",
    "ChangesPage",
    "CredentialBody",
    "Event",
    "EventsPage",
    "Installation",
    "InstallationsPage",
    "PortalLaunch",
    "PortalSession",
    "PortalUrl",
    "ProblemBody",
    "RelatedInstallation",
    "Status",
]
