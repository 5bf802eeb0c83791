"""Where commands print: names, questions and answers come from files, and may hold what a terminal would obey."""

from __future__ import annotations

from hidecmoe_jax.core.printable import printable


def print_text(text: object = "", *, end: str = "\n", flush: bool = False) -> None:
    """Prints on standard output, with control characters spelled out."""
    print(printable(str(text)), end=end, flush=flush)
