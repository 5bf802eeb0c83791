"""The page that a server has for people: its files, and what it asks the server beside completions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.operate.entries import ChangeEntry
from hidecmoe_jax.operate.kept_pictures import find_picture
from hidecmoe_jax.operate.operation import Operation
from hidecmoe_jax.operate.prices import Prices
from hidecmoe_jax.operate.review import Judgement, find_answer, review_of
from hidecmoe_jax.report.translation import LANGUAGES, table
from hidecmoe_jax.serve.access import Person
from hidecmoe_jax.serve.changes import Changes, command_of
from hidecmoe_jax.serve.desk import LogView, RunView, health, inbox
from hidecmoe_jax.serve.refusal import Refusal
from hidecmoe_jax.serve.versions import Version

_FILES = Path(__file__).parent / "page"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PICTURES = {
    ".png": "image/png", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif", ".bmp": "image/bmp",
    ".tiff": "image/tiff", ".mpo": "image/jpeg",
}  # fmt: skip
# Nothing from elsewhere, no inline script; pictures are data URLs, which a browser takes with a token too.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_REVIEW_KEYS = ("of", "decision", "task", "answer")


@dataclass(frozen=True)
class Content:
    """A response that is no JSON."""

    kind: str
    body: bytes
    policy: str = "default-src 'none'; sandbox"


@dataclass(frozen=True)
class Caller:
    """Who asks for what.

    Attributes:
      fields: the JSON value of the body; None of a GET.
      version: state of the run that answers; None while it is loaded.
    """

    person: Person
    fields: Any
    version: Version | None

    @property
    def serving(self) -> Version:
        """The state of the run that answers.

        Raises:
          Refusal: 503 while there is none.
        """
        if self.version is None:
            raise Refusal(503, "the run is being loaded", code="loading", retry_after=5)
        return self.version


@dataclass(frozen=True)
class Route:
    """What a path does.

    Attributes:
      role: the least that may; None for everyone, without a token too.
      call: returns a `Content`, or a value for JSON; runs in a thread.
    """

    method: str
    role: str | None
    call: Callable[[Caller], Any]


class Page:
    """Routes of the page.

    Args:
      run: folder of the run that is served.
      name: of the run, as the log has it.
      prices: what a wrong task costs.
    """

    def __init__(self, run: Path, name: str, operation: Operation, prices: Prices | None = None):
        self.name = name
        self.folder = run
        self.operation = operation
        self.prices = prices or Prices()
        self.changes = Changes()
        self._run = RunView(run)
        self._log = None if operation.log is None else LogView(operation.log.folder)

    def routes(self) -> dict[str, Route]:
        """All paths."""
        routes = {
            "/": Route("GET", None, lambda _: _file("index.html", "text/html; charset=utf-8")),
            "/page/page.js": Route("GET", None, lambda _: _file("page.js", "text/javascript; charset=utf-8")),
            "/page/page.css": Route("GET", None, lambda _: _file("page.css", "text/css; charset=utf-8")),
            "/page/words.json": Route("GET", None, lambda _: {name: table(name)["page"] for name in LANGUAGES}),
            "/v1/page/state": Route("GET", "viewer", self._state),
            "/v1/page/tasks": Route("GET", "viewer", self._tasks),
            "/v1/page/threshold": Route("GET", "viewer", lambda _: self._run.threshold()),
            "/v1/page/change": Route("POST", "owner", self._change),
            "/v1/page/changes": Route("GET", "owner", self._changed),
        }
        if self._log is not None:
            routes |= {
                "/v1/page/health": Route("GET", "viewer", self._health),
                "/v1/page/inbox": Route("GET", "reviewer", lambda _: inbox(self._lines())),
                "/v1/page/picture": Route("POST", "reviewer", self._picture),
                "/v1/reviews": Route("POST", "reviewer", self._review),
            }
        return routes

    def _lines(self) -> list[dict[str, Any]]:
        return self._log.lines(datetime.now(UTC).date())

    def _state(self, caller: Caller) -> dict[str, Any]:
        """Who looks at which run, and what there is to see."""
        version = caller.serving
        person = caller.person
        return {
            "run": self.name, "name": person.name, "role": person.role, "tasks": list(version.tasks),
            "version": version.name, "log": self._log is not None,
        }  # fmt: skip

    def _tasks(self, caller: Caller) -> dict[str, Any]:
        retired = caller.serving.assistant.retired
        return {"tasks": self._run.tasks(retired), "changing": self.changes.is_running}

    def _health(self, _: Caller) -> dict[str, Any]:
        return health(self._lines(), self.prices, datetime.now(UTC).date())

    def _picture(self, caller: Caller) -> Content:
        """A kept picture.

        Raises:
          Refusal: 400 for no digest, 404 where it was not kept.
        """
        digest = caller.fields.get("digest") if isinstance(caller.fields, Mapping) else None
        if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:
            raise Refusal(400, "digest must be 64 hexadecimal digits", code="invalid_value", param="digest")
        path = find_picture(self._log.folder, digest)
        if path is None:
            raise Refusal(404, "this picture was not kept", code="not_kept", param="digest")
        return Content(_PICTURES.get(path.suffix, "application/octet-stream"), path.read_bytes())

    def _review(self, caller: Caller) -> dict[str, Any]:
        """Logs a decision about an answer.

        Raises:
          Refusal: 400 where it does not fit, 503 where it could not be logged.
        """
        fields = caller.fields
        is_object = isinstance(fields, Mapping) and all(isinstance(value, str) for value in fields.values())
        if not is_object or not {"of", "decision"} <= set(fields) <= set(_REVIEW_KEYS):
            raise Refusal(
                400, f"a review is an object of texts: of, decision, and perhaps {', '.join(_REVIEW_KEYS[2:])}",
                code="invalid_review",
            )  # fmt: skip
        judgement = Judgement(**fields)
        answer = find_answer(self._lines(), judgement.of)
        try:
            entry = review_of(judgement, answer, tasks=caller.serving.tasks, by=caller.person.name or None)
        except DataError as error:
            raise Refusal(400, f"{error.what}: {error.why}", code="invalid_review") from None
        try:
            self.operation.add(entry)
        except OSError:
            raise Refusal(503, "this decision could not be logged", code="not_logged") from None
        return {"id": entry.id, "of": entry.of, "decision": entry.decision}

    def _changed(self, _: Caller) -> dict[str, Any]:
        """The change that is made, or was made last; with the table of a trial that is done."""
        state = self.changes.state()
        has_table = state["state"] == "done" and state["kind"] in ("retire", "merge")
        return state | {"tasks": self._run.trial(state["kind"]) if has_table else []}

    def _change(self, caller: Caller) -> dict[str, Any]:
        """Begins a trial or a commit."""
        version = caller.serving
        words = command_of(caller.fields, self.folder, version.tasks)
        self.changes.begin(words)
        is_trial = "--commit" not in words and words[0] in ("retire", "merge")
        if not is_trial:
            # The words without the run's place.
            what = " ".join([words[0], *words[2:]])
            self.operation.add(ChangeEntry(what, version.name, None, caller.person.name or None, "asked on the page"))
        return self._changed(caller)


def _file(name: str, kind: str) -> Content:
    return Content(kind, (_FILES / name).read_bytes(), _POLICY)
