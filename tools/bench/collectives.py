"""What the devices of a compiled program exchange, read from its text: elements, and loops as often as they run.

Elements, not bytes: the CPU compiler turns bfloat16 into float32.
"""

import math
import re
from collections import Counter, defaultdict

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OPERATION = re.compile(r" = (.*?) ([\w\-]+)\(")


def computations(text: str) -> dict[str, list[str]]:
    """Lines of every computation of a program."""
    found: dict[str, list[str]] = defaultdict(list)
    name = ""
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            name = head.group(1)
            if line.startswith("ENTRY"):
                found["ENTRY"] = found[name]
        elif name:
            found[name].append(line)
    return found


def exchanged(text: str, *, start: str = "ENTRY", into_loops: bool = True) -> dict[str, Counter]:
    """{kind: {shape of one result: how often}}; a loop without a known number of rounds counts once.

    Args:
      start: the computation to read, with those that it calls.
      into_loops: count what loop bodies do as often as they run; without it, not at all.
    """
    lines_of = computations(text)
    found: dict[str, Counter] = {kind: Counter() for kind in KINDS}

    def walk(name: str, times: int) -> None:
        for line in lines_of.get(name, ()):
            operation = _OPERATION.search(line)
            if operation is None:
                continue
            result, opcode = operation.groups()
            kind = opcode.removesuffix("-start")
            if kind in found:
                for shape in _SHAPE.findall(result):
                    found[kind][tuple(int(size) for size in shape.split(",") if size)] += times
                continue
            if opcode == "while" and not into_loops:
                continue
            trips = _TRIPS.search(line)
            inner = times * int(trips.group(1)) if opcode == "while" and trips else times
            for called in _CALLED.findall(line):
                walk(called, inner)

    walk(start, 1)
    return found


def elements(counter: Counter) -> int:
    """Elements of all results."""
    return sum(math.prod(shape) * times for shape, times in counter.items())


def loop_bodies(text: str) -> list[str]:
    """Text of every loop body that does not say how often it runs: the decode loop of an answering program."""
    lines_of = computations(text)
    bodies = []
    for lines in lines_of.values():
        for line in lines:
            if " while(" in line and not _TRIPS.search(line):
                bodies += re.findall(r"body=%?([\w.\-]+)", line)
    return bodies
