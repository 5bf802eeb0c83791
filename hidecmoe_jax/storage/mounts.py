"""What a folder is mounted from, as far as Linux says it: a bucket of an object store cannot hold a run.

A lesson is committed by renaming a folder. Object stores copy and delete file by file instead, so a crash, or a second
reader, would see half of a lesson.
"""

from __future__ import annotations

import re
from pathlib import Path

from hidecmoe_jax.core.errors import ConfigError

MOUNTS = Path("/proc/self/mounts")
# File systems in user space that show a bucket as a folder.
BUCKETS = ("gcsfuse", "s3fs", "goofys", "mountpoint-s3", "rclone", "blobfuse", "blobfuse2", "geesefs")
_URL = re.compile(r"(gs|s3|abfs|az|hdfs|https?):/")


def file_system(folder: Path, mounts: Path = MOUNTS) -> str | None:
    """The type of the file system that a folder lies in, such as `ext4` or `fuse.gcsfuse`; None where it is unknown.

    Args:
      mounts: the system's table: device, folder, type and more in every line.
    """
    if not mounts.is_file():
        return None
    place = folder.resolve()
    best: tuple[int, str] | None = None
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        device, root, kind, *_ = line.split(" ")
        # Blanks in names are written as \040.
        above = Path(root.replace("\\040", " "))
        if place.is_relative_to(above):
            # Of nested mounts the innermost holds the folder; of two at one place the later one.
            depth = len(above.parts)
            # The device names the program where the type says no more than `fuse`.
            name = f"{kind}.{device}" if kind == "fuse" else kind
            if best is None or depth >= best[0]:
                best = (depth, name)
    return None if best is None else best[1]


def check_storage(folder: Path, *, remedy: str, mounts: Path = MOUNTS) -> None:
    """Refuses an output in an object store, whether it is named by a URL or mounted as a folder.

    Raises:
      ConfigError: says what is needed in its place.
    """
    why = None
    if _URL.match(str(folder)):
        why = "it is the address of an object store"
    else:
        kind = file_system(folder, mounts) or ""
        if kind.rpartition(".")[2] in BUCKETS:
            why = f"it is a bucket that {kind} shows as a folder"
    if why is not None:
        raise ConfigError(
            "the output needs a disk that renames folders in one step", where=str(folder), why=why,
            remedy=f"{remedy} on a local disk, NFS, Filestore or Lustre, and copy the finished folder to the bucket",
        )  # fmt: skip
