"""`hidecmoe calibrate`: sets on a trained run which inputs belong to no known task."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Folder, Run, TaskFolder


def calibrate(
    run: Run,
    /,
    *,
    data: Annotated[tuple[TaskFolder, ...], arg(metavar="DIR ...")] = (),
    from_log: Folder = None,
    false_alarms: float | None = None,
) -> None:
    """Set the thresholds below which an input is unknown, from validation records or your own folders; trains nothing.

    Prints what every setting loses of the tasks' own inputs and catches of a task that is left out, then records the
    chosen one and measures the last row again. `hidecmoe restore` takes it back.

    Examples:
      $ hidecmoe calibrate runs/hidecmoe
      $ hidecmoe calibrate runs/hidecmoe --false-alarms 0.05
      $ hidecmoe calibrate runs/hidecmoe --from-log log
      $ hidecmoe calibrate runs/hidecmoe --data my/birds my/fish --false-alarms 0.02

    Args:
      run: run folder of a method whose gate chooses the task.
      data: task folders, each named as the task whose inputs it holds; by default the validation records of the run.
      from_log: folder of a decision log; what people reviewed in it, by its right task, with pictures that were kept.
      false_alarms: part of a task's own inputs that may be called unknown; by default that of the run, or 0.01.
    """
    result = hj.calibrate(run, data=data, log=from_log, false_alarms=false_alarms)
    print_text(f"{'loses of its own, set':<22} {'lost':>8} {'caught':>8}")
    for setting in result["settings"]:
        share = f"{100 * setting['false_alarms']:g} %"
        mark = "  <- set" if setting["false_alarms"] == result["false_alarms"] else ""
        caught = "-" if setting["caught"] is None else f"{setting['caught']:.1f}%"
        print_text(f"{share:<22} {setting['lost']:7.1f}% {caught:>8}{mark}")
    for name, task in result["tasks"].items():
        print_text(f"{name}: {task['carries']}")
    print_text(f"recorded, from {result['source']}; `hidecmoe restore {run}` takes it back")
