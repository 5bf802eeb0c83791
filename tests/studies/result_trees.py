"""Trees of result files and test files as other evaluations write them, made up here."""

import json
from pathlib import Path

LINE = '{{"question_id": "{}", "prompt": "q", "text": "{}", "answer_id": "x", "model_id": "m", "metadata": {{}}}}\n'


def write_test(folder: Path, answers: list, **fields) -> Path:
    """A task folder with test.json: questions q0, q1, ... with these answers, a list being several references."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for place, answer in enumerate(answers):
        key = "answers" if isinstance(answer, list) else "answer"
        items.append({"question_id": f"q{place}", "text": "q", key: answer} | fields)
    (folder / "test.json").write_text(json.dumps(items))
    return folder


def write_merge(folder: Path, texts: list[str], ids: list[str] | None = None, name: str = "merge.jsonl") -> Path:
    """A result file of a stage, with an answer to every question."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = ids or [f"q{place}" for place in range(len(texts))]
    path = folder / name
    path.write_text("".join(LINE.format(*pair) for pair in zip(ids, texts, strict=True)))
    return path


def share(right: str, of_hundred: float, count: int) -> list[str]:
    """Answers of which this share is right."""
    good = round(of_hundred * count / 100)
    return [right] * good + ["wrong"] * (count - good)
