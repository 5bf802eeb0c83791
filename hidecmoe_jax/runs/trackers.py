"""Where people watch training besides `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow, trackio.

`metrics.jsonl` is always written and is the record; a tracker gets each of its lines once it is on disk. Everything
stays on this machine unless the environment of the tracker says otherwise (`WANDB_MODE=online`, `MLFLOW_TRACKING_URI`).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from hidecmoe_jax.core import processes
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.verbosity import say
from hidecmoe_jax.runs.folder import SeedFolder
from hidecmoe_jax.storage.files import read_json, remove_inside, write_json

Name = Literal["tensorboard", "wandb", "mlflow", "trackio"]
# tracker -> package that it needs, which is also the extra that installs it
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
PLACES = ("at", "step")  # numbers of a line that say where it stands
PROJECT = "hidecmoe"
FLUSH_SECONDS = 10  # after which somebody who watches sees a point

Line = Mapping[str, Any]
Scores = Mapping[int, Mapping[str, float]]


class Tracker(Protocol):
    """Takes the lines of `metrics.jsonl` of one seed, and the scores at its end."""

    def start(self, lines: Sequence[Line]) -> None:
        """Begins, or begins again where a resumed stage goes back: `lines` are what there is so far."""

    def log(self, number: int, line: Line) -> None:
        """Takes the line of that number, counted from 0; numbers follow one another."""

    def finish(self, scores: Scores) -> None:
        """Takes the score of every task in every row that was measured, and closes."""


def numbers_of(line: Line, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line by name, those of an inner mapping as `waited/seconds`."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from numbers_of(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name not in PLACES:
            yield f"{prefix}{name}", float(value)


def score_points(scores: Scores) -> Iterator[tuple[int, str, float]]:
    """(row, name, score) of every measured cell."""
    for row, cells in scores.items():
        for task, score in cells.items():
            yield row, f"score/{task}", score


@dataclass
class TensorBoard:
    """Event files in `seed_N/trackers/tensorboard`, written by tensorboardX; they hold numbers as float32.

    At a start the files are written again from `metrics.jsonl`, so that a resumed run has no point twice.
    """

    folder: SeedFolder
    writer: Any = None

    def start(self, lines: Sequence[Line]) -> None:
        from tensorboardX import SummaryWriter

        if self.writer is not None:
            self.writer.close()
        place = self.folder.trackers / "tensorboard"
        if place.exists():
            remove_inside(self.folder.path, place)
        self.writer = SummaryWriter(str(place), flush_secs=FLUSH_SECONDS)
        for number, line in enumerate(lines):
            self.log(number, line)

    def log(self, number: int, line: Line) -> None:
        for name, value in numbers_of(line):
            self.writer.add_scalar(name, value, number)

    def finish(self, scores: Scores) -> None:
        for row, name, score in score_points(scores):
            self.writer.add_scalar(name, score, row)
        self.writer.close()


@dataclass
class Position:
    """What a tracker that cannot be rewritten has taken already, in a file of the seed.

    Attributes:
      file: JSON with `id` of the tracker's own run, and the numbers of `lines` and `rows` that it has.
    """

    file: Path
    values: dict[str, Any] = field(default_factory=dict)

    def read(self) -> str:
        """The id of the tracker's run, a new one where nothing was logged."""
        self.values = {"id": uuid.uuid4().hex[:12], "lines": 0, "rows": 0}
        if self.file.is_file():
            self.values |= read_json(self.file)
        return self.values["id"]

    def take(self, kind: str, number: int) -> bool:
        """Whether the line or row of that number is new; it counts as taken from now on.

        Noted before it is sent: after a crash a point may be missing, and none is there twice.
        """
        if number < self.values[kind]:
            return False
        self.values[kind] = number + 1
        self.file.parent.mkdir(exist_ok=True)
        write_json(self.file, self.values)
        return True


@dataclass
class Remote:
    """A tracker that keeps what it was sent: points that it has are left out when a run is resumed.

    Attributes:
      opened: opens the tracker's run of an id and name; returns functions that send numbers at a step, and that end.
    """

    folder: SeedFolder
    position: Position
    opened: Any
    send: Any = None
    end: Any = None

    def start(self, lines: Sequence[Line]) -> None:
        if self.send is None:
            run = self.folder.path.parent.name
            self.send, self.end = self.opened(
                self.folder.trackers, self.position.read(), f"{run}_{self.folder.path.name}"
            )
        for number, line in enumerate(lines):
            self.log(number, line)

    def log(self, number: int, line: Line) -> None:
        if self.position.take("lines", number):
            self.send(dict(numbers_of(line)), number)

    def finish(self, scores: Scores) -> None:
        for row, cells in sorted(scores.items()):
            if self.position.take("rows", row):
                # Behind the last line, for steps of some trackers must not fall.
                points = {name: score for _, name, score in score_points({row: cells})}
                self.send(points | {"row": row}, self.position.values["lines"] + row)
        self.end()


@dataclass
class Guarded:
    """A tracker whose failure costs no training: it is refused at its start, and later left out with a warning."""

    name: str
    tracker: Tracker
    failed: bool = False

    def start(self, lines: Sequence[Line]) -> None:
        """As `Tracker.start`.

        Raises:
          ConfigError: the tracker's package raised an error of whatever kind.
        """
        try:
            self.tracker.start(lines)
        except Exception as error:
            raise ConfigError(
                "this tracker cannot start", where=f"--track {self.name}", why=f"{type(error).__name__}: {error}",
                remedy="correct its settings, or leave it out: metrics.jsonl is always written",
            ) from error  # fmt: skip

    def log(self, number: int, line: Line) -> None:
        self._try(lambda: self.tracker.log(number, line))

    def finish(self, scores: Scores) -> None:
        self._try(lambda: self.tracker.finish(scores))

    def _try(self, call: Callable[[], None]) -> None:
        if self.failed:
            return
        # Packages of others, and perhaps a server: anything may be raised.
        try:
            call()
        except Exception as error:
            self.failed = True
            say(f"warning: --track {self.name} is left out from here on: {type(error).__name__}: {error}")


def open_wandb(folder: Path, identity: str, name: str) -> tuple[Any, Any]:
    """A run of Weights & Biases: files in `folder`, which `wandb sync` sends, unless WANDB_MODE says otherwise."""
    import wandb

    folder.mkdir(exist_ok=True)
    mode = os.environ.get("WANDB_MODE", "offline")
    run = wandb.init(project=PROJECT, id=identity, name=name, dir=str(folder), mode=mode, resume="allow")
    return (lambda numbers, step: run.log(numbers, step=step)), run.finish


def open_mlflow(folder: Path, identity: str, name: str) -> tuple[Any, Any]:
    """A run of MLflow in a database in `folder`, unless MLFLOW_TRACKING_URI names a server."""
    import mlflow

    folder.mkdir(exist_ok=True)
    place = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder.resolve() / 'mlflow.db'}")
    client = mlflow.MlflowClient(place)
    known = client.get_experiment_by_name(PROJECT)
    experiment = client.create_experiment(PROJECT) if known is None else known.experiment_id
    # MLflow gives out ids of its own; ours is a tag.
    runs = client.search_runs([experiment], f"tags.identity = '{identity}'")
    run = runs[0] if runs else client.create_run(experiment, tags={"identity": identity}, run_name=name)
    key = run.info.run_id
    client.update_run(key, "RUNNING")

    def send(numbers: Mapping[str, float], step: int) -> None:
        for metric, value in numbers.items():
            client.log_metric(key, metric, value, step=step)

    return send, lambda: client.set_terminated(key)


def open_trackio(folder: Path, identity: str, name: str) -> tuple[Any, Any]:
    """A run of trackio in its own folder on this machine (`TRACKIO_DIR`), which `trackio show` displays."""
    import trackio

    run = trackio.init(project=PROJECT, name=f"{name}_{identity}", resume="allow", embed=False)
    return (lambda numbers, step: run.log(dict(numbers), step=step)), trackio.finish


_OPENED = {"wandb": open_wandb, "mlflow": open_mlflow, "trackio": open_trackio}


def require_trackers(names: Sequence[str]) -> None:
    """Refuses trackers that are not known or not installed.

    Raises:
      ConfigError: names the command that installs it.
    """
    for name in names:
        if name not in PACKAGES:
            raise ConfigError(
                "unknown tracker", where=f"--track {name}", why=f"trackers are {', '.join(PACKAGES)}",
                remedy="leave it out: metrics.jsonl is always written",
            )  # fmt: skip
        try:
            _import(name)
        except ImportError as error:
            raise ConfigError(
                "this tracker is not installed", where=f"--track {name}", why=f"there is no package {PACKAGES[name]}",
                remedy=f"pip install 'hidecmoe-jax[{name}]', or leave it out: metrics.jsonl is always written",
            ) from error  # fmt: skip


def _import(name: str) -> None:
    match name:
        case "tensorboard":
            import tensorboardX  # noqa: F401
        case "wandb":
            import wandb  # noqa: F401
        case "mlflow":
            import mlflow  # noqa: F401
        case "trackio":
            import trackio  # noqa: F401


def trackers_of(names: Sequence[str], folder: SeedFolder) -> tuple[Tracker, ...]:
    """The trackers of one seed; of several processes the first one has them."""
    if not processes.is_first():
        return ()
    return tuple(Guarded(name, _tracker(name, folder)) for name in names)


def _tracker(name: str, folder: SeedFolder) -> Tracker:
    if name == "tensorboard":
        return TensorBoard(folder)
    return Remote(folder, Position(folder.trackers / f"{name}.json"), _OPENED[name])
