"""`hidecmoe control`: false-expansion rate of probing."""

from __future__ import annotations

from collections.abc import Sequence

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Run


def control(run: Run, /, *, task: int = 0, repeats: int = 3) -> None:
    """Probe again with a task that was just learned: every layer that expands is a false positive.

    Examples:
      $ hidecmoe control runs/cmoe
      $ hidecmoe control runs/cmoe --task 2 --repeats 5

    Args:
      run: run folder of a mixture that grows by probes.
      task: number of the task, from 0.
      repeats: repetitions, each with another random split of the records.
    """
    study = hj.probe_control(run, task=task, repeats=repeats)
    for measured in study["controls"]:
        balance = measured["balance"]
        rate = 100 * measured["false_expansion_rate"]
        tokens = percentages(measured["frequency"])
        if "gain" in measured:
            print_text(f"balance {balance:<6g} false expansions {rate:5.1f}%")
            print_text(f"  gained by the probe, nats an answer token by layer: {nats(measured['gain'])}")
            print_text(f"  the control, on a task when it was known:           {nats(measured['control'])}")
        else:
            print_text(f"balance {balance:<6g} false expansions {rate:5.1f}%   tokens at the probe, %: {tokens}")
    if "gain" in measured:
        return
    threshold = study["controls"][0]["threshold"]
    print_text(f"a layer is expanded above, %: {percentages(threshold)}")


def nats(gains: Sequence[float]) -> str:
    """Gains of every layer in columns."""
    return " ".join(f"{gain:6.3f}" for gain in gains)


def percentages(shares: Sequence[float]) -> str:
    """Shares of every layer as whole percents in columns."""
    return " ".join(f"{100 * share:3.0f}" for share in shares)
