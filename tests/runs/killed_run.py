"""A run in a process of its own that is killed on the way: `python killed_run.py CONFIG OUT EVENT DELAY`.

After the EVENT-th finished step a thread waits DELAY seconds and kills the process with SIGKILL, wherever it is by
then: in a step, in a save, in a commit, in an evaluation.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from hidecmoe_jax.runs.config import load_config
from hidecmoe_jax.runs.stream_loop import learn
from hidecmoe_jax.runs.watching import StageMonitor

config, out, event, delay = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
seen = 0
finished = StageMonitor.step


def strike() -> None:
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)


def step(self, *given) -> None:
    global seen
    finished(self, *given)
    seen += 1
    if seen == event:
        threading.Thread(target=strike, daemon=True).start()


StageMonitor.step = step
learn(load_config(config), out, resume=(out / "run.json").is_file())
