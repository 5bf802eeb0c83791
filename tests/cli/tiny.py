"""A whole small world for the command line: a random base model, task folders, configs that learn them."""

import json
import shutil
from pathlib import Path

import jax
import yaml
from PIL import Image

from hidecmoe_jax.models.config import DecoderConfig, LlavaConfig, TextConfig, VisionConfig
from hidecmoe_jax.models.llava import init_model
from hidecmoe_jax.models.store import pocket_folder, save_model

TINY = LlavaConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=2, heads=2, hidden=32, projection=8),
    text=TextConfig(width=16, layers=1, heads=2, hidden=32, projection=8),
    decoder=DecoderConfig(width=16, hidden=32, layers=2, heads=2, kv_heads=2, head_width=8),
)


def write_task(folder: Path, answer: str, *, shade: int = 0, role: str = "gpt") -> Path:
    """A task folder of eight training and four test items; another `role` than gpt makes it a wrong one."""
    (folder / "images").mkdir(parents=True)
    train, test = [], []
    for number in range(12):
        picture = f"images/{number}.png"
        Image.new("RGB", (16, 16), (number * 20, shade, 0)).save(folder / picture)
        question = f"What is shown in picture {number}?"
        turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": role, "value": answer}]
        if number < 8:
            train.append({"id": f"a{number}", "image": picture, "conversations": turns})
        else:
            test.append({"question_id": f"b{number}", "image": picture, "text": question, "answer": answer})
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "test.json").write_text(json.dumps(test))
    return folder


def write_base(folder: Path) -> Path:
    """A base model of a few thousand random weights that speaks with the pocket model's tokenizer."""
    save_model(init_model(TINY, jax.random.key(0)), folder)
    for file in pocket_folder().glob("tokenizer*.json"):
        shutil.copy(file, folder / file.name)
    return folder


def write_config(path: Path, base: Path, name: str, **method) -> Path:
    """A config that learns in a few steps; `method` are fields of the method."""
    tune = {"epochs": 1, "batch": 4, "max_length": 64, "rate": 0.01}
    writing = {"batch": 4, "max_new_tokens": 3, "max_length": 64}
    template = {"system": "", "user": "USER: ", "assistant": " ASSISTANT:"}
    config = {
        "method": {"kind": "routed", "name": name, "lora": {"rank": 2}} | method,
        "base": {"path": str(base)},
        "tune": tune,
        "evaluate": {"writing": writing},
        "template": template,
    }
    path.write_text(yaml.safe_dump(config))
    return path
