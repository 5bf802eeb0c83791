"""The process: socket, loading and warm-up beside a running server, and a stop that finishes what was accepted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.models.store import is_base
from hidecmoe_jax.operate.alarms import read_alarms
from hidecmoe_jax.operate.decision_log import open_log
from hidecmoe_jax.operate.kept_pictures import KeptPictures
from hidecmoe_jax.operate.operation import Operation
from hidecmoe_jax.operate.prices import read_prices
from hidecmoe_jax.runs.folder import RunFolder, no_run
from hidecmoe_jax.runs.questions import require_learned
from hidecmoe_jax.runs.status import say
from hidecmoe_jax.serve.access import Access, read_tokens
from hidecmoe_jax.serve.app import App
from hidecmoe_jax.serve.kept import KeptQuestions
from hidecmoe_jax.serve.options import ServeOptions
from hidecmoe_jax.serve.page_routes import Page
from hidecmoe_jax.serve.recorder import Recorder, run_name
from hidecmoe_jax.serve.rollout import Candidate
from hidecmoe_jax.serve.versions import Version, open_version
from hidecmoe_jax.serve.watch import Watcher
from hidecmoe_jax.serve.worker import Worker
from hidecmoe_jax.storage.files import disk_errors

INSTALL = "python -m pip install 'hidecmoe-jax[serve]'"
_REMEDIES = {
    errno.EADDRINUSE: "--port 0 takes a free port",
    errno.EACCES: "ports below 1024 belong to the system: --port 8080",
}
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK = 0.05  # seconds between two looks at what is still in flight
_MINUTE = 60.0
_CLOSING = 5  # seconds for connections to take their last bytes


def serve_run(run: str | Path, options: ServeOptions) -> None:
    """Serves a run or a base model until SIGTERM or Ctrl-C.

    Raises:
      ConfigError: the extra `serve` is not installed, the tokens cannot be used, or the port is taken.
      CheckpointError: the run has learned no task, or cannot be loaded.
    """
    run = Path(run)
    _require_model(run)
    uvicorn = _uvicorn()
    access = Access(() if options.tokens is None else read_tokens(options.tokens), rate=options.rate)
    kept = None if options.queue is None else KeptQuestions(options.queue)
    if kept is not None:
        kept.open()
    with _listening(options) as listener, _recording(run, options) as recorder:
        say(_first_line(run, options, listener))
        keep = None if kept is None else kept.keep
        worker = Worker(options.batch, options.batch_wait, keep, recorder.record)
        prices = None if options.prices is None else read_prices(options.prices)
        page = Page(run, run_name(run), recorder.operation, prices)
        app = App(options, worker, access, recorder.operation, page)
        _Service(run, options, app, worker, recorder, page).run(uvicorn, listener)


def _require_model(run: Path) -> None:
    """Refuses what cannot be served before anything is loaded."""
    if not RunFolder(run).config.is_file() and not is_base(str(run)):
        raise no_run(run, or_else="a base model ('pocket', or a folder made by `hidecmoe convert`)")
    require_learned(run)


def _uvicorn() -> Any:
    """The HTTP server, which is an extra."""
    try:
        import uvicorn
    except ModuleNotFoundError:
        raise ConfigError("the HTTP server is not installed", why="uvicorn is missing", remedy=INSTALL) from None
    return uvicorn


@contextlib.contextmanager
def _listening(options: ServeOptions) -> Iterator[socket.socket]:
    """A bound socket: a port that is taken is refused before a model is loaded."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
        # From now on connections wait, where they would be refused until the event loop runs.
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(
            "cannot listen there", where=f"--host {options.host} --port {options.port}",
            why=error.strerror or str(error), remedy=_REMEDIES.get(error.errno, "--host 127.0.0.1 is this machine"),
        ) from None  # fmt: skip
    with listener:
        yield listener


@contextlib.contextmanager
def _recording(run: Path, options: ServeOptions) -> Iterator[Recorder]:
    """Takes down what happens inside the block, in a log if one is wanted."""
    rules = None if options.alarms is None else read_alarms(options.alarms)
    name = run_name(run)
    if options.log is None:
        yield Recorder(Operation(name, rules=rules), options)
        return
    pictures = None if options.keep_pictures is None else KeptPictures(options.log, options.keep_pictures)
    with open_log(options.log) as log:
        if log.torn is not None:
            say(f"a crash had cut off the last line of {options.log}; it lies in {log.torn}, and the log goes on")
        recorder = Recorder(Operation(name, log, rules), options, pictures)
        with disk_errors("the log cannot be written", options.log, needed=0):
            recorder.begin()
        yield recorder


def _first_line(run: Path, options: ServeOptions, listener: socket.socket) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    port = listener.getsockname()[1]
    who = "everyone on this machine may ask" if options.tokens is None else "a token is needed"
    return f"http://{host}:{port}/v1 will serve {run}: {who}; /readyz says when; the page for people is at /"


class _Service:
    """A server with its run: loads it, answers, stops."""

    def __init__(self, run: Path, options: ServeOptions, app: App, worker: Worker, recorder: Recorder, page: Page):
        self.folder = run
        self.options = options
        self.app = app
        self.worker = worker
        self.recorder = recorder
        self.page = page
        self.error: Exception | None = None
        self.ended = threading.Event()

    def run(self, uvicorn: Any, listener: socket.socket) -> None:
        """Answers requests until a signal comes, or the run cannot be loaded."""
        config = uvicorn.Config(
            self.app, access_log=False, log_level="warning", lifespan="off", timeout_graceful_shutdown=_CLOSING,
            server_header=False, limit_concurrency=4 * self.options.max_waiting,
        )  # fmt: skip

        class Server(uvicorn.Server):
            """Without signal handlers of its own, which would end the process by the signal."""

            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        server = Server(config)
        asyncio.run(self._until_stopped(server, listener))
        if self.error is not None:
            raise self.error

    async def _until_stopped(self, server: Any, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signalled, stop)
        loader = threading.Thread(target=self._load, args=(loop, stop), name="loader", daemon=True)
        loader.start()
        threading.Thread(target=self._keep_house, name="housekeeping", daemon=True).start()
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        until = time.monotonic() + self.options.drain_seconds
        await self._drain(until)
        self.ended.set()
        self.page.changes.stop()
        # Waiting requests are refused; the batch at hand may end while connections close.
        self.worker.stop(0)
        server.should_exit = True
        await serving
        is_idle = self.worker.stop(0)
        self.recorder.end("stopped by a signal" if self.error is None else "the run could not be loaded")
        loader.join(_LOOK)
        if self.error is None and (loader.is_alive() or not is_idle):
            # A program that runs cannot be interrupted, and the interpreter would wait for it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def _signalled(self, stop: asyncio.Event) -> None:
        """The first signal stops the server in order, the second one at once."""
        if stop.is_set():
            os._exit(130)
        say("stopping: what was accepted is answered, new requests are refused; once more ends at once")
        self.app.is_stopping = True
        stop.set()

    async def _drain(self, until: float) -> None:
        """Waits for the requests that were accepted; those that are left after `until` are refused."""
        self.app.is_stopping = True
        while self.app.in_flight and time.monotonic() < until:
            await asyncio.sleep(_LOOK)

    def _load(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        """Loads the run and lets requests in, then watches its folder; ends the server where it cannot be loaded."""
        watcher = Watcher(self.folder, self.options, self.worker.computing, self._take, open_version)
        began = time.monotonic()
        try:
            version = watcher.load()
        # Raised again by the main thread, which the command line listens to.
        except Exception as error:
            self.error = error
            loop.call_soon_threadsafe(stop.set)
            return
        names = ", ".join(version.tasks) or "the base model"
        say(f"ready after {time.monotonic() - began:.0f} s: version {version.name}, {names}")
        watcher.watch(self.ended)

    def _keep_house(self) -> None:
        """Does what is due from time to time."""
        while not self.ended.wait(_MINUTE):
            try:
                self.recorder.keep_house()
            # A picture that cannot be removed now can be later.
            except OSError as error:
                say(f"kept pictures could not be looked through: {type(error).__name__}")

    def _take(self, version: Version) -> None:
        """Lets new requests meet a version, or makes it a candidate, once the log says so."""
        if self.app.version is not None and self.options.rollout != "take":
            share = self.options.canary_share if self.options.rollout == "canary" else None
            self.recorder.proposed(version, share)
            self.app.candidate = Candidate(version, share)
            return
        self.recorder.changed(self.app.version, version)
        if self.app.version is None:
            self.worker.start()
        self.app.version = version
