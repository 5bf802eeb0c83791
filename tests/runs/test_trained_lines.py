"""The instruction line of training: found, stored with its task, added where a question lacks it, not with as_is."""

import json
from dataclasses import replace

import pytest
from runs_world import make_world

from hidecmoe_jax.cli.ask import _lines
from hidecmoe_jax.cli.main import main
from hidecmoe_jax.data.records import Record, Turn
from hidecmoe_jax.runs.assistant import load
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.questions import Question
from hidecmoe_jax.runs.replies import reply_of
from hidecmoe_jax.runs.stream_loop import learn
from hidecmoe_jax.runs.trained_lines import TrainedLines

LINE = "One word."
OTHER = "A short text."


def asked(*questions: str) -> tuple[Record, ...]:
    return tuple(Record(str(place), (), (Turn(text, ""),), "") for place, text in enumerate(questions))


def texts(records) -> list[str]:
    return [record.turns[-1].question for record in records]


def test_a_common_line_is_added_before_routing_and_a_tasks_own_after_it():
    common = TrainedLines({"birds": LINE, "fish": LINE})
    records, added = common.before_routing(asked("Which bird?", f"Which fish?\n{LINE.lower()}"))
    assert texts(records) == [f"Which bird?\n{LINE}", f"Which fish?\n{LINE.lower()}"] and added == (LINE, None)
    # Nothing is left to add.
    assert common.after_routing(records, ["fish", "birds"]) == (records, (None, None))
    several = TrainedLines({"birds": LINE, "fish": OTHER, "trees": None})
    plain = asked("Which bird?", f"Which?\n{OTHER}", "Oak?", "What?")
    assert several.before_routing(plain) == (plain, (None,) * 4)
    records, added = several.after_routing(plain, ["birds", "birds", "trees", None])
    assert texts(records) == [f"Which bird?\n{LINE}", f"Which?\n{OTHER}", "Oak?", "What?"] and added[0] == LINE
    assert several.before_routing(plain[:1], named="fish")[1] == (OTHER,)
    assert TrainedLines().before_routing(plain) == (plain, (None,) * 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose first task ends its questions with a line."""
    root = tmp_path_factory.mktemp("lines")
    config = make_world(root)
    items = json.loads((root / "birds" / "train.json").read_text())
    for item in items:
        # No longer than those of other tests, whose programs fit.
        item["conversations"][0]["value"] = f"<image>\nWhich?\n{LINE}"
    (root / "birds" / "train.json").write_text(json.dumps(items))
    return learn(replace(config, evaluate=replace(config.evaluate, zero_shot=False, between="none")), root / "run")


def test_a_run_stores_the_line_and_ask_adds_and_shows_it(run, capsys):
    ledger = Ledger(run / "seed_0")
    assert ledger.meta(0)["lines"] == {"birds": LINE} and "lines" not in ledger.meta(1)
    assistant = load(run)
    assert assistant.lines.by_task == {"birds": LINE, "fish": None} and assistant.lines.common is None
    question = "What is shown in picture 9?"
    added = assistant.generate(None, question, named="birds")
    written = assistant.generate(None, f"{question}\n{LINE}", named="birds")
    assert (added.line_added, written.line_added, added.text) == (LINE, None, written.text)
    assert assistant.generate(None, question, named="birds", as_is=True).line_added is None
    assert assistant.generate(None, question, named="fish").line_added is None
    picture = str(run.parent / "birds" / "images" / "9.png")
    for flags, wanted in (((), assistant.answer(picture, question).answer.line_added), (("--as-is",), None)):
        assert main(["ask", str(run), question, "--image", picture, "--json", *flags]) == 0
        assert json.loads(capsys.readouterr().out)["line_added"] == wanted


def test_rt13_a_question_that_the_gate_cannot_read_whole_says_so(run):
    assistant = load(run)
    picture = str(run.parent / "birds" / "images" / "9.png")
    for question, wanted in (("w", False), ("w " * 52, True)):
        answer = assistant.generate(picture, question, as_is=True, max_length=192)
        assert answer.routing_text_cut is wanted
        reply = reply_of(answer, {}, named=None, fallback="answered by nobody")
        assert reply.to_json()["routing_text_cut"] is wanted
        assert ("only the beginning of the question" in _lines(Question(question), reply)) == wanted
    # A named task is asked whatever the gate reads.
    assert not assistant.generate(picture, "w " * 52, named="fish", as_is=True, max_length=192).routing_text_cut
