"""Text to token ids and back, with one promise: what a user types never becomes a control token.

`</s>` or `<image>` inside a question is encoded as the characters it is made of; the ids of `bos`, `eos`
and the image token are only ever placed by our own code (`prompts.py`), from the numbers kept here. A
tokenizer is a folder with a `tokenizer.json`, as every Hugging Face model has, and the names of its special
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.jsonfile import read_json

# Key in tokenizer_config.json or special_tokens_map.json, and the names tried without such a file.
_SPECIAL = {
    "bos": ("bos_token", ("<s>", "<|startoftext|>", "<|begin_of_text|>")),
    "eos": ("eos_token", ("</s>", "<|endoftext|>", "<|end_of_text|>")),
    "unk": ("unk_token", ("<unk>",)),
    "pad": ("pad_token", ("<pad>", "<unk>", "</s>", "<|endoftext|>")),
    "image": ("image_token", ("<image>",)),
}
NO_TOKEN = -1
TEXT_FOLDER = "text"


@dataclass(frozen=True)
class Tokenizer:
    """Encodes user text; made by `Tokenizer.load(folder)`.

    Attributes:
      pad, bos, eos, unk, image: ids; `unk` and `image` are -1 where the vocabulary has none (CLIP's text
        tower).
      size: number of ids, added tokens included; every id is in [0, size).
      text: the text tower's own tokenizer, where the folder has one in `text/` (CLIP's); None where both read alike.
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
          DataError: no `tokenizer.json`, or it has no begin, end or padding token.
        """
        import tokenizers

        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            found = sorted(entry.name for entry in Path(folder).iterdir())[:8] if Path(folder).is_dir() else "no folder"
            raise DataError(
                "no tokenizer",
                where=str(path),
                why=f"the file does not exist; found {found}",
                remedy="give a folder with the tokenizer.json of a Hugging Face model",
            )
        read_json(path)  # says where a damaged file is damaged; the library below does not
        backend = tokenizers.Tokenizer.from_file(str(path))
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        ids = _special_ids(backend, Path(folder))
        special = frozenset(token for token, added in backend.get_added_tokens_decoder().items() if added.special)
        special |= frozenset(token for token in ids.values() if token != NO_TOKEN)
        pieces = backend.encode("a", add_special_tokens=False).tokens
        prefixes = bool(pieces) and pieces[0].startswith("\u2581")
        return cls(
            size=backend.get_vocab_size(with_added_tokens=True),
            special=special,
            prefixes_space=prefixes,
            _backend=backend,
            text=cls.load(Path(folder) / TEXT_FOLDER) if (Path(folder) / TEXT_FOLDER).is_dir() else None,
            **ids,
        )

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; no begin or end token is added and no special token can come out.

        Raises:
          DataError: the text has characters that the vocabulary cannot express.
        """
        # A tokenizer that puts a space before every text would double the one that is already there.
        text = text[1:] if self.prefixes_space and text.startswith(" ") else text
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

    def decode(self, ids: list[int] | np.ndarray) -> str:
        """Text of ids; special tokens are left out.

        Raises:
          DataError: an id outside [0, size).
        """
        plain = [int(token) for token in ids if int(token) not in self.special]
        wrong = [token for token in plain if not 0 <= token < self.size]
        if wrong:
            raise DataError(
                "token ids outside the vocabulary",
                why=f"{wrong[:5]} are not in [0, {self.size})",
                remedy="model and tokenizer do not belong together",
            )
        return self._backend.decode(plain, skip_special_tokens=True)


def text_ids(tokenizer: Tokenizer, text: str, context: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Ids for a CLIP text tower: begin + text + end, padded to `context`.

    A longer text keeps its head, as CLIP and HiDe-LLaVA do (77 tokens there); the loss is returned, never
    silent.

    Returns:
      ids int32 [context], mask bool [context], number of text tokens that were cut off.
    """
    body = tokenizer.encode(text)
    kept = body[: context - 2]
    row = [tokenizer.bos, *kept, tokenizer.eos]
    ids = np.full(context, tokenizer.pad, np.int32)
    ids[: len(row)] = row
    return ids, np.arange(context) < len(row), len(body) - len(kept)


def _special_ids(backend: Any, folder: Path) -> dict[str, int]:
    named: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            named |= read_json(folder / name)
    ids = {}
    for role, (key, usual) in _SPECIAL.items():
        given = named.get(key)
        given = given.get("content") if isinstance(given, dict) else given
        candidates = (given, *usual) if isinstance(given, str) else usual
        found = [backend.token_to_id(candidate) for candidate in candidates]
        ids[role] = next((token for token in found if token is not None), NO_TOKEN)
    missing = [role for role in ("bos", "eos", "pad") if ids[role] == NO_TOKEN]
    if missing:
        raise DataError(
            "a tokenizer without special tokens",
            where=str(folder),
            why=f"no {', '.join(missing)} token found",
            remedy=f"name them in tokenizer_config.json: {', '.join(_SPECIAL[role][0] for role in missing)}",
        )
    if ids["unk"] == ids["eos"]:
        ids["unk"] = NO_TOKEN  # CLIP names its end token as unknown token; its byte alphabet needs none
    return ids
