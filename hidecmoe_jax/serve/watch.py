"""A run's folder is watched: another state of it is loaded beside the one that answers, and takes its place when warm.

Requests keep the version that they were checked against, so none of them sees the change.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from hidecmoe_jax.core.errors import HidecmoeError
from hidecmoe_jax.runs.status import say
from hidecmoe_jax.serve.options import ServeOptions
from hidecmoe_jax.serve.versions import Version, open_version, state_of
from hidecmoe_jax.storage.lock import holder_lives

Opener = Callable[[Path, ServeOptions, Version | None], Version]


class Watcher:
    """Loads the states of a run, one after the other.

    Args:
      computing: held while a batch is computed; programs over several devices must not start beside it.
      take: called with every version that is ready.
      opener: loads a version.
    """

    def __init__(
        self,
        run: Path,
        options: ServeOptions,
        computing: threading.Lock,
        take: Callable[[Version], None],
        opener: Opener = open_version,
    ):
        self.folder = run
        self.options = options
        self.current: str | None = None
        self._version: Version | None = None
        self._computing = computing
        self._take = take
        self._open = opener
        self._refused: str | None = None

    def load(self) -> Version:
        """Loads the run as it is, compiles its programs and hands it over.

        Raises:
          HidecmoeError: it cannot be loaded.
        """
        # The base of the one that answers is used again: two versions need no second copy of it.
        version = self._open(self.folder, self.options, self._version)
        alone = self._computing if version.on_several_devices else contextlib.nullcontext()
        with alone:
            version.warm_up()
        self.current = version.name
        self._version = version
        self._take(version)
        return version

    def look(self) -> None:
        """Takes up another state of the run, once no command is writing it; else the old one goes on answering."""
        try:
            state = state_of(self.folder)
        # A folder that is being changed may be in no order for a moment.
        except (HidecmoeError, OSError):
            return
        if state in (self.current, self._refused) or holder_lives(self.folder):
            return
        say("the run has changed: loading it beside the one that answers")
        try:
            version = self.load()
        # Whatever it is, also too little memory for two versions: the loaded one goes on.
        except Exception as error:
            self._refused = state
            reason = str(error) if isinstance(error, HidecmoeError) else type(error).__name__
            say(f"the run as it is now cannot be served, version {self.current} goes on answering: {reason}")
            return
        self._refused = None
        role = "answers from now on" if self.options.rollout == "take" else f"is a {self.options.rollout} from now on"
        say(f"version {version.name} {role}: {', '.join(version.tasks)}")

    def watch(self, ended: threading.Event) -> None:
        """Looks at the folder until `ended`."""
        while not ended.wait(self.options.poll_seconds):
            self.look()
