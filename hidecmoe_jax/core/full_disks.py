"""Whether an error says that a disk is full, whoever reports it."""

from __future__ import annotations

import errno

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_WORDS = ("no space left", "file too large", "quota exceeded", "resource_exhausted")


def chain_of(error: BaseException) -> list[BaseException]:
    """An error and what caused it."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def disk_full(error: BaseException) -> str | None:
    """What says that a disk, a quota or a limit of file sizes is reached; None for any other error."""
    text = str(error).lower()
    reasons = [words for words in _FULL_WORDS if words in text]
    # XLA reports the memory of a device by the same word as the store of arrays a full disk.
    if reasons and "out of memory" not in text:
        return reasons[0]
    return "disk full" if isinstance(error, OSError) and error.errno in _FULL else None
