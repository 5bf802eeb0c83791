"""Wilson's interval of a share."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # quantile of the normal distribution for 95 %, two-sided


def wilson(share: float, count: float) -> tuple[float, float]:
    """Returns the interval (95 %) of a share that was measured on `count` draws (Wilson 1927)."""
    square = _Z**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _Z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)
