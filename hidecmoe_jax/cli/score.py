"""`hidecmoe score`: scores of result files, this project's and those of other evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Folder, Folders, joined
from hidecmoe_jax.core.errors import ConfigError

Predictions = Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="FILE | DIR | NAME=DIR ...")]
Stages = Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="NAME=ROW ...")]


def score(
    *,
    predictions: Predictions = (),
    stream: Annotated[str | None, arg(metavar="NAME")] = None,
    data: Folder = None,
    tasks: Folders = (),
    stages: Stages = (),
    out: Folder = None,
    resamples: int = 1000,
    seed: int = 0,
    judge_url: Annotated[str | None, arg(metavar="URL")] = None,
    judge_model: Annotated[str | None, arg(metavar="NAME")] = None,
    judge_cache: Annotated[Path, arg(metavar="FILE")] = Path("judge_replies.jsonl"),
    as_json: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Score answers under the strict rules and under those of the published scripts, with intervals and paired tests.

    Read are runs of this project and the result files of MCITlib, HiDe-LLaVA, CoIN and Prism (merge.jsonl in their
    folders, or shards). Needs no model and no accelerator.

    Examples:
      $ hidecmoe score --predictions runs/hide
      $ hidecmoe score --predictions results/UCIT/each_dataset --stream ucit --data data/UCIT
      $ hidecmoe score --predictions runs/hide others=results/CoIN --tasks my/birds my/charts --out scores
      $ hidecmoe score --predictions results/CoIN/LLaVA --stream coin --data data/CoIN --stages Finetune=own --json

    Args:
      predictions: runs, result files or folders of them; runs under one NAME are seeds or orders of one method.
      stream: public benchmark whose rules and order hold: ucit, coin, coin_prism, mllm_dcl, mllm_acl.
      data: folder that holds the task folders of that benchmark, each with its test file.
      tasks: task folders in the order they were learned, in place of --data, or without a benchmark.
      stages: rows of stages whose names do not say them; 0 is zero-shot, `own` the row right after each task.
      out: folder for scores.json, cells.csv and items.csv.
      resamples: draws of the bootstrap and of the permutation tests; 0 for neither.
      seed: seed of those draws.
      judge_url: OpenAI-compatible endpoint (up to /v1) that rates final answers from 0 to 10; nothing is sent anywhere
        without it. Its key, if it needs one, is read from the variable HIDECMOE_JUDGE_KEY.
      judge_model: name of the model behind it.
      judge_cache: file that its replies are appended to; an answer that is in it is not sent again.
      as_json: print everything as JSON.
    """
    document = hj.score_predictions(
        joined(predictions),
        stream=stream,
        data=data,
        tasks=joined(tasks),
        stages=_rows(joined(stages)),
        out=out,
        resamples=resamples,
        seed=seed,
        judge_url=judge_url,
        judge_model=judge_model,
        judge_cache=judge_cache,
    )
    if as_json:
        print_text(json.dumps(document, indent=1, ensure_ascii=False))
        return
    print_text("\n".join(hj.score_lines(document)))
    if out is not None:
        print_text(f"written: {out / 'scores.json'}, cells.csv, items.csv")


def _rows(words: Iterable[str]) -> dict[str, str]:
    """Rows by stage, of words `NAME=ROW`."""
    rows = {}
    for word in words:
        name, equals, row = word.rpartition("=")
        if not equals or not name:
            raise ConfigError(
                "--stages takes NAME=ROW", where=word, why="there is no `=` with a name before it",
                remedy="write --stages Finetune=own",
            )  # fmt: skip
        rows[name] = row
    return rows
