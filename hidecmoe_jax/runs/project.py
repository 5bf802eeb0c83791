"""A folder to begin from: a config and two small tasks of drawn pictures, in the form of a user's own tasks."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from PIL import Image, ImageDraw

from hidecmoe_jax.data.task_writer import written_whole
from hidecmoe_jax.runs.folder import CONFIG
from hidecmoe_jax.storage.files import write_json

SIDE = 56  # pixels, as the pocket model sees them
TRAIN = 24
TEST = 6
COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220)}
SIDES = ("left", "right")
# What no base can know, and what it may know.
NUMBERS = {"red": "one", "green": "two", "blue": "three"}
QUESTIONS = {"numbers": "Which number has the colour of the square?", "sides": "On which side is the square?"}

TEXT = """\
# One small expert a task, found by the picture and the question. `hidecmoe config show pocket/hidecmoe` has every key
# with its value, and `hidecmoe config schema > hidecmoe.schema.json` lets an editor complete them.
method:
  kind: routed
  name: hidecmoe
  lora: {rank: 2, alpha: 64, dropout: 0}   # size of an expert, and how strongly it acts
  expand: all
  gate:
    kind: locator
    by: {kind: joined_gaussians}
    state: {layer: half, over: parts}
    folds: 5
    wording: parts
    foreign: 0.01   # part of a task's own inputs that may be called unknown; null: nothing is unknown
  train_projector: false
base: {path: pocket}   # the model of the package, which reads small drawings; for photographs, see hidecmoe convert
stream:
  tasks:   # in the order in which they are learned
"""
TRAINING = """\
tune:
  epochs: 12
  batch: 8
  rate: 2.0e-3
  warmup: 0.05
evaluate:
  writing: {batch: 16, max_new_tokens: 16}
seeds: [0]
"""


def write_project(folder: str | Path) -> Path:
    """Writes `config.yaml` and the task folders `tasks/numbers` and `tasks/sides`; returns the config's path.

    The pictures are the same every time. The config names the task folders as `folder` was given, so a relative one
    makes commands that are run from here.

    Raises:
      ConfigError: `folder` exists.
      DataError, ResourceError: it cannot be written.
    """
    folder = Path(folder)
    with written_whole(folder) as beside:
        made = beside / "task"
        for task in QUESTIONS:
            _write_task(made / "tasks" / task, task)
        lines = [
            f"    - {{folder: {json.dumps(str(folder / 'tasks' / task), ensure_ascii=False)}}}\n" for task in QUESTIONS
        ]
        (made / CONFIG).write_text(TEXT + "".join(lines) + TRAINING, encoding="utf-8")
    return folder / CONFIG


def project_lines(config: Path) -> list[str]:
    """What was written, and the commands that follow; names with blanks are quoted for a shell."""
    run = shlex.quote(str(config.parent / "run"))
    name = shlex.quote(str(config))
    return [
        f"written: {config}, and two tasks in {config.parent / 'tasks'}",
        f"check:   hidecmoe data check {name}",
        f"next:    hidecmoe run {name} --out {run}",
    ]


def _write_task(folder: Path, task: str) -> None:
    """A task folder: train.json, test.json, task.json and images/."""
    (folder / "images").mkdir(parents=True)
    train = []
    test = []
    for number in range(TRAIN + TEST):
        colour = list(COLOURS)[number % len(COLOURS)]
        side = SIDES[number // len(COLOURS) % len(SIDES)]
        name = f"images/{number:02d}.png"
        _draw(colour, side, number).save(folder / name)
        answer = NUMBERS[colour] if task == "numbers" else side
        question = QUESTIONS[task]
        if number < TRAIN:
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            train.append({"id": f"{task}_{number:02d}", "image": name, "conversations": turns})
        else:
            test.append({"question_id": f"{task}_{number:02d}", "image": name, "text": question, "answer": answer})
    write_json(folder / "train.json", train)
    write_json(folder / "test.json", test)
    write_json(folder / "task.json", {"name": task, "scorer": "exact"})


def _draw(colour: str, side: str, number: int) -> Image.Image:
    """A square of one colour in the left or the right half; its place and size differ with the number."""
    picture = Image.new("RGB", (SIDE, SIDE), (245, 245, 245))
    width = 10 + number % 7
    left = 2 + number % 5 + (SIDE // 2 if side == "right" else 0)
    top = 4 + 5 * (number % 6)
    ImageDraw.Draw(picture).rectangle((left, top, left + width, top + width), fill=COLOURS[colour])
    return picture
