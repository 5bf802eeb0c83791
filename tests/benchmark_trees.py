"""Miniatures of the four public benchmarks, made here, in the trees and formats that they are published in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

ONE_WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
BOX = "Please provide the bounding box coordinate of the region this sentence describes: "


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


class Split:
    """Items of one task: pictures below `base` at `folder`, numbered on from file to file."""

    def __init__(self, base: Path, folder: str, seed: int):
        self.base = base
        self.folder = folder
        self.seed = 1000 * seed

    def image(self) -> str:
        self.seed += 1
        name = f"{self.folder}/{self.seed:06d}.jpg"
        picture(self.base / name, self.seed)
        return name

    def train(self, count: int, question: str, answers: list[str]) -> list[dict]:
        items = []
        for number in range(count):
            asked = {"from": "human", "value": f"<image>\n{question}"}
            said = [asked, {"from": "gpt", "value": answers[number % len(answers)]}]
            items.append({"id": f"{self.folder}-{number}", "image": self.image(), "conversations": said})
        return items

    def test(self, count: int, question: str, answers: list[str], **more: object) -> list[dict]:
        items = []
        for number in range(count):
            item = {"question_id": f"q{number}", "image": self.image(), "text": question, **more}
            items.append({**item, "answer": answers[number % len(answers)]} if answers else item)
        return items


def write_ucit(root: Path, train: int = 8, test: int = 3) -> Path:
    """`instructions/<Task>/` and `datasets/`; captions in COCO form, one picture of VizWiz without one."""
    tasks = {
        "ImageNet-R": ("train.json", "ImageNet-R", "train", "test", ["wren", "robin"]),
        "ArxivQA": ("train_4w.json", "ArxivQA", "images", "images", ["A", "B"]),
        "VizWiz-caption": ("train.json", "VizWiz", "train", "val", ["a cup on a desk"]),
        "IconQA": ("train.json", "IconQA/iconqa_data/iconqa", "train", "test", ["3", "star"]),
        "CLEVR-Math": ("train_4w.json", "CLEVR/images", "train", "val", ["2", "5"]),
        "Flickr30k-cap": ("train_brief_4w.json", "Flickr30k", "train", "val", ["two people walk"]),
    }
    for seed, (task, (file, place, trained, tested, answers)) in enumerate(tasks.items()):
        folder = root / "instructions" / task
        is_caption = task.endswith(("caption", "cap"))
        learned = Split(root / "datasets", f"{place}/{trained}", 2 * seed)
        asked = Split(root / "datasets", f"{place}/{tested}", 2 * seed + 1)
        write(folder / file, learned.train(train, f"{task}? {ONE_WORD}", answers))
        write(folder / "test_3000.json", asked.test(test, f"{task}? {ONE_WORD}", [] if is_caption else answers))
        if is_caption:
            write(folder / "val_coco_type_3000.json", captions(test, without=1 if task.startswith("VizWiz") else None))
    return root


def captions(count: int, without: int | None) -> dict:
    """Five captions a picture, numbered from 1; the released file of VizWiz lacks one picture."""
    annotations = []
    for number in range(1, count + 1):
        if number == without:
            continue
        for place in range(5):
            text = f"caption {place} of {number}"
            annotations.append({"id": len(annotations), "image_id": number, "caption": text})
    images = [{"id": number} for number in range(1, count + 1)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1}]}


def write_dcl(root: Path, train: int = 8, test: int = 3) -> Path:
    """`Domain_data/<D>/{images,train.json,test.json}`; paths are relative to the domain's folder."""
    domains = {"RS": ["yes", "no"], "Med": ["no", "liver"], "AD": ["A"], "Sci": ["B"], "Fin": ["Yes", "No"]}
    for seed, (domain, answers) in enumerate(domains.items()):
        folder = root / "Domain_data" / domain
        split = Split(folder, "images", 20 + seed)
        question = f"{domain}? Answer the question with a single word (or phrase)."
        write(folder / "train.json", split.train(train, question, answers))
        write(folder / "test.json", split.test(test, question, answers))
    write(root / "Domain_data" / "task5replay20_train.json", [])
    return root


def write_acl(root: Path, train: int = 8, test: int = 3) -> Path:
    """`Ability_data/{OCR,OCR_test,...}`; test items have `answer_type`, or `type` and `task`."""
    abilities = {
        "OCR": (["shop"], {"answer_type": "Regular Text Recognition"}),
        "Math": (["4", "B"], {}),
        "VP": (["(A)"], {"type": "2D", "task": "Count"}),
        "APP": (["C"], {}),
    }
    for seed, (ability, (answers, more)) in enumerate(abilities.items()):
        root_of = root / "Ability_data"
        learned = Split(root_of / ability, "images", 40 + 2 * seed)
        asked = Split(root_of / f"{ability}_test", "images", 41 + 2 * seed)
        write(root_of / ability / "train.json", learned.train(train, f"{ability}?", answers))
        write(root_of / f"{ability}_test" / "test.json", asked.test(test, f"{ability}?", answers, **more))
    return root


def write_coin(root: Path, train: int = 8, test: int = 3) -> Path:
    """`Instructions_Original/<Task>/` beside `cl_dataset/`, a second wording, and files of truth."""
    tasks = {
        "ScienceQA": ("ScienceQA", "test.json", LETTER, ["A", "B"]),
        "TextVQA": ("TextVQA/train_images", "val.json", ONE_WORD, ["stop"]),
        "ImageNet": ("ImageNet/train", "test.json", ONE_WORD, ["goldfish", "wren"]),
        "GQA": ("GQA/images", "test.json", ONE_WORD, ["left"]),
        "VizWiz": ("VizWiz", "val.json", ONE_WORD, ["unanswerable"]),
        "Grounding": ("COCO2014/train2014", "test.json", BOX, ["[0.10,0.20,0.50,0.60]"]),
        "VQAv2": ("COCO2014/train2014", "val.json", ONE_WORD, ["yes", "2"]),
        "OCRVQA": ("OCR-VQA/images", "test.json", ONE_WORD, ["Stephen King"]),
    }
    pictures = root / "cl_dataset"
    for seed, (task, (place, tested, question, answers)) in enumerate(tasks.items()):
        learned = Split(pictures, place, 60 + 2 * seed)
        asked = Split(pictures, place, 61 + 2 * seed)
        for wording in ("Instructions_Original", "Instructions_Diverse"):
            learned.seed, asked.seed = 1000 * (60 + 2 * seed), 1000 * (61 + 2 * seed)
            text = question if wording.endswith("Original") else f"In short: {question}"
            items = learned.train(train, f"{task}? {text}", answers)
            if task == "ScienceQA":
                # Half of its questions have no picture.
                del items[0]["image"]
                items[0]["conversations"][0]["value"] = text
            write(root / wording / task / "train.json", items)
            questions = asked.test(test, f"{task}? {text}", [] if task in ("ScienceQA", "Grounding") else answers)
            for item in questions if task == "Grounding" else ():
                item |= {"answer_bbox": answers[0], "size": [640, 480]}
            write(root / wording / task / tested, questions)
    problems = {f"q{number}": {"answer": number % 2, "choices": ["x", "y"]} for number in range(test)}
    write(pictures / "ScienceQA" / "problems.json", problems)
    write(pictures / "ScienceQA" / "pid_splits.json", {"test": list(problems)})
    votes = [{"question_id": f"q{number}", "answers": ["stop"] * 8 + ["STOP"] * 2} for number in range(test)]
    write(pictures / "TextVQA" / "TextVQA_0.5.1_val.json", {"data": votes})
    return root
