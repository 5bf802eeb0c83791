"""What no other part of the program has caught, as errors for users: full disks, memory, and the unexpected.

Every command ends in a message and an exit code of the table; the traceback is shown with `--debug` alone.
"""

from __future__ import annotations

import re

from hidecmoe_jax.core.errors import CheckpointError, DataError, HidecmoeError, ResourceError
from hidecmoe_jax.core.full_disks import chain_of, disk_full

# By name: a command that needs no JAX does not import it for this.
_OF_DEVICES = {"JaxRuntimeError", "XlaRuntimeError"}
_OUT_OF_MEMORY = ("resource_exhausted", "out of memory", "out_of_memory")
_SHAPE = re.compile(r"\b(?:pred|[subf]f?\d+|bf16|c\d+)\[[\d,]*\]")
SMALLER = (
    "smaller steps: halve --set tune.batch and double --set tune.accumulate (the same numbers up to rounding); compute "
    "again instead of keeping: --set base.remat=true; spread the base: --set scale.mesh.fsdp=N; `hidecmoe plan CONFIG` "
    "says what fits"
)


def as_error(error: BaseException) -> HidecmoeError:
    """Any error as one for users; one of ours as it is."""
    if isinstance(error, HidecmoeError):
        return error
    for link in chain_of(error):
        if _is_memory_of_device(link):
            return _device_memory(link)
        reason = disk_full(link)
        if reason is not None:
            return _full(link, reason)
    if isinstance(error, OSError):
        return _refused(error)
    if isinstance(error, MemoryError):
        return ResourceError(
            "the machine's memory ran out", where=str(error).splitlines()[0] if str(error) else None,
            why="the system refused this process more memory; everything saved before is intact",
            remedy=f"end other programs, or {SMALLER}",
        )  # fmt: skip
    if isinstance(error, RecursionError):
        return DataError(
            "a value is nested too deeply", why=_first_line(error),
            remedy="look at the file that was read last for brackets within brackets; --debug shows where",
        )  # fmt: skip
    return HidecmoeError(
        "an error that this program does not know", why=f"{type(error).__name__}: {_first_line(error)}",
        remedy="--debug shows where it happened; `hidecmoe doctor` checks the installation",
    )  # fmt: skip


def _full(error: BaseException, reason: str) -> ResourceError:
    return ResourceError(
        "the disk took no more", where=str(getattr(error, "filename", None) or "unknown"),
        why=f"the system reports: {reason}; everything saved before is intact",
        remedy="free some space (or raise the quota or the limit of file sizes) and give the same command again",
    )  # fmt: skip


def _refused(error: OSError) -> CheckpointError:
    """What the system refused, such as a folder that may not be written."""
    return CheckpointError(
        "the system refused a file", where=str(error.filename or "unknown"), why=error.strerror or str(error),
        remedy="look at its permissions and its disk; --debug shows where it happened",
    )  # fmt: skip


def _is_memory_of_device(error: BaseException) -> bool:
    text = str(error).lower()
    return type(error).__name__ in _OF_DEVICES and any(words in text for words in _OUT_OF_MEMORY)


def _device_memory(error: BaseException) -> ResourceError:
    """The memory of a device ran out; with the shapes that XLA names, the first few of them."""
    shapes = list(dict.fromkeys(_SHAPE.findall(str(error))))[:4]
    named = f" (arrays {', '.join(shapes)})" if shapes else ""
    return ResourceError(
        "the memory of a device ran out", where=None,
        why=f"{_first_line(error)}{named}; everything saved before is intact", remedy=SMALLER,
    )  # fmt: skip


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
