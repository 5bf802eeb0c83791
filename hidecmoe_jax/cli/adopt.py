"""`hidecmoe adopt`: makes a run from adapters of other tools, or from a hub folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Assignments, Folders, joined
from hidecmoe_jax.port.output import check_target
from hidecmoe_jax.storage.places import RUN

Names = Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="NAME ...")]


def adopt(
    base: Annotated[str, Positional, arg(metavar="BASE")],
    adapters: Annotated[tuple[Path, ...], Positional, arg(metavar="ADAPTER ...")],
    /,
    *,
    out: Annotated[Path, arg(metavar="RUN")],
    names: Names = (),
    data: Folders = (),
    template: Literal["vicuna", "short", "plain"] = "vicuna",
    sets: Assignments = (),
    overwrite: bool = False,
) -> None:
    """Make a run of adapters that other tools trained, or of a folder written by `hidecmoe export --to hub`.

    PEFT LoRA folders (several become tasks that have to be named), one HiDe-LLaVA or MCITlib HiDe folder, or one
    MoELoRA folder of CoIN. Pickled files are refused; `hidecmoe unpickle` makes safetensors of them.

    Examples:
      $ hidecmoe adopt bases/llava-7b adapters/birds adapters/fish --out runs/mine
      $ hidecmoe adopt bases/llava-7b adapters/hide --out runs/hide --data my/birds my/fish
      $ hidecmoe adopt bases/llava-7b out/hub --out runs/back

    Args:
      base: base model made by `hidecmoe convert`, or 'pocket'.
      adapters: adapter folders.
      out: run folder to make.
      names: names of the tasks, if not those of the folders.
      data: task folders in the order of the tasks, for `hidecmoe eval` and `add`.
      template: prompt template that the adapters were trained with.
      sets: override a value of the run's config, such as evaluate.writing.max_new_tokens=64.
      overwrite: replace what is in RUN.
    """
    # Before the base is opened, which imports JAX.
    check_target(out, overwrite=overwrite, sources=adapters, replaces=(RUN,))
    # As text, because they are recorded in the run's config file.
    folders = tuple(str(folder) for folder in joined(data))
    options = hj.Adoption(joined(names), folders, template, joined(sets))
    lines = hj.adopt(base, adapters, out, options, overwrite=overwrite)
    print_text("\n".join(lines))
