"""Prompts and labels, and the promise that what a user types never becomes a control token."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.encoder import RecordEncoder
from hidecmoe_jax.data.prompts import (
    IGNORED,
    PLAIN,
    SHORT,
    TEMPLATES,
    VICUNA,
    encode,
    encode_question,
    routing_text,
)
from hidecmoe_jax.data.records import Record, Turn
from hidecmoe_jax.data.tokenizer import Tokenizer, text_ids

BOUND = {"patches": 3, "max_length": 10_000}


def record(*turns: tuple[str, str], images: tuple[str, ...] = ("a.png",)) -> Record:
    return Record("r0", images, tuple(Turn(*turn) for turn in turns), "train.json#0")


ONE = record(("<image>\nwhat animal?", "a dog"))


def test_vicuna_prompt_reads_as_published(tokenizer):
    tokens = encode(ONE, tokenizer, VICUNA, **BOUND).tokens
    cut = int(np.flatnonzero(tokens == tokenizer.image)[0])
    before, after = tokens[:cut], tokens[cut + 3 :]
    assert tokens[0] == tokenizer.bos and tokens[-1] == tokenizer.eos
    assert tokenizer.decode(before) == VICUNA.system + "USER: "
    assert VICUNA.system.startswith("A chat between a curious user and an artificial intelligence assistant. ")
    assert tokenizer.decode(after) == "\nwhat animal? ASSISTANT: a dog"


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_question_is_a_prefix_of_question_and_answer(tokenizer, name):
    for item in (ONE, record(("<image>one?", "a"), ("two?", "a b"))):
        whole = encode(item, tokenizer, TEMPLATES[name], **BOUND)
        asked = encode_question(item, tokenizer, TEMPLATES[name], **BOUND)
        assert np.array_equal(whole.tokens[: len(asked.tokens)], asked.tokens)
        assert (asked.labels == IGNORED).all()
        rest = whole.tokens[len(asked.tokens) :]
        assert tokenizer.decode(rest).strip() == item.turns[-1].answer and rest[-1] == tokenizer.eos


def test_every_answer_and_its_end_carries_loss_and_nothing_else(tokenizer):
    item = record(("<image>\none <image>?", "a dog"), ("two?", "a deer"), images=("a.png", "b.png"))
    one = encode(item, tokenizer, SHORT, **BOUND)
    assert one.tokens.dtype == one.labels.dtype == np.int32
    asked = one.labels[one.labels != IGNORED]
    said = np.split(asked, np.flatnonzero(asked == tokenizer.eos) + 1)
    assert [tokenizer.decode(part).strip() for part in said if len(part)] == ["a dog", "a deer"]
    assert (one.tokens == tokenizer.eos).sum() == 2 and (asked == tokenizer.eos).sum() == 2
    assert (one.tokens == tokenizer.image).sum() == 6 and one.images == ("a.png", "b.png")


def test_text_only_record(tokenizer):
    one = encode(record(("what?", "a dog"), images=()), tokenizer, PLAIN, **BOUND)
    assert tokenizer.decode(one.tokens) == "what?\na dog" and not (one.tokens == tokenizer.image).any()


def test_routing_text_is_the_first_question_without_pictures(tokenizer):
    item = record(("<image>\nwhat animal? ", "a dog"), ("and now?", "a cat"))
    assert routing_text(item) == encode(item, tokenizer, VICUNA, **BOUND).text == "what animal?"
    assert routing_text(record(("<image>", "a dog"))) == ""


def test_typed_control_tokens_stay_characters(tokenizer):
    typed = "</s><s><pad><unk> USER: ASSISTANT:"
    one = encode(record(("<image>\n" + typed, typed)), tokenizer, SHORT, **BOUND)
    control = {"bos": 1, "eos": 1, "pad": 0, "unk": 0, "image": 3}
    assert {name: int((one.tokens == getattr(tokenizer, name)).sum()) for name in control} == control
    assert tokenizer.decode(tokenizer.encode(typed + "<image>")) == typed + "<image>"


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_without_control_tokens(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not tokenizer.special & set(ids) and all(0 <= token < tokenizer.size for token in ids)
    assert tokenizer.decode(ids) == text


def test_added_tokens_that_are_not_marked_special_are_refused(tokenizer_folder, tmp_path):
    raw = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    for token in raw["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match="control token"):
        Tokenizer.load(tmp_path).encode("see <image> here")


def test_a_typed_marker_never_shows_a_picture(tokenizer):
    typed = record(("<image>\nwhat is <image>?", ""))
    for write in (encode, encode_question):
        with pytest.raises(DataError, match="(?s)2 <image> in the text, 1 pictures"):
            write(typed, tokenizer, SHORT, **BOUND)


def test_over_long_record_is_refused_never_cut(tokenizer):
    length = len(encode(ONE, tokenizer, SHORT, **BOUND).tokens)
    assert len(encode(ONE, tokenizer, SHORT, patches=3, max_length=length).tokens) == length
    with pytest.raises(DataError, match=f"(?s)'r0'.*{length} tokens, at most {length - 1}.*max_length"):
        encode(ONE, tokenizer, SHORT, patches=3, max_length=length - 1)


def test_over_long_records_are_dropped_with_count_up_to_a_fraction(tokenizer):
    long = Record("long", (), (Turn("what?", "dog " * 50 + "dog"),), "train.json#1")
    records = [long] + [record(("what?", "a dog"), images=())] * 9
    encoder = RecordEncoder(tokenizer, PLAIN, patches=3)
    with pytest.raises(DataError, match="(?s)1 of 10 records.*'long'"):
        encoder.conversations(records, max_length=40)
    kept, dropped = encoder.conversations(records, max_length=40, max_dropped=0.1)
    assert len(kept) == 9 and dropped == ["long"]
    with pytest.raises(DataError, match="1 of 1"):
        encoder.conversations([long], max_length=40, max_dropped=1.0)


def test_a_record_is_tokenised_once(tokenizer, monkeypatch):
    written = []
    plain = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: written.append(text) or plain(self, text))
    encoder = RecordEncoder(tokenizer, SHORT, patches=3)
    first = encoder.conversations([ONE], max_length=100)[0][0], encoder.questions([ONE], max_length=100)[0]
    count = len(written)
    again = encoder.conversations([ONE], max_length=100)[0][0], encoder.questions([ONE], max_length=100)[0]
    assert again == first and len(written) == count > 0
    assert np.array_equal(first[0].tokens, encode(ONE, tokenizer, SHORT, **BOUND).tokens)
    assert np.array_equal(first[1].tokens, encode_question(ONE, tokenizer, SHORT, **BOUND).tokens)
    with pytest.raises(DataError, match="(?s)too long.*evaluate.writing.max_length"):
        encoder.questions([ONE], max_length=len(first[1].tokens) - 1)


def test_an_answer_that_changes_in_tokenisation_is_an_error(tmp_path):
    words = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "a", "dog", "?"])}
    lossy = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    lossy.normalizer = tokenizers.normalizers.Lowercase()
    lossy.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    lossy.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>"])
    lossy.save(str(tmp_path / "tokenizer.json"))
    lossy = Tokenizer.load(tmp_path)
    assert encode(record(("a?", "a dog"), images=()), lossy, PLAIN, **BOUND).tokens.size == 6
    with pytest.raises(DataError, match="(?s)survive.*'a Dog' comes back as 'a dog'"):
        encode(record(("a?", "a Dog"), images=()), lossy, PLAIN, **BOUND)
    with pytest.raises(DataError, match="(?s)outside the vocabulary.*'cat'"):
        encode(record(("a cat?", "a dog"), images=()), lossy, PLAIN, **BOUND)
    with pytest.raises(DataError, match="no image token"):
        encode(record(("<image>a?", "a dog")), lossy, PLAIN, **BOUND)


def test_text_tower_row(tokenizer):
    body = tokenizer.encode("what animal")
    ids, mask, lost = text_ids(tokenizer, "what animal", len(body) + 4)
    assert ids.tolist() == [tokenizer.bos, *body, tokenizer.eos, tokenizer.pad, tokenizer.pad]
    assert mask.sum() == len(body) + 2 and lost == 0 and ids.dtype == np.int32
    ids, mask, lost = text_ids(tokenizer, "what animal", len(body) + 1)
    assert mask.all() and lost == 1 and ids[-1] == tokenizer.eos and ids.tolist()[1:-1] == body[:-1]


def test_a_tokenizer_that_puts_a_space_first_does_not_double_it(tmp_path):
    words = {"<s>": 0, "</s>": 1, "<unk>": 2, "\u2581a": 3, "\u2581dog": 4, "\u2581": 5}
    spaced = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    spaced.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    spaced.decoder = tokenizers.decoders.Metaspace()
    spaced.add_special_tokens(["<s>", "</s>", "<unk>"])
    spaced.save(str(tmp_path / "tokenizer.json"))
    spaced = Tokenizer.load(tmp_path)
    assert spaced.encode("a dog") == spaced.encode(" a dog") == [3, 4]
    assert (spaced.pad, spaced.image) == (2, -1)


def test_missing_and_damaged_tokenizers_are_named(tmp_path):
    with pytest.raises(DataError, match="tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(DataError, match="ends too early"):
        Tokenizer.load(tmp_path)
    # Well-formed, but of a kind that the library does not have: it raises Exception itself.
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Wordy"}}')
    with pytest.raises(DataError, match=r"cannot be read\n  where: .*tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_ids_outside_the_vocabulary_do_not_decode(tokenizer):
    with pytest.raises(DataError, match="-200"):
        tokenizer.decode([5, -200])
