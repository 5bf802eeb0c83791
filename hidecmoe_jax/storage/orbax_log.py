"""Silencing Orbax's log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Suppresses Orbax's log lines inside the block.

    Orbax warns about every file that is not in its own database, once for each leaf, and its threads print tracebacks
    of errors that are raised to the caller as well.
    """
    logger = logging.getLogger("absl")
    former = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(former)
