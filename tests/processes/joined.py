"""Starts a script in two joined processes, or in one, with some CPU devices each."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from hidecmoe_jax.core.processes import ADDRESS, COUNT, INDEX

TESTS = Path(__file__).parents[1]


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def started(script, words, devices, **variables):
    """A process of a script with `devices` CPU devices."""
    # Not the checkout: the package is the one that these tests run with.
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, words)],
        env=os.environ | {"PYTHONPATH": paths, "XLA_FLAGS": flags} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    """Exit code, standard output and standard error of a process."""
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def alone(script, *words, devices=1):
    """What `ended` says of a script in one process."""
    return ended(started(script, words, devices))


def both(script, *words, devices=1):
    """The same of a script in two joined processes, the first one first."""
    address = f"localhost:{free_port()}"
    running = []
    for index in range(2):
        variables = {ADDRESS: address, COUNT: "2", INDEX: str(index)}
        running.append(started(script, words, devices, **variables))
    return [ended(process) for process in running]
