"""Item-wise scorers against hand-made truth tables, and the refusal to score around missing or foreign ids."""

import sys
import types

import pytest

from hidecmoe_jax.core.errors import ConfigError, DataError
from hidecmoe_jax.scoring import SCORERS, by_id, score
from hidecmoe_jax.scoring.boxes import overlap, parse_box, parse_box_legacy
from hidecmoe_jax.scoring.questions import Question
from hidecmoe_jax.scoring.rules import rule_of, score_lines
from hidecmoe_jax.scoring.score import scorer_of


def judged(name, prediction, *references):
    result = score(name, {"x": prediction}, {"x": references})
    return result.per_item["x"], result.unparsed


@pytest.mark.parametrize(
    "prediction, reference, right, unparsed",
    [
        ("Cat", "cat", 100, 0),
        (" cat\n", "CAT", 100, 0),
        ("cat.", "cat", 0, 0),
        ("a cat", "cat", 0, 0),
        ("stra\u00dfe", "STRASSE", 100, 0),
        ("", "cat", 0, 1),
        ("  ", "cat", 0, 1),
    ],
)
def test_exact_strips_space_and_case_but_keeps_punctuation(prediction, reference, right, unparsed):
    assert judged("exact", prediction, reference) == (right, unparsed)


def test_exact_accepts_any_reference():
    assert judged("exact", "two", "2", "Two") == (100, 0)


@pytest.mark.parametrize(
    "prediction, right, unparsed",
    [
        ("B", 100, 0),
        ("b", 100, 0),
        ("B.", 100, 0),
        ("B. a chair", 100, 0),
        ("(B)", 100, 0),
        ("(b) chair", 100, 0),
        ("A", 0, 0),
        ("A dog", 0, 1),
        ("The answer is B", 0, 1),
        ("B)", 0, 1),
        ("Bed.", 0, 1),
        ("", 0, 1),
        ("B.5", 0, 1),
    ],
)
def test_choice_reads_letters_and_nothing_else(prediction, right, unparsed):
    assert judged("choice", prediction, "B") == (right, unparsed)


@pytest.mark.parametrize(
    "prediction, right, unparsed",
    [
        ("3", 100, 0),
        ("3.0", 100, 0),
        ("3.", 100, 0),
        ("+3", 100, 0),
        ("4", 0, 0),
        ("-3", 0, 0),
        ("three", 0, 1),
        ("3 red", 0, 1),
        ("\u0663", 0, 1),
        ("nan", 0, 1),
        ("1,0", 0, 1),
    ],
)
def test_number_compares_values(prediction, right, unparsed):
    assert judged("number", prediction, "3") == (right, unparsed)


def test_number_reads_thousands():
    assert judged("number", "1,000", "1000") == (100, 0)


def test_fixture_11_empty_answers_are_right_only_in_the_legacy_rule():
    predictions = {"1": "", "2": "", "3": "a"}
    references = {"1": ("tench",), "2": ("shark",), "3": ("cat",)}
    assert score("either_contains", predictions, references).value == 100
    strict = score("exact", predictions, references)
    assert (strict.value, strict.count, strict.unparsed) == (0, 3, 2)


def test_fixture_12_substring_is_right_only_in_the_legacy_rule():
    predictions, references = {"med": "normal tissue", "vp": "(B) chair"}, {"med": ("no",), "vp": ("a",)}
    assert score("contains", predictions, references).value == 100
    assert score("exact", predictions, references).value == 0
    assert judged("choice", "(B) chair", "a") == (0, 0)


def test_legacy_rules_are_no_headlines():
    assert {name for name, scorer in SCORERS.items() if not scorer.headline} == {
        "contains",
        "either_contains",
        "iou_legacy",
    }


def test_cmoe_6_fixture_7_legacy_parse_loses_the_last_digit():
    first, second = "[0.29,0.22,0.79,0.98]", "[0.0,0.05,0.51,0.8]"
    assert parse_box(first) == (0.29, 0.22, 0.79, 0.98)
    assert parse_box(second) == (0.0, 0.05, 0.51, 0.8)
    assert parse_box_legacy(first)[3] == 0.9
    assert parse_box_legacy(second)[3] == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0.1,0.2,0.3,0.4",
        "[0.1,0.2,0.3]",
        "[0.1,0.2,0.3,0.4,0.5]",
        "[a,0,1,1]",
        "[0.1,0.2,0.3,nan]",
        "[0,0,1,1] or [0,0,1,0.5]",
        "[0.1 0.2 0.3 0.4]",
    ],
)
def test_strict_parse_refuses_what_is_not_one_box(text):
    assert parse_box(text) is None


def test_overlap_by_hand():
    # Two 2x2 squares shifted by one: 2 shared of 6; the same box: all of it; touching: nothing.
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert overlap((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert overlap((2, 2, 0, 0), (0, 0, 2, 2)) == 0


def test_iou_needs_more_than_one_half():
    assert judged("iou", "[0,0,1,0.5]", "[0,0,1,1]") == (0, 0)
    assert judged("iou", "[0,0,1,0.51]", "[0,0,1,1]") == (100, 0)
    assert judged("iou", "The box is [0, 0, 1, 0.51].", "[0,0,0.1,0.1]", "[0,0,1,1]") == (100, 0)


def test_unparsable_answers_stay_in_the_denominator_and_get_a_column():
    references = {str(index): ("[0,0,1,1]",) for index in range(4)}
    predictions = {"0": "[0,0,1,1]", "1": "no idea", "2": "[0,0,1", "3": "[0,0,0.1,0.1]"}
    result = score("iou", predictions, references)
    assert (result.value, result.count, result.unparsed) == (25.0, 4, 2)
    assert result.per_item == {"0": 100, "1": 0, "2": 0, "3": 0}
    assert result.parts["mean_iou"] == pytest.approx(100 * (1 + 0.01) / 4)


def test_three_perfect_answers_score_nothing_under_the_legacy_parse():
    boxes = {"0": "[0.10,0.10,0.40,0.19]", "1": "[0.0,0.05,0.51,0.8]", "2": "[0.2,0.2,0.5,0.29]"}
    references = {name: (box,) for name, box in boxes.items()}
    assert score("iou_legacy", boxes, references).value == 0
    assert score("iou", boxes, references).value == 100


def test_fixture_9_misrouted_answers_count():
    # 950 of 1000 routed right and 65 % of them correct, 30 % of the other 50: 617.5 + 15 = 632.5 of 1000.
    right = [index < 1235 for index in range(1900)] + [index < 30 for index in range(100)]
    predictions = {str(index): "yes" if good else "no" for index, good in enumerate(right)}
    assert score("exact", predictions, {name: ("yes",) for name in predictions}).value == pytest.approx(63.25)


def test_fixture_10_missing_predictions_are_refused():
    references = {str(index): ("yes",) for index in range(10)}
    with pytest.raises(DataError, match="missing: 3 ids") as caught:
        score("exact", {str(index): "yes" for index in range(7)}, references)
    assert "'7', '8', '9'" in caught.value.where and "7 predictions against 10" in caught.value.why


def test_duplicate_predictions_are_refused():
    assert by_id([("1", "a"), ("2", "b")], where="digits.jsonl") == {"1": "a", "2": "b"}
    with pytest.raises(DataError, match="share the id '1'"):
        by_id([("1", "a"), ("1", "a")], where="digits.jsonl")


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_foreign_ids_are_refused_by_every_scorer(name):
    with pytest.raises(DataError, match="no reference: 1 ids"):
        SCORERS[name]({"1": "a", "2": "b"}, {"1": ("a",)})


def test_bad_references_are_the_datas_fault():
    with pytest.raises(DataError, match="nothing to score"):
        score("exact", {}, {})
    for references in ((), "cat"):
        with pytest.raises(DataError, match="no list of reference answers"):
            score("exact", {"1": "cat"}, {"1": references})
    with pytest.raises(DataError, match="not a box"):
        score("iou", {"1": "[0,0,1,1]"}, {"1": ("left",)})
    with pytest.raises(DataError, match="cannot read a reference"):
        score("choice", {"1": "A"}, {"1": ("a dog",)})


def test_unknown_scorer_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        score("exakt", {"1": "a"}, {"1": ("a",)})


def test_order_of_predictions_does_not_matter():
    references = {"b": ("x",), "a": ("y",)}
    result = score("exact", {"a": "y", "b": "z"}, references)
    assert list(result.per_item.items()) == [("b", 0.0), ("a", 100.0)]


def own_rules(monkeypatch, **functions):
    module = types.ModuleType("my_rules")
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, "my_rules", module)


def test_a_function_of_one_item_is_a_scorer(monkeypatch):
    def half(prediction, references):
        """Half a mark for the first letter.

        More words.
        """
        if not prediction:
            return None
        return 0.5 if prediction[0] == references[0][0] else 0

    own_rules(monkeypatch, half=half)
    result = score("my_rules:half", {"1": "wren", "2": "", "3": "x"}, {name: ("wing",) for name in "123"})
    assert (result.value, result.unparsed, result.per_item["1"]) == (pytest.approx(50 / 3), 1, 50)
    assert scorer_of("my_rules:half").about == "Half a mark for the first letter."
    assert score_lines(rule_of("my_rules:half"), [("1", "wren")], [Question("1", ("wing",))]).strict.value == 50


@pytest.mark.parametrize("mark", [2, -0.1, "1", float("nan")])
def test_a_function_that_gives_no_mark_is_refused(monkeypatch, mark):
    own_rules(monkeypatch, rule=lambda prediction, references: mark)
    with pytest.raises(DataError, match="'my_rules:rule' gave no mark"):
        score("my_rules:rule", {"1": "a"}, {"1": ("a",)})


def test_other_functions_and_unknown_modules_are_refused(monkeypatch):
    own_rules(monkeypatch, judge=lambda predictions, references: None)
    for name in ("my_rules:judge", "nowhere:rule"):
        with pytest.raises(ConfigError, match="Unknown scorer"):
            scorer_of(name)
