"""`hidecmoe export`: writes a run in the format of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Run, WholeNumber, joined
from hidecmoe_jax.port.output import check_target
from hidecmoe_jax.storage.places import SEALED

Tasks = Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="NAME ...")]


def export(
    run: Run,
    target: Annotated[Path, Positional, arg(metavar="DST")],
    /,
    *,
    to: Literal["peft", "vllm", "hf", "hf-base", "hub"],
    task: Tasks = (),
    tree: Literal["both", "since5", "before5"] = "both",
    after: WholeNumber = None,
    base_name: str | None = None,
    shard_gib: float = 4.0,
    overwrite: bool = False,
) -> None:
    """Write a run in a form that other tools load.

    Forms:
      peft      one LoRA folder per task for stock PEFT, with a trained projector (modules_to_save)
      vllm      one LoRA folder per task without projector, and DST/base with the run's projector
      hf        a merged LlavaForConditionalGeneration checkpoint that answers one --task
      hf-base   the base model as it was converted, without anything learned
      hub       experts, routing and projector with a model card; `hidecmoe adopt` reads it back

    Examples:
      $ hidecmoe export runs/hide out/adapters --to peft
      $ hidecmoe export runs/hide out/adapters --to peft --task birds --base-name llava-hf/llava-1.5-7b-hf
      $ hidecmoe export runs/hide out/birds --to hf --task birds
      $ hidecmoe export runs/hide out/hub --to hub --overwrite

    Args:
      run: run folder.
      target: folder to write; it appears when it is complete.
      to: the form, as above.
      task: tasks to write, if not all; hf needs one.
      tree: module names of adapters, of transformers 5 (since5), of earlier ones (before5), or the latter in a folder
        `before5` inside the former (both). vLLM knows both names.
      after: the run as it was after its first N tasks.
      base_name: name of the base model recorded in adapters; by default that of its folder.
      shard_gib: largest weights file of a checkpoint.
      overwrite: replace what is in DST.
    """
    # Before the run is opened, which imports JAX.
    check_target(target, overwrite=overwrite, sources=[run], replaces=(SEALED,))
    options = hj.ExportOptions(to, joined(task), tree, after, base_name, shard_gib)
    lines = hj.export(run, target, options, overwrite=overwrite)
    print_text("\n".join(lines))
