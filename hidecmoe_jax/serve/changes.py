"""Changes that an owner makes on the page: trials and commits, each as the command of the same name in a process."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hidecmoe_jax.serve.refusal import Refusal

_LINES = 60  # of the output that are shown
_KINDS = {
    "retire": ("task", "commit"), "merge": ("into", "task", "commit"), "restore": ("commit",),
    "calibrate": ("false_alarms", "commit"),
}  # fmt: skip


def command_of(fields: Any, run: Path, tasks: Sequence[str]) -> list[str]:
    """The words of the command that a change is.

    Args:
      tasks: names that may be changed.

    Raises:
      Refusal: 400 for another kind, an unknown task, or a field that does not belong to it.
    """
    kind = fields.get("kind") if isinstance(fields, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise Refusal(400, f"kind must be one of {', '.join(_KINDS)}", code="invalid_value", param="kind")
    unread = sorted(set(fields) - {"kind", *_KINDS[kind]})
    if unread:
        raise Refusal(422, f"{kind} takes no {unread[0][:60]!r}", code="unknown_parameter", param=unread[0][:60])
    if not isinstance(fields.get("commit", False), bool):
        raise Refusal(400, "commit must be true or false", code="invalid_value", param="commit")
    words = [kind, str(run)]
    for name in ("into", "task"):
        if name in _KINDS[kind]:
            task = fields.get(name)
            if task not in tasks:
                raise Refusal(404, f"no such task; there are {', '.join(tasks)}", code="no_such_task", param=name)
            words.append(task)
    if kind == "calibrate":
        share = fields.get("false_alarms")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise Refusal(400, "false_alarms must be a share, 0 <= x < 1", code="invalid_value", param="false_alarms")
        words += ["--false-alarms", repr(share)]
    elif fields.get("commit") and kind != "restore":
        # The table was seen and confirmed, whatever it costs.
        words += ["--commit", "--allowed", "100"]
    return words


class Changes:
    """One change at a time; its output is kept until the next one begins."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: list[str] = []
        self._kind: str | None = None

    @property
    def is_running(self) -> bool:
        """Whether a change is being made."""
        return self._process is not None and self._process.poll() is None

    def begin(self, words: Sequence[str]) -> None:
        """Starts a command.

        Raises:
          Refusal: 409 while another one runs.
        """
        with self._lock:
            if self.is_running:
                raise Refusal(409, "another change is being made", code="busy", retry_after=5)
            self._lines = []
            self._kind = words[0]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hidecmoe_jax", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace", encoding="utf-8",
            )  # fmt: skip
            self._reader = threading.Thread(target=self._read, args=(self._process,), name="change", daemon=True)
            self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        with process.stdout as output:
            for line in output:
                self._lines = [*self._lines, line.rstrip("\n")][-_LINES:]
        process.wait()

    def state(self) -> dict[str, Any]:
        """`kind` of the change, its `state` (none, running, done, failed), and the last `lines` of its output."""
        if self._process is None:
            return {"kind": None, "state": "none", "lines": []}
        code = self._process.poll()
        state = "running" if code is None else "done" if code == 0 else "failed"
        return {"kind": self._kind, "state": state, "lines": self._lines}

    def wait(self) -> None:
        """Returns when no change is being made, and its output is read."""
        if self._reader is not None:
            self._reader.join()

    def stop(self) -> None:
        """Ends a change in order: it saves, and its command goes on another time."""
        if self.is_running:
            self._process.terminate()
