"""`hidecmoe audit`: leaks of a stream, and what makes the scores of runs on it hard to compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.data import stream_config
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Assignments, Folders, joined


def audit(
    where: Annotated[tuple[str, ...], Positional, arg(metavar="DIR ... | CONFIG")],
    /,
    *,
    runs: Folders = (),
    mix: Annotated[Path | None, arg(metavar="FILE")] = None,
    mix_images: Annotated[Path | None, arg(metavar="DIR")] = None,
    neighbours: bool = False,
    tasks: Folders = (),
    sets: Assignments = (),
    out: Annotated[Path, arg(metavar="DIR")] = Path("audit"),
    as_json: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Find what makes the scores on a stream mean less than they seem, and write one page with examples side by side.

    Looked for are test items that were trained on (equal pictures, near-duplicates, copied texts), answers and tasks
    that follow from the question alone, answers that tasks share, and, between runs, unequal budgets, replay and
    choices made on the test. Needs no weights and no accelerator.

    Examples:
      $ hidecmoe audit my/birds my/charts
      $ hidecmoe audit my/birds my/charts --runs runs/hide runs/joint --out audits/birds
      $ hidecmoe audit configs/pocket/hidecmoe.yaml --neighbours
      $ hidecmoe audit my/birds --mix llava_v1_5_mix665k.json --mix-images data --json

    Args:
      where: task folders in the order of the stream, or one config.
      runs: finished runs or comparisons on this stream, whose budgets and scores are looked at too.
      mix: LLaVA JSON that the base was trained on; its questions and pictures are compared with the tests.
      mix_images: folder of the pictures of the mix, by default that of its file; those that are not there are compared
        by name alone.
      neighbours: also show the training pictures that are nearest to test pictures in the features of the base's vision
        tower. This loads the base and may take long on a CPU.
      tasks: task folders instead of the config's.
      sets: config values that replace those of the file or the defaults, such as stream.policy.max_bad=0.01.
      out: folder for audit.html and audit.json.
      as_json: print everything as JSON.
    """
    config = stream_config(where, tasks, sets, command="hidecmoe audit")
    options = hj.AuditOptions(joined(runs), mix, mix_images, neighbours)
    document = hj.audit(config, options=options, out=out)
    if as_json:
        print_text(json.dumps(document, indent=1, ensure_ascii=False))
        return
    print_text("\n".join(hj.audit_lines(document)))
    print_text(f"written: {out / 'audit.html'}, audit.json")
