"""Settings of a server: where it listens, what it refuses before any work, and how requests are batched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hidecmoe_jax.core.errors import ConfigError

Unknown = Literal["base", "refuse", "queue"]
Rollout = Literal["take", "shadow", "canary"]
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_AT_LEAST = {
    "max_body_bytes": 1024, "max_pictures": 0, "max_waiting": 1, "batch": 1, "timeout": 0.001,
    "drain_seconds": 0.0, "rate": 0, "poll_seconds": 0.01, "body_seconds": 0.01, "batch_wait": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class ServeOptions:
    """How a run is served. Limits of single pictures (pixels, sides, aspect, formats) are those of the run.

    Attributes:
      host, port: address to listen on; port 0 takes a free one.
      tokens: file of bearer tokens (`access.read_tokens`); without it everyone who reaches the port may ask.
      unknown: what becomes of an input that belongs to no known task: the base model answers, the question is refused,
        or it is refused and kept in `queue` for a person.
      queue: folder of kept questions and their pictures; belongs to `unknown="queue"`.
      batch: requests answered together at most.
      batch_wait: seconds that a batch waits for more requests.
      max_prompt_tokens, max_new_tokens: longest prompt with its pictures, longest answer; None: as in the run.
      max_pictures: pictures of one request.
      max_body_bytes: bytes of one request. `body_seconds`: seconds in which it must have arrived.
      max_waiting: requests that are read, wait or are answered at one time.
      timeout: seconds until a request that is not answered is given up.
      rate: requests a minute for each token; 0 for no limit.
      drain_seconds: seconds after SIGTERM in which what was accepted is still answered.
      poll_seconds: seconds between two looks at the run's folder.
      log: folder of the decision log; without it nothing is logged.
      private: keep neither questions nor answers in the log.
      keep_pictures: days for which pictures of logged questions are kept in it; None keeps none.
      review_share: share of the answers, drawn at random, that a person should look at, beside unknown inputs and
        near ties.
      prices: file of prices, for what wrong tasks cost on the page; without it they cost nothing.
      alarms: file of alarms (`alarms.read_alarms`).
      rollout: what another state of the run does: it answers from now on (`take`), it answers too but for the log alone
        (`shadow`), or it answers `canary_share` of the requests (`canary`), until an owner promotes it or goes back.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    tokens: Path | None = None
    unknown: Unknown = "base"
    queue: Path | None = None
    batch: int = 8
    batch_wait: float = 0.005
    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    max_pictures: int = 4
    max_body_bytes: int = 20_000_000
    body_seconds: float = 30.0
    max_waiting: int = 64
    timeout: float = 60.0
    rate: int = 0
    drain_seconds: float = 30.0
    poll_seconds: float = 2.0
    log: Path | None = None
    private: bool = False
    keep_pictures: float | None = None
    review_share: float = 0.05
    alarms: Path | None = None
    rollout: Rollout = "take"
    canary_share: float = 0.1
    prices: Path | None = None

    def __post_init__(self):
        for name, smallest in _AT_LEAST.items():
            value = getattr(self, name)
            if value < smallest:
                flag = name.replace("_", "-")
                raise ConfigError(
                    f"--{flag} must be at least {smallest}", why=f"got {value}", remedy=f"leave --{flag} out"
                )
        for name in ("max_prompt_tokens", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} must be at least 1", why=f"got {value}", remedy=f"leave --{flag} out")
        if not 0 <= self.port <= 65535:
            raise ConfigError("--port is no port", why=f"got {self.port}, allowed 0..65535", remedy="--port 8080")
        if not self.is_local and self.tokens is None:
            raise ConfigError(
                "another host than this machine needs tokens", where=f"--host {self.host}",
                why="everyone who reaches the port could ask",
                remedy="--tokens FILE, or --host 127.0.0.1 behind a proxy that asks for a password",
            )  # fmt: skip
        if (self.unknown == "queue") != (self.queue is not None):
            raise ConfigError(
                "--unknown queue and --queue DIR belong together",
                why=f"--unknown {self.unknown} and {'no --queue' if self.queue is None else f'--queue {self.queue}'}",
                remedy="--unknown queue --queue DIR keeps unknown questions and their pictures in DIR",
            )
        self._check_log()

    def _check_log(self) -> None:
        if not 0 < self.canary_share < 1:
            raise ConfigError(
                "--canary-share must be between 0 and 1", why=f"got {self.canary_share}", remedy="--canary-share 0.1"
            )
        if self.rollout == "shadow" and self.log is None:
            raise ConfigError(
                "--rollout shadow needs --log", why="what a shadow answers is for the log alone", remedy="--log DIR"
            )
        if self.log is None and (self.private or self.keep_pictures is not None):
            raise ConfigError(
                "--private and --keep-pictures say what a log holds", why="there is no --log",
                remedy="--log DIR writes a decision log",
            )  # fmt: skip
        if self.keep_pictures is not None and not self.keep_pictures > 0:
            raise ConfigError(
                "--keep-pictures must be above 0 days",
                why=f"got {self.keep_pictures}",
                remedy="leave it out to keep none",
            )
        if not 0 <= self.review_share <= 1:
            raise ConfigError(
                "--review-share must be in 0..1", why=f"got {self.review_share}", remedy="--review-share 0.05"
            )

    @property
    def is_local(self) -> bool:
        """Whether only processes of this machine reach the server."""
        return self.host in _LOOPBACK
