"""Ways of an alarm to people: a line of output, a webhook, a mail command; none of them blocks answers."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import urllib.request
from collections.abc import Callable
from email.message import EmailMessage

from hidecmoe_jax.operate.alarms import Send
from hidecmoe_jax.operate.entries import AlarmEntry, fields_of

_SECONDS = 10.0
_TRIES = 3
_PAUSE = 2.0
_STOP = object()


class Sender:
    """A thread that sends alarms, in their order.

    Args:
      run: name of the run.
      say: prints a line for whoever runs the server.
      pause: seconds between two tries.
    """

    def __init__(self, send: Send, run: str, say: Callable[[str], None], pause: float = _PAUSE):
        self._send = send
        self._run = run
        self._say = say
        self._pause = pause
        self._queue: queue.Queue = queue.Queue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="alarms", daemon=True)
        self._thread.start()

    def send(self, alarm: AlarmEntry) -> None:
        """Queues an alarm."""
        self._queue.put(alarm)

    def stop(self, seconds: float) -> None:
        """Ends the thread once what is queued was tried, or after so many seconds."""
        self._queue.put(_STOP)
        self._thread.join(seconds)
        self._stopped.set()

    def _work(self) -> None:
        while (alarm := self._queue.get()) is not _STOP:
            text = text_of(alarm, self._run)
            self._say(text)
            if self._send.webhook is not None:
                self._try(lambda alarm=alarm, text=text: self._post(alarm, text), f"webhook {self._send.webhook}")
            if self._send.mail:
                self._try(lambda text=text: self._mail(text), f"mail command {self._send.mail[0]}")

    def _try(self, deliver: Callable[[], None], where: str) -> None:
        """Tries some times; what cannot be delivered is said, and stands in the log all the same."""
        for _ in range(_TRIES):
            try:
                deliver()
                return
            # HTTP and URL errors are OSErrors; a command that fails has a class of its own.
            except (OSError, subprocess.SubprocessError, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"
            if self._stopped.wait(self._pause):
                break
        self._say(f"an alarm could not be sent to {where}: {reason}")

    def _post(self, alarm: AlarmEntry, text: str) -> None:
        body = json.dumps(fields_of(alarm) | {"run": self._run, "text": text}).encode()
        request = urllib.request.Request(self._send.webhook, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=_SECONDS):
            pass

    def _mail(self, text: str) -> None:
        message = EmailMessage()
        message["Subject"] = text
        message["To"] = self._send.to
        message.set_content(text + "\n")
        subprocess.run(
            self._send.mail, input=bytes(message), check=True, timeout=_SECONDS, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip


def text_of(alarm: AlarmEntry, run: str) -> str:
    """An alarm in one line."""
    what = alarm.name if alarm.task is None else f"{alarm.name} of {alarm.task}"
    return f"alarm {alarm.state}: {run}: {what} is {alarm.value:.4g}, the limit is {alarm.limit:.4g}"
