"""A tiny byte-level tokenizer and small task folders, made on the fly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from PIL import Image

from hidecmoe_jax.data.tokenizer import Tokenizer

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of about 300 tokens with the five special tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["what animal is in the picture? a dog, a deer, a cat"] * 5, trainer)
    bpe.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., Path]:
    """`make_task(name, train=20, test=5, seed=0)` writes a task folder of random pictures and returns it."""

    def make(name: str, *, train: int = 20, test: int = 5, seed: int = 0) -> Path:
        folder, rng = tmp_path / name, np.random.default_rng(seed)
        (folder / "images").mkdir(parents=True)
        for split, count in (("train", train), ("test", test)):
            items = []
            for number in range(count):
                image = f"images/{split}_{number}.png"
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / image)
                said = [
                    {"from": "human", "value": "<image>\nWhat is it?"},
                    {"from": "gpt", "value": "a dog"},
                ]
                trained = {"id": f"{name}-{number}", "image": image, "conversations": said}
                asked = {
                    "question_id": f"{name}-{number}",
                    "image": image,
                    "text": "What is it?",
                    "answer": "a dog",
                }
                items.append(trained if split == "train" else asked)
            if count:
                (folder / f"{split}.json").write_text(json.dumps(items), encoding="utf-8")
        return folder

    return make
