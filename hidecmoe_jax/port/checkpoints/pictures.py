"""Picture settings of a checkpoint: mean, deviation and filter must be CLIP's, the rule that makes squares is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.data.images import CLIP_MEAN, CLIP_STD
from hidecmoe_jax.data.jsonfile import read_json
from hidecmoe_jax.models.config import Fit, LlavaConfig

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
        _require_supported(settings, file, config)
        # The files are copied as they are, so their bytes are returned and not the parsed settings.
        copies = {name: (folder / name).read_bytes() for name in contents}
        return copies, []
    return {}, ["no picture settings in the checkpoint: CLIP's own mean and deviation are used"]


def image_fit(layout: str, folder: Path, config: Mapping[str, Any]) -> tuple[Fit, str]:
    """The rule by which a checkpoint's pictures become square, and a note that says where it is from.

    Args:
      layout: of the checkpoint ("hf-llava", "llava", "llama").
      folder: of the checkpoint; the settings of a separate CLIP are about CLIP alone.
      config: its config.json.

    Raises:
      CheckpointError: another rule than padding and cropping.
    """
    if layout == "llava":
        # Original LLaVA without the field takes CLIP's own processor, which crops.
        ratio = config.get("image_aspect_ratio")
        rules: dict[Any, Fit] = {"pad": "pad", "square": "crop", None: "crop"}
        if not isinstance(ratio, str | None) or ratio not in rules:
            refuse_settings(folder / "config.json", f"image_aspect_ratio {ratio!r}, supported are 'pad' and 'square'")
        return rules[ratio], _fit_note(rules[ratio], f"config.json, image_aspect_ratio {ratio!r}")
    settings = _processor_of(folder) if layout == "hf-llava" else None
    if settings is None:
        return "pad", _fit_note("pad", "LLaVA-1.5's rule, as the checkpoint has no picture settings of its own")
    if settings.get("do_pad"):
        return "pad", _fit_note("pad", "its picture settings, do_pad")
    # transformers' default, for a field that is absent.
    if settings.get("do_center_crop", True):
        return "crop", _fit_note("crop", "its picture settings, do_center_crop without do_pad")
    refuse_settings(folder, "neither do_pad nor do_center_crop; pictures that are not square would be stretched")


def _fit_note(fit: Fit, why: str) -> str:
    """A line of the report about the rule."""
    rule = "padded to a square" if fit == "pad" else "cropped to their centre"
    other = "crop" if fit == "pad" else "pad"
    return f"pictures are {rule} ({why}); `--set base.image_fit={other}` changes it for a run"


def _processor_of(folder: Path) -> Mapping[str, Any] | None:
    """The picture settings in a folder; None where there are none, or none that `picture_settings` accepts."""
    image_file, processor_file = PICTURES
    settings: Any = None
    if (folder / image_file).is_file():
        settings = read_json(folder / image_file)
        if isinstance(settings, Mapping):
            settings = settings.get("image_processor", settings)
    elif (folder / processor_file).is_file():
        settings = read_json(folder / processor_file)
        if isinstance(settings, Mapping):
            settings = settings.get("image_processor")
    return settings if isinstance(settings, Mapping) else None


def _require_supported(settings: Any, file: Path, config: LlavaConfig) -> None:
    """Raises CheckpointError for settings other than CLIP's."""
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


def refuse_settings(where: Path, why: str) -> NoReturn:
    """Raises CheckpointError: tokenizer or picture settings are those of another model."""
    raise CheckpointError(
        "tokenizer or picture settings do not belong to the model",
        where=str(where),
        why=why,
        remedy="give the files that the checkpoint was trained with (--tokenizer DIR for another tokenizer)",
    )
