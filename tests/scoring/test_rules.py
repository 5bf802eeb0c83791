"""Both forms of every rule, on the defects of published evaluators (A1 to A15) and on files that do not fit."""

import pytest

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.scoring import vqa
from hidecmoe_jax.scoring.captions import average_of_seven, tokenize
from hidecmoe_jax.scoring.joining import join
from hidecmoe_jax.scoring.questions import Question
from hidecmoe_jax.scoring.rules import RULES, rule_of, score_lines


def asked(*references, **fields):
    """Questions 1, 2, ... with one reference each, or a tuple of references."""
    questions = []
    for place, reference in enumerate(references, start=1):
        texts = reference if isinstance(reference, tuple) else (reference,)
        questions.append(Question(str(place), texts, **fields))
    return questions


def scored(rule, texts, questions):
    lines = [(question.id, text) for question, text in zip(questions, texts, strict=True)]
    return score_lines(RULES[rule], lines, questions)


def both(rule, texts, questions):
    result = scored(rule, texts, questions)
    return result.legacy.value, result.strict.value


# --- The numbered defects.


def test_a1_missing_samples_leave_the_denominator_of_the_script_alone():
    questions = asked(*["yes"] * 10)
    lines = [(str(place), "yes") for place in range(1, 8)]
    result = score_lines(RULES["exact"], lines, questions)
    assert (result.legacy.value, len(result.legacy.per_item)) == (100, 7)
    assert (result.strict.value, len(result.strict.per_item)) == (70, 10)
    assert result.joined.missing == ("8", "9", "10")
    assert result.difference == pytest.approx(30)


def test_a2_the_note_says_that_the_prompt_depends_on_the_answer():
    assert "A2" in RULES["dcl_fin"].note
    assert both("dcl_fin", ["Yes.", " B ", "no way"], asked("yes", "b", "no")) == pytest.approx((200 / 3, 200 / 3))


def test_a4_boxes_lose_a_digit():
    boxes = ["[0.10,0.10,0.40,0.19]", "[0.0,0.05,0.51,0.8]", "[0.2,0.2,0.5,0.29]"]
    assert both("iou", boxes, asked(*boxes)) == (0, 100)
    # A text in two brackets or with a blank loses those instead of a digit.
    assert both("iou", ["[ 0.2,0.2,0.5,0.29 ]"], asked("[0.2,0.2,0.5,0.29]")) == (100, 100)
    assert both("iou_prism", ["Box: 0.2, 0.2, 0.5, 0.29"], asked("[0.2,0.2,0.5,0.29]")) == (100, 0)
    result = scored("iou", ["none", boxes[0]], asked(boxes[0], boxes[0]))
    assert (result.legacy.unparsed, result.strict.unparsed, result.strict.value) == (1, 1, 50)


def test_a5_empty_answers_of_imagenet():
    result = scored("either_contains", ["", "", "a"], asked("tench", "shark", "cat"))
    assert (result.legacy.value, result.strict.value, result.strict.unparsed) == (100, 0, 2)


def test_a5_imagenet_is_matched_by_position():
    questions = asked("tench", "shark")
    swapped = score_lines(RULES["either_contains"], [("2", "shark"), ("1", "tench")], questions)
    assert (swapped.legacy.value, swapped.strict.value, swapped.joined.misordered) == (0, 100, 2)
    longer = score_lines(RULES["either_contains"], [("1", "tench"), ("2", "shark"), ("3", "x")], questions)
    assert longer.legacy is None and "more lines" in longer.reason and longer.strict.value == 100


def test_a6_medical_substrings():
    texts = ["normal tissue", "I do not know, unknown", "No."]
    assert both("dcl_med", texts, asked("no", "no", "no")) == pytest.approx((100, 100 / 3))


def test_a7_letters_of_visual_perception():
    assert both("acl_vp", ["(B) chair", "(A) a sofa"], asked("a", "a")) == (100, 50)
    assert both("acl_vp", ["two chairs", "chairs"], asked("chairs", "chairs")) == (100, 50)


def test_a8_captions_are_matched_by_line_order():
    truths = [("a red bird on a branch",), ("two men ride a horse",), ("a plate of green salad",)]
    questions = asked(*truths)
    lines = [(question.id, question.references[0]) for question in questions]
    right = score_lines(RULES["caption6"], lines, questions)
    shifted = score_lines(RULES["caption6"], lines[1:], questions)
    assert right.legacy.value == pytest.approx(right.strict.value)
    # The first line is gone: every later caption stands beside the wrong picture.
    assert shifted.legacy.value < 0.3 * shifted.strict.value
    assert shifted.joined.missing == ("1",)


def test_a9_samples_are_counted():
    result = scored("ocr_vqa", ["jane doe", "Unanswerable", "fiction"], asked("Jane Doe", "x", "History"))
    assert "Samples: 0" in RULES["ocr_vqa"].note
    assert (len(result.strict.per_item), result.strict.unparsed) == (3, 1)
    assert both("ocr_vqa", ["jane doe", "Unanswerable", "history"], asked("Jane Doe", "x", "History"))[0] == 200 / 3


def test_a12_documents_without_a_threshold():
    assert both("anls", ["wrong", "invoice 13"], asked("gone", "invoice 12")) == pytest.approx(
        (100 * 1.3 / 2, 45), abs=1e-9
    )
    # An unknown id is left out by that script, and stops the others.
    questions = asked("x")
    assert score_lines(RULES["anls"], [("1", "x"), ("9", "y")], questions).legacy.value == 100
    stopped = score_lines(RULES["exact"], [("1", "x"), ("9", "y")], questions)
    assert stopped.legacy is None and "'9'" in stopped.reason and stopped.joined.extra == ("9",)


@pytest.mark.parametrize(
    "text, coin, prism, strict",
    [
        ("A", 100, 100, 100),
        ("A. dog", 100, 100, 100),
        ("A dog", 100, 0, 0),
        ("The answer is A.", 100, 100, 0),
        ("It is (a)", 100, 0, 0),
        ("(A)", 100, 0, 100),
        ("dogs", 0, 0, 0),
    ],
)
def test_a13_letters_of_science(text, coin, prism, strict):
    assert both("choice", [text], asked("A")) == (coin, strict)
    assert both("choice_prism", [text], asked("A")) == (prism, strict)


def test_a13_a_missing_problem_counts_as_wrong_in_the_script_too():
    result = score_lines(RULES["choice"], [("1", "A")], asked("A", "B"))
    assert (result.legacy.value, result.strict.value, result.joined.missing) == (50, 50, ("2",))


# --- Rules without a numbered defect.


def test_text_vqa_is_the_leave_one_out_mean():
    answers = ("yes",) * 2 + ("no",) * 8
    # Two of ten: leaving a `yes` out leaves one that agrees, leaving a `no` out leaves two.
    assert both("vqa", ["Yes."], asked(answers)) == pytest.approx((100 * (2 * 1 / 3 + 8 * 2 / 3) / 10,) * 2)
    assert both("vqa", ["no"], asked(answers)) == pytest.approx((100, 100))
    assert vqa.vqa_accuracy("the cat", ("cat",)) == 1.0


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The two dogs!", "2 dogs"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("dog's bone", "dog 's bone"),
        ("3.5 kg.", "3.5 kg"),
        ("x-ray", "x ray"),
        ("a - b", "b"),
        ("1,000", "1000"),
        ("none", "0"),
        ("... ", ""),
    ],
)
def test_the_official_normalisation(text, expected):
    assert vqa.normalized(text) == expected


@pytest.mark.parametrize(
    "text, reference, mark",
    [
        ("105", "100", 1),
        ("105.1", "100", 0),
        ("10.5%", "10%", 1),
        ("10", "10%", 0),
        ("1,050", "1000", 1),
        ("0", "0.0", 1),
        ("blue", "Blue", 1),
        ("-5", "5", 0),
        ("", "5", None),
    ],
)
def test_relaxed_accuracy(text, reference, mark):
    assert vqa.relaxed(text, (reference,)) == mark


def test_anls_by_hand():
    # One replacement in nine letters; three edits in six are half and so nothing.
    assert vqa.anls("Kittening", ("mittening", "x")) == pytest.approx(1 - 1 / 9)
    assert vqa.distance("kitten", "sitting") == 3
    assert vqa.anls("abcdef", ("abcxyz",)) == 0
    assert vqa.similarity_of("abcdef", ("abcxyz",)) == pytest.approx(0.5)
    assert vqa.anls(" ", ("x",)) is None


def test_remote_sensing_looks_for_a_word():
    texts = ["yes, it is", "there are nobody", "eyes", "a red car ahead"]
    assert both("dcl_rs", texts, asked("yes", "no", "yes", "red car")) == (100, 0)
    # A word of several letters has no blank at its side here.
    assert both("dcl_rs", ["unknown thing"], asked("no")) == (0, 0)


def test_science_compares_by_the_source_of_the_picture():
    assert both("dcl_sci", ["a leaf"], asked("leaf", image="Sci/AI2D_12.png")) == (0, 0)
    assert both("dcl_sci", ["a leaf"], asked("leaf", image="Sci/Map_12.png")) == (100, 0)
    states = asked("texas,ohio", text="Which states have it?", image="Sci/Map_1.png")
    # A blank after the comma hides a state from the script; a list of everything does not pay in the strict form.
    assert both("dcl_sci", ["texas, ohio"], states) == (50, 100)
    assert both("dcl_sci", ["texas,ohio,utah,maine"], states) == (100, 50)


def test_ocr_bench_divides_by_a_thousand_whatever_the_number_of_items():
    questions = asked("hello world", "x^2", category="Doc-oriented VQA")
    result = scored("acl_ocr", ["Hello World!", "nothing"], questions)
    assert (result.legacy.value, result.strict.value) == (0.1, 50)
    formula = asked("x ^ 2", category="Handwritten Mathematical Expression Recognition")
    assert both("acl_ocr", ["x^2 + 1"], formula) == (0.1, 100)


def test_math_reads_one_number_or_one_letter():
    texts = ["14", "The number is 14.", "14 or 15", "(B) 3/11", "1.50"]
    questions = asked("14", "14", "14", "B", "1.5")
    result = scored("acl_math", texts, questions)
    assert result.strict.per_item == (100, 100, 0, 100, 100)
    assert result.strict.unparsed == 1
    # The script reads by itself what is a number alone or has one letter among its words.
    assert result.legacy.per_item == (100, 0, 0, 100, 100)


def test_gqa_drops_final_periods():
    assert both("gqa", ["Red.", "red car"], asked("red", "red")) == (50, 50)


# --- Files that do not fit.


def test_everything_that_does_not_fit_is_counted():
    questions = asked("a", "b", "c", "d")
    lines = [("2", "b"), ("1", "a"), ("3", "c"), ("3", "x"), ("9", "e"), ("1", "a")]
    joined = join(lines, questions)
    assert joined.texts == ("a", "b", None, None)
    assert joined.counts() == {"missing": 1, "extra": 1, "duplicated": 2, "conflicting": 1, "misordered": 5}


def test_a_repeated_line_counts_twice_in_the_script_alone():
    lines = [("1", "x"), ("1", "x"), ("2", "no")]
    result = score_lines(RULES["exact"], lines, asked("x", "y"))
    assert (result.legacy.value, result.strict.value) == (pytest.approx(200 / 3), 50)


def test_a_file_without_lines_has_no_legacy_score():
    result = score_lines(RULES["exact"], [], asked("x"))
    assert result.legacy is None and result.strict.value == 0


def test_fixture_2_mean_of_seven_caption_scores():
    names = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")
    parts = dict(zip(names, (75.23, 59.44, 45.45, 34.25, 57.19, 92.08), strict=True))
    assert average_of_seven(parts, meteor=27.87) == pytest.approx(55.93, abs=0.005)


@pytest.mark.parametrize(
    "text, words",
    [
        ("\u4e00\u53ea\u732b", ["\u4e00", "\u53ea", "\u732b"]),
        ("\u732b\u304c3.5 kg", ["\u732b", "\u304c", "3.5", "kg"]),
        ("T\u30b7\u30e3\u30c4", ["t", "\u30b7", "\u30e3", "\u30c4"]),
        ("\uace0\uc591\uc774\uac00 \uc549\uc544", ["\uace0\uc591\uc774\uac00", "\uc549\uc544"]),
    ],
)
def test_chinese_and_japanese_are_split_by_character(text, words):
    assert tokenize(text) == words


def test_unknown_rules_are_refused_and_scorers_have_a_strict_form():
    with pytest.raises(ConfigError, match="Unknown scorer 'exakt'"):
        rule_of("exakt")
    assert rule_of("iou_legacy") is RULES["iou"]
