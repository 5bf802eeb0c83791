"""Rewording rules on questions written by hand: what changes, what stays, and that the id alone decides the draws."""

import pytest

from hidecmoe_jax.data.records import Record, Turn
from hidecmoe_jax.data.rewording import (
    MEASURED,
    PARTS,
    WORDS,
    common_line,
    ends_with,
    fitted_wordings,
    reworded,
    with_line,
    with_pictures,
    without_text,
)

LINE = "Answer with one word."
ASKED = "Which bird is this? Look closely."


def record(question: str, name: str = "a1", images: tuple[str, ...] = ("one.png",)) -> Record:
    return Record(name, images, (Turn(question, "a wren"),), "test.json#0")


def question(changed: Record) -> str:
    return changed.turns[-1].question


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("cut", ASKED),
        ("other_line", f"{ASKED}\nWrite a caption."),
        ("lower_case", f"{ASKED}\n{LINE}".lower()),
        ("no_punctuation", "Which bird is this Look closely\nAnswer with one word"),
        ("please", f"Please, which bird is this? Look closely.\n{LINE}"),
        ("first_sentence", "Which bird is this?"),
        ("upper_case", f"{ASKED}\n{LINE}".upper()),
    ],
)
@pytest.mark.parametrize("frame", ["<image>\n{}", "{}", "{}\n<image>"])
def test_a_rule_changes_the_words_and_leaves_the_markers(rule, wanted, frame):
    asked = record(frame.format(f"{ASKED}\n{LINE}"))
    changed = reworded(asked, rule, line=LINE, other_line="Write a caption.")
    assert question(changed) == frame.format(wanted)
    assert (changed.id, changed.images, changed.turns[-1].answer) == (asked.id, asked.images, "a wren")


def test_without_a_line_a_third_of_the_words_is_cut_and_another_line_is_a_public_one():
    asked = record("<image>\none two three four five six")
    assert question(reworded(asked, "cut")) == "<image>\none two three four"
    assert question(reworded(asked, "other_line")).startswith(
        "<image>\none two three four five six\nAnswer with the option"
    )


@pytest.mark.parametrize("rule", [*MEASURED, *WORDS, *PARTS])
@pytest.mark.parametrize("words", ["What?", "?", "one two three", "two\nlines"])
def test_no_rule_empties_a_question_and_the_id_decides_the_draws(rule, words):
    asked = record(f"<image>\n{words}")
    changed = reworded(asked, rule)
    assert question(changed).replace("<image>", "").strip() and question(changed).count("<image>") == 1
    assert changed == reworded(record(f"<image>\n{words}"), rule)


def test_fitted_and_measured_wordings_share_no_rule_and_half_the_records_are_reworded():
    assert not set(MEASURED) & {*WORDS, *PARTS}
    records = [record(f"<image>\nWhich of the {number} birds is this one?", f"a{number}") for number in range(400)]
    for wording in ("words", "parts"):
        fitted = fitted_wordings(records, wording)
        changed = sum(new != old for new, old in zip(fitted, records, strict=True))
        assert 150 < changed < 250
        # Neither order nor neighbours decide how a record is reworded.
        assert fitted_wordings(records[::-1], wording) == fitted[::-1]
    assert fitted_wordings(records, "as_given") == tuple(records)


def test_a_line_is_a_tasks_own_where_nine_in_ten_questions_end_with_it():
    with_it = [record(f"<image>\nBird {number}?\n{LINE}") for number in range(9)]
    assert common_line([*with_it, record("<image>\nBird 9?")]) == LINE
    assert common_line([*with_it[:8], record("Bird?"), record("Bird?")]) is None
    # A question of one line, with its marker above it, is no instruction line.
    assert common_line([record("<image>\nWhich bird is this?")] * 10) is None


def test_a_missing_line_is_added_and_one_that_is_there_is_seen_in_any_case():
    bare = record("<image>\nWhich bird is this?  ")
    full = with_line(bare, LINE)
    assert question(full) == f"<image>\nWhich bird is this?\n{LINE}"
    assert ends_with(full, LINE) and ends_with(record(f"Which?\n {LINE.upper()} "), LINE) and not ends_with(bare, LINE)


def test_ablations_keep_one_side_of_a_record():
    asked = record("<image>\nWhich bird?")
    assert question(without_text(asked)) == "<image>\n" and without_text(asked).images == asked.images
    other = with_pictures(asked, ("x.png", "y.png"))
    assert question(other) == "<image>\n<image>\nWhich bird?" and other.images == ("x.png", "y.png")
