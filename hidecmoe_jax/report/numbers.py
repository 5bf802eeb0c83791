"""Numbers as a report prints them; a value of 0 is a number like any other and is printed."""

from __future__ import annotations


def number(value: float, digits: int = 2) -> str:
    """A number with thousands separators and a true minus sign."""
    text = f"{value:,.{digits}f}"
    zero = f"{0:.{digits}f}"
    # A tiny negative number is rounded to -0.
    return zero if text == f"-{zero}" else text.replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """A difference, with a plus sign where it is positive."""
    text = number(value, digits)
    zero = f"{0:.{digits}f}"
    return f"+{text}" if value > 0 and text != zero else text


def size(count: int) -> str:
    """A number of bytes in the largest decimal unit."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def operations(count: int) -> str:
    """A number of floating-point operations in four digits and a unit."""
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= scale:
            return f"{count / scale:.4g} {unit}"
    return str(count)
