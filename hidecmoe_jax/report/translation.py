"""Words of pages in several languages: one table a language, `words/en.json` and `words/ja.json`, with the same keys.

A text may have places in braces, which `Words.say` fills. Values are never translated and never trusted: templates
escape them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import ConfigError, nearest

LANGUAGES = ("en", "ja")
_FOLDER = Path(__file__).parent / "words"


@dataclass(frozen=True)
class Words:
    """The words of one page in one language."""

    language: str
    texts: Mapping[str, str]

    def __getitem__(self, key: str) -> str:
        return self.texts[key]

    def say(self, key: str, **values: Any) -> str:
        """The text of a key with its places filled."""
        return self.texts[key].format(**values)


def words_of(page: str, language: str) -> Words:
    """Returns the words of a page.

    Raises:
      ConfigError: no such language.
    """
    if language not in LANGUAGES:
        raise ConfigError("no such language", where=f"--language {language}", remedy=nearest(language, LANGUAGES))
    return Words(language, table(language)[page])


@functools.cache
def table(language: str) -> Mapping[str, Mapping[str, str]]:
    """All words of a language, by page and key."""
    return json.loads((_FOLDER / f"{language}.json").read_text(encoding="utf-8"))
