"""`hidecmoe doctor`: checks of the environment and the machine.

Every check is a function that returns one line of the printed table. The last one computes a forward pass of the
pocket model, which needs everything above it. Version ranges are read from the metadata of the installed package.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Folder, Json
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.records import Doctor, json_text
from hidecmoe_jax.core.records import MachineCheck as Check
from hidecmoe_jax.storage.mounts import check_storage, file_system

GIB = 2**30
PACKAGE = "hidecmoe-jax"
NEEDED_DISK = 2 * GIB
NEEDED_MEMORY = 4 * GIB
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def doctor(*, out: Folder = None, json: Json = False) -> int:
    """Check versions, devices, memory, disk, and one forward of the pocket model; exit code 1 if one fails.

    Examples:
      $ hidecmoe doctor
      $ hidecmoe doctor --out runs
      $ hidecmoe doctor --json

    Args:
      out: folder whose disk is checked; the current one if not given.
      json: print JSON instead of a table.
    """
    pending = checks(out or Path.cwd())
    if json:
        done = tuple(pending)
        all_passed = all(check.passed for check in done)
        print_text(json_text(Doctor(all_passed, done)))
        return 0 if all_passed else 1
    all_passed = True
    for check in pending:
        all_passed &= check.passed
        verdict = "OK  " if check.passed else "FAIL"
        # Flushed, because the last check takes many seconds.
        print_text(f"{verdict}  {check.name:<28} {check.result}", flush=True)
        if not check.passed:
            print_text(f"      do: {check.remedy}")
    print_text("all is well" if all_passed else "something above needs attention")
    return 0 if all_passed else 1


def checks(out: Path) -> Iterator[Check]:
    """Yields the checks in order, each as soon as it is done."""
    yield python()
    yield from packages()
    yield devices()
    yield memory()
    yield disk(out)
    yield storage(out)
    yield from large_pages()
    yield forward()


def python() -> Check:
    """Version of the interpreter against `requires-python`."""
    version = platform.python_version()
    supported = SpecifierSet(_metadata()["Requires-Python"]).contains(version, prereleases=True)
    return Check("python", supported, version, "make the environment with a newer Python")


def packages() -> Iterator[Check]:
    """Version of every core dependency against its declared range; extras and other Pythons' lines are left out."""
    for line in _metadata().get_all("Requires-Dist") or ():
        requirement = Requirement(line)
        # An empty extra: markers such as `extra == "dev"` are then false, and markers about Python are evaluated.
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement)


def _package(requirement: Requirement) -> Check:
    name = requirement.name
    wanted = f"needs {requirement.specifier}"
    remedy = f"python -m pip install '{name}{requirement.specifier}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, f"not installed, {wanted}", remedy)
    if requirement.specifier.contains(version, prereleases=True):
        return Check(name, True, version)
    return Check(name, False, f"{version}, {wanted}", remedy)


def devices() -> Check:
    """Devices that JAX computes on."""
    # Imported here, so that a broken JAX is a line of the table and not a traceback.
    try:
        jax = importlib.import_module("jax")
        available = jax.devices()
    except (ImportError, RuntimeError) as error:
        return Check("devices", False, str(error), "set JAX_PLATFORMS=cpu, then look at the driver")
    kinds = sorted({device.device_kind for device in available})
    return Check("devices", True, f"{len(available)} x {', '.join(kinds)} ({available[0].platform})")


def memory() -> Check:
    """Physical memory; a run of the pocket model needs a few GiB."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    remedy = "close other programs, or lower tune.batch"
    return Check("memory", size >= NEEDED_MEMORY, f"{size / GIB:.1f} GiB", remedy)


def disk(folder: Path) -> Check:
    """Free space on the disk of `folder`, which need not exist yet."""
    resolved = folder.resolve()
    candidates = [resolved, *resolved.parents]
    existing = next(parent for parent in candidates if parent.exists())
    free = shutil.disk_usage(existing).free
    result = f"{free / GIB:.1f} GiB free in {existing}"
    return Check("disk", free >= NEEDED_DISK, result, "free space, or give another --out")


def storage(folder: Path) -> Check:
    """Whether the disk of `folder` can hold a run: lessons are committed by renaming folders."""
    kind = file_system(folder) or "unknown file system"
    try:
        check_storage(folder, remedy="give an --out")
    except ConfigError as error:
        return Check("storage", False, f"{kind}: {error.why}", error.remedy or "")
    return Check("storage", True, kind)


def large_pages(setting: Path = LARGE_PAGES) -> Iterator[Check]:
    """Whether Linux backs arrays with large pages: measured at a quarter of a CPU step's time on the pocket model."""
    if not setting.is_file():
        return
    mode = setting.read_text()
    # "madvise" leaves the choice to the program; glibc then requests large pages if this tunable is set.
    requested = "[madvise]" in mode and "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", "")
    used = "[always]" in mode or requested
    advice = "not used; on a CPU, GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before a command saves time"
    yield Check("large pages", True, "used" if used else advice)


def forward() -> Check:
    """One forward pass of the pocket model on eight tokens."""
    began = time.perf_counter()
    try:
        model = hj.load("pocket")
        tokens = np.ones((1, 8), np.int32)
        logits = np.asarray(model.logits(tokens, np.ones((1, 8), bool)))
    except (hj.HidecmoeError, ImportError) as error:
        return Check("forward", False, str(error), "install the package again: python -m pip install -e .")
    seconds = time.perf_counter() - began
    result = f"logits {logits.shape} in {seconds:.1f} s, load and compile included"
    return Check("forward", bool(np.isfinite(logits).all()), result, "report this with the lines above")


def _metadata() -> importlib.metadata.PackageMetadata:
    try:
        return importlib.metadata.metadata(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            "the package is not installed",
            why="it runs from its sources, so the declared version ranges cannot be read",
            remedy="python -m pip install -e .",
        ) from error
