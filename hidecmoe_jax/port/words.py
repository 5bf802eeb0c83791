"""The tokenizers and picture settings that come along with a checkpoint.

A LLaMA tokenizer exists as sentencepiece's `tokenizer.model`, as `tokenizer.json`, or as both; only the first is the
truth, and what libraries make of it has changed from version to version. So the `tokenizer.json` written here is built
from sentencepiece's own pieces (or taken from the checkpoint where it says the same), and either way held against
sentencepiece on texts that usually tell them apart. CLIP's text tower brings its own tokenizer, which goes to `text/`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError
from hidecmoe_jax.data.images import CLIP_MEAN, CLIP_STD
from hidecmoe_jax.data.jsonfile import read_json
from hidecmoe_jax.data.tokenizer import TEXT_FOLDER as TEXT
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.port.sentences import from_sentencepiece, wrong_ids

IMAGE = "<image>"
ALONG = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model")
PICTURES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Words:
    """Files to write (name -> content), the id of `<image>` (None without a tokenizer), and notes for the report."""

    files: dict[str, bytes] = field(default_factory=dict)
    image: int | None = None
    size: int = 0
    notes: tuple[str, ...] = ()


def language_words(folder: Path, *, vocabulary: int, image: int | None) -> Words:
    """The language model's tokenizer, with `<image>` among its special tokens.

    Args:
      vocabulary: rows of the embedding.
      image: the id that the config gives to `<image>`; None where it names none.

    Raises:
      CheckpointError: tokenizer and model do not belong together, or a tokenizer of a kind that is not built in.
    """
    backend, notes = _backend(folder)
    if backend is None:
        return Words(notes=("no tokenizer in the checkpoint: load_model works, runs need one (--tokenizer DIR)",))
    found = backend.token_to_id(IMAGE)
    if found is None:
        # Its row is never looked up (a patch stands there), so it may lie one past the table.
        backend.add_special_tokens([IMAGE])
        found = backend.token_to_id(IMAGE)
        notes += [f"{IMAGE} was added to the tokenizer as id {found}"]
        if image is not None and image != found:
            _apart(folder, f"config.json gives {IMAGE} id {image} (image_token_index), the tokenizer's next is {found}")
    elif image is not None and image != found:
        _apart(folder, f"config.json gives {IMAGE} id {image} (image_token_index), the tokenizer {found}")
    size = backend.get_vocab_size(with_added_tokens=True)
    if size - (found == vocabulary) > vocabulary:
        _apart(folder, f"{size} tokens, the embedding has {vocabulary} rows (vocab_size)")
    if size < vocabulary:
        notes += [f"{vocabulary - size} rows of the embedding belong to no token (padding of the table), kept"]
    files = {"tokenizer.json": backend.to_str().encode()} | _along(folder)
    return Words(files, found, size, tuple(notes))


def text_words(folder: Path, config: LlavaConfig) -> Words:
    """The tokenizer of CLIP's text tower, for `text/`.

    Raises:
      CheckpointError: it does not belong to the text tower.
    """
    backend = _read(folder)
    if backend is None and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        from transformers import CLIPTokenizer

        backend = CLIPTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    if backend is None:
        return Words(notes=(f"no tokenizer in {folder.name}: the text tower reads the language model's ids",))
    size = backend.get_vocab_size(with_added_tokens=True)
    if size > config.text.vocabulary:
        _apart(folder, f"{size} tokens, the text tower's embedding has {config.text.vocabulary} rows (vocab_size)")
    files = {f"{TEXT}/tokenizer.json": backend.to_str().encode()}
    files |= {f"{TEXT}/{name}": content for name, content in _along(folder).items()}
    return Words(files, size=size)


def picture_settings(folders: Iterable[Path], config: LlavaConfig) -> tuple[dict[str, bytes], list[str]]:
    """The first picture settings among the folders, which must be CLIP's; they are kept beside the model.

    Raises:
      CheckpointError: another mean or deviation, or another size than the vision tower's.
    """
    for folder in folders:
        for name in PICTURES:
            if not (folder / name).is_file():
                continue
            content = read_json(folder / name)
            settings = content.get("image_processor", content if name == PICTURES[0] else None)
            if settings is None:
                continue
            notes = _judge_pictures(settings, folder / name, config)
            return {name: (folder / name).read_bytes()}, notes
    return {}, ["no picture settings in the checkpoint: CLIP's own mean and deviation are used"]


def _judge_pictures(settings: dict[str, Any], file: Path, config: LlavaConfig) -> list[str]:
    side, expected = config.vision.image_size, {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    for key, wanted in expected.items():
        given = settings.get(key, wanted)
        if len(given) != 3 or any(abs(a - b) > 1e-6 for a, b in zip(given, wanted, strict=True)):
            _apart(file, f"{key} {given}, this library normalises with CLIP's {list(wanted)}")
    for key in ("crop_size", "size"):
        given = settings.get(key, side)
        sides = set(given.values()) if isinstance(given, dict) else {given}
        if sides != {side}:
            _apart(file, f"{key} {given}, the vision tower reads {side} px (image_size)")
    if settings.get("resample", 3) != 3:
        _apart(file, f"resample {settings['resample']}, this library resizes bicubically (3)")
    if settings.get("do_center_crop", True) and not settings.get("do_pad", False):
        return [
            "the settings crop pictures to their centre; here they are padded to a square, as LLaVA-1.5 was trained"
        ]
    return []


def _backend(folder: Path) -> tuple[Any, list[str]]:
    """The tokenizer of a folder (None without one) and notes on how it was made."""
    ready, model = _read(folder), folder / "tokenizer.model"
    if not model.is_file():
        return ready, []
    if ready is not None:
        wrong = wrong_ids(ready, model)
        if not wrong:
            return ready, ["tokenizer.json agrees with sentencepiece"]
    built = from_sentencepiece(model)
    _add(built, folder)
    wrong_built = wrong_ids(built, model)
    if wrong_built:
        _apart(model, f"rebuilt pieces do not give sentencepiece's ids: {wrong_built}")
    if ready is None:
        return built, ["tokenizer.json was built from tokenizer.model; ids are sentencepiece's"]
    return built, [f"tokenizer.json does not give sentencepiece's ids ({wrong}): built anew from tokenizer.model"]


def _read(folder: Path) -> Any:
    import tokenizers

    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    read_json(file)  # says where a damaged file is damaged; the library below does not
    return tokenizers.Tokenizer.from_file(str(file))


def _add(backend: Any, folder: Path) -> None:
    """Tokens that were added beside the sentencepiece model, at the ids they had."""
    for token, wanted in sorted(_added(folder).items(), key=lambda item: item[1]):
        if backend.token_to_id(token) is None:
            backend.add_special_tokens([token])
        if backend.token_to_id(token) != wanted:
            _apart(folder, f"added token {token!r} has id {wanted}, after {backend.token_to_id(token)} others")


def _added(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    if (folder / "tokenizer_config.json").is_file():
        listed = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
        found |= {entry["content"]: int(place) for place, entry in listed.items()}
    if (folder / "added_tokens.json").is_file():
        found |= read_json(folder / "added_tokens.json")
    return found


def _along(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ALONG if (folder / name).is_file()}


def _apart(where: Path, why: str) -> None:
    raise CheckpointError(
        "tokenizer or picture settings do not belong to the model",
        where=str(where),
        why=why,
        remedy="give the files that the checkpoint was trained with (--tokenizer DIR for another tokenizer)",
    )
