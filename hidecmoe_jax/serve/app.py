"""The server as an ASGI application: routes, limits before any work, and answers of the worker.

Written against ASGI itself (asgi.readthedocs.io), so that the package needs no web framework; uvicorn runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from hidecmoe_jax.data.records import Record
from hidecmoe_jax.operate.entries import ChangeEntry
from hidecmoe_jax.operate.metrics import CONTENT_TYPE
from hidecmoe_jax.operate.operation import Operation
from hidecmoe_jax.runs.status import say
from hidecmoe_jax.serve.access import NOBODY, Access, Person
from hidecmoe_jax.serve.admission import job_of, remove_after
from hidecmoe_jax.serve.chat import AUTO, body_fields, read_request
from hidecmoe_jax.serve.completions import Completion
from hidecmoe_jax.serve.options import ServeOptions
from hidecmoe_jax.serve.page_routes import Caller, Content, Page, Route
from hidecmoe_jax.serve.pictures import write_pictures
from hidecmoe_jax.serve.refusal import Refusal
from hidecmoe_jax.serve.rollout import Action, Candidate, read_action
from hidecmoe_jax.serve.versions import Version
from hidecmoe_jax.serve.worker import Job, Outcome, Worker, late

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
_READERS = 2  # threads that read requests and decode their pictures
_JSON = "application/json"


class App:
    """Answers HTTP requests.

    Args:
      worker: answers what is admitted.
      access: who may ask.
      operation: counts what happens.
      page: what people see and do in a browser; without it there are the interfaces for programs alone.
    """

    def __init__(
        self, options: ServeOptions, worker: Worker, access: Access, operation: Operation, page: Page | None = None
    ):
        self.options = options
        self.worker = worker
        self.access = access
        self.operation = operation
        self.version: Version | None = None
        self.candidate: Candidate | None = None
        self.is_stopping = False
        self.in_flight = 0
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="reader")
        self._routes = {
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/models": {"GET": self._models},
            "/v1/rollout": {"GET": self._rollout, "POST": self._roll_out},
            "/healthz": {"GET": self._health},
            "/readyz": {"GET": self._ready},
            "/metrics": {"GET": self._metrics},
        }
        for path, route in ({} if page is None else page.routes()).items():
            self._routes[path] = {route.method: functools.partial(self._page, route)}

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """One connection's request, as ASGI calls it."""
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = secrets.token_hex(8)
        try:
            await self._route(scope)(headers, receive, send, request_id)
        except Refusal as refusal:
            self.operation.metrics.refused(refusal.status, refusal.code)
            await _send_json(send, refusal.status, refusal.to_json(), request_id, refusal.headers)
        except ConnectionResetError:
            pass  # nobody is there any more
        # Whatever it is, the client gets an answer in the promised form, and no text of ours that may repeat its own.
        except Exception as error:
            say(f"request {request_id} failed: {type(error).__name__}")
            failure = Refusal(500, "this request failed in the server", code="internal_error")
            self.operation.metrics.refused(failure.status, failure.code)
            await _send_json(send, failure.status, failure.to_json(), request_id)

    def _route(self, scope: Mapping[str, Any]) -> Callable[..., Awaitable[None]]:
        if scope["path"] not in self._routes:
            raise Refusal(404, f"no such path; there are {', '.join(self._routes)}", code="not_found")
        by_method = self._routes[scope["path"]]
        if scope["method"] not in by_method:
            raise Refusal(405, f"{scope['path']} takes {' or '.join(by_method)}", code="method_not_allowed")
        return by_method[scope["method"]]

    async def _health(self, headers: Mapping[str, str], receive: Receive, send: Send, request_id: str) -> None:
        """Whether the process lives."""
        await _send_json(send, 200, {"status": "ok"}, request_id)

    async def _ready(self, headers: Mapping[str, str], receive: Receive, send: Send, request_id: str) -> None:
        """Whether a question would be answered now."""
        state = self._state()
        version = None if self.version is None else self.version.name
        body = {"status": state, "version": version, "in_flight": self.in_flight}
        await _send_json(send, 200 if state == "ready" else 503, body, request_id)

    def _state(self) -> str:
        if self.is_stopping:
            return "stopping"
        if self.version is None:
            return "loading"
        return "ready" if self.worker.is_well else "failing"

    def _serving(self) -> Version:
        """The state of the run that new requests meet.

        Raises:
          Refusal: 503 while there is none.
        """
        if self.version is None or self.is_stopping:
            state = self._state()
            why = "the server is stopping" if self.is_stopping else "the run is being loaded"
            raise Refusal(503, why, code=state, retry_after=5)
        return self.version

    async def _models(self, headers: Mapping[str, str], receive: Receive, send: Send, request_id: str) -> None:
        """`auto` and the tasks that may be named."""
        self.access.person(headers)
        version = self._serving()
        models = []
        for name in (AUTO, *version.tasks):
            models.append({"id": name, "object": "model", "created": version.loaded, "owned_by": "hidecmoe"})
        await _send_json(send, 200, {"object": "list", "data": models, "version": version.name}, request_id)

    async def _rollout(self, headers: Mapping[str, str], receive: Receive, send: Send, request_id: str) -> None:
        """Which versions there are."""
        self.access.person(headers)
        await _send_json(send, 200, self._versions(), request_id)

    def _versions(self) -> dict[str, Any]:
        candidate = None if self.candidate is None else self.candidate.to_json()
        return {"version": self._serving().name, "candidate": candidate}

    async def _roll_out(self, headers: Mapping[str, str], receive: Receive, send: Send, request_id: str) -> None:
        """An owner's decision about the candidate."""
        person = self.access.person(headers)
        self.access.require(person, "owner")
        self._check_type(headers)
        action = read_action(await self._body(headers, receive))
        candidate = self.candidate
        if candidate is None:
            raise Refusal(409, "there is no candidate; a changed run becomes one", code="no_candidate")
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._readers, self._decide, action, candidate, person.name or None)
        await _send_json(send, 200, self._versions(), request_id)

    def _decide(self, action: Action, candidate: Candidate, by: str | None) -> None:
        """Carries an action out, once the log has it."""
        version = candidate.version
        if action.name == "promote":
            change = ChangeEntry("version", self.version.name, version.name, by, action.why or "promoted")
            self.operation.serves(change, version.assistant.own_matches, version.tasks)
            self.version = version
            self.candidate = None
            return
        after = None if action.name == "back" else Candidate(version, action.share)
        shown = None if after is None else after.to_json()
        self.operation.add(ChangeEntry("candidate", candidate.to_json(), shown, by, action.why))
        self.candidate = after

    async def _metrics(self, headers: Mapping[str, str], receive: Receive, send: Send, request_id: str) -> None:
        """Counters in Prometheus' text form."""
        self.access.person(headers)
        body = self.operation.metrics_text(running=self.worker.running, waiting=self.worker.waiting)
        await send(_start(200, {"content-type": CONTENT_TYPE, "content-length": str(len(body))}, request_id))
        await send({"type": "http.response.body", "body": body})

    async def _page(
        self, route: Route, headers: Mapping[str, str], receive: Receive, send: Send, request_id: str
    ) -> None:
        """What the page asks for."""
        person = NOBODY
        if route.role is not None:
            person = self.access.person(headers)
            self.access.require(person, route.role)
        fields = None
        if route.method == "POST":
            self._check_type(headers)
            fields = body_fields(await self._body(headers, receive))
        version = None if self.is_stopping else self.version
        caller = Caller(person, fields, version)
        result = await asyncio.get_running_loop().run_in_executor(self._readers, route.call, caller)
        if not isinstance(result, Content):
            await _send_json(send, 200, result, request_id, {"cache-control": "no-store"})
            return
        about = {
            "content-type": result.kind, "content-length": str(len(result.body)), "cache-control": "no-store",
            "content-security-policy": result.policy, "referrer-policy": "no-referrer",
        }  # fmt: skip
        await send(_start(200, about, request_id))
        await send({"type": "http.response.body", "body": result.body})

    async def _chat(self, headers: Mapping[str, str], receive: Receive, send: Send, request_id: str) -> None:
        """One question."""
        person = self.access.person(headers)
        self._admit(headers, person)
        deadline = time.monotonic() + self.options.timeout
        self.in_flight += 1
        try:
            body = await self._body(headers, receive)
            loop = asyncio.get_running_loop()
            version = self._serving()
            asked = (body, version, self.candidate, person, deadline, request_id)
            job = await loop.run_in_executor(self._readers, self._prepared, *asked)
            del body
            outcome = await self._outcome(job, receive)
            await self._reply(Completion(job, outcome), send)
        finally:
            self.in_flight -= 1

    def _admit(self, headers: Mapping[str, str], person: Person) -> None:
        """Refuses by headers and load alone, before a byte of the body is read."""
        self._serving()
        if self.in_flight >= self.options.max_waiting:
            why = f"{self.in_flight} requests wait already, at most {self.options.max_waiting}"
            raise Refusal(429, why, code="queue_full", retry_after=1)
        self.access.count(person)
        self._check_type(headers)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self.options.max_body_bytes:
            raise self._too_large()

    def _check_type(self, headers: Mapping[str, str]) -> None:
        """A page of another site may send other types without being asked, this one not."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != _JSON:
            raise Refusal(415, f"content-type must be {_JSON}", code="wrong_content_type")

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body has more than {self.options.max_body_bytes} bytes", code="body_too_large")

    async def _body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        """The body, as it arrives.

        Raises:
          Refusal: 413 above the limit, 408 where it does not arrive in time.
          ConnectionResetError: the client went away.
        """
        content = bytearray()
        try:
            async with asyncio.timeout(self.options.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionResetError
                    content += message.get("body", b"")
                    if len(content) > self.options.max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(content)
        except TimeoutError:
            seconds = self.options.body_seconds
            raise Refusal(408, f"the body did not arrive in {seconds:g} s", code="body_too_slow") from None

    def _prepared(
        self,
        body: bytes,
        version: Version,
        candidate: Candidate | None,
        person: Person,
        deadline: float,
        request_id: str,
    ) -> Job:
        """Reads a request and puts it into the queue; runs in a thread of its own.

        Raises:
          Refusal: it cannot be asked.
        """
        request = read_request(body, max_pictures=self.options.max_pictures)
        is_canary = candidate is not None and candidate.meets(request_id)
        if is_canary:
            version = candidate.version
        folder = Path(tempfile.mkdtemp(prefix="hidecmoe_serve_"))
        try:
            pictures = version.new_pictures()
            paths = write_pictures(request.pictures, folder, pictures)
            record = Record(request_id, paths, request.turns, "the request")
            asked = {"request": replace(request, pictures=()), "by": person.name or None, "pictures": pictures}
            jobs = [job_of(record, version, deadline, is_canary=is_canary, **asked)]
            if candidate is not None and candidate.share is None:
                with contextlib.suppress(Refusal):  # the candidate may lack the task that is named
                    jobs.append(job_of(record, candidate.version, deadline, is_shadow=True, **asked))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        remove_after(folder, jobs)
        for job in jobs:
            self.worker.submit(job)
        return jobs[0]

    async def _outcome(self, job: Job, receive: Receive) -> Outcome:
        """The worker's answer.

        Raises:
          Refusal: 504 where it does not come in time, or what the worker refuses.
          ConnectionResetError: the client went away; its job is dropped unless it is being answered.
        """
        outcome = asyncio.wrap_future(job.outcome)
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            left = max(0.0, job.deadline - time.monotonic())
            await asyncio.wait({outcome, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if outcome.done():
                return outcome.result()
            if gone.done():
                raise ConnectionResetError
            raise late()
        finally:
            gone.cancel()
            outcome.cancel()

    async def _reply(self, completion: Completion, send: Send) -> None:
        request = completion.job.request
        if not request.stream:
            await _send_json(send, 200, completion.to_json(), completion.id)
            return
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        await send(_start(200, headers, completion.id))
        for event in completion.events(usage=request.usage):
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _disconnected(receive: Receive) -> None:
    """Returns once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, headers: Mapping[str, str], request_id: str) -> dict[str, Any]:
    """The message that begins a response."""
    every = {"x-request-id": request_id, "x-content-type-options": "nosniff"}
    pairs = [(name.encode(), value.encode()) for name, value in (every | dict(headers)).items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


async def _send_json(
    send: Send, status: int, value: Any, request_id: str, headers: Mapping[str, str] | None = None
) -> None:
    """A whole response of JSON; characters beyond ASCII are escaped, so that any text can be sent."""
    body = json.dumps(value, allow_nan=False).encode()
    about = {"content-type": _JSON, "content-length": str(len(body))}
    # After a refusal the rest of a body may be on its way; it is not read.
    if status >= 400:
        about["connection"] = "close"
    await send(_start(status, about | dict(headers or {}), request_id))
    await send({"type": "http.response.body", "body": body})
