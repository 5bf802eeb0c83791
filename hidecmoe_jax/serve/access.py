"""Who may ask: bearer tokens of a file, compared in constant time, and a rate for each of them."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError, listed, nearest
from hidecmoe_jax.core.regular_files import read_regular
from hidecmoe_jax.serve.refusal import Refusal

ROLES = ("viewer", "reviewer", "owner")
"""What a token may do, each what those before it may too: see; ask and review; change what answers."""

_HASHED = re.compile(r"sha256:([0-9a-f]{64})")
_SHORTEST = 16
_MINUTE = 60.0
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Person:
    """Somebody with a token; `digest` is the SHA-256 of it."""

    name: str
    role: str
    digest: bytes


NOBODY = Person("", "owner", b"")
"""Whoever asks a server without tokens."""


_MOST_BYTES = 2**20


def read_tokens(path: Path) -> tuple[Person, ...]:
    """Returns the people of a file of lines `NAME ROLE TOKEN`; `#` begins a comment.

    ROLE is viewer (sees), reviewer (asks and reviews) or owner (changes the run too). TOKEN is at least 16 characters,
    or `sha256:` and the SHA-256 of them in hex, so that the file need not hold what opens the door.

    Raises:
      ConfigError: the file cannot be read, or names every line that is wrong.
    """
    try:
        text = read_regular(path, at_most=_MOST_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            "cannot read the tokens", where=f"--tokens {path}", why=why,
            remedy="write lines NAME ROLE TOKEN, such as: anna owner sha256:...",
        ) from None  # fmt: skip
    people: list[Person] = []
    problems = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        problem = _problem(words, people)
        if problem is None:
            people.append(Person(words[0], words[1], _digest_of(words[2])))
        else:
            problems.append(f"line {number}: {problem}")
    if not people and not problems:
        problems.append("no line names anybody")
    if problems:
        raise ConfigError(
            "the tokens cannot be used", where=f"--tokens {path}", why=listed(problems),
            remedy="write lines NAME ROLE TOKEN; `openssl rand -hex 32` makes a token",
        )  # fmt: skip
    return tuple(people)


def _problem(words: Sequence[str], people: Sequence[Person]) -> str | None:
    """What is wrong with a line; its token is never repeated."""
    if len(words) != 3:
        return f"{len(words)} words, expected NAME ROLE TOKEN"
    name, role, token = words
    if role not in ROLES:
        return f"role {role!r}; {nearest(role, ROLES)}"
    if token.startswith("sha256:"):
        if _HASHED.fullmatch(token) is None:
            return "sha256: is followed by 64 hexadecimal digits in lower case"
    elif len(token) < _SHORTEST:
        return f"the token has {len(token)} characters, at least {_SHORTEST}"
    if name in [person.name for person in people]:
        return f"{name} has a token already"
    if _digest_of(token) in [person.digest for person in people]:
        return "this token is somebody else's"
    return None


def _digest_of(token: str) -> bytes:
    hashed = _HASHED.fullmatch(token)
    return bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(token.encode()).digest()


class Access:
    """Decides about requests by their headers, before a body is read.

    Args:
      people: of `read_tokens`; nobody: everyone may ask.
      rate: requests a minute of one token; 0 for no limit.
      clock: the monotonic clock.
    """

    def __init__(self, people: Sequence[Person], *, rate: int = 0, clock: Callable[[], float] = time.monotonic):
        self.people = tuple(people)
        self.rate = rate
        self._clock = clock
        # Requests that each may still send, and when that was counted.
        self._left: dict[str, tuple[float, float]] = {}

    def person(self, headers: Mapping[str, str]) -> Person:
        """Whose token a request has.

        Raises:
          Refusal: 401 without a known token; 403 for a name of another machine on a server without tokens.
        """
        if not self.people:
            # A web page may send its visitor's browser here under a name of its own (DNS rebinding).
            host = headers.get("host", "localhost").rpartition(":")
            name = host[0] if host[1] and host[2].isdigit() else headers.get("host", "localhost")
            if name.lower() not in _LOCAL_NAMES:
                raise Refusal(403, "without tokens only this machine's own names are served", code="wrong_host")
            return NOBODY
        scheme, _, token = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogatepass")).digest()
        # Every token is compared, so that time says nothing about which one is near.
        known = [person for person in self.people if hmac.compare_digest(person.digest, digest)]
        if scheme.lower() != "bearer" or not known:
            raise Refusal(401, "a known token is needed: Authorization: Bearer TOKEN", code="invalid_api_key")
        return known[0]

    def require(self, person: Person, role: str) -> None:
        """Refuses whoever has less than a role.

        Raises:
          Refusal: 403.
        """
        if ROLES.index(person.role) < ROLES.index(role):
            raise Refusal(403, f"a {person.role} may not do this; {role} may", code="not_allowed")

    def count(self, person: Person) -> None:
        """Counts one question.

        Raises:
          Refusal: 403 for a viewer; 429 above the rate.
        """
        self.require(person, "reviewer")
        if not self.rate:
            return
        now = self._clock()
        left, counted = self._left.get(person.name, (float(self.rate), now))
        left = min(float(self.rate), left + (now - counted) * self.rate / _MINUTE)
        if left < 1:
            self._left[person.name] = (left, now)
            seconds = math.ceil((1 - left) * _MINUTE / self.rate)
            raise Refusal(
                429, f"more than {self.rate} requests a minute", code="rate_limit_exceeded", retry_after=seconds
            )
        self._left[person.name] = (left - 1, now)
