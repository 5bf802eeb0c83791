"""Words of pages: every language has every text, with the same places in it."""

import string

import pytest

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.report.translation import LANGUAGES, table, words_of


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_have_the_same_keys_and_places():
    english = table("en")
    for language in LANGUAGES:
        assert set(table(language)) == set(english)
        for page, texts in table(language).items():
            assert list(texts) == list(english[page]), page
            for key, text in texts.items():
                assert text.strip() and places(text) == places(english[page][key]), (language, page, key)


def test_japanese_texts_are_japanese():
    for page, texts in table("ja").items():
        for key, text in texts.items():
            without_places = "".join(literal for literal, *_ in string.Formatter().parse(text))
            plain = "".join(filter(str.isalpha, without_places))
            assert not plain or any("぀" <= letter <= "鿿" for letter in plain), (page, key)


def test_an_unknown_language_is_refused():
    with pytest.raises(ConfigError, match="known: en, ja"):
        words_of("kpi", "de")
