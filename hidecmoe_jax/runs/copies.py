"""The folder that a process works in, where several processes learn one run.

Every process carries out the whole program, also what it writes, so all of them read the same records, cells and
checkpoints and decide alike. Only the first one writes into the run; the others write into a copy that is deleted at
the end. A process therefore never reads what another one is just writing.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hidecmoe_jax.core import processes
from hidecmoe_jax.storage.lock import LOCK, NOTE


@contextlib.contextmanager
def working_folder(run: Path) -> Iterator[Path]:
    """The run's own folder in the first process, and in the others a private copy of what is in it at the start."""
    if processes.count() == 1:
        yield run
        return
    origin = Path(processes.from_first(str(run.absolute())))
    with contextlib.ExitStack() as stack:
        folder = run
        if not processes.is_first():
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hidecmoe_")))
            folder = place / origin.name
            if origin.is_dir():
                # Runs that were moved aside are not read again.
                shutil.copytree(origin, folder, ignore=shutil.ignore_patterns(LOCK, NOTE, "replaced_*", "withdrawn"))
        # The first one begins to write once all others have read.
        processes.wait_for_all("run is copied")
        yield folder
        # What the first one wrote is complete when any of them goes on.
        processes.wait_for_all("run is written")
