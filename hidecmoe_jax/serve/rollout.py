"""Roll-out of a changed run: it answers at once, in the shadow of the version before, or a share of the requests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.jsonfile import parse_json
from hidecmoe_jax.serve.refusal import Refusal
from hidecmoe_jax.serve.versions import Version

ACTIONS = ("promote", "back", "shadow", "canary")


@dataclass(frozen=True)
class Candidate:
    """A version beside the one that answers.

    Attributes:
      share: share of the requests that it answers; None: it answers all of them too, for the log alone.
    """

    version: Version
    share: float | None

    def meets(self, request: str) -> bool:
        """Whether a request is answered by this version; the draw is the request's own, so it can be checked."""
        if self.share is None:
            return False
        digest = hashlib.sha256(f"{request} canary".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64

    def to_json(self) -> dict[str, Any]:
        """Name, mode and share."""
        return {"version": self.version.name, "mode": mode_of(self.share), "share": self.share}


@dataclass(frozen=True)
class Action:
    """What an owner wants of the candidate: `promote` it, go `back`, or let it be a `shadow` or a `canary` from now on.

    Attributes:
      share: of a canary.
      why: reason, for the log.
    """

    name: str
    share: float | None = None
    why: str | None = None


def mode_of(share: float | None) -> str:
    """The mode of a candidate."""
    return "shadow" if share is None else "canary"


def read_action(body: bytes) -> Action:
    """Returns the action of a request's body: {"action": "canary", "share": 0.1, "why": "..."}.

    Raises:
      Refusal: 400 where it is anything else.
    """
    try:
        fields = parse_json(body.decode("utf-8"), Path("the body"))
    except (UnicodeDecodeError, DataError):
        raise Refusal(400, "the body must be a JSON object", code="not_json") from None
    if not isinstance(fields, dict) or set(fields) - {"action", "share", "why"}:
        raise Refusal(400, "the body must be an object of action, share and why", code="invalid_value")
    name = fields.get("action")
    if name not in ACTIONS:
        raise Refusal(400, f"action must be one of {', '.join(ACTIONS)}", code="invalid_value", param="action")
    share = fields.get("share")
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    if (name == "canary") != (share is not None) or (share is not None and not (is_number and 0 < share < 1)):
        why = "share is a number between 0 and 1, and belongs to canary alone"
        raise Refusal(400, why, code="invalid_value", param="share")
    why = fields.get("why")
    if why is not None and not isinstance(why, str):
        raise Refusal(400, "why must be a text", code="invalid_value", param="why")
    return Action(name, None if share is None else float(share), why)
