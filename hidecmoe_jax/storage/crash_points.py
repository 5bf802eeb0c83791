"""Named places where a test can kill the process, so that recovery is tested at the worst moments.

`HIDECMOE_CRASH_AT=before_rename` ends the process at that place as `kill -9` would: no clean-up, no flush. A detail
restricts it: `before_rename:001_counting` applies to that task alone.
"""

from __future__ import annotations

import os

VARIABLE = "HIDECMOE_CRASH_AT"


def crash_point(name: str, detail: str = "") -> None:
    """Ends the process with status 137 where the environment variable is `name` or `name:detail`."""
    if os.environ.get(VARIABLE) in {name, f"{name}:{detail}"}:
        os._exit(137)
