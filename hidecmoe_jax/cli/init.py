"""`hidecmoe init`: a folder to begin from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text


def init(folder: Annotated[Path, Positional, arg(metavar="DIR")], /) -> None:
    """Write a config and two small task folders to begin from; the printed command learns them in about two minutes.

    Replace the pictures, `train.json` and `test.json` of a task by your own, or add folders to `stream.tasks`.

    Examples:
      $ hidecmoe init my/project

    Args:
      folder: where to write; must not exist.
    """
    config = hj.write_project(folder)
    print_text("\n".join(hj.project_lines(config)))
