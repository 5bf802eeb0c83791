"""One of two processes that share what is in `core.processes`, storage, copies and stops; prints what it saw."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from hidecmoe_jax.core import processes
from hidecmoe_jax.core.errors import ConfigError, HidecmoeError
from hidecmoe_jax.core.layout import layout_of, own_rows, split_batch
from hidecmoe_jax.core.sharding import make_mesh
from hidecmoe_jax.runs.copies import working_folder
from hidecmoe_jax.storage.arrays import read_store, write_store
from hidecmoe_jax.storage.signals import graceful_stop

folder = Path(sys.argv[1])
processes.join()
seen = {"count": processes.count(), "index": processes.index(), "text": processes.from_first(f"{processes.index()} ä")}


layout = layout_of(make_mesh(data=2))
seen["own"] = own_rows(layout, 4).tolist()
seen["odd"] = own_rows(layout, 3).tolist()
batch = split_batch(layout, np.arange(4))
seen["batch"] = processes.to_host(batch).tolist()


def refuse():
    raise ConfigError("no")


try:
    processes.first_decides(refuse)
except HidecmoeError as error:
    seen["refusal"] = error.exit_code

(folder / "run").mkdir(exist_ok=True)
(folder / "run" / "before").write_text("read by all")
processes.wait_for_all("begin")
with working_folder(folder / "run") as own:
    seen["before"] = (own / "before").read_text()
    seen["is_run"] = own == folder / "run"
    values = np.arange(6.0).reshape(2, 3)
    write_store(own / "store", {"experts": {"a": values}}, {"by": "both"})
    groups, meta = read_store(own / "store")
    seen["values"] = groups["experts"]["a"].tolist()
    (own / "written").write_text(str(processes.index()))

with graceful_stop() as stop:
    questions = 0
    while not stop.requested:
        questions += 1
        if questions == 3 and processes.index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        # The second process is ahead of the first one when its signal comes.
        time.sleep(0.05 if processes.index() else 0.1)
    seen["questions"] = questions
print(json.dumps(seen))
