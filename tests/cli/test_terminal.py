"""Nothing that a file holds is obeyed by a terminal or turns a page around."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

import hidecmoe_jax
from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.printable import printable
from hidecmoe_jax.report import RunFacts, Sample, SeedResult, run_document, write_report
from hidecmoe_jax.runs.status import new_bar, say

EVIL = "a\x1b[2J\x07b\rc\u202ed\x9b31m\u2066e\x7f\U000e0041"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")


def test_control_characters_are_spelled_out_and_all_others_stay():
    assert printable("a\x1bb\rc\u202ed") == r"a\u001bb\u000dc\u202ed".replace(r"\u000d", r"\r")
    kept = "Grüße, 你好\tمرحبا\n👩\u200d🔬"
    assert printable(kept) == kept
    assert not OBEYED.search(printable(EVIL))
    # Half of a pair, as Linux gives the bytes of a name that is no UTF-8.
    printable("\udcff").encode()
    line = json.dumps({"text": EVIL}, ensure_ascii=False)
    assert json.loads(printable(line)) == {"text": EVIL}


def test_every_line_of_a_command_goes_through_one_door():
    package = Path(hidecmoe_jax.__file__).parent
    doors = {
        "cli/terminal.py",
        "cli/main.py",
        "core/verbosity.py",
        "storage/remembered.py",
        "port/checkpoints/check.py",
    }
    # The reference runs in another process, where this package is not imported.
    others = {"port/checkpoints/reference/__main__.py"}
    printing = set()
    for path in package.rglob("*.py"):
        if re.search(r"(?<![\w.])print\(|tqdm\.write\(|std(out|err)\.write\(", path.read_text()):
            printing.add(path.relative_to(package).as_posix())
    assert printing - others <= doors, printing


def test_notes_bars_and_errors_are_spelled_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    say(f"note: {EVIL}")
    new_bar(EVIL, total=1, file=None).close()
    assert main(["data", "check", str(tmp_path / EVIL)]) in (2, 3)
    assert main(["report", str(tmp_path / EVIL)]) != 0
    shown = capsys.readouterr()
    assert not OBEYED.search(shown.err.replace("\r", "").replace("\x1b[A", "")), shown.err


@pytest.mark.parametrize("place", ["question", "answer", "image", "id"])
def test_texts_of_records_are_spelled_out(tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    item = {
        "id": "one",
        "image": "p.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "x"}],
    }
    if place == "question":
        item["conversations"][0]["value"] = f"<image><image>\n{EVIL}"
    elif place == "answer":
        item["conversations"][1] = {"from": EVIL, "value": "x"}
    else:
        item[place] = EVIL
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    (tmp_path / "train.json").write_text(json.dumps([item, item]))
    assert main(["data", "check", str(tmp_path)]) != 0
    shown = capsys.readouterr()
    assert not OBEYED.search(shown.out + shown.err)


def test_a_page_is_not_turned_around(tmp_path):
    sample = Sample(
        task="birds", question=EVIL, answer=EVIL, prediction=EVIL, routing={"birds": 1.0}, image=None, id=EVIL
    )
    facts = RunFacts("hide", ("birds",), ("exact",))
    document = run_document(facts, [SeedResult(seed=0, matrix=[[0.0], [50.0]])])
    write_report(tmp_path, document, [sample])
    page = (tmp_path / "report.html").read_text()
    assert r"\u202e" in page and not OBEYED.search(page)
