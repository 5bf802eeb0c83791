"""`hidecmoe pilot`: one small task from a folder or a table to a judgement in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Assignments, Number, joined, pairs


def pilot(
    source: Annotated[Path, Positional, arg(metavar="FOLDER | FILE")],
    /,
    *,
    out: Annotated[Path, arg(metavar="DIR")],
    question: Annotated[str | None, arg(metavar="TEXT")] = None,
    fields: Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="FIELD=KEY ...")] = (),
    scorer: Annotated[str | None, arg(metavar="RULE")] = None,
    base: str = "pocket",
    needed: float = 80.0,
    machine_hour: Number = None,
    currency: str = "JPY",
    language: Literal["en", "ja"] = "en",
    sets: Assignments = (),
) -> None:
    """Try one task: import it, check it, teach it, measure it, and say in plain words whether it is worth using.

    FOLDER is a task folder, or holds one folder of pictures for each answer; FILE is a table (CSV, JSON lines, LLaVA
    JSON, parquet). Writes a page for whoever decides, DIR/pilot.html, beside the run, DIR/run.

    Examples:
      $ hidecmoe pilot photos --question "Is this part damaged?" --out pilots/parts
      $ hidecmoe pilot inspection.csv --fields image=photo answer=verdict --out pilots/parts --language ja

    Args:
      source: as above.
      out: folder to write; must be empty or absent.
      question: the question about every picture that has none.
      fields: column of a table for id, image, question or answer, where its name does not say it.
      scorer: scoring rule of the answers; by default exact.
      base: pocket, which reads drawings, or the folder of a converted checkpoint.
      needed: points out of 100 from which the task is worth trying.
      machine_hour: price of an hour of this machine, for the cost of the next task.
      currency: of the price.
      language: of the page and the judgement.
      sets: config values that replace those of the pilot, such as tune.epochs=5.
    """
    options = hj.PilotOptions(
        question=question,
        fields=pairs(joined(fields)),
        scorer=scorer,
        base=base,
        needed=needed,
        machine_hour=machine_hour,
        currency=currency,
        language=language,
        sets=joined(sets),
    )
    document = hj.pilot(source, out, options)
    print_text("\n".join(hj.pilot_lines(document, language=language)))
    print_text(f"page: {out / 'pilot.html'}")
