"""Processes that carry out one program together: a TPU pod slice, hosts with GPUs, or several processes of one host.

Every process runs the same commands on the same data; arrays lie on the devices of all of them (`core.layout`). The
first process owns what the run leaves behind: its folder, its log, its report. The others work in copies of their own
(`runs.copies`), so no two of them ever write one file.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from hidecmoe_jax.core.errors import ConfigError, HidecmoeError

Result = TypeVar("Result")

# What JAX itself reads for the first, and the names that launchers commonly use for the others.
ADDRESS = "JAX_COORDINATOR_ADDRESS"
COUNT = "JAX_NUM_PROCESSES"
INDEX = "JAX_PROCESS_ID"
ALONE = "HIDECMOE_PROCESSES"
# Seconds without a sign of life after which a process counts as dead and all others end: a busy host may pause.
HEARTBEAT = 300
# Seconds that a process waits at its end for the others.
SHUTDOWN = 30


@dataclass(frozen=True)
class Group:
    """The address of the first process (host:port), the number of processes, and which of them this one is."""

    address: str
    count: int
    index: int

    def __post_init__(self):
        if not re.fullmatch(r"[^\s:]+:\d{1,5}", self.address):
            raise ConfigError(
                "the first process needs an address", where=ADDRESS, why=f"got {self.address!r}",
                remedy="give its host and a free port: 10.0.0.1:1234",
            )  # fmt: skip
        if not 0 <= self.index < self.count:
            raise ConfigError(
                "no such process", where=INDEX, why=f"got {self.index}, of {self.count}",
                remedy=f"give every process another number from 0 to {self.count - 1}",
            )  # fmt: skip


def group_of(environment: Mapping[str, str]) -> Group | None:
    """The group that the environment describes by the three variables; None without them.

    Raises:
      ConfigError: some are missing, or no numbers.
    """
    given = {name: environment[name] for name in (ADDRESS, COUNT, INDEX) if environment.get(name)}
    if COUNT not in given and INDEX not in given:
        return None
    for name in (ADDRESS, COUNT, INDEX):
        if name not in given:
            raise ConfigError(
                "the processes of a run are described in part", where=name, why="this variable is not set",
                remedy=f"set {ADDRESS}, {COUNT} and {INDEX}, or none of them",
            )  # fmt: skip
    numbers = {}
    for name in (COUNT, INDEX):
        if not given[name].isdecimal():
            raise ConfigError("not a number", where=name, why=f"got {given[name]!r}", remedy="give a whole number")
        numbers[name] = int(given[name])
    return Group(given[ADDRESS], numbers[COUNT], numbers[INDEX])


def is_scheduled(environment: Mapping[str, str]) -> bool:
    """Whether a scheduler started several processes that JAX finds by itself: SLURM, or the workers of a TPU slice."""
    steps = environment.get("SLURM_STEP_NUM_TASKS", "1")
    workers = environment.get("TPU_WORKER_HOSTNAMES") or environment.get("TPU_PROCESS_ADDRESSES") or ""
    return (steps.isdecimal() and int(steps) > 1) or "," in workers


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of this run, if the environment names any (`group_of`, `is_scheduled`).

    To be called before JAX is used. With HIDECMOE_PROCESSES=one in the environment a process stays alone.

    Raises:
      ConfigError: as `group_of`, or JAX was used already.
    """
    if environment.get(ALONE) == "one":
        return
    group = group_of(environment)
    if group is None and not is_scheduled(environment):
        return
    import jax

    if jax.distributed.is_initialized():
        return
    # Without an implementation, programs over the CPUs of several processes are refused.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    words: dict[str, Any] = {}
    if group is not None:
        words = {"coordinator_address": group.address, "num_processes": group.count, "process_id": group.index}
    try:
        jax.distributed.initialize(
            **words, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN
        )  # fmt: skip
    except RuntimeError as error:
        raise ConfigError(
            "the processes of this run could not join", where=ADDRESS, why=str(error).splitlines()[0],
            remedy="start all of them with the same address, each with its own number, before JAX is used",
        ) from error  # fmt: skip


def _joined() -> bool:
    """Whether this process joined others; JAX is not imported for the question."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def count() -> int:
    """Number of processes that carry out this program; 1 without `join`."""
    return sys.modules["jax"].process_count() if _joined() else 1


def index() -> int:
    """The number of this process, from 0."""
    return sys.modules["jax"].process_index() if _joined() else 0


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_first() -> bool:
    """Whether this process is the one that writes the run, its log and its report."""
    return index() == 0


def wait_for_all(place: str) -> None:
    """Returns once every process has come to this place; at once in a single one."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(place)


def all_stop_at(number: int) -> bool:
    """Whether the processes agreed to stop at this question, because one of them caught SIGTERM.

    Args:
      number: of the question, counted alike by all; the runtime agrees on one that none has asked yet.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(number)


def from_first(text: str) -> str:
    """The first process's text, in every process."""
    if count() == 1:
        return text
    import numpy as np
    from jax.experimental import multihost_utils

    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    # All processes pass arrays of one shape; only the first one's content counts.
    padded = np.zeros(size, np.uint8)
    if is_first():
        padded[:] = data
    everywhere = np.asarray(multihost_utils.broadcast_one_to_all(padded))
    return everywhere.astype(np.uint8).tobytes().decode()


def to_host(tree: Any) -> Any:
    """The arrays of a tree as numpy arrays; what lies on devices of other processes alone is fetched from them.

    Every process must call it at the same place.
    """
    import jax

    if count() == 1:
        return jax.device_get(tree)
    import numpy as np
    from jax.experimental import multihost_utils

    def fetch(leaf: Any) -> np.ndarray:
        is_elsewhere = isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
        return multihost_utils.process_allgather(leaf, tiled=True) if is_elsewhere else np.asarray(leaf)

    return jax.tree.map(fetch, tree)


def first_decides(check: Callable[[], Result]) -> Result | None:
    """The result of a check that only the first process makes; None in the others.

    Raises:
      HidecmoeError: what the check raised; in the other processes an error of the same exit code.
    """
    if count() == 1:
        return check()
    result = None
    error = None
    if is_first():
        try:
            result = check()
        except HidecmoeError as refusal:
            error = refusal
    code = int(from_first("0" if error is None else str(error.exit_code)))
    if error is not None:
        raise error
    if code:
        refused = HidecmoeError("the first process refused to start", why="its message says why")
        refused.exit_code = code
        raise refused
    return result
