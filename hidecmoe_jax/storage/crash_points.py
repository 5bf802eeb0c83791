"""Named places where a test may kill the process, so that recovery is tested at the worst moments and not at
random ones.

`HIDECMOE_CRASH_AT=before_rename` ends the process there as `kill -9` would: no clean-up, no flush. A detail
narrows it down: `before_rename:001_counting` strikes at that task only.
"""

from __future__ import annotations

import os

VARIABLE = "HIDECMOE_CRASH_AT"


def crash_point(name: str, detail: str = "") -> None:
    """Ends the process with status 137 where the environment asks for `name` or `name:detail`."""
    if os.environ.get(VARIABLE) in {name, f"{name}:{detail}"}:
        os._exit(137)
