"""Orbax without its log lines."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Orbax takes files that are not in its own database for a sign of damage and says so for every leaf; its threads
    print tracebacks of errors that are raised here all the same."""
    logger = logging.getLogger("absl")
    former = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(former)
