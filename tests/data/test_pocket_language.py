"""Captions and answers against an independent reading of the truth, and apart from the tasks' wordings."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest

from hidecmoe_jax.data.pocket.ask_scene import find_things, plain_language
from hidecmoe_jax.data.pocket.draw import draw
from hidecmoe_jax.data.pocket.language import caption, questions
from hidecmoe_jax.data.pocket.picture import COLOURS, FAMILIES, SHAPES, Picture
from hidecmoe_jax.data.pocket.task_words import TEMPLATES
from hidecmoe_jax.data.pocket.words import NUMBERS, box, place
from hidecmoe_jax.data.tokenizer import Tokenizer, text_ids
from hidecmoe_jax.models.config import TextConfig
from hidecmoe_jax.models.store import pocket_folder

COLOUR, SHAPE = "|".join(COLOURS), "|".join(SHAPES)


def drawn(family: str, count: int, **constraints) -> Iterator[tuple[Picture, np.random.Generator]]:
    """Pictures with the generator that goes on to speak about them."""
    for seed in range(count):
        rng = np.random.default_rng([seed, FAMILIES.index(family)])
        yield draw(family, rng, **constraints), rng


def asked(family: str, count: int) -> Iterator[tuple[Picture, str, str]]:
    """All turns about some pictures."""
    for picture, rng in drawn(family, count):
        for question, answer in questions(picture, rng, most=99):
            yield picture, question, answer


@pytest.fixture(scope="module")
def pocket_tokenizer() -> Tokenizer:
    return Tokenizer.load(pocket_folder())


@pytest.mark.parametrize("family", FAMILIES)
def test_captions_fit_the_text_tower(family, pocket_tokenizer):
    for picture, rng in drawn(family, 40):
        said = caption(picture, rng)
        _, _, cut = text_ids(pocket_tokenizer, said, TextConfig().context)
        assert cut == 0, said


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_survive_the_tokenizer(family, pocket_tokenizer):
    for _, question, answer in asked(family, 4):
        assert pocket_tokenizer.decode(pocket_tokenizer.encode(f" {answer}")).strip() == answer
        assert pocket_tokenizer.decode(pocket_tokenizer.encode(question)) == question


def test_scene_captions_name_only_what_is_there():
    counted = 0
    for picture, rng in drawn("scene", 60):
        said, there = caption(picture, rng), [(t.colour, t.name) for t in picture.things]
        for found in re.findall(rf"({COLOUR}) ({SHAPE})\b", said):
            assert found in there, said
        number = re.match(r"(?:there are )?(\w+) things", said)
        if number:
            counted += 1
            assert number[1] in (NUMBERS[len(there)], str(len(there))), said
        ground = re.search(rf"on an? ({COLOUR}) ground", said)
        assert ground is None or ground[1] == picture.ground
    assert counted > 5


def test_chart_and_word_captions_repeat_the_truth():
    for picture, rng in drawn("chart", 30):
        read = re.findall(r"\b([A-Z]) (\d)\b", caption(picture, rng))
        assert read == [
            (name, str(value)) for name, value in zip(*map(picture.extra.get, ("labels", "values")), strict=True)
        ]
    for picture, rng in drawn("word", 30):
        said = caption(picture, rng)
        assert picture.extra["text"] in said or " ".join(picture.extra["text"]) in said, said


def test_scene_counts_and_existence_are_true():
    seen = set()
    for picture, question, answer in asked("scene", 60):
        things = picture.things
        if found := re.fullmatch(rf"How many things are ({COLOUR})\?", question):
            assert answer == str(sum(t.colour == found[1] for t in things))
        elif found := re.fullmatch(rf"How many ({SHAPE})(?:e?s) are there\?", question):
            assert answer == str(sum(t.name == found[1] for t in things))
        elif question == "How many things are there?":
            assert answer == str(len(things))
        elif found := re.fullmatch(rf"Is there an? ({COLOUR}) ({SHAPE})\?", question):
            assert answer == ("yes" if any((t.colour, t.name) == found.groups() for t in things) else "no")
        elif found := re.fullmatch(r"How many things are there, plus (\d)\?", question):
            assert answer == str(len(things) + int(found[1]))
        else:
            continue
        seen.add(question.split()[0] + ("plus" if "plus" in question else ""))
    assert seen == {"How", "Howplus", "Is"}


def described(words: str, picture: Picture) -> list:
    """Things that a description such as "small red star" fits."""
    wanted = set(words.split())
    return [t for t in picture.things if wanted <= {t.size, t.colour, t.name}]


def test_boxes_points_and_relations_are_of_the_thing_asked_for():
    seen = {"box": 0, "side": 0, "place": 0}
    for picture, question, answer in asked("scene", 60):
        if found := re.fullmatch(r"Give the box of the (.+)\.", question):
            (thing,) = described(found[1], picture)
            values = [float(v) for v in re.fullmatch(r"\[(.+)\]", answer)[1].split(",")]
            np.testing.assert_allclose(values, thing.box, atol=0.0101)
            seen["box"] += 1
        elif found := re.fullmatch(r"Is the (.+) (left|right) of the (.+)\?", question):
            (one,), (two,) = described(found[1], picture), described(found[3], picture)
            is_left = one.box[0] + one.box[2] < two.box[0] + two.box[2]
            assert answer == ("yes" if is_left == (found[2] == "left") else "no")
            seen["side"] += 1
        elif found := re.fullmatch(r"Where is the (.+)\?", question):
            (thing,) = described(found[1], picture)
            x, y = thing.centre
            row = "top" if y < 1 / 3 else "bottom" if y >= 2 / 3 else ""
            column = "left" if x < 1 / 3 else "right" if x >= 2 / 3 else ""
            assert answer == (f"{row} {column}".strip() or "middle")
            seen["place"] += 1
    assert min(seen.values()) > 20


def test_look_ups_find_the_only_thing_of_a_name():
    seen = set()
    for picture, rng in drawn("scene", 40):
        for question, answer in find_things(picture, rng):
            name = re.search(rf"\b({SHAPE})(?:e?s)?\b", question)[1]
            found = [thing for thing in picture.things if thing.name == name]
            seen.add((question.split()[0], answer in ("yes", "no") and answer))
            if question.startswith("Is there"):
                assert answer == ("yes" if found else "no")
                continue
            if question.startswith("How many"):
                assert answer == str(len(found))
                continue
            (thing,) = found
            if question.startswith("Give the box"):
                assert answer == box(thing)
            elif question.startswith("What colour"):
                assert answer == thing.colour
            elif question.startswith("Where"):
                assert answer == place(thing)
            else:
                assert question.endswith("small or large?") and answer == thing.size
    kinds = {(word, False) for word in ("What", "Where", "Give", "How", "Is")}
    assert seen == kinds | {("Is", "yes"), ("Is", "no")}


def test_plain_language_is_true_and_never_in_a_task_s_words():
    told = []
    for seed in range(60):
        for question, answer in plain_language(np.random.default_rng(seed)):
            told.append(question)
            if found := re.fullmatch(r"What is (\d) (plus|minus) (\d)\?", question):
                one, two = int(found[1]), int(found[3])
                assert int(answer) == (one + two if found[2] == "plus" else one - two) >= 0
            elif found := re.fullmatch(r"Which option is (\w+)\? (.+)", question):
                options = dict(re.findall(r"([A-D])\. (\w+)", found[2]))
                assert options[answer] == found[1] and len(set(options.values())) == 4
            elif found := re.fullmatch(r"Write (\d) in words\.", question):
                assert answer == NUMBERS[int(found[1])]
            else:
                assert re.fullmatch(rf"Repeat: {answer}\.|Not ({COLOUR}) but {answer}: what\?", question)
    openings = {re.split(r"\{|\.|\?", wording)[0] for wordings in TEMPLATES.values() for wording in wordings} - {""}
    assert not any(question.startswith(opening) for question in told for opening in openings)


def test_chart_grid_word_and_line_answers_are_true():
    for picture, question, answer in asked("chart", 20):
        value = dict(zip(picture.extra["labels"], picture.extra["values"], strict=True))
        if found := re.fullmatch(r"What is the value of (.)\?", question):
            assert answer == str(value[found[1]])
        elif found := re.fullmatch(r"How much taller is (.) than (.)\?", question):
            assert int(answer) == value[found[1]] - value[found[2]] > 0
        elif question == "Which bar is the tallest?":
            assert value[answer] == max(value.values())
    for picture, question, answer in asked("grid", 20):
        if found := re.fullmatch(r"What colour is row (\d) column (\d)\?", question):
            assert answer == picture.extra["cells"][int(found[1]) - 1][int(found[2]) - 1]
    for picture, question, answer in asked("word", 20):
        text = picture.extra["text"].upper()
        if question in ("Read the text.", "What does it say?"):
            assert answer.removeprefix("it says ").replace(" ", "") == text
        elif found := re.fullmatch(r"What is character (\d)\?", question):
            assert answer == text[int(found[1]) - 1]
    for picture, question, answer in asked("lines", 20):
        if found := re.fullmatch(r"How many lines are (horizontal|vertical|rising|falling)\?", question):
            assert answer == str(sum(t.name == found[1] for t in picture.things))


def test_options_hold_the_answer_behind_its_letter():
    seen = 0
    for family, kind in (("chart", "bar"), ("texture", "pattern")):
        for picture, question, answer in asked(family, 20):
            options = dict(re.findall(r"([A-D])\. (\w+)", question))
            if len(options) == 4:
                bar = re.search(r"bar (.)\?", question)
                right = picture.things[0].name if kind == "pattern" else None
                if bar:
                    right = next(t.colour for t in picture.things if t.kind == "bar" and t.name == bar[1])
                assert options[answer] == right
                seen += 1
    assert seen > 20


def test_the_base_is_never_asked_in_a_task_s_words():
    wordings = [re.sub(r"\\\{\w+\\\}", ".+", re.escape(text)) for texts in TEMPLATES.values() for text in texts]
    task = re.compile("|".join(f"(?:{text})" for text in wordings))
    assert task.fullmatch("How many stars can you count?")
    for family in FAMILIES:
        for _, question, answer in asked(family, 25):
            assert not task.fullmatch(question), question
            assert not re.fullmatch(r"[A-Z](-[A-Z])+", answer), "spelled with dashes, as `reading` wants it"
            assert not re.match(r"\d things: .*\(", answer), "note form, as `captioning` wants it"


def test_turns_are_different_and_repeatable():
    picture = draw("scene", np.random.default_rng(5), count=4)
    one, same = (questions(picture, np.random.default_rng(6), most=6) for _ in range(2))
    assert one == same and len({question for question, _ in one}) == len(one) == 6
