"""Every reader of a file meets every file that is made to hang it, to fill memory or to end it in a foreign error."""

import json
import os
import signal
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from hidecmoe_jax.core.errors import CheckpointError, ConfigError, DataError
from hidecmoe_jax.core.json_text import RECORDS, SETTINGS, JsonFault, json_value
from hidecmoe_jax.core.yaml_text import MOST_DEPTH, parse_yaml, read_yaml
from hidecmoe_jax.data import jsonfile
from hidecmoe_jax.data.images import inspect
from hidecmoe_jax.data.task_source import about_of
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.models.store import read_model_config
from hidecmoe_jax.port.adapters.read import read_adapter
from hidecmoe_jax.port.checkpoints.source import open_source, read_header
from hidecmoe_jax.port.exports.hub import read_hub
from hidecmoe_jax.runs import edits, journal
from hidecmoe_jax.runs.config import load_config
from hidecmoe_jax.runs.identity import read_run
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.storage import files, manifest, seal


def read_sealed_hub(path):
    """Reads the facts of a hub folder whose manifest agrees with whatever they are."""
    (path.parent / manifest.NAME).unlink(missing_ok=True)
    manifest.write_manifest(path.parent)
    return read_hub(path.parent)


def read_weighty_adapter(path):
    save_file({"x": np.zeros(1, np.float32)}, path.with_name("adapter_model.safetensors"))
    return read_adapter(path.parent)


ERRORS = (CheckpointError, ConfigError, DataError)
# Name of the file, and what reads it. A reader of a folder finds the file there.
JSON_READERS = {
    "run.json": lambda path: read_run(path.parent),
    "cells.json": lambda path: Cells(path).read(),
    "edits.json": lambda path: edits.read(path.parent),
    "facts.json": seal.read_json,
    "report.json": seal.read_json,
    "seal.json": lambda path: seal.load(path.parent),
    "journal.json": lambda path: journal.read(path.parent),
    "MANIFEST.json": lambda path: manifest.verify(path.parent),
    "hidecmoe.json": read_sealed_hub,
    "adapter_config.json": read_weighty_adapter,
    "tokenizer.json": lambda path: Tokenizer.load(path.parent),
    "task.json": lambda path: about_of(path.parent),
    "config.json": lambda path: read_model_config(path.parent),
    "preprocessor_config.json": lambda path: open_source(path.parent, "checkpoint"),
    "metrics.jsonl": files.read_lines,
    "train.json": jsonfile.read_items,
    "test.jsonl": jsonfile.read_items,
}
YAML_READERS = {"config.yaml": load_config, "settings.yaml": read_yaml}
# A file of records may be of any size, so only what is within it is bounded.
OF_ANY_SIZE = {"metrics.jsonl", "train.json", "test.jsonl"}
TEXTS = {
    "deep arrays": '{"scores": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep objects": '{"scores": ' * 100_000 + "1" + "}" * 100_000,
    "just too deep": '{"scores": ' + "[" * SETTINGS.depth + "]" * SETTINGS.depth + "}",
    "a long number": '{"scores": ' + "7" * 10_000_000 + "}",
    "not a number": '{"scores": NaN}',
    "infinity": '{"scores": [1, -Infinity]}',
    "beyond all numbers": '{"scores": 1e999}',
    "a key twice": '{"scores": 1, "scores": 2}',
}
MANY = '{"scores": [' + "[]," * 800_000 + "1]}"
BOMB = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)
YAMLS = {
    "deep brackets": "[" * 100_000,
    "deep lists": "- " * 100_000,
    "deep mappings": "{a: " * 40 + "1" + "}" * 40,
    "aliases": BOMB,
    "an alias in itself": "a: &a {b: *a}",
    "aliases within aliases": "a0: &a0 1\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 200)),
    "a long number": "a: " + "7" * 100_000,
    "a key twice": "a: 1\na: 2\n",
    "too long": "a: " + "x" * 300_000,
}


@pytest.fixture(autouse=True)
def _no_hanging():
    """A reader that waits for a pipe fails here instead of holding the tests up."""

    def give_up(*_):
        raise AssertionError("this reader hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def no_regular_files(path):
    """Puts one thing after the other that is no file in the place of one."""
    path.mkdir()
    yield "a folder"
    path.rmdir()
    os.mkfifo(path)
    yield "a pipe"
    path.unlink()
    path.symlink_to("/dev/zero")
    yield "a device"
    path.unlink()


def refusal(read, path):
    with pytest.raises(ERRORS) as caught:
        read(path)
    return str(caught.value)


@pytest.mark.parametrize("name", JSON_READERS)
def test_no_json_file_hangs_fills_memory_or_ends_in_another_error(tmp_path, name):
    path = tmp_path / name
    for attack, text in TEXTS.items():
        path.write_text(text)
        said = refusal(JSON_READERS[name], path)
        assert name in said and "scores" in said, (attack, said)
    path.write_bytes(b"\xff\xfe{}")
    assert name in refusal(JSON_READERS[name], path)
    if name not in OF_ANY_SIZE:
        path.write_text(MANY)
        assert "values" in refusal(JSON_READERS[name], path)
        # A file of holes takes no room on the disk.
        os.truncate(path, SETTINGS.size + 1)
        assert "at most" in refusal(JSON_READERS[name], path)


# A run or a folder without the file may be fine: these readers ask whether there is one.
OPTIONAL = {"journal.json", "task.json"}


@pytest.mark.parametrize("name", sorted({*JSON_READERS, *YAML_READERS} - OPTIONAL))
def test_what_is_no_regular_file_is_refused_unopened(tmp_path, name):
    path = tmp_path / name
    reader = {**JSON_READERS, **YAML_READERS}[name]
    for kind in no_regular_files(path):
        assert str(tmp_path) in refusal(reader, path), kind


@pytest.mark.parametrize("name", YAML_READERS)
def test_no_yaml_file_hangs_fills_memory_or_ends_in_another_error(tmp_path, name):
    path = tmp_path / name
    for attack, text in YAMLS.items():
        path.write_text(text)
        assert name in refusal(YAML_READERS[name], path), attack


def header(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(content) if length is None else length) + content


def tensors(**offsets) -> bytes:
    listed = {name: {"dtype": "F32", "shape": [1], "data_offsets": list(pair)} for name, pair in offsets.items()}
    return header(json.dumps(listed).encode()) + bytes(4)


HEADERS = {
    "two gigabytes in a hundred bytes": header(b" " * 92, 2 * 2**30),
    "more than any file": header(b" " * 92, 2**64 - 1),
    "cut off": b"\x08\0\0",
    "deep": header(b'{"a":' * 50_000),
    "many": header(b"[" + b"[]," * 800_000 + b"1]"),
    "a long number": header(b'{"a": ' + b"7" * 5_000_000 + b"}"),
    "not a number": header(b'{"a": NaN}'),
    "no object": header(b"[1]"),
    "beyond the file": tensors(a=(0, 2**40)),
    "overlapping": tensors(a=(0, 4), b=(0, 4)),
    "backwards": tensors(a=(4, 0)),
}


@pytest.mark.parametrize("attack", HEADERS)
def test_no_header_of_tensors_is_believed(tmp_path, attack):
    path = tmp_path / "model.safetensors"
    path.write_bytes(HEADERS[attack])
    assert path.name in refusal(read_header, path)


def test_what_is_no_file_of_tensors_or_no_picture_is_refused_unopened(tmp_path):
    path = tmp_path / "model.safetensors"
    for _ in no_regular_files(path):
        refusal(read_header, path)
        refusal(inspect, path)


def test_what_is_within_the_bounds_is_read():
    brackets = '["' + "[" * 200 + '\\"]\\\\"]'
    assert json_value(brackets) == ["[" * 200 + '"]\\']
    deepest = json_value("[" * SETTINGS.depth + "]" * SETTINGS.depth)
    assert json.dumps(deepest) == "[" * SETTINGS.depth + "]" * SETTINGS.depth
    assert json_value('{"a": 1e300, "b": -5, "c": ' + "1" * 200 + "}")["c"] == int("1" * 200)
    # Every record of a large file has brackets of its own.
    assert len(json_value("[" + '{"a": [1]},' * 3_000 + "1]", RECORDS)) == 3_001
    assert parse_yaml("a: &a {x: [1]}\nb: *a\nc: {<<: *a, y: 2}", "text") == {
        "a": {"x": [1]}, "b": {"x": [1]}, "c": {"x": [1], "y": 2},
    }  # fmt: skip
    nested = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert str(parse_yaml(nested, "text")) == nested


def test_the_key_of_a_refused_value_is_named():
    with pytest.raises(JsonFault, match=r"a\.b\[2\]\.c: NaN"):
        json_value('{"a": {"b": [1, 2, {"c": NaN}]}}')


def test_what_is_too_deep_in_yaml_is_named_with_its_line_before_anything_is_built():
    with pytest.raises(ConfigError, match="nested too deeply") as caught:
        parse_yaml("a: 1\nb:\n  " + "- " * 100_000, "text")
    assert caught.value.where == "text, line 3"
