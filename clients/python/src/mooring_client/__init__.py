"""A client of Mooring. The stores for the platforms' SDKs are in `mooring_client.highlevel` and `mooring_client.slack`."""

from . import openapi, types
from .client import Mooring
from .credential import Credential
from .errors import CursorExpired, MooringProblem, MooringUnreachable
from .follow import Changed, Listed, OnFailure, Step
from .portal import PORTAL_PAGE_HEADERS, PortalAnswer, PortalPage, answer_portal_launch, check_portal_token
from .push import Push, PushHeaders, PushNotGenuine, verify_push
from .transport import Token

__all__ = [
    "PORTAL_PAGE_HEADERS",
    "Changed",
    "Credential",
    "CursorExpired",
    "Listed",
    "Mooring",
    "MooringProblem",
    "MooringUnreachable",
    "OnFailure",
    "PortalAnswer",
    "PortalPage",
    "Push",
    "PushHeaders",
    "PushNotGenuine",
    "Step",
    "Token",
    "answer_portal_launch",
    "check_portal_token",
    "openapi",
    "types",
    "verify_push",
]
