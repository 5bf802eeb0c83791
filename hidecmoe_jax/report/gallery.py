"""Pictures of a report: test questions with what was expected, what was answered, and which expert was chosen.

A picture is shown only if its bytes are those that the run was evaluated on (`Sample.digest`), so a page that is
written from somebody's run folder embeds no other file of this machine. A picture that is gone or was changed is named.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.images import LIMITS, Limits, header_of, open_file, open_upright, squared, upright_of

THUMBNAIL = 144  # px


@dataclass(frozen=True)
class Sample:
    """One test question with the final answer.

    Attributes:
      task: name of the task it belongs to.
      question, answer, prediction: texts; `answer` is the reference.
      routing: weight by expert, empty where nothing was routed.
      image: path of the picture, None for questions without one.
      id: of the record.
      digest: SHA-256 of the picture's file when it was evaluated; without it the picture is not shown.
      images: number of pictures of the question, the first of which is shown.
      score: of this answer alone, in points; None where it was not judged.
      chosen: the expert that answered, `unknown` where the gate found none; None where nothing is chosen.
    """

    task: str
    question: str
    answer: str
    prediction: str
    routing: Mapping[str, float]
    image: str | None
    id: str = ""
    digest: str | None = None
    images: int = 1
    score: float | None = None
    chosen: str | None = None


@dataclass(frozen=True)
class Card:
    """A sample as the page shows it: its picture inlined, or why there is none."""

    sample: Sample
    thumbnail: str | None
    lacking: str | None

    @property
    def picture(self) -> str | None:
        """Name of the picture; the folder that it lies in is this machine's business."""
        return None if self.sample.image is None else Path(self.sample.image).name


@dataclass(frozen=True)
class Group:
    """All cards of a task, and its most frequent confusions as {"expected", "answered", "count"}."""

    task: str
    cards: list[Card] = field(default_factory=list)
    confusions: Sequence[Mapping[str, str | int]] = ()

    @property
    def lacking(self) -> list[str]:
        """Names of pictures that are not shown, and why."""
        return [f"{card.picture}: {card.lacking}" for card in self.cards if card.lacking]


def groups(
    samples: Sequence[Sample],
    confusions: Mapping[str, Sequence[Mapping[str, str | int]]],
    limits: Limits = LIMITS,
) -> list[Group]:
    """The gallery, a group a task, in the order of the samples."""
    by_task: dict[str, Group] = {}
    for sample in samples:
        if sample.task not in by_task:
            by_task[sample.task] = Group(sample.task, [], confusions.get(sample.task, ()))
        by_task[sample.task].cards.append(_card(sample, limits))
    return list(by_task.values())


def inline(image: bytes, kind: str) -> str:
    """A picture as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _card(sample: Sample, limits: Limits) -> Card:
    if sample.image is None:
        return Card(sample, None, None)
    if sample.digest is None:
        return Card(sample, None, "its digest was not recorded; `hidecmoe eval RUN` records it")
    try:
        # One opening: what is shown is what had the digest, also where somebody exchanges files meanwhile.
        with open_file(sample.image) as file:
            # The header first: what is no picture is not read to its end.
            header_of(sample.image, file, limits)
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != sample.digest:
                return Card(sample, None, "the file is not the one that was evaluated")
            file.seek(0)
            image = upright_of(sample.image, file, limits=limits)
        return Card(sample, _inlined(image), None)
    except DataError as error:
        return Card(sample, None, error.why or error.what)
    except OSError as error:
        return Card(sample, None, error.strerror or str(error))


def thumbnail(path: str, limits: Limits = LIMITS) -> str:
    """Returns a picture, made small and square, as a data URI.

    Raises:
      DataError: as `images.load`.
    """
    return _inlined(open_upright(path, limits=limits))


def _inlined(image: Image.Image) -> str:
    """An upright picture as a small square one, as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(squared(image, THUMBNAIL)).save(buffer, format="JPEG", quality=82)
    return inline(buffer.getvalue(), "jpeg")
