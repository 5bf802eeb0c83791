"""Routing in other wordings on a gate that reads a question's words, whose answers to every wording are known."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np

from hidecmoe_jax.data.records import Record, Turn
from hidecmoe_jax.evaluate.engine import Cache
from hidecmoe_jax.evaluate.wording import WordedTask, lowest_cell, measure_wordings
from hidecmoe_jax.report.measurements import RunFacts
from hidecmoe_jax.report.rewordings import lowest_sentence, routing_entries, sides_sentence, wording_rows

LINE = "Use one word."


@dataclass(frozen=True)
class ByWords:
    """An engine whose gate looks for a task's word, then at the picture, and calls what has neither task 0, unknown."""

    cache: Cache = field(default_factory=Cache)

    def features(self, records, label):
        return records

    def inputs(self, records, label):
        return records

    def reworded_inputs(self, records, features, label):
        assert [record.images for record in records] == [record.images for record in features]
        return records

    def decide(self, serving, records):
        nearest = []
        unknown = []
        for record in records:
            words = record.turns[-1].question
            by_text = [task for task, word in enumerate(("Bird", "Fish")) if word in words]
            by_picture = [task for task, name in enumerate(("b", "f")) if record.images[0].startswith(name)]
            nearest.append((by_text or by_picture)[0])
            unknown.append(LINE not in words)
        match = SimpleNamespace(nearest_B=np.array(nearest), is_unknown_B=np.array(unknown))
        return SimpleNamespace(match=match, weight_BN=None)


def task(number: int, name: str, word: str) -> WordedTask:
    records = []
    for place in range(4):
        turn = Turn(f"<image>\n{word} here? And {word}?\n{LINE}", "yes")
        records.append(Record(f"{name}{place}", (f"{name[0]}{place}.png",), (turn,), "test"))
    return WordedTask(number, name, tuple(records), LINE)


def test_every_wording_is_routed_and_ablations_split_text_from_picture():
    found = measure_wordings(ByWords(), None, [task(0, "birds", "Bird"), task(1, "fish", "Fish")])
    assert found["tasks"] == ["birds", "fish"]
    nearest = found["nearest"]
    # Lower case hides the words, and then the pictures decide, which are the tasks' own.
    assert nearest["as_given"] == nearest["cut"] == nearest["lower_case"] == [100.0, 100.0]
    assert nearest["no_text"] == nearest["other_picture"] == [100.0, 100.0]
    # What is called unknown goes to no expert.
    assert found["accuracy"]["as_given"] == [100.0, 100.0] and found["accuracy"]["cut"] == [0.0, 0.0]
    assert found["text_alone"] == found["picture_alone"] == 100.0
    assert found["unknown"]["as_given"] == [0.0, 0.0] and found["unknown"]["cut"] == [100.0, 100.0]
    fooled = measure_wordings(ByWords(), None, [task(0, "birds", "Bird"), replace(task(1, "fish", "Bird"), line=None)])
    assert fooled["accuracy"]["as_given"] == [100.0, 0.0] and fooled["text_alone"] == 50.0
    # Of the cut questions none reaches a threshold; of equal cells the first is named.
    assert fooled["lowest"] == {"wording": "cut", "task": "birds", "value": 0.0}
    assert fooled["nearest"]["lower_case"] == [100.0, 100.0]


def test_one_task_has_no_other_picture_and_the_lowest_cell_is_reworded():
    found = measure_wordings(ByWords(), None, [task(0, "birds", "Bird")])
    assert "other_picture" not in found["accuracy"] and found["text_alone"] is None
    table = {"as_given": [1.0, 2.0], "cut": [90.0, 80.0], "please": [70.0, 80.0], "no_text": [0.0, 0.0]}
    assert lowest_cell(table, ["a", "b"]) == {"wording": "please", "task": "a", "value": 70.0}
    assert lowest_cell({}, [])["value"] is None


def test_a_report_names_the_lowest_cell_and_leaves_out_what_was_not_measured():
    found = measure_wordings(ByWords(), None, [task(0, "birds", "Bird"), task(1, "fish", "Bird")])
    document = routing_entries(RunFacts("hide", ("birds", "fish"), ("exact", "exact"), wording=found))
    assert document["routing_lowest_reworded"] == 0.0
    assert lowest_sentence(document) == "Reworded by rules, the lowest is 0.0 %: birds, without the instruction line."
    assert sides_sentence(document).startswith("With another task's picture 50.0 %")
    name, values, mean, unknown = wording_rows(document)[1]
    assert (name, values, mean, unknown) == ("without the instruction line", [0.0, 0.0], 0.0, 100.0)
    ablated = {name: values for name, values, _, _ in wording_rows(document)}
    assert ablated["no text (nearest task)"] == [100.0, 100.0]
    assert routing_entries(RunFacts("hide", (), ())) == {} and lowest_sentence({}) is None and wording_rows({}) == []
