"""Report of a conversion: what was used, left out, written, and compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.port.checkpoints.staging import Findings

Verdict = Literal["not checked", "passed", "failed"]


@dataclass(frozen=True)
class Report:
    """Result of a conversion, or of its dry run.

    Attributes:
      target: the base model's folder.
      config: shapes of the converted model.
      layout: "file" (model.safetensors) or "sharded" (Orbax pieces).
      tensors: number of source tensors used; `leaves`, number of leaves that they fill.
      dropped: number of tensors left out, by pattern.
      nbytes: bytes of weights; `disk`, bytes needed during the conversion.
      notes: everything else that matters, one sentence each.
      seconds: spent on the weights; 0 for a dry run.
      checked: result of the comparison with the source's own answers.
    """

    target: Path
    config: LlavaConfig
    layout: str
    tensors: int
    leaves: int
    dropped: dict[str, int]
    nbytes: int
    disk: int
    notes: tuple[str, ...]
    seconds: float = 0.0
    checked: Verdict = "not checked"

    def lines(self) -> list[str]:
        """The report as it is printed."""
        kind = "one file" if self.layout == "file" else "Orbax pieces that any mesh reads"
        speed = ""
        if self.seconds:  # a dry run takes none
            megabytes = self.nbytes / 2**20
            speed = f", {megabytes / self.seconds:.0f} MB/s"
        size = self.nbytes / 2**30
        lines = [f"{self.target} ({kind})"]
        lines.append(f"{self.tensors} tensors -> {self.leaves} leaves, {size:.2f} GiB{speed}")
        # Sorted, so that two reports of one checkpoint are equal.
        for pattern, count in sorted(self.dropped.items()):
            lines.append(f"left out: {count} x {pattern}")
        disk = self.disk / 2**30
        lines.append(f"disk needed: {disk:.2f} GiB")
        lines += self.notes
        if self.checked == "not checked":
            lines.append("not checked against the source's own answers: --check does it (needs the extra `oracle`)")
        else:
            lines.append(f"check {self.checked}: the source's own answers")
        return lines


def finding_notes(findings: Findings) -> list[str]:
    """Sentences on weights that are rounded, zero or not finite."""
    notes = []
    if findings.rounded:
        notes.append(f"{findings.rounded} tensors were rounded to the target's dtype")
    if findings.zero:
        count = len(findings.zero)
        keys = ", ".join(findings.zero[:8])
        notes.append(f"warning: all zero: {keys} ({count})")
    if findings.nonfinite:
        keys = ", ".join(findings.nonfinite[:8])
        notes.append(f"warning: NaN or infinity in {keys}: load_model refuses this model")
    return notes
