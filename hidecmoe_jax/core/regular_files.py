"""Regular files of unknown origin, read up to a limit.

Opening a pipe waits for its writer, a device may have no end, and a file of any size would be held in memory. So a path
is looked at before it is opened, and again once it is open, since another file may have taken its place.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_BLOCK = 2**20
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_regular(path: str | Path, *, at_most: int | None) -> bytes:
    """Returns the content of a regular file.

    Args:
      at_most: bytes that it may have; None for any number.

    Raises:
      OSError: the system refuses it, it is no regular file, or it has more than `at_most` bytes; its `strerror` says
        which, in words for users.
    """
    check_regular(path)
    # A pipe that has taken the file's place is opened without waiting for its writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as file:
        status = _checked(os.fstat(file.fileno()), path)
        if at_most is not None and status.st_size > at_most:
            raise _too_large(path, f"{status.st_size:,}", at_most)
        content = file.read(status.st_size)
        # The file may grow while it is read.
        while more := file.read(_BLOCK):
            content += more
            if at_most is not None and len(content) > at_most:
                raise _too_large(path, f"more than {at_most:,}", at_most)
    return content


def check_regular(path: str | Path) -> os.stat_result:
    """Returns the status of a regular file, which is not opened.

    Raises:
      OSError: as `read_regular`.
    """
    return _checked(os.stat(path), path)


def _checked(status: os.stat_result, path: str | Path) -> os.stat_result:
    if stat.S_ISREG(status.st_mode):
        return status
    kind = next((words for is_kind, words in _KINDS if is_kind(status.st_mode)), "no regular file")
    number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
    raise OSError(number, f"it is {kind}; only regular files are read", str(path))


def _too_large(path: str | Path, size: str, at_most: int) -> OSError:
    return OSError(errno.EINVAL, f"it has {size} bytes; a file of this kind has at most {at_most:,}", str(path))
