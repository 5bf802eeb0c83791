"""JSON text of unknown origin as plain values, within bounds.

Python's own reader takes the last of two equal keys, accepts `NaN`, computes for minutes on a number of a million
digits and ends in a RecursionError at deep nesting; a few million empty lists fill a machine's memory. Each of these is
a `JsonFault` here, which names the key.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np


class Bounds(NamedTuple):
    """What a file of JSON may be; None for no bound of its own.

    Attributes:
      size: bytes.
      values: values of all depths; commas and brackets are counted, those in texts too, which costs no parsing.
      depth: arrays and objects within one another.
    """

    size: int | None
    values: int | None
    depth: int


SETTINGS = Bounds(40 * 2**20, 1_500_000, 64)
"""Of records of a run, manifests, settings and tokenizers: what is within it takes at most 512 MB while it is read."""
RECORDS = Bounds(None, None, 64)
"""Of files that users fill: records, answers, truths. Their size is the user's."""

# Python keeps an integer of any length exact; longer than an id may be, it is a damaged file.
_INTEGER_DIGITS = 200
_STRINGS = re.compile(r'"[^"]*"')
_TOKENS = re.compile(r'(?P<text>"[^"]*")(?P<colon>\s*:)?|(?P<open>[\[{])|(?P<close>[\]}])')
_BRACKETS = b"[]{}"
_OTHER_BYTES = bytes(set(range(256)) - set(_BRACKETS))


class JsonFault(ValueError):
    """JSON that is well formed and not accepted.

    Args:
      problems: one line each.
    """

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("; ".join(problems[:3]))


class _Refused(NamedTuple):
    """Stands in the place of a value that is not accepted, until its key is looked for."""

    why: str


def json_value(text: str, bounds: Bounds = SETTINGS) -> Any:
    """Returns the value of JSON text.

    Raises:
      json.JSONDecodeError: the text is no JSON.
      JsonFault: more values or more depth than `bounds` allow, a key twice in one object, NaN or Infinity, or an
        integer of more than 200 digits; with the keys that lead to it.
    """
    if bounds.values is not None:
        values = text.count(",") + text.count("[") + text.count("{")
        if values > bounds.values:
            raise JsonFault([f"it holds about {values:,} values; a file of this kind has at most {bounds.values:,}"])
    repeated: list[str] = []
    # Not raised at once: all problems are named together.
    refused: list[_Refused] = []

    def checked_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            repeated.append(_repeated_keys(pairs, mapping))
        return mapping

    def refuse(why: str) -> _Refused:
        refused.append(_Refused(why))
        return refused[-1]

    def constant(name: str) -> _Refused:
        return refuse(f"{name} is no JSON number")

    def integer(digits: str) -> int | _Refused:
        if len(digits) <= _INTEGER_DIGITS:
            return int(digits)
        return refuse(f"integer of {len(digits)} digits ({digits[:12]}...); at most {_INTEGER_DIGITS} are read")

    def real(digits: str) -> float | _Refused:
        number = float(digits)
        return refuse(f"{digits[:12]}... is larger than any number here may be") if math.isinf(number) else number

    hooks: dict[str, Any] = {"object_pairs_hook": checked_object, "parse_constant": constant}
    try:
        value = json.loads(text, parse_int=integer, parse_float=real, **hooks)
    except RecursionError:
        raise JsonFault([_too_deep(text, bounds.depth)]) from None
    if _is_deeper(text, bounds.depth):
        raise JsonFault([_too_deep(text, bounds.depth)])
    if refused:
        repeated += [f"{path}: {why}" if path else why for path, why in _refused_in(value)]
    if repeated:
        raise JsonFault(repeated)
    return value


def _repeated_keys(pairs: list[tuple[str, Any]], mapping: dict[str, Any]) -> str:
    """The complaint about an object in which a key occurs twice."""
    counts = Counter(key for key, _ in pairs)
    repeated = {key for key, count in counts.items() if count > 1}
    name = mapping.get("id", mapping.get("question_id"))
    record = f" (id {str(name)[:80]!r})" if name is not None else ""
    names = ", ".join(repr(key[:80]) for key in sorted(repeated)[:6])
    return f"key {names} stands more than once in the object with keys {sorted(mapping)[:6]}{record}"


def _refused_in(value: Any) -> Iterator[tuple[str, str]]:
    """Yields the keys that lead to each value that is not accepted, and why; without recursion."""
    pending: list[tuple[str, Any]] = [("", value)]
    while pending:
        path, inner = pending.pop()
        if isinstance(inner, _Refused):
            yield path, inner.why
        elif isinstance(inner, dict):
            pending += [(f"{path}.{key}" if path else key, each) for key, each in reversed(inner.items())]
        elif isinstance(inner, list):
            pending += [(f"{path}[{place}]", each) for place, each in reversed(list(enumerate(inner)))]


def _is_deeper(text: str, depth: int) -> bool:
    """Whether arrays and objects of well-formed JSON stand deeper than `depth` within one another."""
    # Nearly every file has fewer brackets than that, or is short.
    if text.count("[") + text.count("{") <= depth:
        return False
    # A bracket within a text opens nothing.
    outside = _STRINGS.sub("", _without_escapes(text)).encode("utf-8", "replace")
    codes = np.frombuffer(outside.translate(None, _OTHER_BYTES), np.uint8)
    opens = (codes == ord("[")) | (codes == ord("{"))
    steps = np.where(opens, np.int32(1), np.int32(-1))
    return bool(np.cumsum(steps, dtype=np.int32).max(initial=0) > depth)


def _without_escapes(text: str) -> str:
    """JSON without escaped backslashes and quotes, so that a text ends at the next quote."""
    return text.replace("\\\\", "").replace('\\"', "")


def _too_deep(text: str, depth: int) -> str:
    """The complaint about the first place that is too deep, with the last key before it."""
    level = 0
    key = None
    for token in _TOKENS.finditer(_without_escapes(text)):
        if token["open"]:
            level += 1
        elif token["close"]:
            level -= 1
        elif token["colon"]:
            key = token["text"][:80]
        if level > depth:
            break
    near = f" (below the key {key})" if key is not None else ""
    return f"its arrays or objects are nested too deeply{near}: at most {depth} stand within one another"
