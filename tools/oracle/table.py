"""Measures every comparison of the parity tests and every planted error, and writes the tables of docs/parity.md.

Needs no torch: the reference's answers are stored. Everything between the two marks in the document is replaced.

Example: python tools/oracle/table.py docs/parity.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import oracle_experts
import planted

TESTS = Path(__file__).resolve().parents[2] / "tests" / "port"
sys.path.insert(0, str(TESTS))

import parity_cases as cases  # noqa: E402
import parity_experts as experts  # noqa: E402

from hidecmoe_jax.port.checkpoints import check  # noqa: E402

START = "<!-- measured: begin -->"
END = "<!-- measured: end -->"
MEANING = {
    "vision_features": "vision features of the feature layer", "projected": "projector output",
    "hidden_00": "embeddings with pictures in place", "logits": "logits, right-padded",
    "hidden_normed": "normed last state",
    "logits_left": "logits, left-padded", "logits_long": "logits of a prompt of 200 tokens",
    "clip_image": "CLIP image embedding", "clip_text": "CLIP text embedding",
    "clip_text_state": "CLIP text state before the projection",
    "greedy_left, tokens that differ": "greedy tokens that differ, left-padded",
    "greedy_right, tokens that differ": "greedy tokens that differ, right-padded",
}  # fmt: skip


def measured() -> dict[str, dict[str, check.Row]]:
    """Comparison -> case -> measured row; the divergences of bfloat16 among them."""
    table: dict[str, dict[str, check.Row]] = {}
    for name in cases.CASES:
        print(name, file=sys.stderr)
        model = cases.by_hand(name)
        inputs = cases.inputs(name)
        truth = cases.truth(name)
        rows = check.compared(check.ours(model, inputs), truth)
        half = model.replace(config=replace(model.config, dtype="bfloat16"))
        outputs = check.features_and_states(half, inputs)
        logits = check.as_numpy(outputs["logits"])
        rows += check.compared({"logits": logits}, {"logits": truth["logits"]}, dtype="bfloat16")
        for row in rows:
            table.setdefault(row.what, {})[name] = row
    return table


def meaning(what: str) -> str:
    """A comparison in words."""
    if what.startswith("hidden_") and what not in MEANING:
        layer = int(what.removeprefix("hidden_"))
        return f"hidden state after layer {layer}"
    return MEANING.get(what, f"{what} in bfloat16")


def comparison_lines() -> Iterator[str]:
    """The table of comparisons."""
    names = list(cases.CASES)
    table = measured()
    yield "| comparison | allowed | " + " | ".join(names) + " |"
    yield "|---|---|" + "---|" * len(names)
    for what, by_case in table.items():
        # Every case allows the same.
        allowed = next(iter(by_case.values())).allowed
        cells = []
        for name in names:
            cells.append(f"{by_case[name].measured:.1e}" if name in by_case else "-")
        yield f"| {meaning(what)} | {allowed:g} | " + " | ".join(cells) + " |"


def expert_lines() -> Iterator[str]:
    """The table of the experts' arithmetic."""
    linear = experts.moelora_linear()
    model = experts.moelora_model()
    rows = []
    for reading in oracle_experts.READINGS:
        rows.append((f"HiDe served in the whole model, {reading}", 1e-4, experts.worst(reading)))
    rows.append(("HiDe with the official gate, factor_sum", 1e-4, experts.worst("factor_sum", "_legacy")))
    for temperature in oracle_experts.TEMPERATURES:
        rows.append((f"gate at temperature {temperature}", 2e-6, experts.clean_gate(temperature)))
        rows.append((f"official gate at temperature {temperature}", 2e-6, experts.legacy_gate(temperature)))
    rows.append(("MoELoRA, one linear", 1e-5, linear.pop("output")))
    rows.append(("MoELoRA, one linear, gradients of input, weight, experts, router", 1e-4, max(linear.values())))
    rows.append(("MoELoRA in all linears of every layer, loss", 1e-5, model.pop("loss")))
    rows.append(("MoELoRA in all linears of every layer, gradients", 1e-5, max(model.values())))
    yield "| comparison | allowed | measured |"
    yield "|---|---|---|"
    for what, allowed, size in rows:
        yield f"| {what} | {allowed:g} | {size:.1e} |"


def expert_plant_lines() -> Iterator[str]:
    """The table of mistakes with experts and gates."""
    yield "| planted error | difference it makes |"
    yield "|---|---|"
    sizes = {name: experts.worst("product_sum", **wrong) for name, wrong in experts.wrong_experts().items()}
    sizes |= experts.wrong_gates()
    for name, size in sizes.items():
        yield f"| {name} | {size:.1e} |"


def plant_lines() -> Iterator[str]:
    """The table of planted errors."""
    yield "| planted error | case | noticed by (times what is allowed) |"
    yield "|---|---|---|"
    for plant in planted.PLANTS:
        model = cases.by_hand(plant.case)
        sizes = planted.sizes(plant, model, cases.inputs(plant.case), cases.truth(plant.case))
        print(plant.what, file=sys.stderr)
        noticed = [f"{meaning(name)} {size:.0f}" for name, size in sizes.items() if size > 1]
        yield f"| {plant.what} | {plant.case} | {', '.join(noticed)} |"


def document(text: str) -> str:
    """The document with its measured part replaced."""
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "numpy"))
    parts = [
        f"Measured on a CPU with {libraries}.", "", "### The model", "", *comparison_lines(), "", "### Experts", "",
        *expert_lines(), "", "### Planted errors", "", *plant_lines(), "", *expert_plant_lines(),
    ]  # fmt: skip
    return f"{head}{START}\n\n" + "\n".join(parts) + f"\n\n{END}{tail}"


def main() -> None:
    """Rewrites the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path)
    path = parser.parse_args().document
    path.write_text(document(path.read_text(encoding="utf-8")), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
