"""Foreign checkpoints become the folder of a base model.

    report = convert(Path("llava-1.5-7b-hf"), Path("bases/llava-7b"), dtype="bfloat16", clip=Path("clip-vit-l-14-336"))

Everything that headers can tell is settled and refused first (`plan.py`); then leaves stream through one staged file
(`staging.py`), large models on into Orbax pieces, and the finished folder is sealed and gets its name in one rename.
Until then it lies in `NAME.partial` (`attempt.py`), and `resume` goes on with it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from hidecmoe_jax.core.about import VERSION
from hidecmoe_jax.core.errors import CheckpointError, ConfigError, ResourceError
from hidecmoe_jax.core.strict import plain
from hidecmoe_jax.models import sharded
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.models.store import CONFIG, WEIGHTS
from hidecmoe_jax.port.checkpoints.attempt import MODEL, PARTIAL, begin, commit, is_begun, locked
from hidecmoe_jax.port.checkpoints.check import Row
from hidecmoe_jax.port.checkpoints.names import place
from hidecmoe_jax.port.checkpoints.origin import Stamps, record, refuse_changed, stamps
from hidecmoe_jax.port.checkpoints.plan import ClassifiedSource, Plan, choose_dtype, make_plan
from hidecmoe_jax.port.checkpoints.recognise import NAMES, recognise
from hidecmoe_jax.port.checkpoints.settings import llava_config
from hidecmoe_jax.port.checkpoints.source import Source, open_source, open_words, separate_projector
from hidecmoe_jax.port.checkpoints.staging import JOURNAL, Found, compare_spare, open_leaves, write_leaves
from hidecmoe_jax.port.checkpoints.tokenizers import Words, language_words, picture_settings, text_words
from hidecmoe_jax.storage.crash_points import crash_point
from hidecmoe_jax.storage.files import disk_errors, read_json, remove_inside, write_json

RECORD = "conversion.json"
LARGE = 2 * 2**30
Layout = Literal["auto", "file", "sharded"]
Verdict = Literal["not checked", "passed", "failed"]
Check = Callable[[Path], Sequence[Row]]
_SPARE = 64 * 2**20  # disk for tokenizers, manifests and headers


@dataclass(frozen=True)
class Report:
    """What a conversion did, or with `dry_run` would do.

    Attributes:
      target: the base model's folder.
      config: shapes of the converted model.
      layout: "file" (model.safetensors) or "sharded" (Orbax pieces).
      tensors: source tensors that were consumed; `leaves` of ours that they fill.
      dropped: named pattern -> tensors left out under it.
      nbytes: bytes of weights; `disk`, bytes needed on the way.
      notes: everything else that a reader should know, one sentence each.
      seconds: spent on the weights; 0 for a dry run.
      checked: whether the model was held against its source.
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
        speed = f", {self.nbytes / 2**20 / self.seconds:.0f} MB/s" if self.seconds else ""
        numbers = [f"{self.tensors} tensors -> {self.leaves} leaves, {self.nbytes / 2**30:.2f} GiB{speed}"]
        numbers += [f"left out: {count} x {pattern}" for pattern, count in sorted(self.dropped.items())]
        unchecked = "not checked against the source's own answers: --check does it (needs the extra `oracle`)"
        checked = unchecked if self.checked == "not checked" else f"check {self.checked}: the source's own answers"
        kind = "one file" if self.layout == "file" else "Orbax pieces that any mesh reads"
        return [f"{self.target} ({kind})", *numbers, f"disk needed: {self.disk / 2**30:.2f} GiB", *self.notes, checked]


@dataclass(frozen=True)
class _Job:
    """All that is settled before a weight is read."""

    given: tuple[ClassifiedSource, ...]
    sources: tuple[Source, ...]
    stamps: Stamps
    plan: Plan
    files: dict[str, bytes]
    report: Report


def convert(
    source: Path,
    target: Path,
    *,
    dtype: str | None = None,
    clip: Path | Sequence[Path] | None = None,
    vision: Path | None = None,
    projector: Path | None = None,
    tokenizer: Path | None = None,
    layout: Layout = "auto",
    dry_run: bool = False,
    resume: bool = False,
    allow_nonfinite: bool = False,
    check: Check | None = None,
) -> Report:
    """Converts a LLaVA-1.5 checkpoint (or Vicuna and its parts) into the base model folder `target`.

    Args:
      source: Hugging Face LLaVA in any of its key layouts, original LLaVA-1.5, or a LLaMA language model.
      dtype: of the target; None keeps bfloat16 where all is bfloat16 and takes float32, which is exact, elsewhere.
      clip: the CLIPModel folder that brings text tower and projections; several folders where they lie apart.
      vision: the vision tower, where the checkpoint has none and `clip` is not to give it.
      projector: a stage-1 projector, for a language model without one.
      tokenizer: a folder with another tokenizer than the checkpoint's.
      layout: one safetensors file, or pieces; "auto" cuts what is larger than 2 GiB.
      dry_run: settles everything from headers and writes nothing.
      resume: goes on with an unfinished conversion of the same sources.
      allow_nonfinite: writes NaN and infinity too (`load_model` refuses them).
      check: holds the written model against its source before it gets its name (`check.check`, the folder given).

    Raises:
      CheckpointError: anything about the sources; names tensor, expected, found and the config field. Or a row of
        `check` failed.
      ResourceError: the disk is too small.
      BusyError: another process converts to the same target.
    """
    source, target = Path(source), Path(target)
    job = _prepare(source, target, dtype, clip, vision, projector, tokenizer, layout)
    if dry_run:
        return job.report
    return _carry_out(job, target, resume=resume, allow_nonfinite=allow_nonfinite, check=check)


def _carry_out(job: _Job, target: Path, *, resume: bool, allow_nonfinite: bool, check: Check | None) -> Report:
    with locked(target) as partial:
        _require_space(job, target, partial)
        failed = is_begun(partial, resume=resume) and _has_failed(partial / MODEL / RECORD)
        if failed and check is None:
            raise CheckpointError(
                "the unfinished conversion has failed its comparison",
                where=str(partial),
                why="it does not answer as its source",
                remedy="compare again with --resume --check, or delete that folder",
            )
        with disk_errors("could not convert", target, needed=job.report.disk):
            sources = record(job.sources)
            model = begin(partial, {"plan": job.plan.digest(), "layout": job.report.layout, "sources": sources})
            began = time.monotonic()
            try:
                notes, sums = _write(job, partial, allow_nonfinite)
                refuse_changed(job.stamps)
            except CheckpointError:
                remove_inside(target.parent, partial)  # sources have to change, so nothing in it can be gone on with
                raise
            seconds = time.monotonic() - began
            report = replace(job.report, notes=job.report.notes + notes, seconds=seconds)
            _describe(job, model)
        report = report if check is None else replace(report, checked=_verdict(check(model)))
        with disk_errors("could not convert", target, needed=job.report.disk):
            write_json(model / RECORD, _record(job, report, sources, sums))
            _refuse_failed(report, partial)
            commit(partial, target)
    return report


def _require_space(job: _Job, target: Path, partial: Path) -> None:
    free = shutil.disk_usage(target.parent).free + _used(partial)
    if free < job.report.disk:
        raise ResourceError(
            "not enough disk space to convert",
            where=str(target.parent),
            why=f"{job.report.disk:,} bytes are needed, {free:,} are free",
            remedy="free some space, or give a target on another disk",
        )


def _has_failed(file: Path) -> bool:
    return file.is_file() and read_json(file).get("checked") == "failed"


def _verdict(rows: Sequence[Row]) -> Verdict:
    return "passed" if rows and all(row.passed for row in rows) else "failed"


def _refuse_failed(report: Report, partial: Path) -> None:
    if report.checked == "failed":
        raise CheckpointError(
            "the converted model does not answer as its source",
            where=str(partial),
            why="the comparison failed; the folder has no seal and did not get its name",
            remedy="compare again with --resume --check, or delete that folder and report the checkpoint",
        )


def _prepare(source, target, dtype, clip, vision, projector, tokenizer, layout: Layout) -> _Job:
    if target.suffix == PARTIAL or not target.name:
        raise ConfigError("the target needs a name of its own", where=str(target), why=f"not ending in {PARTIAL}")
    main = open_source(source, "checkpoint")
    beside = separate_projector(source) if source.is_dir() else None
    clips = [clip] if isinstance(clip, str | Path) else list(clip or ())
    parts = [(projector, "--projector"), (vision, "--vision"), *((folder, "--clip") for folder in clips)]
    sources = [main, *([beside] if beside else [])]
    sources += [_open_part(path, role) for path, role in parts if path is not None]
    worded = open_words(tokenizer) if tokenizer is not None else None
    read = (*sources, *([worded] if worded else []))
    before = stamps(read)
    given = tuple(ClassifiedSource(one, recognise(one)) for one in sources)
    dtype, said = choose_dtype(given, dtype)
    config, words = _shapes(given, dtype, worded)
    plan = make_plan(given, config)
    files, notes = _texts(given, config, words)
    kind = layout if layout != "auto" else "sharded" if plan.nbytes > LARGE else "file"
    used = sum(len(leaf.tensors) for leaf in plan.leaves)
    origin = [f"{one.source.role}: {NAMES[one.layout]}, {len(one.source.tensors)} tensors" for one in given]
    report = Report(
        target=target, config=config, layout=kind, tensors=used, leaves=len(plan.leaves), dropped=plan.dropped,
        nbytes=plan.nbytes, disk=plan.nbytes * (2 if kind == "sharded" else 1) + _SPARE,
        notes=(*origin, f"dtype: {said}", *_tied(given, config), *plan.notes, *notes),
    )  # fmt: skip
    return _Job(given, read, before, plan, files, report)


def _open_part(path: Path, role: str) -> Source:
    """A part named by a flag; a folder that holds only a projector file stands for that file."""
    path = Path(path)
    if role == "--projector" and path.is_dir() and (found := separate_projector(path)) is not None:
        return Source(found.path, role, {}, found.tensors, found.files)
    return open_source(path, role)


def _shapes(given: Sequence[ClassifiedSource], dtype: str, worded: Source | None) -> tuple[LlavaConfig, Words]:
    main = given[0]
    tower, projection = _provider(given, "vision/stem/class"), _provider(given, "vision/head/projection/kernel")
    config = llava_config(
        main.layout,
        main.source,
        tower=tower,
        projection=projection,
        text=_provider(given, "text/stem/token"),
        dtype=dtype,
    )
    named = main.source.config.get("image_token_index", main.source.config.get("image_token_id"))
    if type(named) not in (int, type(None)):
        raise CheckpointError(
            "a setting of the checkpoint is not supported",
            where=f"{main.source.path}: image_token_index",
            why=f"found {named!r}, expected a whole number",
            remedy="correct config.json",
        )
    folder = (worded or main.source).path
    words = language_words(folder, vocabulary=config.decoder.vocabulary, image=named)
    image = named if words.image is None else words.image
    return replace(config, image_token=config.decoder.vocabulary if image is None else image), words


def _provider(given: Sequence[ClassifiedSource], leaf: str) -> Source | None:
    """The first source that has a tensor for `leaf`."""
    for one in given:
        if any((at := place(key, one.layout)) is not None and at.rule.leaf == leaf for key in one.source.tensors):
            return one.source
    return None


def _texts(given: Sequence[ClassifiedSource], config: LlavaConfig, words: Words) -> tuple[dict[str, bytes], list[str]]:
    """Everything written beside the weights, and notes on it."""
    notes = list(words.notes)
    text = _provider(given, "text/stem/token")
    read = text_words(text.path, config, words.reader) if text is not None and text.path.is_dir() else Words()
    folders = [one.source.path for one in given if one.source.path.is_dir()]
    pictures, said = picture_settings(folders, config)
    notes += [*read.notes, *said]
    return words.files | read.files | pictures, notes


def _tied(given: Sequence[ClassifiedSource], config: LlavaConfig) -> list[str]:
    if not config.decoder.tied:
        return []
    stored = any(key.endswith("lm_head.weight") for key in given[0].source.tensors)
    end = "; the stored lm_head must equal it and is left out" if stored else "; no lm_head is stored"
    return [f"embeddings are tied: the head reads the token table{end}"]


def _write(job: _Job, partial: Path, allow_nonfinite: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    """Weights into the model of `partial`; notes on what came to light, and the leaves' digests."""
    notes = _compare(job.plan)
    pieces = job.report.layout == "sharded"
    staged = partial / WEIGHTS if pieces else partial / MODEL / WEIGHTS
    with tqdm(
        total=job.plan.nbytes, unit="B", unit_scale=True, unit_divisor=1024, desc="weights", leave=False, disable=None
    ) as bar:
        sums, found = write_leaves(
            job.plan, staged, partial / JOURNAL, allow_nonfinite=allow_nonfinite, done=bar.update
        )
    notes += _noticed(found)
    if pieces:
        _shard(job.plan, staged, partial / MODEL / sharded.FOLDER)
    return tuple(notes), sums


def _compare(plan: Plan) -> list[str]:
    """Copies that another source already provides: told when they differ, refused when they must not."""
    differing: dict[str, list[str]] = {}
    counted: dict[str, int] = {}
    for spare in plan.spares:
        apart = compare_spare(spare)
        counted[spare.role] = counted.get(spare.role, 0) + 1
        differing.setdefault(spare.role, []).extend([f"{spare.again.key} ({apart})"] if apart else [])
    notes = []
    for role, wrong in differing.items():
        said = f"{len(wrong)} of {counted[role]} differ: {', '.join(wrong[:3])}" if wrong else "all equal"
        notes.append(f"{role}: {counted[role]} tensors that the checkpoint already has, not used; {said}")
    return notes


def _noticed(found: Found) -> list[str]:
    notes = [f"{found.rounded} tensors were rounded to the target's dtype"] if found.rounded else []
    notes += [f"warning: all zero: {', '.join(found.zero[:8])} ({len(found.zero)})"] if found.zero else []
    said = f"warning: NaN or infinity in {', '.join(found.nonfinite[:8])}: load_model refuses this model"
    return [*notes, *([said] if found.nonfinite else [])]


def _shard(plan: Plan, staged: Path, folder: Path) -> None:
    """The staged leaves as Orbax pieces; leaves that a former attempt finished are written again, one by one."""
    folder.mkdir(exist_ok=True)
    for entry in list(folder.iterdir()):
        remove_inside(folder, entry)
    for path, array in tqdm(open_leaves(plan, staged).items(), desc="pieces", leave=False, disable=None):
        sharded.write_leaf(folder, path, array)
        crash_point("convert_piece", path)


def _describe(job: _Job, model: Path) -> None:
    """Config and words beside the weights."""
    for name, content in job.files.items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(content)
    (model / CONFIG).write_text(json.dumps(plain(job.plan.config), indent=2) + "\n", encoding="utf-8")


def _record(job: _Job, report: Report, sources: list[dict[str, Any]], sums: dict[str, str]) -> dict[str, Any]:
    """Where all of it came from, and whether it was held against it."""
    return {
        "format": 2,
        "version": VERSION,
        "layout": job.given[0].layout,
        "checked": report.checked,
        "sources": sources,
        "source_config": job.given[0].source.config,
        "leaves": sums,
        "report": {**asdict(report), "config": plain(report.config), "target": report.target.name},
    }


def _used(folder: Path) -> int:
    files: Iterable[Path] = folder.rglob("*") if folder.exists() else ()
    return sum(file.stat().st_size for file in files if file.is_file())
