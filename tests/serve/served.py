"""What the tests of the server share: requests to the application without a socket, and a run that computes nothing."""

import asyncio
import base64
import io
import json
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

from PIL import Image

from hidecmoe_jax.data.images import Limits
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.evaluate.answer import Answer, Finding, Writing
from hidecmoe_jax.evaluate.fit import Fit
from hidecmoe_jax.operate.operation import Operation
from hidecmoe_jax.runs.replies import Reply
from hidecmoe_jax.serve.access import Access
from hidecmoe_jax.serve.app import App
from hidecmoe_jax.serve.options import ServeOptions
from hidecmoe_jax.serve.shapes import Shape
from hidecmoe_jax.serve.worker import Worker

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json", "host": "localhost"}


def png(width: int = 8, height: int = 8, colour=(200, 30, 30)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(content, "PNG")
    return content.getvalue()


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def asking(text: str = "What is this?", *pictures: bytes, model: str = "auto", **fields) -> dict:
    """A request of one question."""
    parts = [{"type": "text", "text": text}]
    parts += [{"type": "image_url", "image_url": {"url": data_url(content)}} for content in pictures]
    return {"model": model, "messages": [{"role": "user", "content": parts}]} | fields


@dataclass
class FakeVersion:
    """A version whose answers are the questions; what the requests' files hold is kept."""

    name: str = "v1"
    tasks: tuple = ("birds", "fish")
    retired: tuple = ("stamps",)
    patches: int = 4
    loaded: int = 7
    limits: Limits = Limits(max_pixels=10_000, max_side=2_000)
    writing: Writing = Writing(max_new_tokens=8, max_length=64)
    shapes: tuple = (Shape(1, 32), Shape(2, 64))
    on_several_devices: bool = False
    unknown: bool = False
    refused: bool = False
    base: str = "b" * 64
    near_ties: dict = field(default_factory=dict)
    own_matches: dict = field(default_factory=dict)
    before: object = None
    asked: list = field(default_factory=list)

    @property
    def assistant(self):
        tokenizer = SimpleNamespace(decode_whole=lambda ids: " ".join(map(str, ids)))
        return SimpleNamespace(retired=self.retired, tokenizer=tokenizer, own_matches=self.own_matches)

    def warm_up(self):
        pass

    def prompt_tokens(self, record, named):
        words = len(record.turns[-1].question.split()) + self.patches * len(record.images)
        return words, words + 1

    def cuts_routing_text(self, record):
        return len(record.turns[0].question) > 100

    def new_pictures(self):
        return Pictures(self.limits, workers=1)

    def replies(self, records, shape, named=None, pictures=None):
        if self.before is not None:
            self.before(records)
        self.asked.append((records, shape, named))
        return [self._reply(record, named) for record in records]

    def _reply(self, record, named):
        finding = Finding(1, 0.5, 0.75 if self.unknown else 0.25, 0.01, 0.125, self.unknown, tied=False)
        text = "" if self.refused else record.turns[-1].question
        weights = (0.0, 0.0) if self.unknown else (0.0, 1.0)
        answer = Answer(
            record.id, text, weights, (0.375, 0.5), ended=True, finding=finding, refused=self.refused,
            tasks=("birds", "fish"), tokens=(5, 6, 7),
        )  # fmt: skip
        fit = Fit("fish", "not at all" if self.unknown else "barely", 0.5, finding.threshold, 10, 0.05)
        return Reply(text, {"fish": weights[1], "birds": weights[0]}, "why", answer, fit)


class Client:
    """The application with its worker, called as a server calls it."""

    def __init__(
        self, version=None, *, people=(), clock=None, keep=None, record=None, operation=None, page=None, **options
    ):
        self.options = ServeOptions(batch_wait=0.0, **options)
        self.worker = Worker(self.options.batch, self.options.batch_wait, keep, record)
        self.errors = []
        self.worker.report = self.errors.append
        self.worker.start()
        clocked = {} if clock is None else {"clock": clock}
        self.operation = operation = operation or Operation("birds")
        self.app = App(self.options, self.worker, Access(people, rate=self.options.rate, **clocked), operation, page)
        self.app.version = version

    def close(self):
        assert self.worker.stop(5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def ask(self, *words, **fields):
        return self.post(asking(*words, **fields))

    def post(self, body, headers=(), **how):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.call("POST", CHAT, [content], JSON | dict(headers), **how)

    def get(self, path, headers=()):
        return self.call("GET", path, [b""], {"host": "localhost"} | dict(headers))

    def call(self, *request, **how):
        return asyncio.run(self.request(*request, **how))

    async def request(self, method, path, chunks, headers, *, gone=None, stalls=False):
        """Status, headers and body. `gone`: an event after which the client is away; `stalls`: it sends no more."""
        chunks = list(chunks)
        messages = []
        taken = SimpleNamespace(count=0)

        async def receive():
            if chunks:
                taken.count += 1
                return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks) or stalls}
            while gone is None or not gone.is_set():
                await asyncio.sleep(0.005 if gone is not None else 3600)
            return {"type": "http.disconnect"}

        async def send(message):
            messages.append(message)

        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": pairs}
        await self.app(scope, receive, send)
        if not messages:
            return SimpleNamespace(status=None, taken=taken.count)
        body = b"".join(message.get("body", b"") for message in messages[1:])
        named = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        kind = named["content-type"]
        value = json.loads(body) if kind == "application/json" else body if kind.startswith("image/") else body.decode()
        return SimpleNamespace(status=messages[0]["status"], headers=named, body=value, taken=taken.count)


class Gate:
    """Holds the worker at its first batch until it is opened."""

    def __init__(self):
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, records):
        self.reached.set()
        assert self.opened.wait(10)
