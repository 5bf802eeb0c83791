"""The tokenizers and picture settings that come along with a checkpoint.

A LLaMA tokenizer exists as sentencepiece's `tokenizer.model`, as `tokenizer.json`, or as both; only the first is the
truth, and what libraries make of it has changed from version to version. So the `tokenizer.json` written here is built
from sentencepiece's own pieces (or taken from the checkpoint where it says the same), and either way held against
sentencepiece on texts that usually tell them apart. CLIP's text tower brings its own tokenizer, which goes to `text/`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError, DataError
from hidecmoe_jax.data.images import CLIP_MEAN, CLIP_STD
from hidecmoe_jax.data.jsonfile import read_json
from hidecmoe_jax.data.tokenizer import TEXT_FOLDER as TEXT
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.port.checkpoints.sentencepiece import from_sentencepiece, wrong_ids

IMAGE = "<image>"
ALONG = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
PICTURES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Words:
    """Files to write (name -> content), the id of `<image>` and the tokenizer as runs read it (None without one), and
    notes for the report."""

    files: dict[str, bytes] = field(default_factory=dict)
    image: int | None = None
    notes: tuple[str, ...] = ()
    reader: Tokenizer | None = None


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
    _refuse_beyond(folder, backend, vocabulary, "the embedding", but=vocabulary if found == vocabulary else None)
    size = backend.get_vocab_size(with_added_tokens=True)
    if size < vocabulary:
        notes += [f"{vocabulary - size} rows of the embedding belong to no token (padding of the table), kept"]
    files = {"tokenizer.json": backend.to_str().encode()} | _along(folder)
    read = _as_read(folder, files)
    same = [name for name, token in (("end", read.eos), ("unknown", read.unk)) if token == read.pad]
    if same:
        notes += [f"padding is the {same[0]} token, id {read.pad}: a mask tells them apart here, other tools may not"]
    return Words(files, found, tuple(notes), read)


def text_words(folder: Path, config: LlavaConfig, instead: Tokenizer | None) -> Words:
    """The tokenizer of CLIP's text tower, for `text/`; without one the text tower reads with `instead`.

    Raises:
      CheckpointError: it does not belong to the text tower.
    """
    backend = _read(folder)
    if backend is None and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        from transformers import CLIPTokenizer

        backend = _opened(
            folder, lambda: CLIPTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
        )
    if backend is None:
        return Words(notes=(f"no tokenizer in {folder.name}: {_read_instead(config, instead)}",))
    _refuse_beyond(folder, backend, config.text.vocabulary, "the text tower's embedding")
    files = {"tokenizer.json": backend.to_str().encode()} | _along(folder)
    end = _as_read(folder, files).eos
    if end != config.text.eos_token:
        _apart(folder, f"its end token is {end}, the text tower's is {config.text.eos_token} (eos_token_id)")
    return Words({f"{TEXT}/{name}": content for name, content in files.items()})


def _read_instead(config: LlavaConfig, instead: Tokenizer | None) -> str:
    if instead is None or (instead.size <= config.text.vocabulary and instead.eos == config.text.eos_token):
        return "the text tower reads the language model's ids"
    return (
        f"warning: the text tower (end token {config.text.eos_token}, {config.text.vocabulary} rows) cannot read the "
        f"language model's ids (end token {instead.eos}, {instead.size} tokens), so runs refuse this base: give a "
        "--clip folder with CLIP's tokenizer"
    )


def picture_settings(folders: Iterable[Path], config: LlavaConfig) -> tuple[dict[str, bytes], list[str]]:
    """The first picture settings among the folders, which must be CLIP's; they are kept beside the model.

    Raises:
      CheckpointError: another mean, deviation or scale, or another size than the vision tower's.
    """
    for folder in folders:
        contents = {name: read_json(folder / name) for name in PICTURES if (folder / name).is_file()}
        own, whole = (contents.get(name, {}) for name in PICTURES)
        settings = own.get("image_processor", own) or whole.get("image_processor")
        if settings is None:
            continue
        notes = _judge_pictures(settings, folder / PICTURES[0 if own else 1], config)
        return {name: (folder / name).read_bytes() for name in contents}, notes
    return {}, ["no picture settings in the checkpoint: CLIP's own mean and deviation are used"]


def _judge_pictures(settings: Any, file: Path, config: LlavaConfig) -> list[str]:
    if not isinstance(settings, Mapping):
        _apart(file, f"image_processor {settings!r}, expected an object")
    side = config.vision.image_size
    for key, wanted in {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "rescale_factor": (1 / 255,)}.items():
        given = settings.get(key, wanted)
        given = given if isinstance(given, list | tuple) else [given]
        fine = len(given) == len(wanted) and all(isinstance(value, int | float) for value in given)
        if not fine or any(abs(a - b) > 1e-6 for a, b in zip(given, wanted, strict=True)):
            _apart(file, f"{key} {given}, this library prepares pictures with CLIP's {list(wanted)}")
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if settings.get(key, True) is not True:
            _apart(file, f"{key} {settings[key]!r}, this library does it with every picture (true)")
    for key in ("crop_size", "size"):
        given = settings.get(key, side)
        sides = list(given.values()) if isinstance(given, dict) else [given]
        if not sides or any(value != side for value in sides):
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
    return _opened(file, lambda: tokenizers.Tokenizer.from_file(str(file)))


def _opened(where: Path, read: Callable[[], Any]) -> Any:
    """What `read` gives; the tokenizer library has no class of error of its own for a file that is no tokenizer."""
    try:
        return read()
    except Exception as error:
        raise CheckpointError(
            "a tokenizer cannot be read",
            where=str(where),
            why=str(error)[:200],
            remedy="download it again and compare its SHA-256 with the publisher's",
        ) from error


def _refuse_beyond(folder: Path, backend: Any, rows: int, table: str, *, but: int | None = None) -> None:
    """Refuses ids that a table has no row for; `but` is the image token's, which is never looked up."""
    ids = backend.get_vocab(with_added_tokens=True)
    others = ((token, place) for token, place in ids.items() if place != but)
    token, last = max(others, key=lambda item: item[1], default=("", -1))
    if last >= rows:
        _apart(folder, f"{len(ids)} tokens, {token!r} has id {last}; {table} has {rows} rows (vocab_size)")


def _as_read(folder: Path, files: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer of `folder` as a run will read it from the files that are written."""
    with tempfile.TemporaryDirectory() as aside:
        for name, content in files.items():
            (Path(aside) / name).write_bytes(content)
        try:
            return Tokenizer.load(aside)
        except DataError as error:
            raise CheckpointError(error.what, where=str(folder), why=error.why, remedy=error.remedy) from error


def _add(backend: Any, folder: Path) -> None:
    """Tokens that were added beside the sentencepiece model, at the ids they had."""
    for token, wanted in sorted(_added(folder).items(), key=lambda item: item[1]):
        if backend.token_to_id(token) is None:
            backend.add_special_tokens([token])
        if backend.token_to_id(token) != wanted:
            _apart(folder, f"added token {token!r} has id {wanted}, after {backend.token_to_id(token)} others")


def _added(folder: Path) -> dict[str, int]:
    pairs: list[tuple[Any, Any]] = []
    if (folder / "tokenizer_config.json").is_file():
        listed = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
        entries = listed.items() if isinstance(listed, dict) else [(listed, None)]
        pairs += [(entry.get("content") if isinstance(entry, dict) else entry, place) for place, entry in entries]
    if (folder / "added_tokens.json").is_file():
        pairs += read_json(folder / "added_tokens.json").items()
    for token, place in pairs:
        if not isinstance(token, str) or not str(place).isdecimal():
            _apart(folder, f"an added token is {token!r} with id {place!r}, expected a text and a whole number")
    return {token: int(place) for token, place in pairs}


def _along(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ALONG if (folder / name).is_file()}


def _apart(where: Path, why: str) -> None:
    raise CheckpointError(
        "tokenizer or picture settings do not belong to the model",
        where=str(where),
        why=why,
        remedy="give the files that the checkpoint was trained with (--tokenizer DIR for another tokenizer)",
    )
