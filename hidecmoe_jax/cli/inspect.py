"""`hidecmoe inspect`: lists the tasks and experts of a run."""

from __future__ import annotations

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Json, Run
from hidecmoe_jax.core.records import json_text


def inspect(run: Run, /, *, json: Json = False) -> None:
    """Show the tasks of a run, its experts per layer, and their sizes.

    Examples:
      $ hidecmoe inspect runs/hide
      $ hidecmoe inspect runs/hide --json

    Args:
      run: run folder.
      json: print JSON instead of text.
    """
    described = hj.inspect_run(run)
    print_text(json_text(described) if json else "\n".join(hj.inspection_lines(described)))
