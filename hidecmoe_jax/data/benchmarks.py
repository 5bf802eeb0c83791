"""Public benchmarks by name: their tasks in the published order, the rule of each, and the names that folders have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hidecmoe_jax.core.errors import ConfigError, nearest


@dataclass(frozen=True)
class StreamTask:
    """One task of a benchmark.

    Attributes:
      name: published name.
      rule: key of `rules.RULES`.
      aliases: other names of its folders.
      train, test: names of its files in the published tree.
    """

    name: str
    rule: str
    aliases: tuple[str, ...] = ()
    train: str = "train.json"
    test: str = "test.json"

    @property
    def names(self) -> frozenset[str]:
        """All names, folded."""
        return frozenset(map(folded, (self.name, *self.aliases)))


def folded(name: str) -> str:
    """Returns a name in lower case with letters and digits alone: `CLEVR-Math` and `clevr_math` are one task."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


_UCIT_TEST = "test_3000.json"
_UCIT = (
    StreamTask("ImageNet-R", "exact", test=_UCIT_TEST),
    StreamTask("ArxivQA", "exact", train="train_4w.json", test=_UCIT_TEST),
    StreamTask("VizWiz", "caption6", ("VizWiz-caption", "VizWiz-cap", "Vizcap"), test=_UCIT_TEST),
    StreamTask("IconQA", "exact", test=_UCIT_TEST),
    StreamTask("CLEVR-Math", "exact", ("CLEVR",), "train_4w.json", _UCIT_TEST),
    StreamTask("Flickr30k", "caption6", ("Flickr30k-cap", "Flickr30k-caption"), "train_brief_4w.json", _UCIT_TEST),
)
_COIN = (
    StreamTask("ScienceQA", "choice", ("sqa", "Science")),
    StreamTask("TextVQA", "vqa", ("TextQA",), test="val.json"),
    StreamTask("ImageNet", "either_contains"),
    StreamTask("GQA", "gqa"),
    StreamTask("VizWiz", "exact", test="val.json"),
    StreamTask("Grounding", "iou", ("VisualGenome", "RefCOCO")),
    StreamTask("VQAv2", "exact", test="val.json"),
    StreamTask("OCR-VQA", "ocr_vqa"),
)
_PRISM = {"ScienceQA": "choice_prism", "Grounding": "iou_prism"}
_DCL = (
    StreamTask("RS", "dcl_rs", ("RSVQA", "RemoteSensing")),
    StreamTask("Med", "dcl_med", ("PathVQA", "Medical")),
    StreamTask("AD", "dcl_rs", ("DriveLM",)),
    StreamTask("Sci", "dcl_sci", ("Science",)),
    StreamTask("Fin", "dcl_fin", ("FinVis", "StockQA", "Finance")),
)
_ACL = (
    StreamTask("OCR", "acl_ocr", ("OCR_test", "OCRBench")),
    StreamTask("Math", "acl_math", ("Math_test", "MathVista")),
    StreamTask("VP", "acl_vp", ("VP_test", "CV-Bench", "VisualPerception")),
    StreamTask("GUI", "acl_vp", ("APP", "APP_test", "GUI_test")),
)

STREAMS: dict[str, tuple[StreamTask, ...]] = {
    "ucit": _UCIT,
    "coin": _COIN,
    "coin_prism": tuple(replace(task, rule=_PRISM.get(task.name, task.rule)) for task in _COIN),
    "mllm_dcl": _DCL,
    "mllm_acl": _ACL,
}


def stream_of(name: str) -> tuple[StreamTask, ...]:
    """The tasks of a benchmark, in order.

    Raises:
      ConfigError: an unknown name.
    """
    by_name = {folded(known): known for known in STREAMS}
    by_name |= {"dcl": "mllm_dcl", "acl": "mllm_acl", "prism": "coin_prism"}
    if folded(name) not in by_name:
        raise ConfigError("unknown benchmark", where=f"--stream {name}", why=nearest(name, STREAMS))
    return STREAMS[by_name[folded(name)]]


def place_of(name: str, tasks: Iterable[StreamTask]) -> int | None:
    """Place of the task with a name, from 0; None where there is none."""
    wanted = folded(name)
    for place, task in enumerate(tasks):
        if wanted in task.names:
            return place
    return None
