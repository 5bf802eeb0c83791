"""No code from a folder: whatever a file names, tags or pickles, nothing of it is imported or run."""

import copy
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import write_base, write_task, write_tokenizer

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import HidecmoeError
from hidecmoe_jax.core.yaml_text import parse_yaml, read_yaml
from hidecmoe_jax.data.stream import TaskSpec
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.models.store import load_model
from hidecmoe_jax.port.adapters.read import read_adapter
from hidecmoe_jax.port.exports.hub import read_hub
from hidecmoe_jax.report import RunFacts, Sample, SeedResult, run_document, write_report
from hidecmoe_jax.runs.config import from_mapping, to_mapping
from hidecmoe_jax.runs.edits import read as read_edits
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.identity import changes_of, read_run
from hidecmoe_jax.runs.opening import check_stream
from hidecmoe_jax.runs.session import session_facts
from hidecmoe_jax.storage.arrays import read_store, write_store
from hidecmoe_jax.storage.manifest import NAME, write_manifest

SPELLINGS = ("planted_code:Planted", "planted_code.Planted")
WRAPPED = {"kind": "routed", "growth": "shared", "name": "inner", "lora": {"rank": 2}}
METHODS = {
    "hide": {"kind": "routed", "name": "hide", "lora": {"rank": 2}},
    "cmoe": {
        "kind": "mixture",
        "name": "cmoe",
        "gate": {"kind": "locator", "by": {"kind": "vae", "hidden": 8, "latent": 2}},
    },
    "ewc": {"kind": "ewc", "name": "ewc", "inner": WRAPPED},
}


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """The file that `planted_code` leaves when it is imported, and that payloads below leave when they run."""
    place = tmp_path / "mark"
    (tmp_path / "code").mkdir()
    source = f"open({str(place)!r}, 'w').close()\nclass Planted:\n    pass\n"
    (tmp_path / "code" / "planted_code.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.delitem(sys.modules, "planted_code", raising=False)
    yield place
    assert not place.exists() and "planted_code" not in sys.modules


def planted(value, path=()):
    """Every copy of plain values in which one text, or the kind of one mapping, names the planted code."""
    if isinstance(value, dict):
        yield from (value | {"kind": spelling} for spelling in SPELLINGS)
        for key, item in value.items():
            yield from (value | {key: changed} for changed in planted(item))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            for changed in planted(item):
                yield [*value[:place], changed, *value[place + 1 :]]
    elif isinstance(value, str) or value is None:
        yield from SPELLINGS


def attempt(call, *words, **settings) -> str:
    """Calls a reader, which may refuse what it reads as a user's error, and in no other way."""
    try:
        call(*words, **settings)
    except HidecmoeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", METHODS)
def test_no_field_of_a_config_imports(mark, name):
    mapping = to_mapping(from_mapping({"method": METHODS[name]}))
    whole = json.loads(json.dumps(mapping))
    tried = list(planted(whole))
    assert len(tried) > 40
    refused = sum(bool(attempt(from_mapping, copy.deepcopy(changed), imports=False)) for changed in tried)
    assert refused > len(tried) / 3


def test_no_field_of_a_run_imports(mark, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    config = to_mapping(from_mapping({"method": METHODS["hide"]}))
    del config["stream"]
    identity = {"base": "ab", "config": config, "tasks": ["birds"], "data": {"birds": {"pictures": "11"}}, "own": {}}
    run = json.loads(json.dumps({"format": 1, "identity": identity, "changes": [], "sessions": [{"python": "3"}]}))
    edit = {"kind": "retire", "task": "birds", "layers": [0], "by": "x", "at": "now"}
    for changed in planted(run):
        folder.identity.write_text(json.dumps(changed))
        attempt(read_run, folder.path)
        attempt(changes_of, folder.path, identity)
    for changed in planted({"format": 1, "edits": [edit]}):
        folder.edits.write_text(json.dumps(changed))
        attempt(read_edits, folder.path)


@pytest.mark.parametrize("key", ["name", "scorer", "train", "test", "images", "val", "template", "instruction"])
def test_no_field_of_a_task_imports(mark, tmp_path, key):
    folder = write_task(tmp_path / "birds", "a wren", train=2, test=2)
    for spelling in (*SPELLINGS, "os:system", "builtins:eval", "subprocess:getoutput"):
        (folder / "task.yaml").write_text(f"{key}: '{spelling}'\n")
        attempt(check_stream, (TaskSpec(str(folder)),))


TAGS = [
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/new:os.system ['touch {mark}']",
    "!!python/object:planted_code.Planted {{}}",
    "!!python/name:planted_code.Planted ''",
    "!!python/module:planted_code ''",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {mark}']",
    "!!python/object/apply:builtins.exec [\"open({mark!r}, 'w')\"]",
]


@pytest.mark.parametrize("tag", TAGS)
def test_no_tag_of_yaml_makes_an_object(mark, tmp_path, tag):
    text = tag.format(mark=str(mark))
    for spelled in (text, f"a: {text}", f"- {text}", f"? {text}\n: 1"):
        assert attempt(parse_yaml, spelled, "a text")
        (tmp_path / "a.yaml").write_text(spelled)
        assert attempt(read_yaml, tmp_path / "a.yaml")
    assert main(["run", "pocket/hide", "--set", f"tune.epochs={text}", "--out", str(tmp_path / "run")]) == 2


class Payload:
    """Unpickled it leaves the mark."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


PICKLED = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin")


@pytest.mark.parametrize("name", PICKLED)
def test_no_file_of_weights_is_unpickled(mark, tmp_path, name):
    base = write_base(tmp_path / "base")
    plain = pickle.dumps(Payload(mark))
    numpy_file = tmp_path / "objects.npy"
    np.save(numpy_file, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    for content in (plain, numpy_file.read_bytes()):
        adapter = tmp_path / "adapter"
        adapter.mkdir(exist_ok=True)
        (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
        for folder in (base, adapter):
            (folder / "model.safetensors").unlink(missing_ok=True)
            (folder / name).write_bytes(content)
        assert attempt(load_model, base) and attempt(read_adapter, adapter)
        assert main(["convert", str(base), str(tmp_path / "out")]) in (2, 3, 4)


def test_no_file_of_a_tokenizer_names_code_that_runs(mark, tmp_path):
    folder = write_tokenizer(tmp_path / "tokenizer")
    chat = "{{ cycler.__init__.__globals__.os.system('touch " + str(mark) + "') }}"
    settings = {
        "auto_map": {"AutoTokenizer": ["planted_code.Planted", None]},
        "tokenizer_class": "planted_code.Planted",
        "chat_template": chat,
        "trust_remote_code": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(chat)
    assert Tokenizer.load(folder).size > 0
    whole = json.loads((folder / "tokenizer.json").read_text())
    small = {key: value for key, value in whole.items() if key != "model"}
    for changed in planted(small):
        (folder / "tokenizer.json").write_text(json.dumps(changed | {"model": whole["model"]}))
        try:
            attempt(Tokenizer.load, folder)
        except Exception as error:
            assert type(error).__module__ == "builtins", error


def test_no_name_in_orbax_metadata_imports(mark, tmp_path):
    """A checkpoint that an attacker has sealed anew: every text of Orbax's own files names the planted code."""
    good = tmp_path / "good"
    write_store(good, {"experts": {"w": np.arange(4, dtype=np.float32)}}, {"n": 1})
    files = [path for path in sorted(good.rglob("*")) if path.is_file() and path.name != NAME]
    tried = 0
    for path in files:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        for changed in list(planted(content))[::3]:
            bad = Path(shutil.copytree(good, tmp_path / "bad"))
            (bad / path.relative_to(good)).write_text(json.dumps(changed))
            (bad / NAME).unlink()
            write_manifest(bad)
            try:
                attempt(read_store, bad)
            except Exception as error:
                # What a list of arrays lacks is another fault; here only code counts.
                assert isinstance(error, KeyError | TypeError | AttributeError | ValueError), error
            shutil.rmtree(bad)
            tried += 1
    assert tried > 10


def test_no_field_of_a_hub_folder_imports(mark, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    config = json.loads(json.dumps(to_mapping(from_mapping({"method": METHODS["hide"]}))))
    facts = {"format": 1, "config": config, "base": {"sha256": "ab"}, "tasks": ["birds"], "experts": ["birds"]}
    for changed in list(planted(facts | {"edits": []}))[::2]:
        (folder / "hidecmoe.json").write_text(json.dumps(changed))
        (folder / NAME).unlink(missing_ok=True)
        write_manifest(folder)
        attempt(read_hub, folder)


def test_no_text_of_a_report_is_a_template(mark, tmp_path, monkeypatch):
    monkeypatch.setattr("hidecmoe_jax.report.page.run_figures", lambda document: {})
    text = "{{ cycler.__init__.__globals__.os.system('touch " + str(mark) + "') }}{% include '/etc/passwd' %}{{ 6*7 }}"
    counts = {"total": 30, "experts": 20, "routers": 0, "locator": 4, "projector": 6}
    sizes = {"stored_parameters": counts, "archived_parameters": counts, "trained_parameters": counts}
    facts = RunFacts(text, ("digits", "charts"), ("exact", "exact"), **sizes)
    document = run_document(facts, [SeedResult(seed=0, matrix=[[0, 0], [1, 1], [1, 1]], seconds={})])
    write_report(tmp_path, document, [Sample("digits", text, text, text, {"digits": 1.0}, None)])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "{{ 6*7 }}" in page and "root:" not in page


def test_what_a_run_records_of_its_process_holds_nothing_of_the_environment(monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HIDECMOE_SECRET"):
        monkeypatch.setenv(name, "planted-secret")
    assert "planted-secret" not in json.dumps(session_facts())
