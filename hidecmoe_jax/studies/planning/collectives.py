"""What the devices of a compiled program exchange, read from the compiler's text.

A collective is counted once for its channel: compilers repeat one and the same in several fusions, so that products run
while it is under way. Loops count as often as they run, which the text says in the loop's condition or beside the loop.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
Shape = tuple[int, ...]
SMALL = 1024
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r" = (.*?) ([\w\-]+)\(")
_RESULT = re.compile(r"\b(pred|bf16|f8\w*|[fsu]\d+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation|branch_computations=\{)=?%?([\w.\-]+)")
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BOUND = re.compile(r"%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_UNTIL = re.compile(r"ROOT .* compare\((.*)\), direction=LT")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_NAME = re.compile(r'op_name="([^"]*)"')
_BYTES = {"pred": 1, "bf16": 2}


@dataclass(frozen=True)
class Array:
    """A result of a collective: its type as the compiler writes it, and its shape."""

    dtype: str
    shape: Shape

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes."""
        digits = re.findall(r"\d+", self.dtype)
        return self.size * _BYTES.get(self.dtype, int(digits[0]) // 8 if digits else 1)

    @property
    def form(self) -> Shape:
        """The shape without axes of length 1, in ascending order: the same after a transposition."""
        return form_of(self.shape)


@dataclass(frozen=True)
class Collective:
    """One exchange of a program.

    Attributes:
      times: how often it is done, loops of unknown length taken to run once.
      in_loop: it is inside a loop.
      in_open_loop: inside one whose length the numbers decide, such as that over new tokens.
      name: of the operation it stands for, as the traced program has it.
    """

    kind: str
    arrays: tuple[Array, ...]
    times: int
    in_loop: bool
    in_open_loop: bool
    name: str

    @property
    def elements(self) -> int:
        """Of all results, all times together."""
        return self.times * sum(array.size for array in self.arrays)

    @property
    def bytes(self) -> int:
        """Of all results, all times together."""
        return self.times * sum(array.bytes for array in self.arrays)


def form_of(shape: Iterable[int]) -> Shape:
    """A shape without axes of length 1, in ascending order."""
    return tuple(sorted(size for size in shape if size != 1))


def collectives_of(text: str) -> list[Collective]:
    """All exchanges of a compiled program, each channel once."""
    lines_of, entry = _computations(text)
    found: dict[tuple[str, str], Collective] = {}
    visited: dict[str, int] = {}

    def walk(name: str, times: int, in_loop: bool, is_open: bool) -> None:
        # A computation that several operations call counts where it runs most often.
        if visited.get(name, 0) >= times:
            return
        visited[name] = times
        for line in lines_of.get(name, ()):
            operation = _OPERATION.search(line)
            if operation is None:
                continue
            result, opcode = operation.groups()
            kind = opcode.removesuffix("-start")
            if kind in KINDS:
                channel = _CHANNEL.search(line)
                key = (kind, channel.group(1) if channel else f"{name}: {line}")
                found[key] = _collective(kind, result, line, times, in_loop, is_open)
            if opcode == "while":
                condition, body = _LOOP.search(line).groups()
                trips = _trips(line, lines_of.get(condition, ()))
                walk(body, times * (trips or 1), True, is_open or trips is None)
                continue
            for called in _CALLED.findall(line):
                walk(called, times, in_loop, is_open)

    walk(entry, 1, False, False)
    return list(found.values())


def _computations(text: str) -> tuple[Mapping[str, list[str]], str]:
    """Lines of every computation of a program, and the name of the first one to run."""
    lines_of: dict[str, list[str]] = defaultdict(list)
    name = ""
    entry = ""
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            name = head.group(1)
            if line.startswith("ENTRY"):
                entry = name
        elif name:
            lines_of[name].append(line)
    return lines_of, entry


def _collective(kind: str, result: str, line: str, times: int, in_loop: bool, is_open: bool) -> Collective:
    arrays = []
    for dtype, shape in _RESULT.findall(result):
        sizes = tuple(int(size) for size in shape.split(",") if size)
        arrays.append(Array(dtype, sizes))
    name = _NAME.search(line)
    return Collective(kind, tuple(arrays), times, in_loop, is_open, name.group(1) if name else "")


def _trips(line: str, condition: Iterable[str]) -> int | None:
    """How often a loop runs; None where its numbers decide."""
    stated = _TRIPS.search(line)
    if stated:
        return int(stated.group(1))
    bounds = {}
    for inner in condition:
        bound = _BOUND.search(inner)
        if bound:
            bounds[bound.group(1)] = int(bound.group(2))
        until = _UNTIL.search(inner)
        if until:
            operands = re.findall(r"%?([\w.\-]+)", until.group(1))
            known = [bounds[name] for name in operands if name in bounds]
            return known[0] if known else None
    return None


@dataclass(frozen=True)
class Sums:
    """Reductions of a step by what they sum.

    Attributes:
      trained: elements of the gradients of what trains; `narrow`, those of them that are not summed in float32.
      small: elements of losses, counts and tallies, arrays of fewer than 1024 numbers.
      weights: elements of small weights that the compiler gathers by a sum with zeros.
      unexpected: what none of these explains, by shape and operation.
    """

    trained: int
    narrow: int
    small: int
    weights: int
    unexpected: tuple[str, ...]


def sums_of(collectives: Iterable[Collective], *, trained: Iterable[Shape], base: Iterable[Shape], rounds: int) -> Sums:
    """Sorts the reductions of a training step.

    Args:
      trained, base: shapes of leaves, where stacked ones may come layer by layer.
      rounds: micro-batches of a step, each of which may sum its gradients.
    """
    left: dict[Shape, int] = defaultdict(int)
    for shape in trained:
        # A stacked leaf is summed layer by layer inside the loop over layers, or once outside of it.
        left[form_of(shape)] += rounds
        left[form_of(shape[1:])] += rounds * shape[0]
    weights = {form_of(shape) for shape in base} | {form_of(shape[1:]) for shape in base}
    totals = dict.fromkeys(("trained", "narrow", "small", "weights"), 0)
    unexpected = []
    for item in collectives:
        if item.kind not in ("all-reduce", "reduce-scatter"):
            continue
        for array in item.arrays:
            elements = array.size * item.times
            if array.form == ():
                totals["small"] += elements
            elif left[array.form] >= item.times:
                left[array.form] -= item.times
                totals["trained"] += elements
                totals["narrow"] += 0 if array.dtype == "f32" else elements
            elif array.form in weights and len(array.form) == 1:
                totals["weights"] += elements
            elif array.size < SMALL:
                totals["small"] += elements
            else:
                unexpected.append(described(item, array))
    return Sums(**totals, unexpected=tuple(unexpected))


@dataclass(frozen=True)
class Gathers:
    """Gathered arrays by what they are, in elements.

    Attributes:
      layers: of the decoder's layers; `ends`, token table, head and last norm, and whatever else of the base.
      other: what is no weight, by shape and operation.
    """

    layers: int
    ends: int
    other: tuple[str, ...]


def gathers_of(collectives: Iterable[Collective], *, layers: Iterable[Shape], ends: Iterable[Shape]) -> Gathers:
    """Sorts the gathers of a program.

    Args:
      layers: shapes of the stacked leaves of all layers; `ends`, of the other leaves of the base.
    """
    of_layers = {form_of(shape[1:]) for shape in layers}
    of_ends = {form_of(shape) for shape in ends}
    # A norm may be gathered under another shape: [4096] as [16, 256].
    lengths = {shape[0] for shape in ends if len(shape) == 1}
    totals = {"layers": 0, "ends": 0}
    other = []
    for item in collectives:
        if item.kind != "all-gather":
            continue
        for array in item.arrays:
            elements = array.size * item.times
            if array.form in of_layers:
                totals["layers"] += elements
            elif array.form in of_ends or array.size in lengths:
                totals["ends"] += elements
            else:
                other.append(described(item, array))
    return Gathers(**totals, other=tuple(other))


def described(item: Collective, array: Array) -> str:
    """A collective for people: kind, type and shape, how often, and the operation that it comes from."""
    sizes = ",".join(map(str, array.shape))
    times = f" x {item.times}" if item.times > 1 else ""
    return f"{item.kind} {array.dtype}[{sizes}]{times} of {item.name or 'no named operation'}"


def elements_by_kind(collectives: Iterable[Collective]) -> dict[str, int]:
    """Elements of all results by kind; 0 of kinds that do not occur."""
    elements = dict.fromkeys(KINDS, 0)
    for item in collectives:
        elements[item.kind] += item.elements
    return elements


def by_kind(collectives: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """{kind: how many channels, how often, elements, bytes}; kinds that do not occur are left out."""
    totals: dict[str, dict[str, int]] = {}
    for item in collectives:
        row = totals.setdefault(item.kind, dict.fromkeys(("channels", "times", "elements", "bytes"), 0))
        row["channels"] += 1
        row["times"] += item.times
        row["elements"] += item.elements
        row["bytes"] += item.bytes
    return totals
