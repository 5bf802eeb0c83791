"""Files that start a server as a service or in a container: their commands are ones that the program takes."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import hidecmoe_jax as hj
from hidecmoe_jax.cli.main import main

LAUNCH = Path(__file__).parents[2] / "tools" / "launch"
UNIT = (LAUNCH / "hidecmoe.service").read_text()
DOCKERFILE = (LAUNCH / "Dockerfile").read_text()


def of_unit() -> list[str]:
    return shlex.split(re.search(r"^ExecStart=(.+)$", UNIT, re.MULTILINE)[1])


def of_container() -> list[str]:
    words = []
    for name in ("ENTRYPOINT", "CMD"):
        words += json.loads(re.search(rf"^{name} (\[.+\])$", DOCKERFILE, re.MULTILINE)[1])
    return words


@pytest.mark.parametrize("words", [of_unit(), of_container()], ids=["unit", "container"])
def test_the_command_is_one_that_the_server_takes(words, monkeypatch):
    served = []
    monkeypatch.setattr(hj, "serve_run", lambda run, options: served.append(options), raising=False)
    assert words[0].endswith("hidecmoe") and main(["--debug", *words[1:]]) == 0
    (options,) = served
    assert options.log is not None and options.unknown == "refuse"
    # What others can reach needs tokens; the unit listens to its own machine.
    assert options.is_local or options.tokens is not None


def test_a_stop_leaves_the_server_its_time_to_finish():
    seconds = int(re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)[1])
    assert seconds > hj.ServeOptions().drain_seconds + 5
    assert "KillSignal=SIGTERM" in UNIT and "STOPSIGNAL SIGTERM" in DOCKERFILE


def test_systemd_takes_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / "hidecmoe.service"
    # The program need not be installed there.
    unit.write_text(UNIT.replace(of_unit()[0], "/bin/true"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0 and "hidecmoe.service" not in checked.stderr, checked.stderr
