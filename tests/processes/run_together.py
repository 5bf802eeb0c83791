"""One of several processes that learn a run together, or a process alone: `python run_together.py CONFIG OUT [STEPS]`.

The base is split over all devices. After STEPS optimiser steps a process kills itself, wherever it is by then.
"""

import os
import signal
import sys
from pathlib import Path

import jax

from hidecmoe_jax.core import processes
from hidecmoe_jax.core.errors import PreemptedError
from hidecmoe_jax.core.layout import layout_of, place
from hidecmoe_jax.core.sharding import make_mesh
from hidecmoe_jax.models.llava import model_axes
from hidecmoe_jax.runs import session
from hidecmoe_jax.runs.config import load_config
from hidecmoe_jax.runs.stream_loop import learn
from hidecmoe_jax.runs.watching import StageMonitor

processes.join()
load = session.load_model
finished = StageMonitor.step
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 0
seen = 0


def load_together(folder, **changes):
    model = load(folder, **changes)
    layout = layout_of(make_mesh(fsdp=len(jax.devices())), "sharded", "sharded")
    return model.replace(layout=layout, params=place(layout, model.params, model_axes(model.config)))


def step(self, *given):
    global seen
    finished(self, *given)
    seen += 1
    if steps > 0 and seen == steps:
        os.kill(os.getpid(), signal.SIGKILL)
    # A negative number: this step is the one at which the second process is asked to stop.
    if seen == -steps and processes.index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)


session.load_model = load_together
StageMonitor.step = step
out = Path(sys.argv[2])
try:
    learn(load_config(sys.argv[1]), out, resume=(out / "run.json").is_file())
except PreemptedError as error:
    sys.exit(error.exit_code)
