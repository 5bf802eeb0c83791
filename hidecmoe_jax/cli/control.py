"""`hidecmoe control`: how often does a probe ask for an expert that nobody needs?"""

from __future__ import annotations

import hidecmoe_jax as hj
from hidecmoe_jax.cli.words import Run


def control(run: Run, /, *, task: int = 0, repeats: int = 3) -> None:
    """Probe with records of a task that the run has just learned: whatever expands, expands in vain.

    Examples:
      $ hidecmoe control runs/cmoe
      $ hidecmoe control runs/cmoe --task 2 --repeats 5

    Args:
      run: run folder of a mixture that grows by probes.
      task: number of the task, from 0.
      repeats: plays, each with another cut of the records.
    """
    found = hj.probe_control(run, task=task, repeats=repeats)
    for played in found["controls"]:
        layers = " ".join(f"{100 * part:3.0f}" for part in played["frequency"])
        rate = 100 * played["false_expansion_rate"]
        print(
            f"balance {played['balance']:<6g} false expansions {rate:5.1f}%   tokens that picked the probe, %: {layers}"
        )
    limits = " ".join(f"{100 * part:3.0f}" for part in found["controls"][0]["threshold"])
    print(f"a layer is expanded above, %: {limits}")
