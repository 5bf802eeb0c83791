"""`hidecmoe doctor`: is this machine able to do the work?

Every check is a function that returns one line of a table; the last one runs the pocket model forward, which
needs everything above it. The version ranges are those that the installed package declares.
"""

from __future__ import annotations

import email.message
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import hidecmoe_jax as hj
from hidecmoe_jax.cli.words import Folder
from hidecmoe_jax.core.errors import ConfigError

GIB = 2**30
PACKAGE = "hidecmoe-jax"
NEEDED_DISK = 2 * GIB
NEEDED_MEMORY = 4 * GIB
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)\s*(.*)")
_BOUND = re.compile(r"(>=|<)([0-9.]+)")


@dataclass(frozen=True)
class Check:
    """One line of the table: what was looked at, what was found, and what to do where it is not well."""

    name: str
    well: bool
    found: str
    remedy: str = ""


def doctor(*, out: Folder = None) -> int:
    """Check versions, devices, memory, disk, and one forward of the pocket model; exit code 1 if one fails.

    Examples:
      $ hidecmoe doctor
      $ hidecmoe doctor --out runs

    Args:
      out: folder whose disk is checked; the current one if not given.
    """
    well = True
    for check in checks(out or Path.cwd()):
        well &= check.well
        print(f"{'OK  ' if check.well else 'FAIL'}  {check.name:<28} {check.found}", flush=True)
        if not check.well:
            print(f"      do: {check.remedy}")
    print("all is well" if well else "something above needs attention")
    return 0 if well else 1


def checks(out: Path) -> Iterator[Check]:
    """Yields the checks in order, each as soon as it is done."""
    yield python()
    yield from packages()
    yield devices()
    yield memory()
    yield disk(out)
    yield from large_pages()
    yield forward()


def python() -> Check:
    """The interpreter against the package's floor."""
    found = platform.python_version()
    well = within(found, _metadata()["Requires-Python"])
    return Check("python", well, found, "make the environment with a newer Python")


def packages() -> Iterator[Check]:
    """Every declared dependency against its declared range."""
    for line in _metadata().get_all("Requires-Dist") or ():
        if "extra ==" in line:
            continue
        name, ranges = _REQUIREMENT.fullmatch(line).groups()
        remedy = f"python -m pip install '{name}{ranges}'"
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, False, f"not installed, needs {ranges}", remedy)
            continue
        well = within(found, ranges)
        yield Check(name, well, found if well else f"{found}, needs {ranges}", remedy)


def devices() -> Check:
    """What JAX computes on."""
    try:
        jax = importlib.import_module("jax")
        found = jax.devices()
    except (ImportError, RuntimeError) as error:
        return Check("devices", False, str(error), "set JAX_PLATFORMS=cpu, then look at the driver")
    kinds = {device.device_kind for device in found}
    return Check("devices", True, f"{len(found)} x {', '.join(sorted(kinds))} ({found[0].platform})")


def memory() -> Check:
    """Memory of the machine; the main job on the pocket model wants a few GiB."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    remedy = "close other programs, or lower train.batch"
    return Check("memory", size >= NEEDED_MEMORY, f"{size / GIB:.1f} GiB", remedy)


def disk(folder: Path) -> Check:
    """Room where run folders go."""
    here = next(parent for parent in [folder.resolve(), *folder.resolve().parents] if parent.exists())
    free = shutil.disk_usage(here).free
    found = f"{free / GIB:.1f} GiB free in {here}"
    return Check("disk", free >= NEEDED_DISK, found, "free space, or give another --out")


def large_pages(session: Path = LARGE_PAGES) -> Iterator[Check]:
    """Whether arrays of a CPU step lie in large pages; measured at a quarter of a step's time on the pocket model."""
    if not session.is_file():
        return
    always = "[always]" in session.read_text()
    asked = "[madvise]" in session.read_text() and "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", "")
    advice = "not used; on a CPU, GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before a command saves time"
    yield Check("large pages", True, "used" if always or asked else advice, "")


def forward() -> Check:
    """One forward of the pocket model on a blank picture's worth of text."""
    began = time.perf_counter()
    try:
        model = hj.load("pocket")
        tokens = np.ones((1, 8), np.int32)
        logits = np.asarray(model.logits(tokens, np.ones((1, 8), bool)))
    except (hj.HidecmoeError, ImportError) as error:
        return Check("forward", False, str(error), "install the package again: python -m pip install -e .")
    seconds = time.perf_counter() - began
    found = f"logits {logits.shape} in {seconds:.1f} s, load and compile included"
    return Check("forward", bool(np.isfinite(logits).all()), found, "report this with the lines above")


def within(version: str, ranges: str) -> bool:
    """Whether a version such as 0.10.2 lies in a range such as `>=0.10,<0.13`, pre-release marks aside."""
    for part in ranges.split(","):
        sign, bound = _BOUND.fullmatch(part.strip()).groups()
        if (_release(version) >= _release(bound)) != (sign == ">="):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version without trailing zeros, so that 2.0 is 2."""
    numbers = [int(number) for number in re.match(r"\d+(\.\d+)*", version)[0].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _metadata() -> email.message.Message:
    try:
        return importlib.metadata.metadata(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            "the package is not installed",
            why="it runs from its sources, so the declared version ranges cannot be read",
            remedy="python -m pip install -e .",
        ) from error
