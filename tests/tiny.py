"""A whole small world for tests: a random base model with its own tokenizer, task folders, configs that learn them.

Laws need no accuracy, so the weights are drawn, not trained; everything is small enough to compile in seconds.
"""

import functools
import json
from pathlib import Path

import jax
import tokenizers
import yaml
from PIL import Image

from hidecmoe_jax.models.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from hidecmoe_jax.models.llava import Model, init_model
from hidecmoe_jax.models.store import save_model
from hidecmoe_jax.runs.config import RunConfig, from_mapping

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
VOCABULARY = 320
TINY = LlavaConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=2, heads=2, hidden=32, projection=8),
    text=TextConfig(VOCABULARY, context=16, width=16, layers=1, heads=2, hidden=32, projection=8),
    decoder=DecoderConfig(VOCABULARY, width=16, hidden=32, layers=3, heads=2, kv_heads=2, head_width=8),
)
TEMPLATE = {"system": "", "user": "USER: ", "assistant": " ASSISTANT: "}
# Experts on every linear take twice as long to compile; test_contract.py has them everywhere.
SITES = ("q_proj", "down_proj")
SMALL_LORA = {"rank": 2, "dropout": 0.1, "sites": list(SITES)}
STREAM = {"birds": "a wren", "fish": "a carp", "trees": "an oak"}


def write_tokenizer(folder: Path) -> Path:
    """A byte-level BPE of about 300 tokens, trained on the spot."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "USER: What is shown in picture? ASSISTANT: a wren a carp an oak"
    bpe.train_from_iterator([words] * 5, trainer)
    bpe.save(str(folder / "tokenizer.json"))
    return folder


@functools.cache
def tiny_model(seed: int) -> Model:
    """A base model of a few thousand random weights; drawn once in a process."""
    return init_model(TINY, jax.random.key(seed))


def write_base(folder: Path, *, seed: int = 0) -> Path:
    """The base model in a folder, with a tokenizer of its own."""
    save_model(tiny_model(seed), folder)
    return write_tokenizer(folder)


def write_task(folder: Path, answer: str, *, shade: int = 0, role: str = "gpt", train: int = 8, test: int = 4) -> Path:
    """A task folder of drawn squares on a ground of its own; another `role` than gpt makes it a wrong one."""
    (folder / "images").mkdir(parents=True)
    items, asked = [], []
    for number in range(train + test):
        picture, question = f"images/{number}.png", f"What is shown in picture {number}?"
        drawn = Image.new("RGB", (16, 16), (number * 10, shade, 0))
        drawn.paste((255 - shade, number * 9, 200), (number % 8, number % 5, number % 8 + 6, number % 5 + 6))
        drawn.save(folder / picture)
        turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": role, "value": answer}]
        if number < train:
            items.append({"id": f"a{number}", "image": picture, "conversations": turns})
        else:
            asked.append({"question_id": f"b{number}", "image": picture, "text": question, "answer": answer})
    (folder / "train.json").write_text(json.dumps(items))
    (folder / "test.json").write_text(json.dumps(asked))
    return folder


def write_stream(root: Path, names: tuple[str, ...] = tuple(STREAM), **sizes: int) -> list[Path]:
    """Folders of the named tasks below `root`."""
    known = list(STREAM)
    return [write_task(root / name, STREAM[name], shade=80 * known.index(name), **sizes) for name in names]


def mapping(base: Path, name: str, *, tasks=(), tune=(), rank: int = 2, dropout: float = 0.1, **method) -> dict:
    """A config as plain values that learns in a few steps; `method` are fields of the method."""
    given = {"stream": {"pocket": None, "tasks": [{"folder": str(task)} for task in tasks]}} if tasks else {}
    # A stacked method has two kinds of experts, and a wrapper those of its inner method: such a test says which.
    has_lora = method.get("kind", "routed") in ("routed", "mixture", "moelora")
    lora = {"lora": {"rank": rank, "dropout": dropout}} if has_lora else {}
    return given | {
        "method": {"kind": "routed", "name": name} | lora | method,
        "base": {"path": str(base)},
        "tune": {"epochs": 1, "batch": 4, "max_length": 64, "rate": 0.01} | dict(tune),
        "evaluate": {"writing": {"batch": 4, "max_new_tokens": 3, "max_length": 64}},
        "template": TEMPLATE,
        "capacity": 4,
    }


def run_config(base: Path, name: str, **options) -> RunConfig:
    """The same, built."""
    return from_mapping(mapping(base, name, **options))


def write_config(path: Path, base: Path, name: str, **method) -> Path:
    """The same, as a YAML file without a stream."""
    path.write_text(yaml.safe_dump(mapping(base, name, **method)))
    return path
