"""`hidecmoe convert`: a LLaVA checkpoint of another tool becomes a base model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Folder, Folders, joined
from hidecmoe_jax.storage.places import check_place


def convert(
    source: Annotated[Path, Positional, arg(metavar="SRC")],
    target: Annotated[Path, Positional, arg(metavar="DST")],
    /,
    *,
    dtype: Literal["float32", "bfloat16"] | None = None,
    clip: Folders = (),
    vision: Folder = None,
    projector: Annotated[Path | None, arg(metavar="FILE")] = None,
    tokenizer: Folder = None,
    layout: Literal["auto", "file", "sharded"] = "auto",
    dry_run: bool = False,
    resume: bool = False,
    check: bool = False,
    python: Annotated[str | None, arg(metavar="FILE")] = None,
    allow_nonfinite: bool = False,
) -> None:
    """Convert a LLaVA-1.5 checkpoint of another tool into a base model that every command here takes.

    The kind of SRC is recognised from its tensors: Hugging Face LLaVA in all key layouts, the original LLaVA-1.5
    layout, or a Vicuna/LLaMA language model whose other parts are named by flags. CLIP's text tower and projections,
    which no LLaVA checkpoint has, come from --clip; without it, methods that find tasks by CLIP's features (HiDe: gate
    `anchors`) refuse the base, and those that read the base's own state (CMoE), are given the task or have no gate
    work. Nothing is downloaded; pickled weights are refused, with the command that converts them.

    Examples:
      $ hidecmoe convert llava-1.5-7b-hf bases/llava-7b --dtype bfloat16 --clip clip-vit-large-patch14-336
      $ hidecmoe convert llava-1.5-7b-hf bases/llava-7b --clip clip-vit-large-patch14-336 --dry-run
      $ hidecmoe convert vicuna-7b bases/mine --clip clip-vit-large-patch14-336 --projector mm_projector.safetensors
      $ hidecmoe convert small-llava bases/small --clip small-clip --check

    Args:
      source: folder of the checkpoint.
      target: folder to make; must not exist.
      dtype: of the weights; by default bfloat16 stays, and everything else becomes float32.
      clip: folder of CLIPModel, or of its towers in several folders.
      vision: folder of the vision tower, where SRC has none and --clip is another.
      projector: stage-1 projector, for a plain language model.
      tokenizer: folder of another tokenizer than SRC's.
      layout: one file, or pieces by array; auto takes pieces above 2 GiB.
      dry_run: print what would be done, from headers alone.
      resume: go on with a conversion that was stopped.
      check: give the folder its name only if it answers as transformers' own model does (extra `oracle`).
      python: interpreter with torch for --check, if not this one.
      allow_nonfinite: write NaN and infinity too.
    """
    # A target that exists is refused under its lock.
    if not dry_run and not os.path.lexists(target):
        check_place(target, remedy="give another target")
    # Conversion reads and writes files; JAX, which starts below, must not occupy an accelerator for it.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    parts: dict[str, Any] = {"clip": joined(clip), "vision": vision, "projector": projector}
    compare = hj.conversion_check(source, **parts, python=python) if check else None
    report = hj.convert(
        source,
        target,
        **parts,
        dtype=dtype,
        tokenizer=tokenizer,
        layout=layout,
        dry_run=dry_run,
        resume=resume,
        allow_nonfinite=allow_nonfinite,
        check=compare,
    )
    if dry_run:
        print_text("would be written:")
    print_text("\n".join(report.lines()))
