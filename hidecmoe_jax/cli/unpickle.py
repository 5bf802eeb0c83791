"""`hidecmoe unpickle`: pickled weights of other tools become safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import hidecmoe_jax as hj


def unpickle(
    source: Annotated[Path, Positional, arg(metavar="SRC")],
    target: Annotated[Path, Positional, arg(metavar="DST")],
    /,
) -> None:
    """Turn pickled weights (.bin, .pt, .pth) into safetensors, in a process that does nothing else (needs torch).

    torch reads them with weights_only=True: only tensors are built, code in a pickle is refused. In a folder every
    weight file is converted, an index of shards is rewritten, and settings and safetensors files are copied, so that
    `hidecmoe convert` or `hidecmoe adopt` can read DST. DST exists whole or not at all. If you do not trust SRC, run
    this in a container or as a user of its own. torch comes with `pip install 'hidecmoe-jax[oracle]'`.

    Examples:
      $ hidecmoe unpickle llava-v1.5-7b llava-v1.5-7b-safe
      $ hidecmoe unpickle mm_projector.bin mm_projector.safetensors

    Args:
      source: folder, or a single file.
      target: folder or file to make; must not exist.
    """
    hj.unpickle(source, target)
