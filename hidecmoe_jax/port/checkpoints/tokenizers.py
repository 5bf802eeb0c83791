"""Tokenizers of a checkpoint, each as one `tokenizer.json` whose ids agree with sentencepiece.

A LLaMA tokenizer is published as sentencepiece's `tokenizer.model`, as `tokenizer.json`, or as both. The former is
authoritative, and libraries have read it differently from version to version. So every reading is compared with
sentencepiece on texts that distinguish readings (`wrong_ids`), and the first that agrees is written: the published
`tokenizer.json`, transformers' AutoTokenizer, a tokenizer built here from sentencepiece's own pieces. CLIP's text tower
has a tokenizer of its own, which goes to `text/`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError, DataError
from hidecmoe_jax.data.jsonfile import read_json
from hidecmoe_jax.data.tokenizer import TEXT_FOLDER, Tokenizer
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.port.checkpoints.pictures import refuse_settings
from hidecmoe_jax.port.checkpoints.sentencepiece import from_sentencepiece, wrong_ids

IMAGE = "<image>"
COPIED = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
"""Files that are copied beside `tokenizer.json`."""


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer to be written.

    Attributes:
      files: name -> content.
      image: id of `<image>`; None without a tokenizer.
      notes: for the report.
      reader: the tokenizer as a run reads it from `files`; None without one.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    image: int | None = None
    notes: tuple[str, ...] = ()
    reader: Tokenizer | None = None


def language_tokenizer(folder: Path, *, vocabulary: int, image: int | None) -> TokenizerFiles:
    """The language model's tokenizer, with `<image>` among its special tokens.

    Args:
      vocabulary: rows of the embedding.
      image: the id of `<image>` in config.json; None if it has none.

    Raises:
      CheckpointError: tokenizer and model do not belong together, or an unsupported kind of tokenizer.
    """
    backend, notes = _read_judged(folder)
    if backend is None:
        return TokenizerFiles(
            notes=("no tokenizer in the checkpoint: load_model works, runs need one (--tokenizer DIR)",)
        )
    image_id = backend.token_to_id(IMAGE)
    if image_id is None:
        # Its row is never looked up (a patch takes its place), so it may be one past the table.
        backend.add_special_tokens([IMAGE])
        image_id = backend.token_to_id(IMAGE)
        notes.append(f"{IMAGE} was added to the tokenizer as id {image_id}")
        tokenizer_side = f"the tokenizer's next is {image_id}"
    else:
        tokenizer_side = f"the tokenizer {image_id}"
    if image is not None and image != image_id:
        refuse_settings(folder, f"config.json gives {IMAGE} id {image} (image_token_index), {tokenizer_side}")
    _require_rows(
        folder, backend, vocabulary, "the embedding", except_id=vocabulary if image_id == vocabulary else None
    )
    size = backend.get_vocab_size(with_added_tokens=True)
    if size < vocabulary:
        notes.append(f"{vocabulary - size} rows of the embedding belong to no token (padding of the table), kept")
    files = {"tokenizer.json": backend.to_str().encode()} | _copied(folder)
    reader = _read_back(folder, files)
    for name, token in (("end", reader.eos), ("unknown", reader.unk)):
        if token == reader.pad:
            notes.append(
                f"padding is the {name} token, id {reader.pad}: a mask tells them apart here, other tools may not"
            )
            break
    return TokenizerFiles(files, image_id, tuple(notes), reader)


def text_tokenizer(folder: Path, config: LlavaConfig, language: Tokenizer | None) -> TokenizerFiles:
    """The tokenizer of CLIP's text tower, for `text/`; without one the text tower reads ids of `language`.

    Raises:
      CheckpointError: it does not belong to the text tower.
    """
    backend = _read_json_file(folder)
    if backend is None and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        from transformers import CLIPTokenizer

        backend = _opened(
            folder, lambda: CLIPTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
        )
    if backend is None:
        return TokenizerFiles(notes=(f"no tokenizer in {folder.name}: {_fallback_note(config, language)}",))
    _require_rows(folder, backend, config.text.vocabulary, "the text tower's embedding")
    files = {"tokenizer.json": backend.to_str().encode()} | _copied(folder)
    end = _read_back(folder, files).eos
    if end != config.text.eos_token:
        refuse_settings(folder, f"its end token is {end}, the text tower's is {config.text.eos_token} (eos_token_id)")
    return TokenizerFiles({f"{TEXT_FOLDER}/{name}": content for name, content in files.items()})


def _fallback_note(config: LlavaConfig, language: Tokenizer | None) -> str:
    """What a text tower without a tokenizer reads, and whether it can."""
    text = config.text
    if language is None or (language.size <= text.vocabulary and language.eos == text.eos_token):
        return "the text tower reads the language model's ids"
    return (
        f"warning: the text tower (end token {text.eos_token}, {text.vocabulary} rows) cannot read the "
        f"language model's ids (end token {language.eos}, {language.size} tokens), so runs refuse this base: give a "
        "--clip folder with CLIP's tokenizer"
    )


def _read_judged(folder: Path) -> tuple[Any, list[str]]:
    """The first reading of a folder's tokenizer that agrees with sentencepiece (None without one), and notes."""
    published = _read_json_file(folder)
    model = folder / "tokenizer.model"
    if not model.is_file():
        return published, []
    # The publisher's own file goes first: if its ids are right, it is written as it is.
    wrong = "" if published is None else wrong_ids(published, model)
    if published is not None and not wrong:
        return published, ["tokenizer.json agrees with sentencepiece"]
    built = from_sentencepiece(model)
    _add_tokens(built, folder)
    backend = _read_auto(folder)
    maker = "read by transformers' AutoTokenizer"
    # AutoTokenizer may add tokens of its own, whose ids would have no row in the embedding.
    if backend is None or wrong_ids(backend, model) or backend.get_vocab() != built.get_vocab():
        backend = built
        maker = "built" if published is None else "built anew"
        wrong_built = wrong_ids(built, model)
        if wrong_built:
            refuse_settings(model, f"rebuilt pieces do not give sentencepiece's ids: {wrong_built}")
    if published is None:
        return backend, [f"tokenizer.json was {maker} from tokenizer.model; ids are sentencepiece's"]
    return backend, [f"tokenizer.json does not give sentencepiece's ids ({wrong}): {maker} from tokenizer.model"]


def _read_auto(folder: Path) -> Any:
    """Backend of transformers' AutoTokenizer for a folder; None if transformers cannot read the folder.

    Nothing is downloaded, and no code of the checkpoint is run.
    """
    with _quiet_transformers():
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # Errors of any class occur; none matters, because a tokenizer can be built from sentencepiece's pieces.
        except Exception:
            return None
    return getattr(tokenizer, "backend_tokenizer", None)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silences transformers, which reports a missing torch when it is imported and every odd setting afterwards."""
    variable = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        from transformers.utils import logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        yield
        logging.set_verbosity(verbosity)
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _read_json_file(folder: Path) -> Any:
    """The backend in a folder's `tokenizer.json`, or None without one."""
    import tokenizers

    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    read_json(file)  # its errors name line and column; those of the library do not
    return _opened(file, lambda: tokenizers.Tokenizer.from_file(str(file)))


def _opened(where: Path, read: Callable[[], Any]) -> Any:
    """Result of `read`, with the errors of the tokenizer library as CheckpointError."""
    try:
        return read()
    # The library raises plain Exception for a file that is no tokenizer.
    except Exception as error:
        raise CheckpointError(
            "a tokenizer cannot be read",
            where=str(where),
            why=str(error)[:200],
            remedy="download it again and compare its SHA-256 with the publisher's",
        ) from error


def _require_rows(folder: Path, backend: Any, rows: int, table: str, *, except_id: int | None = None) -> None:
    """Refuses ids that a table has no row for; `except_id` is the image token's, which is never looked up."""
    ids = backend.get_vocab(with_added_tokens=True)
    looked_up = {token: number for token, number in ids.items() if number != except_id}
    if not looked_up:
        return
    token = max(looked_up, key=looked_up.__getitem__)
    last = looked_up[token]
    if last >= rows:
        refuse_settings(folder, f"{len(ids)} tokens, {token!r} has id {last}; {table} has {rows} rows (vocab_size)")


def _read_back(folder: Path, files: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer of `folder` as a run will read it from `files`."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, content in files.items():
            (Path(temporary) / name).write_bytes(content)
        try:
            return Tokenizer.load(temporary)
        except DataError as error:
            raise CheckpointError(error.what, where=str(folder), why=error.why, remedy=error.remedy) from error


def _add_tokens(backend: Any, folder: Path) -> None:
    """Adds the tokens that the folder lists beside the sentencepiece model; their ids must come out as listed."""
    added = _added_tokens(folder)
    for token in sorted(added, key=added.__getitem__):
        if backend.token_to_id(token) is None:
            backend.add_special_tokens([token])
        number = backend.token_to_id(token)
        if number != added[token]:
            refuse_settings(folder, f"added token {token!r} has id {added[token]}, after {number} others")


def _added_tokens(folder: Path) -> dict[str, int]:
    """Added tokens and their ids, from `tokenizer_config.json` and `added_tokens.json`."""
    pairs: list[tuple[Any, Any]] = []
    if (folder / "tokenizer_config.json").is_file():
        listed = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
        entries = listed.items() if isinstance(listed, dict) else [(listed, None)]
        for number, entry in entries:
            token = entry.get("content") if isinstance(entry, dict) else entry
            pairs.append((token, number))
    if (folder / "added_tokens.json").is_file():
        pairs += read_json(folder / "added_tokens.json").items()
    for token, number in pairs:
        if not isinstance(token, str) or not str(number).isdecimal():
            refuse_settings(
                folder, f"an added token is {token!r} with id {number!r}, expected a text and a whole number"
            )
    return {token: int(number) for token, number in pairs}


def _copied(folder: Path) -> dict[str, bytes]:
    contents = {}
    for name in COPIED:
        file = folder / name
        if file.is_file():
            contents[name] = file.read_bytes()
    return contents
