"""`hidecmoe verify`: what of a run, a base, an export or a task is whole, and what to do about the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.core.errors import CheckpointError


def verify(
    folder: Annotated[Path, Positional, arg(metavar="DIR")],
    /,
    *,
    accept: bool = False,
    as_json: Annotated[bool, arg(name="json")] = False,
) -> int:
    """Check every byte that was sealed in a run, a base model, an export or a hub folder, every record of a task, and
    every line of a decision log.

    Exit code 0: nothing is damaged; 4: something is, and it is listed with what to do. What no seal covers, as in runs
    of earlier versions, is listed too and is no damage.

    Examples:
      $ hidecmoe verify runs/hide
      $ hidecmoe verify runs/hide --json
      $ hidecmoe verify runs/hide --accept
      $ hidecmoe verify logs/hide

    Args:
      folder: run, base, export, hub folder, task folder, or the folder of a decision log.
      accept: seal the settings, answers and scores of a run as they are now, after you changed or lost some of them
        yourself. What is lost is measured again by `hidecmoe eval`. Archived lessons cannot be accepted.
      as_json: print everything as JSON.
    """
    verdict = hj.verify(folder, accept_files=accept)
    if as_json:
        print_text(json.dumps(verdict.values(), indent=1, ensure_ascii=False))
    else:
        print_text("\n".join(hj.verdict_lines(verdict)))
    return 0 if verdict.whole else CheckpointError.exit_code
