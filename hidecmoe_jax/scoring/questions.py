"""A question of a test file as scoring reads it: id, accepted answers, and the fields that published rules look at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One test item.

    Attributes:
      id: joins it with its prediction.
      references: accepted answers; ten for VQA accuracy, several for captions.
      text: the instruction.
      image: name of its picture, which the rule of MLLM-DCL's Sci reads.
      category: `answer_type` of the item, which the rule of OCRBench reads.
    """

    id: str
    references: tuple[str, ...]
    text: str = ""
    image: str = ""
    category: str = ""
