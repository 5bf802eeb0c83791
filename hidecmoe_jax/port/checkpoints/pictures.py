"""Picture settings of a checkpoint, which must be those with which this library prepares every picture (CLIP's)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.data.images import CLIP_MEAN, CLIP_STD
from hidecmoe_jax.data.jsonfile import read_json
from hidecmoe_jax.models.config import LlavaConfig

PICTURES = ("preprocessor_config.json", "processor_config.json")
_BICUBIC = 3  # PIL's number of the filter


def picture_settings(folders: Iterable[Path], config: LlavaConfig) -> tuple[dict[str, bytes], list[str]]:
    """Files (name -> content) of the first folder with picture settings, and notes for the report.

    Raises:
      CheckpointError: another mean, deviation or scale, or another size than the vision tower's.
    """
    for folder in folders:
        contents = {}
        for name in PICTURES:
            if (folder / name).is_file():
                contents[name] = read_json(folder / name)
        image_file, processor_file = PICTURES
        image = contents.get(image_file, {})
        processor = contents.get(processor_file, {})
        # transformers 5 nests them in the processor's file; the older file of their own has precedence.
        settings = image.get("image_processor", image)
        if not settings:
            settings = processor.get("image_processor")
        if settings is None:
            continue
        file = folder / (image_file if image else processor_file)
        notes = _judge(settings, file, config)
        # The files are copied as they are, so their bytes are returned and not the parsed settings.
        copies = {name: (folder / name).read_bytes() for name in contents}
        return copies, notes
    return {}, ["no picture settings in the checkpoint: CLIP's own mean and deviation are used"]


def _judge(settings: Any, file: Path, config: LlavaConfig) -> list[str]:
    """Notes on settings that are compatible; raises CheckpointError for others."""
    if not isinstance(settings, Mapping):
        refuse_settings(file, f"image_processor {settings!r}, expected an object")
    _require_clip_numbers(settings, file)
    for key in ("do_resize", "do_rescale", "do_normalize"):
        value = settings.get(key, True)
        if value is not True:
            refuse_settings(file, f"{key} {value!r}, this library does it with every picture (true)")
    side = config.vision.image_size
    for key in ("crop_size", "size"):
        value = settings.get(key, side)
        sides = list(value.values()) if isinstance(value, dict) else [value]
        other_sides = [size for size in sides if size != side]
        if not sides or other_sides:
            refuse_settings(file, f"{key} {value}, the vision tower reads {side} px (image_size)")
    resample = settings.get("resample", _BICUBIC)
    if resample != _BICUBIC:
        refuse_settings(file, f"resample {resample}, this library resizes bicubically (3)")
    # transformers' defaults, for fields that are absent.
    crops = settings.get("do_center_crop", True)
    pads = settings.get("do_pad", False)
    if crops and not pads:
        return [
            "the settings crop pictures to their centre; here they are padded to a square, as LLaVA-1.5 was trained"
        ]
    return []


def _require_clip_numbers(settings: Mapping[str, Any], file: Path) -> None:
    """Mean, deviation and scale must be CLIP's; absent ones are."""
    clip_numbers = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "rescale_factor": (1 / 255,)}
    for key, expected in clip_numbers.items():
        value = settings.get(key, expected)
        numbers = value if isinstance(value, list | tuple) else [value]
        are_numbers = all(isinstance(number, int | float) for number in numbers)
        equal = False
        if are_numbers and len(numbers) == len(expected):
            differences = [abs(a - b) for a, b in zip(numbers, expected, strict=True)]
            equal = max(differences) <= 1e-6
        if not equal:
            refuse_settings(file, f"{key} {numbers}, this library prepares pictures with CLIP's {list(expected)}")


def refuse_settings(where: Path, why: str) -> None:
    """Raises CheckpointError: tokenizer or picture settings are those of another model."""
    raise CheckpointError(
        "tokenizer or picture settings do not belong to the model",
        where=str(where),
        why=why,
        remedy="give the files that the checkpoint was trained with (--tokenizer DIR for another tokenizer)",
    )
