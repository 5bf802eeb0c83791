"""`hidecmoe data from-corrections`: reviewed answers of a log become a task folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text


def from_corrections(
    log: Annotated[Path, Positional, arg(metavar="LOG")],
    folder: Annotated[Path, Positional, arg(metavar="DIR")],
    /,
    *,
    task: Annotated[str, arg(metavar="NAME")],
    golden: bool = False,
    test: float = 0.2,
    scorer: Annotated[str, arg(metavar="RULE")] = "exact",
) -> None:
    """Make a task folder of the answers that people reviewed: a new task to learn, or a golden set of a known one.

    Needs pictures that were kept (`hidecmoe serve RUN --log DIR --keep-pictures DAYS`) and right answers. What cannot
    be used is counted, with the reason.

    Examples:
      $ hidecmoe data from-corrections log my/owls --task owls
      $ hidecmoe data from-corrections log check/birds --task birds --golden

    Args:
      log: folder of the decision log.
      folder: task folder to write; must not exist.
      task: the right task of the answers; of a new one the name that reviewers gave it.
      golden: put all of them into test.json, for gates and for `hidecmoe calibrate RUN --data DIR`.
      test: part of a new task's records that is kept for testing, above 0 and below 1.
      scorer: scoring rule for task.json.
    """
    print_text(hj.write_corrections(log, folder, task=task, golden=golden, test=test, scorer=scorer))
    if not golden:
        print_text(f"next: hidecmoe data check {folder}")
