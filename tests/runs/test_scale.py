"""The section `scale`: what `auto` comes to, what is refused, and that eight devices have the numbers of one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import TINY, mapping, write_base, write_stream

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.core.layout import layout_of, whole_batches
from hidecmoe_jax.core.sharding import make_mesh
from hidecmoe_jax.models.config import llava_7b
from hidecmoe_jax.models.store import load_model
from hidecmoe_jax.runs.config import from_mapping, load_config, to_mapping, write_config
from hidecmoe_jax.runs.noticed import without_effect
from hidecmoe_jax.runs.scale import Choice, MeshSizes, Scale, check_batch, choose
from hidecmoe_jax.runs.session import identity_of
from hidecmoe_jax.storage.arrays import read_store

GIB = 2**30
SEVEN = llava_7b()  # 13.5 GiB of weights, recomputes everything
PLAIN = replace(SEVEN, remat=False)


@pytest.mark.parametrize(
    ("scale", "config", "devices", "memory", "choice"),
    [
        (Scale(), TINY, 1, np.inf, None),
        (Scale(base="sharded"), TINY, 1, np.inf, None),
        (Scale(recompute="named"), TINY, 1, np.inf, Choice((1, 1, 1), "replicated", "replicated", "named")),
        (Scale(), TINY, 8, np.inf, Choice((8, 1, 1), "replicated", "replicated", "none")),
        (Scale(), SEVEN, 8, 140 * GIB, Choice((8, 1, 1), "replicated", "replicated", "full")),
        # Split by memory: a base that is not whole never keeps the activations of all layers.
        (Scale(), PLAIN, 16, 14 * GIB, Choice((4, 1, 4), "sharded", "tensor", "named")),
        # Gathered weights would cross the network for every new token.
        (Scale(answer="sharded"), PLAIN, 16, 14 * GIB, Choice((4, 1, 4), "sharded", "tensor", "named")),
        (Scale(mesh=MeshSizes(fsdp=4)), TINY, 8, np.inf, Choice((2, 4, 1), "sharded", "replicated", "named")),
        (Scale(mesh=MeshSizes(1, 4, 2)), TINY, 8, np.inf, Choice((1, 4, 2), "tensor", "replicated", "named")),
        (Scale(mesh=MeshSizes(2)), TINY, 8, np.inf, Choice((2, 1, 1), "replicated", "replicated", "none")),
        (Scale(base="tensor"), TINY, 8, np.inf, Choice((4, 1, 2), "tensor", "replicated", "named")),
    ],
)
def test_what_auto_comes_to(scale, config, devices, memory, choice):
    assert choose(scale, config, devices=devices, memory=memory) == choice


@pytest.mark.parametrize(
    ("scale", "config", "devices", "memory", "said"),
    [
        (Scale(mesh=MeshSizes(4, 2, 2)), TINY, 8, np.inf, "needs 16 devices, there are 8"),
        (Scale(mesh=MeshSizes(fsdp=3)), TINY, 8, np.inf, "3 does not divide the 8 devices"),
        (Scale(mesh=MeshSizes(tensor=4)), TINY, 8, np.inf, "does not divide the 2 key and value heads"),
        (Scale(), SEVEN, 2, 10 * GIB, "take at least 3 such devices"),
    ],
)
def test_what_does_not_fit_is_refused(scale, config, devices, memory, said):
    with pytest.raises(ConfigError) as refused:
        choose(scale, config, devices=devices, memory=memory)
    assert said in str(refused.value)


def test_a_mesh_has_at_most_one_open_size():
    with pytest.raises(ConfigError, match="only one of data, fsdp and tensor"):
        from_mapping({"scale": {"mesh": {"data": -1, "fsdp": -1}}})
    with pytest.raises(ConfigError, match="1 or more"):
        from_mapping({"scale": {"mesh": {"data": 0}}})


class Sixteen:
    """A layout, as far as batches are concerned."""

    batch_shards = 16


def test_a_batch_that_devices_cannot_share_names_the_nearest_sizes():
    check_batch(None, batch=7, accumulate=1)
    check_batch(Sixteen(), batch=32, accumulate=1)
    with pytest.raises(ConfigError) as refused:
        check_batch(Sixteen(), batch=24, accumulate=4)
    said = str(refused.value)
    assert "24 records on 16 devices" in said
    assert "tune.batch=16 --set tune.accumulate=6 (the same 96 records a step)" in said
    assert "tune.batch=32 --set tune.accumulate=3 (the same 96 records a step)" in said
    assert "scale.mesh.data=12" in said
    assert whole_batches(Sixteen(), 50) == 64 and whole_batches(None, 50) == 50


def test_scale_is_no_part_of_what_a_run_is(tmp_path):
    plain = from_mapping({})
    scaled = from_mapping({"scale": {"base": "sharded", "mesh": {"data": 2}}})
    assert "scale" not in to_mapping(plain)
    assert from_mapping(to_mapping(scaled)) == scaled

    class NoTasks:
        tasks = ()

    assert identity_of(plain, NoTasks(), "digest") == identity_of(scaled, NoTasks(), "digest")
    write_config(scaled, tmp_path)
    assert load_config(tmp_path / "config.yaml").scale == Scale()


@pytest.mark.parametrize("command", [["add", "run", "task"], ["eval", "run"]])
def test_a_run_goes_on_on_other_devices_and_with_no_other_setting(command, capsys):
    assert main([*command, "--set", "tune.epochs=1"]) == ConfigError.exit_code
    assert "only its devices may be others" in capsys.readouterr().err
    assert main([*command, "--set", "scale.mesh.data=1"]) == CheckpointError.exit_code


def test_what_gathers_weights_for_every_token_is_said_to_be_ignored():
    config = from_mapping({"scale": {"answer": "sharded"}})
    assert "scale.answer=sharded has no effect" in without_effect(config)[0]
    assert without_effect(from_mapping({})) == ()


def test_weights_in_their_places_are_the_weights_of_the_file(tmp_path):
    base = write_base(tmp_path)
    layout = layout_of(make_mesh(), "sharded")
    placed = load_model(base, layout=layout)
    whole = load_model(base)
    assert placed.layout == layout and whole.layout is None
    kernel = placed.params["decoder"]["layers"]["q_proj"]["kernel"]
    assert kernel.sharding.mesh == layout.mesh
    np.testing.assert_array_equal(kernel, whole.params["decoder"]["layers"]["q_proj"]["kernel"])


def numbers(run: Path) -> tuple[dict, dict, dict]:
    """Losses by step, trained arrays by path, answers by file."""
    seed = run / "seed_0"
    lines = map(json.loads, (seed / "metrics.jsonl").read_text().splitlines())
    losses = {tuple(line["at"]): line["loss"] for line in lines}
    arrays = {}
    for folder in sorted((seed / "tasks").iterdir()):
        groups, _ = read_store(folder)
        for group, flat in groups.items():
            arrays |= {f"{folder.name}/{group}/{path}": array for path, array in flat.items()}
    answers = {}
    for file in sorted((seed / "answers").rglob("*.jsonl")):
        answers[str(file.relative_to(seed))] = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    return losses, arrays, answers


@pytest.mark.slow
def test_run_add_and_eval_on_eight_devices_have_the_numbers_of_one(tmp_path, run_python):
    base = write_base(tmp_path / "base")
    first, second = write_stream(tmp_path, ("birds", "fish"), train=18)
    plain = mapping(base, "hide", tasks=[first], tune={"batch": 8, "bucket": 32})
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(plain))

    def command(devices: int, *words: str) -> None:
        source = f"import sys\nfrom hidecmoe_jax.cli.main import main\nsys.exit(main({list(words)!r}))"
        done = run_python(source, devices=devices, timeout=1200)
        assert done.returncode == 0, done.stderr[-3000:]

    for devices in (1, 8):
        run = str(tmp_path / f"run{devices}")
        command(devices, "run", str(config), "--out", run)
        command(devices, "add", run, str(second))
        command(devices, "eval", run)
    losses, arrays, answers = numbers(tmp_path / "run1")
    other_losses, other_arrays, other_answers = numbers(tmp_path / "run8")
    sessions = json.loads((tmp_path / "run8" / "run.json").read_text())["sessions"]
    assert sessions[0]["scale"]["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    assert losses.keys() == other_losses.keys() and len(losses) == 4
    np.testing.assert_allclose(list(losses.values()), list(other_losses.values()), rtol=1e-5)
    assert answers == other_answers
    assert arrays.keys() == other_arrays.keys()
    for path, array in arrays.items():
        np.testing.assert_allclose(array, other_arrays[path], rtol=1e-3, atol=1e-5, err_msg=path)
