"""Tokenizer: text to token ids and back; text that a user types never becomes a control token.

`</s>` or `<image>` inside a question is encoded as its characters. The ids of `bos`, `eos` and the image token are
placed by `prompts` alone, from the numbers stored here. A tokenizer is a folder with a `tokenizer.json`, as every
Hugging Face model has, and the names of its special tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.jsonfile import read_json

# By role: the key in tokenizer_config.json or special_tokens_map.json, and names to try without such a file.
_SPECIAL = {
    "bos": ("bos_token", ("<s>", "<|startoftext|>", "<|begin_of_text|>")),
    "eos": ("eos_token", ("</s>", "<|endoftext|>", "<|end_of_text|>")),
    "unk": ("unk_token", ("<unk>",)),
    "pad": ("pad_token", ("<pad>", "<unk>", "</s>", "<|endoftext|>")),
    "image": ("image_token", ("<image>",)),
}
NO_TOKEN = -1
TEXT_FOLDER = "text"
FILES = ("tokenizer.json", "special_tokens_map.json", "tokenizer_config.json")
REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no character


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of plain text, made by `Tokenizer.load(folder)`.

    Attributes:
      pad, bos, eos, unk, image: ids; `unk` and `image` are -1 where the vocabulary has none (CLIP's text tower).
      size: number of ids, added tokens included; every id is in [0, size).
      special: ids that plain text never becomes.
      prefixes_space: True if the tokenizer puts a space before every text (SentencePiece does).
      text: the text tower's own tokenizer, where the folder has one in `text/` (CLIP's); None if both are the same.
    """

    pad: int
    bos: int
    eos: int
    unk: int
    image: int
    size: int
    special: frozenset[int]
    prefixes_space: bool
    _backend: Any = field(repr=False, compare=False)
    text: Tokenizer | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads `tokenizer.json` and, where present, the names of special tokens beside it.

        Raises:
          DataError: no `tokenizer.json`, it is damaged, or it has no begin, end or padding token.
        """
        import tokenizers

        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            content = sorted(entry.name for entry in folder.iterdir())[:8] if folder.is_dir() else "no folder"
            raise DataError(
                "no tokenizer",
                where=str(path),
                why=f"the file does not exist; found {content}",
                remedy="give a folder with the tokenizer.json of a Hugging Face model",
            )
        read_json(path)  # its error names the damaged line; that of the library below does not
        # The library raises Exception itself.
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise DataError(
                "the tokenizer cannot be read",
                where=str(path),
                why=str(error),
                remedy="copy tokenizer.json again from where the model came from, or convert the model again",
            ) from error
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        ids = _special_ids(backend, folder)
        added = backend.get_added_tokens_decoder()
        special = {token for token, entry in added.items() if entry.special}
        # A token that is named but not marked as special is a control token all the same.
        special |= set(ids.values()) - {NO_TOKEN}
        pieces = backend.encode("a", add_special_tokens=False).tokens
        prefixes = bool(pieces) and pieces[0].startswith("\u2581")
        text_folder = folder / TEXT_FOLDER
        return cls(
            size=backend.get_vocab_size(with_added_tokens=True),
            special=frozenset(special),
            prefixes_space=prefixes,
            _backend=backend,
            text=cls.load(text_folder) if text_folder.is_dir() else None,
            **ids,
        )

    def encode(self, text: str) -> list[int]:
        """Returns the ids of plain text, without begin, end or any other special token.

        Raises:
          DataError: the text has characters that the vocabulary cannot express.
        """
        # A tokenizer that puts a space before every text would double one that the text begins with.
        if self.prefixes_space:
            text = text.removeprefix(" ")
        if not text:
            return []
        encoding = self._backend.encode(text, add_special_tokens=False)
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token == self.unk:
                raise DataError(
                    "text has characters outside the vocabulary",
                    where=repr(text[:60]),
                    why=f"{text[start:end]!r} has no token",
                    remedy="replace these characters",
                )
            if token in self.special:
                raise DataError(
                    "text became a control token",
                    where=repr(text[:60]),
                    why=f"{text[start:end]!r} is token {token} of the vocabulary",
                    remedy="mark this token as special in tokenizer.json",
                )
        return encoding.ids

    def encode_answer(self, answer: str, assistant: str) -> list[int]:
        """Returns the ids of an answer without its end token, as they follow the template's text `assistant`.

        Raises:
          DataError: as `encode`.
        """
        # The blanks at the end of `assistant` belong to the answer's first token.
        blank = assistant[len(assistant.rstrip(" ")) :]
        return self.encode(blank + answer)

    def decode_whole(self, ids: list[int] | np.ndarray) -> str:
        """Returns the text of ids that may end inside a character; such an end is left out.

        A limit of new tokens cuts between bytes where a character is several tokens. Bytes that are no character
        elsewhere in the text stay visible as U+FFFD.

        Raises:
          DataError: as `decode`.
        """
        tokens = list(ids)
        text = self.decode(tokens)
        # UTF-8 spells a character in at most four bytes, so at most three tokens are a beginning without an end.
        for _ in range(3):
            if not text.endswith(REPLACEMENT):
                return text
            tokens = tokens[:-1]
            text = self.decode(tokens)
        return text.rstrip(REPLACEMENT)

    def decode(self, ids: list[int] | np.ndarray) -> str:
        """Returns the text of ids; special tokens are left out.

        Raises:
          DataError: an id outside [0, size).
        """
        plain = [token for token in map(int, ids) if token not in self.special]
        # The backend would drop such an id without an error.
        wrong = [token for token in plain if not 0 <= token < self.size]
        if wrong:
            raise DataError(
                "token ids outside the vocabulary",
                why=f"{wrong[:5]} are not in [0, {self.size})",
                remedy="use the tokenizer that belongs to the model",
            )
        return self._backend.decode(plain, skip_special_tokens=True)


def text_ids(tokenizer: Tokenizer, text: str, context: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the input of a CLIP text tower: begin + text + end, padded to `context`.

    A longer text is cut at the end, as CLIP and HiDe-LLaVA do (77 tokens there).

    Returns:
      ids int32 [context], mask bool [context], number of text tokens that were cut off.
    """
    tokens = tokenizer.encode(text)
    fitting = tokens[: context - 2]
    row = [tokenizer.bos, *fitting, tokenizer.eos]
    ids = np.full(context, tokenizer.pad, np.int32)
    ids[: len(row)] = row
    mask = np.arange(context) < len(row)
    return ids, mask, len(tokens) - len(fitting)


def _special_ids(backend: Any, folder: Path) -> dict[str, int]:
    """Ids of the special tokens by role; NO_TOKEN where the vocabulary has none."""
    named: dict[str, Any] = {}
    for name in FILES[1:]:
        if (folder / name).is_file():
            named |= read_json(folder / name)
    ids = {}
    for role, (key, usual) in _SPECIAL.items():
        ids[role] = _first_id(backend, _text_of(named.get(key)) + usual)
    missing = [role for role in ("bos", "eos", "pad") if ids[role] == NO_TOKEN]
    if missing:
        keys = [_SPECIAL[role][0] for role in missing]
        raise DataError(
            "a tokenizer without special tokens",
            where=str(folder),
            why=f"no {', '.join(missing)} token found",
            remedy=f"name them in tokenizer_config.json: {', '.join(keys)}",
        )
    if ids["unk"] == ids["eos"]:
        ids["unk"] = NO_TOKEN  # CLIP names its end token as unknown token; its byte alphabet needs none
    return ids


def _text_of(entry: Any) -> tuple[str, ...]:
    """The token of a config entry, which is a text or an object with the text as its `content`."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return (entry,) if isinstance(entry, str) else ()


def _first_id(backend: Any, candidates: tuple[str, ...]) -> int:
    for candidate in candidates:
        token = backend.token_to_id(candidate)
        if token is not None:
            return token
    return NO_TOKEN
