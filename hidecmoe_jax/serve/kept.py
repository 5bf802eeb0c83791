"""Unknown questions that are kept for a person, as a file that `hidecmoe ask --file` reads, with their pictures."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.media import IMAGE
from hidecmoe_jax.data.records import Record

QUESTIONS = "questions.jsonl"
_PICTURES = "pictures"


@dataclass(frozen=True)
class KeptQuestions:
    """A folder with `questions.jsonl` and `pictures/`; lines are appended and never changed."""

    folder: Path

    def open(self) -> None:
        """Makes the folder.

        Raises:
          ConfigError: it cannot be written.
        """
        try:
            (self.folder / _PICTURES).mkdir(parents=True, exist_ok=True)
            with open(self.folder / QUESTIONS, "a", encoding="utf-8"):
                pass
        except OSError as error:
            raise ConfigError(
                "unknown questions cannot be kept there", where=f"--queue {self.folder}",
                why=error.strerror or str(error), remedy="give a folder that may be written",
            ) from None  # fmt: skip

    def keep(self, record: Record) -> None:
        """Appends the last question of a record; returns once it and its pictures are on the disk.

        Raises:
          OSError: they could not be written.
        """
        names = []
        for number, path in enumerate(record.images):
            with Image.open(path) as image:
                ending = (image.format or "picture").lower()
            name = f"{_PICTURES}/{record.id}_{number}.{ending}"
            shutil.copyfile(path, self.folder / name)
            names.append(name)
        question = record.turns[-1].question.replace(IMAGE, " ").strip()
        line = json.dumps({"id": record.id, "question": question, "image": names}, ensure_ascii=False)
        with open(self.folder / QUESTIONS, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
