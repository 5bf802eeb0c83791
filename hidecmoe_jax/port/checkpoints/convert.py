"""Conversion of a LLaVA-1.5 checkpoint of another tool into the folder of a base model.

    report = convert(Path("llava-1.5-7b-hf"), Path("bases/llava-7b"), dtype="bfloat16", clip=Path("clip-vit-l-14-336"))

Everything that follows from headers is decided and refused first (`plan.py`). Then leaves stream through one staged
file (`staging.py`), large models further into Orbax pieces, and the finished folder gets a manifest and its name in one
rename. Until then it is `NAME.partial` (`attempt.py`), which `resume` continues.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
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
from hidecmoe_jax.port.checkpoints.pictures import image_fit, picture_settings
from hidecmoe_jax.port.checkpoints.plan import ClassifiedSource, Plan, choose_dtype, make_plan
from hidecmoe_jax.port.checkpoints.recognise import NAMES, recognise
from hidecmoe_jax.port.checkpoints.report import Report, Verdict, finding_notes
from hidecmoe_jax.port.checkpoints.settings import llava_config
from hidecmoe_jax.port.checkpoints.source import Source, open_source, open_tokenizer, separate_projector
from hidecmoe_jax.port.checkpoints.staging import JOURNAL, compare_duplicate, open_leaves, write_leaves
from hidecmoe_jax.port.checkpoints.tokenizers import TokenizerFiles, language_tokenizer, text_tokenizer
from hidecmoe_jax.storage.crash_points import crash_point
from hidecmoe_jax.storage.files import disk_errors, read_json, remove_inside, write_json

RECORD = "conversion.json"
LARGE = 2 * 2**30
Layout = Literal["auto", "file", "sharded"]
Check = Callable[[Path], Sequence[Row]]
_SPARE = 64 * 2**20  # disk for tokenizers, manifests and headers


@dataclass(frozen=True)
class _Job:
    """Everything that is decided before a weight is read; `files` are those beside the weights."""

    classified: tuple[ClassifiedSource, ...]
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
      dtype: of the target; None keeps bfloat16 if all tensors have it, and else takes float32, which is exact.
      clip: the CLIPModel folder with text tower and projections; several folders if they are separate. Without it the
        base has no text tower, which only methods that find tasks by CLIP's features read.
      vision: folder of the vision tower, if the checkpoint has none and `clip` is another one.
      projector: a stage-1 projector, for a language model without one.
      tokenizer: a folder with another tokenizer than the checkpoint's.
      layout: one safetensors file, or pieces; "auto" takes pieces above 2 GiB.
      dry_run: decides everything from headers and writes nothing.
      resume: continues an unfinished conversion of the same sources.
      allow_nonfinite: writes NaN and infinity too (`load_model` refuses them).
      check: compares the written folder with its source before it gets its name (`conversion_check`).

    Raises:
      CheckpointError: anything about the sources; names tensor, expected, found and the config field. Or a row of
        `check` failed.
      ResourceError: the disk is too small.
      BusyError: another process converts to the same target.
    """
    source = Path(source)
    target = Path(target)
    if target.suffix == PARTIAL or not target.name:
        raise ConfigError("the target needs a name of its own", where=str(target), why=f"not ending in {PARTIAL}")
    clips = [clip] if isinstance(clip, str | Path) else list(clip or ())
    parts: list[tuple[Path | None, str]] = [(projector, "--projector"), (vision, "--vision")]
    for folder in clips:
        parts.append((folder, "--clip"))
    sources = _open_sources(source, parts)
    job = _prepare(sources, target, dtype, tokenizer, layout)
    if dry_run:
        return job.report
    return _carry_out(job, target, resume=resume, allow_nonfinite=allow_nonfinite, check=check)


def _carry_out(job: _Job, target: Path, *, resume: bool, allow_nonfinite: bool, check: Check | None) -> Report:
    """Writes, compares if `check` is given, and renames."""
    with locked(target) as partial:
        _require_space(job, target, partial)
        failed = is_begun(partial, resume=resume) and _has_failed(partial / MODEL / RECORD)
        if failed and check is None:
            raise CheckpointError(
                "the unfinished conversion has failed its comparison",
                where=str(partial),
                why="its answers differ from its source's",
                remedy="compare again with --resume --check, or delete that folder",
            )
        with disk_errors("could not convert", target, needed=job.report.disk):
            sources = record(job.sources)
            # An unfinished folder of another plan, or of sources that have changed since, is refused.
            state = {"plan": job.plan.digest(), "layout": job.report.layout, "sources": sources}
            model = begin(partial, state)
            began = time.monotonic()
            try:
                notes, sums = _write(job, partial, allow_nonfinite)
                refuse_changed(job.stamps)
            except CheckpointError:
                # The sources have to change, so nothing in the folder can be continued.
                remove_inside(target.parent, partial)
                raise
            seconds = time.monotonic() - began
            report = replace(job.report, notes=job.report.notes + notes, seconds=seconds)
            _describe(job, model)
        if check is not None:
            report = replace(report, checked=_verdict(check(model)))
        with disk_errors("could not convert", target, needed=job.report.disk):
            write_json(model / RECORD, _record(job, report, sources, sums))
            _refuse_failed(report, partial)
            commit(partial, target)
    return report


def _require_space(job: _Job, target: Path, partial: Path) -> None:
    # Bytes that an earlier attempt wrote are part of what is needed.
    disk = shutil.disk_usage(target.parent)
    free = disk.free + _used(partial)
    if free < job.report.disk:
        raise ResourceError(
            "not enough disk space to convert",
            where=str(target.parent),
            why=f"{job.report.disk:,} bytes are needed, {free:,} are free",
            remedy="free some space, or give a target on another disk",
        )


def _has_failed(file: Path) -> bool:
    """True if the record of an unfinished conversion has a failed comparison."""
    return file.is_file() and read_json(file).get("checked") == "failed"


def _verdict(rows: Sequence[Row]) -> Verdict:
    """The result of a comparison; one without rows has failed."""
    failed_rows = [row for row in rows if not row.passed]
    return "passed" if rows and not failed_rows else "failed"


def _refuse_failed(report: Report, partial: Path) -> None:
    if report.checked == "failed":
        raise CheckpointError(
            "the converted model does not answer as its source",
            where=str(partial),
            why="the comparison failed; the folder has no manifest and did not get its name",
            remedy="compare again with --resume --check, or delete that folder and report the checkpoint",
        )


def _open_sources(source: Path, parts: Sequence[tuple[Path | None, str]]) -> list[Source]:
    """The checkpoint and the parts given by flags, in the order in which the plan takes them."""
    sources = [open_source(source, "checkpoint")]
    beside = separate_projector(source) if source.is_dir() else None
    if beside is not None:
        sources.append(beside)
    for path, role in parts:
        if path is not None:
            sources.append(_open_part(path, role))
    return sources


def _open_part(path: Path, role: str) -> Source:
    """A part named by a flag; a folder that holds only a projector file stands for that file."""
    path = Path(path)
    projector = None
    if role == "--projector" and path.is_dir():
        projector = separate_projector(path)
    if projector is None:
        return open_source(path, role)
    return Source(projector.path, role, {}, projector.tensors, projector.files)


def _prepare(
    sources: Sequence[Source], target: Path, dtype: str | None, tokenizer: Path | None, layout: Layout
) -> _Job:
    """Decides everything from headers and settings; raises CheckpointError for whatever does not fit."""
    all_sources = tuple(sources)
    tokenizer_source = None
    if tokenizer is not None:
        tokenizer_source = open_tokenizer(tokenizer)
        all_sources = (*sources, tokenizer_source)
    stamped = stamps(all_sources)
    classified = tuple(ClassifiedSource(source, recognise(source)) for source in sources)
    dtype, dtype_note = choose_dtype(classified, dtype)
    config, language = _shapes(classified, dtype, tokenizer_source)
    main = classified[0]
    fit, fit_note = image_fit(main.layout, main.source.path, main.source.config)
    config = replace(config, image_fit=fit)
    plan = make_plan(classified, config)
    files, file_notes = _files(classified, config, language)
    kind = layout
    if layout == "auto":
        kind = "sharded" if plan.nbytes > LARGE else "file"
    origins = []
    for entry in classified:
        count = len(entry.source.tensors)
        origins.append(f"{entry.source.role}: {NAMES[entry.layout]}, {count} tensors")
    tensor_count = sum(len(leaf.tensors) for leaf in plan.leaves)
    report = Report(
        target=target, config=config, layout=kind, tensors=tensor_count,
        leaves=len(plan.leaves), dropped=plan.dropped, nbytes=plan.nbytes,
        # The staged file and the pieces cut from it exist at the same time.
        disk=plan.nbytes * (2 if kind == "sharded" else 1) + _SPARE,
        notes=(*origins, f"dtype: {dtype_note}", *_tied(classified, config), *_without_text(config), *plan.notes,
               *file_notes, fit_note),
    )  # fmt: skip
    return _Job(classified, all_sources, stamped, plan, files, report)


def _shapes(
    classified: Sequence[ClassifiedSource], dtype: str, tokenizer: Source | None
) -> tuple[LlavaConfig, TokenizerFiles]:
    """The model's config, and the language model's tokenizer, which determines the image token."""
    main = classified[0].source
    config = llava_config(
        classified[0].layout,
        main,
        tower=_provider(classified, "vision/stem/class"),
        projection=_provider(classified, "vision/head/projection/kernel"),
        text=_provider(classified, "text/stem/token"),
        dtype=dtype,
    )
    image_token = main.config.get("image_token_index", main.config.get("image_token_id"))
    if type(image_token) not in (int, type(None)):
        raise CheckpointError(
            "a setting of the checkpoint is not supported",
            where=f"{main.path}: image_token_index",
            why=f"found {image_token!r}, expected a whole number",
            remedy="correct config.json",
        )
    rows = config.decoder.vocabulary
    tokenizer_folder = (tokenizer or main).path
    language = language_tokenizer(tokenizer_folder, vocabulary=rows, image=image_token)
    if language.image is not None:
        image_token = language.image
    if image_token is None:
        # Without any id, the image token is one past the table: its row is never looked up.
        image_token = rows
    return replace(config, image_token=image_token), language


def _provider(classified: Sequence[ClassifiedSource], leaf: str) -> Source | None:
    """The first source that has a tensor for `leaf`."""
    for entry in classified:
        for key in entry.source.tensors:
            target = place(key, entry.layout)
            if target is not None and target.rule.leaf == leaf:
                return entry.source
    return None


def _files(
    classified: Sequence[ClassifiedSource], config: LlavaConfig, language: TokenizerFiles
) -> tuple[dict[str, bytes], list[str]]:
    """Name -> content of everything written beside the weights, and notes on it."""
    text = TokenizerFiles()
    source = _provider(classified, "text/stem/token")
    if source is not None and source.path.is_dir():
        text = text_tokenizer(source.path, config, language.reader)
    folders = [entry.source.path for entry in classified if entry.source.path.is_dir()]
    pictures, picture_notes = picture_settings(folders, config)
    files = language.files | text.files | pictures
    return files, [*language.notes, *text.notes, *picture_notes]


def _tied(classified: Sequence[ClassifiedSource], config: LlavaConfig) -> list[str]:
    """A note on tied embeddings."""
    if not config.decoder.tied:
        return []
    heads = [key for key in classified[0].source.tensors if key.endswith("lm_head.weight")]
    end = "; the stored lm_head must equal it and is left out" if heads else "; no lm_head is stored"
    return [f"embeddings are tied: the head reads the token table{end}"]


def _without_text(config: LlavaConfig) -> list[str]:
    """A note on a base without CLIP's text tower."""
    if config.text is not None:
        return []
    return [
        "without CLIP's text tower: methods that find tasks by CLIP's features (gate `anchors`, as in HiDe and its "
        "variants; locator `anchors`; adapters of HiDe) will refuse this base; a gate that reads the base's own state "
        "(as in CMoE), a named task and methods without a gate work; --clip DIR brings the text tower"
    ]


def _write(job: _Job, partial: Path, allow_nonfinite: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    """Writes the weights; returns notes on them and the SHA-256 of every leaf."""
    notes = _compare_duplicates(job.plan)
    pieces = job.report.layout == "sharded"
    # A single file is staged in its final place; for pieces it is only the intermediate step.
    staged = partial / WEIGHTS if pieces else partial / MODEL / WEIGHTS
    with tqdm(
        total=job.plan.nbytes, unit="B", unit_scale=True, unit_divisor=1024, desc="weights", leave=False, disable=None
    ) as bar:
        sums, findings = write_leaves(
            job.plan, staged, partial / JOURNAL, allow_nonfinite=allow_nonfinite, done=bar.update
        )
    notes += finding_notes(findings)
    if pieces:
        _shard(job.plan, staged, partial / MODEL / sharded.FOLDER)
    return tuple(notes), sums


def _compare_duplicates(plan: Plan) -> list[str]:
    """Notes on tensors that another source already provides; raises CheckpointError if they differ and must not."""
    differing: dict[str, list[str]] = {}
    counts: Counter[str] = Counter()
    for duplicate in plan.duplicates:
        counts[duplicate.role] += 1
        differences = differing.setdefault(duplicate.role, [])
        apart = compare_duplicate(duplicate)
        if apart:
            differences.append(f"{duplicate.again.key} ({apart})")
    notes = []
    for role, differences in differing.items():
        result = "all equal"
        if differences:
            examples = ", ".join(differences[:3])
            result = f"{len(differences)} of {counts[role]} differ: {examples}"
        notes.append(f"{role}: {counts[role]} tensors that the checkpoint already has, not used; {result}")
    return notes


def _shard(plan: Plan, staged: Path, folder: Path) -> None:
    """Writes the staged leaves as Orbax pieces, one leaf at a time."""
    folder.mkdir(exist_ok=True)
    # Pieces of an earlier attempt may be incomplete, so all are written again.
    for entry in list(folder.iterdir()):
        remove_inside(folder, entry)
    leaves = open_leaves(plan, staged)
    for path, array in tqdm(leaves.items(), desc="pieces", leave=False, disable=None):
        sharded.write_leaf(folder, path, array)
        crash_point("convert_piece", path)


def _describe(job: _Job, model: Path) -> None:
    """Writes config, tokenizers and picture settings beside the weights."""
    for name, content in job.files.items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(content)
    text = json.dumps(plain(job.plan.config), indent=2) + "\n"
    (model / CONFIG).write_text(text, encoding="utf-8")


def _record(job: _Job, report: Report, sources: list[dict[str, Any]], sums: dict[str, str]) -> dict[str, Any]:
    """Content of conversion.json: provenance of the model, its digests and the report."""
    return {
        "format": 2,
        "version": VERSION,
        "layout": job.classified[0].layout,
        "checked": report.checked,
        "sources": sources,
        "source_config": job.classified[0].source.config,
        "leaves": sums,
        "report": {**asdict(report), "config": plain(report.config), "target": report.target.name},
    }


def _used(folder: Path) -> int:
    """Bytes that an unfinished conversion occupies already."""
    if not folder.exists():
        return 0
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
