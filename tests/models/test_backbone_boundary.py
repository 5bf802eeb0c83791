"""Where the parts of a concrete backbone may be named: in `models/`, and in `port/`, which maps its weights.

Elsewhere code reads a base model's shape by properties of its config and its weights by functions of `models/`, so
that another backbone is new files there and no edit elsewhere.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "hidecmoe_jax"
ALLOWED = ("models", "port/checkpoints", "port/exports")
PARTS = {"vision", "text", "projector", "decoder"}


def spelled_parts(source: str) -> list[str]:
    """Expressions that name a part of the backbone: `config.decoder`, `params["projector"]` and the like."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in PARTS:
            holder = ast.unparse(node.value)
            named = holder.split(".")[-1] == "config"
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            holder = ast.unparse(node.value)
            named = holder.split(".")[-1] == "params" and node.slice.value in PARTS
        else:
            continue
        if named:
            faults.append(f"line {node.lineno}: {ast.unparse(node)}")
    return faults


def test_the_backbone_is_spelled_in_models_and_port_alone():
    faults = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if not place.startswith(ALLOWED):
            faults += [f"{place} {fault}" for fault in spelled_parts(path.read_text())]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "planted",
    ["model.config.decoder.width", "config.vision.patches", 'model.params["projector"]', 'params["decoder"]["layers"]'],
)
def test_planted_spellings_are_found(planted):
    assert spelled_parts(planted)


@pytest.mark.parametrize("allowed", ["model.config.width", "tokenizer.text", 'sizes["projector"]', "backend.decoder"])
def test_other_words_pass(allowed):
    assert not spelled_parts(allowed)
