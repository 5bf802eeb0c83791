"""Prompts: the place of pictures is LLaVA's, in training as in tests; something reads every setting of a config."""

from __future__ import annotations

import ast
import dataclasses
import typing
from pathlib import Path

import pytest
from PIL import Image

import hidecmoe_jax
from hidecmoe_jax.data.items import Record, Turn
from hidecmoe_jax.data.prompts import PLAIN, VICUNA, Template, encode, encode_question
from hidecmoe_jax.data.records import read_test
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.methods.kinds import METHODS
from hidecmoe_jax.models.store import pocket_folder
from hidecmoe_jax.runs.config import RunConfig
from hidecmoe_jax.storage.files import write_json

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)
PLACES = {
    "<image>\nWhat colour?": "<IMG>\nWhat colour?",
    "What colour?\n<image>": "<IMG>\nWhat colour?",
    "<image>What colour?": "<IMG>\nWhat colour?",
    "<image> What colour?": "<IMG>\nWhat colour?",
    "What <image> colour?": "<IMG>\nWhat  colour?",
    "<image>\nWhat colour?\n": "<IMG>\nWhat colour?",
    "<image>\n\nWhat colour?": "<IMG>\nWhat colour?",
    "<image>": "<IMG>",
    " What colour? ": " What colour? ",
}
"""Question as written, and as LLaVA's published preprocessing passes it on: the marker is cut out, blanks around the
rest are stripped, marker and newline are put in front, and blanks around the whole are stripped; text without a marker
is not touched."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(pocket_folder())


def golden(pieces: list[str], tokenizer: Tokenizer) -> list[int]:
    """Ids of pieces: `<IMG>` and `</s>` become their tokens, the text between them is tokenised as it stands."""
    ids = [tokenizer.bos]
    for piece in pieces:
        if piece == "</s>":
            ids.append(tokenizer.eos)
            continue
        before, *after = piece.split("<IMG>")
        ids += tokenizer.encode(before)
        for text in after:
            ids.append(tokenizer.image)
            ids += tokenizer.encode(text)
    return ids


def record(*questions: str) -> Record:
    pictures = sum(question.count("<image>") for question in questions)
    turns = tuple(Turn(question, "red") for question in questions)
    return Record("a", ("p.png",) * pictures, turns, "train.json#0")


def encoded(item: Record, tokenizer: Tokenizer, template: Template) -> list[int]:
    return encode(item, tokenizer, template, patches=1, max_length=999).tokens.tolist()


@pytest.mark.parametrize("question", PLACES)
def test_fault_a9_a_vicuna_prompt_has_the_ids_of_llavas_preprocessing(tokenizer, question):
    # v1: the system text, then "USER: question ASSISTANT: answer</s>" for every turn.
    truth = golden([f"{SYSTEM}USER: {PLACES[question]} ASSISTANT:", " red", "</s>"], tokenizer)
    assert encoded(record(question), tokenizer, VICUNA) == truth


@pytest.mark.parametrize("question", PLACES)
def test_fault_a9_a_plain_prompt_has_the_ids_of_llavas_preprocessing(tokenizer, question):
    # Plain: question and answer alone, a newline between them.
    truth = golden([f"{PLACES[question]}\n", "red", "</s>"], tokenizer)
    assert encoded(record(question), tokenizer, PLAIN) == truth


def test_fault_a9_several_turns_are_placed_turn_by_turn(tokenizer):
    several = record("What colour?\n<image>", "Sure?", "And this? <image>")
    turns = ["<IMG>\nWhat colour?", "Sure?", "<IMG>\nAnd this?"]
    pieces = []
    for number, turn in enumerate(turns):
        before = SYSTEM if number == 0 else ""
        pieces += [f"{before}USER: {turn} ASSISTANT:", " red", "</s>"]
    assert encoded(several, tokenizer, VICUNA) == golden(pieces, tokenizer)
    prompt = encode_question(several, tokenizer, VICUNA, patches=1, max_length=999).tokens.tolist()
    assert prompt == golden(pieces[:-2], tokenizer)


@pytest.mark.parametrize("template", [VICUNA, PLAIN])
@pytest.mark.parametrize("pictures", [1, 2])
def test_fault_a9_training_and_test_prompts_of_an_item_are_equal(tokenizer, template, pictures, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    question = "What colour?"
    item = {"id": 1, "image": ["p.png"] * pictures, "text": question, "answer": "red"}
    write_json(tmp_path / "test.json", [item])
    (test,) = read_test(tmp_path / "test.json", tmp_path)
    wanted = encode_question(test, tokenizer, template, patches=1, max_length=999).tokens.tolist()
    for text in (f"{question}\n" + "<image>" * pictures, "<image> " * pictures + question):
        trained = encoded(record(text), tokenizer, template)
        assert trained[: len(wanted)] == wanted


def test_fault_a9_markers_that_words_stand_between_keep_their_places(tokenizer):
    question = "Before: <image> after: <image>"
    truth = golden(["USER: Before: <IMG> after: <IMG> ASSISTANT:", " red", "</s>"], tokenizer)
    assert encoded(record(question), tokenizer, Template()) == truth


@pytest.mark.parametrize("part", ["system", "user", "assistant", "separator"])
@pytest.mark.parametrize("text", ["USER: <image>\n", "<Image>", "a <|image|> b"])
def test_fault_a9_a_template_holds_no_picture_of_its_own(part, text):
    # transformers' templates have the marker beside the user's name; here it would be one more picture of every record.
    with pytest.raises(ValueError, match=f"{part} .* holds a marker of a picture"):
        Template(**{part: text})


def test_fault_a9_as_is_moves_nothing(tokenizer):
    truth = golden(["USER: What colour?\n<IMG> ASSISTANT:", " red", "</s>"], tokenizer)
    as_is = Template(image_place="as_is")
    assert encoded(record("What colour?\n<image>"), tokenizer, as_is) == truth


# A8


def config_classes() -> set[type]:
    """Every dataclass that a config may hold: from RunConfig and the shipped methods down, through their fields."""
    waiting = [RunConfig, *METHODS.values()]
    classes: set[type] = set()
    while waiting:
        kind = waiting.pop()
        if dataclasses.is_dataclass(kind) and kind not in classes:
            classes.add(kind)
            waiting += typing.get_type_hints(kind).values()
        waiting += typing.get_args(kind)
    return classes


def names_read() -> dict[str, set[str]]:
    """Attribute names that the package reads, with the scopes (`Class.function` or a file) that read them."""
    readers: dict[str, set[str]] = {}
    package = Path(hidecmoe_jax.__file__).parent
    for file in package.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        scope_of: dict[ast.AST, str] = {}
        for node in ast.walk(tree):
            for child in ast.iter_child_nodes(node):
                scope = scope_of.get(node, file.name)
                if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                    scope = "validation"
                scope_of[child] = scope
        for node in ast.walk(tree):
            is_read = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
            if is_read:
                readers.setdefault(node.attr, set()).add(scope_of[node])
            # A name that is read through getattr stands as text in a loop's list.
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                readers.setdefault(node.value, set()).add(scope_of[node])
    return readers


def test_fault_a8_something_reads_every_field_of_a_config():
    readers = names_read()
    unread = []
    for kind in config_classes():
        for field in dataclasses.fields(kind):
            # `limit_train` and its kin are read by a name that is put together.
            if field.name.startswith("limit_"):
                continue
            if not readers.get(field.name, set()) - {"validation"}:
                unread.append(f"{kind.__name__}.{field.name}")
    assert not unread
    assert len(config_classes()) > 12
