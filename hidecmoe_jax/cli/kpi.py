"""`hidecmoe kpi`: key figures of a run in service, from its decision log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Folder, Run


def kpi(
    run: Run,
    /,
    *,
    log: Annotated[Path, arg(metavar="DIR")],
    prices: Annotated[Path | None, arg(metavar="FILE")] = None,
    tasks: tuple[int, ...] = (10, 50, 100),
    out: Folder = None,
    language: Literal["en", "ja"] = "en",
) -> None:
    """Count what a served run did: answers at the wrong task, cost, latency, storage; says pilot, widen or stop.

    Reads the decision log alone, of which every line is checked. Writes kpi.html (a page for people), kpi.csv and
    kpi.json (every number in full).

    Examples:
      $ hidecmoe kpi runs/hide --log log
      $ hidecmoe kpi runs/hide --log log --prices prices.yaml --language ja --out kpi

    Args:
      run: run folder.
      log: folder of the decision log, as `hidecmoe serve` writes it.
      prices: YAML file: machine_hour, review, misrouting, confusions, gigabyte_month, limits (docs/operate.md).
      tasks: numbers of tasks to forecast storage for.
      out: folder for the files; by default the run.
      language: of the page.
    """
    figures = hj.kpi(run, log, prices=prices, tasks=tasks, out=out, language=language)
    print_text("\n".join(hj.kpi_lines(figures)))
    print_text(f"page: {(run if out is None else out) / 'kpi.html'}")
