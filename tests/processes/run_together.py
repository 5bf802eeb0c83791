"""One of several processes that learn a run together, or a process alone: `python run_together.py CONFIG OUT [STEPS]`.

The base is split over all devices. After STEPS optimiser steps a process kills itself, wherever it is by then.
"""

import os
import signal
import sys
from pathlib import Path

from hidecmoe_jax.core import processes
from hidecmoe_jax.core.errors import PreemptedError
from hidecmoe_jax.runs.config import load_config
from hidecmoe_jax.runs.stream_loop import learn
from hidecmoe_jax.runs.watching import StageMonitor

processes.join()
finished = StageMonitor.step
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 0
seen = 0


def step(self, *given):
    global seen
    finished(self, *given)
    seen += 1
    if steps > 0 and seen == steps:
        os.kill(os.getpid(), signal.SIGKILL)
    # A negative number: this step is the one at which the second process is asked to stop.
    if seen == -steps and processes.index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)


StageMonitor.step = step
out = Path(sys.argv[2])
try:
    config = load_config(sys.argv[1], overrides=["scale.base=sharded", "scale.answer=sharded"])
    learn(config, out, resume=(out / "run.json").is_file())
except PreemptedError as error:
    sys.exit(error.exit_code)
