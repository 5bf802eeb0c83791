"""Judge metric: a language model behind an OpenAI-compatible endpoint rates every answer from 0 to 10.

Off unless an endpoint is given. Every reply is appended to a cache file, whose key is a digest of the model, the
settings and the whole prompt, so a second run asks nothing. Ratings depend on the judge and on its version: they are
comparable within one file of replies alone, and an unrelated short answer often gets half marks.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError, DataError, ResourceError
from hidecmoe_jax.core.json_text import RECORDS, json_value
from hidecmoe_jax.data.jsonfile import read_text
from hidecmoe_jax.scoring.questions import Question

_MOST_REPLY = 2**22  # bytes
KEY_VARIABLE = "HIDECMOE_JUDGE_KEY"
HIGHEST = 10
INSTRUCTION = (
    "You compare an answer with a reference answer to the same question. Rate how well the answer agrees with the "
    "reference in meaning, from 0 (not at all) to 10 (the same). Reply with the number alone."
)
_RATING = re.compile(r"(?<![\d.])(10(?:\.0+)?|\d(?:\.\d+)?)(?!\d)(?: */ *10(?!\d))?")
_NONZERO_DIGIT = re.compile(r"[1-9]")


@dataclass(frozen=True)
class Endpoint:
    """Where the judge is asked.

    Attributes:
      url: up to `/v1`; `/chat/completions` is added.
      model: name of the judge there.
      timeout: seconds for one reply.
    """

    url: str
    model: str
    timeout: float = 60.0

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                "the judge's address is no URL", where=f"--judge-url {self.url}", why="http:// or https:// is missing",
                remedy="write it as --judge-url http://localhost:8000/v1",
            )  # fmt: skip


@dataclass
class Cache:
    """Replies by key, in a file that only grows; a line torn by a crash is left out."""

    path: Path
    replies: dict[str, str] = field(default_factory=dict)

    def read(self) -> None:
        """Reads the file, if there is one.

        Raises:
          DataError: a line is no reply of a judge.
        """
        if not self.path.is_file():
            return
        rows = read_text(self.path).split("\n")
        for place, row in enumerate(rows, start=1):
            try:
                entry = json_value(row, RECORDS) if row.strip() else None
            except ValueError:
                # Only an append that was cut off leaves such a line; the reply is asked for again.
                continue
            if entry is None:
                continue
            if not isinstance(entry, dict) or not {"key", "reply"} <= set(entry):
                raise DataError(
                    "this is no cache of a judge", where=f"{self.path}:{place}", why="a line lacks `key` or `reply`",
                    remedy="give another --judge-cache",
                )  # fmt: skip
            self.replies[entry["key"]] = entry["reply"]

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """Appends a reply, durably."""
        self.replies[key] = entry["reply"]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"key": key, **entry}, ensure_ascii=False) + "\n"
        # After a torn line the new one must not become part of it.
        is_torn = self.path.is_file() and not _ends_a_line(self.path)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n" * is_torn + text)
            file.flush()
            os.fsync(file.fileno())


def _ends_a_line(path: Path) -> bool:
    content = path.read_bytes()
    return not content or content.endswith(b"\n")


@dataclass(frozen=True)
class Judged:
    """Ratings of answers.

    Attributes:
      score: sum of the ratings / (10 N) in percent; None where a reply held no rating.
      ratings: 0-10 by question; None without one.
      cached: replies that were not asked for.
    """

    score: float | None
    ratings: tuple[float | None, ...]
    cached: int


def judge_answers(
    endpoint: Endpoint, cache: Cache, texts: Sequence[str | None], questions: Sequence[Question]
) -> Judged:
    """Rates answers; a missing or empty one is rated 0 without asking.

    Raises:
      ResourceError: the endpoint does not reply, or not as an OpenAI-compatible one.
    """
    ratings: list[float | None] = []
    cached = 0
    for text, question in zip(texts, questions, strict=True):
        if text is None or not text.strip():
            ratings.append(0.0)
            continue
        request = _request(endpoint, text, question)
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        if key in cache.replies:
            cached += 1
        else:
            reply = _ask(endpoint, request)
            cache.add(key, {"model": endpoint.model, "question_id": question.id, "reply": reply})
        ratings.append(rating_of(cache.replies[key]))
    score = None
    present = [rating for rating in ratings if rating is not None]
    if ratings and len(present) == len(ratings):
        score = 100 * sum(present) / (HIGHEST * len(ratings))
    return Judged(score, tuple(ratings), cached)


def rating_of(reply: str) -> float | None:
    """The rating in a reply: its one number from 0 to 10, `8` or `8/10`; None with none or with two that differ."""
    ratings = {float(number) for number in _RATING.findall(reply)}
    return ratings.pop() if len(ratings) == 1 else None


def rating_of_legacy(reply: str) -> float:
    """The rating as CoIN reads it: a number alone or out of ten, else the first digit from 1 to 9 (A10), else 0."""
    bare = reply.strip().removesuffix("/10")
    try:
        return float(bare)
    except ValueError:
        digit = _NONZERO_DIGIT.search(reply)
        return float(digit[0]) if digit else 0.0


def _request(endpoint: Endpoint, text: str, question: Question) -> dict[str, Any]:
    truth = " | ".join(question.references)
    asked = f"Question: {question.text}\nReference: {truth}\nAnswer: {text}"
    messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": asked}]
    return {"model": endpoint.model, "temperature": 0, "max_tokens": 16, "messages": messages}


def _ask(endpoint: Endpoint, request: dict[str, Any]) -> str:
    url = endpoint.url.rstrip("/") + "/chat/completions"
    headers = {"Content-Type": "application/json"}
    key = os.environ.get(KEY_VARIABLE)
    if key:
        headers["Authorization"] = f"Bearer {key}"
    call = urllib.request.Request(url, json.dumps(request).encode(), headers)
    try:
        with urllib.request.urlopen(call, timeout=endpoint.timeout) as reply:
            # Up to a limit: an endpoint may send without an end.
            document = json_value(reply.read(_MOST_REPLY).decode("utf-8"))
        return str(document["choices"][0]["message"]["content"])
    except urllib.error.HTTPError as error:
        why = f"HTTP {error.code} {error.reason}"
    except (OSError, ValueError) as error:
        why = str(error)
    except (KeyError, IndexError, TypeError):
        why = "the reply has no choices[0].message.content"
    raise ResourceError(
        "the judge does not reply", where=url, why=why,
        remedy=f"check --judge-url and --judge-model, and the key in {KEY_VARIABLE}; replies so far are kept",
    )  # fmt: skip
