"""Adapters of other tools become runs: every factor in its place, every scale what its tool meant, nothing guessed."""

import json
import math
import shutil
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from export_world import make_run, update
from foreign_adapters import (
    LAYERS,
    MODULES,
    hide_folder,
    lora_tensors,
    moelora_folder,
    peft_folder,
    split_tensors,
    write_folder,
)
from safetensors.numpy import load_file, save_file
from tiny import TINY, write_base, write_stream

import hidecmoe_jax as hj
from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.models.store import load_model, save_model
from hidecmoe_jax.port.adapters.read import read_adapter
from hidecmoe_jax.runs.finished import load_run
from hidecmoe_jax.runs.ledger import Ledger

Q = "base_model.model.model.language_model.layers.{}.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("adapters") / "base")


def test_one_lora_becomes_a_run_of_one_expert_and_goes_out_as_it_came(base, tmp_path):
    given = peft_folder(tmp_path / "birds", rank=8, alpha=16)
    hj.adopt(base, [given], tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.tasks == ("birds",) and run.config.method.growth == "shared" and not run.config.method.train_projector
    assert (run.config.method.lora.rank, run.config.method.lora.alpha, run.config.method.lora.dropout) == (8, 16, 0.05)
    hj.export(tmp_path / "run", tmp_path / "out", hj.ExportOptions("peft"))
    before, after = load_file(given / "adapter_model.safetensors"), tmp_path / "out" / "lora"
    assert trees.digests(before) == trees.digests(load_file(after / "adapter_model.safetensors"))
    assert json.loads((after / "adapter_config.json").read_text())["lora_alpha"] == 16


def test_several_loras_become_tasks_that_have_to_be_named(base, tmp_path):
    folders = [peft_folder(tmp_path / name, seed=n, rank=4 - n) for n, name in enumerate(("birds", "fish"))]
    hj.adopt(base, folders, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.tasks == ("birds", "fish") and run.config.method.traits.needs_task_name
    hj.export(tmp_path / "run", tmp_path / "out", hj.ExportOptions("peft"))
    for folder in folders:
        for layer in range(LAYERS):
            found = update(tmp_path / "out" / folder.name, "q_proj", layer)
            np.testing.assert_allclose(found, update(folder, "q_proj", layer), rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("root", ["language_model.model", "model", "model.language_model"])
def test_every_name_of_the_decoder_in_circulation_is_known(tmp_path, root):
    told = {"r": 4, "lora_alpha": 8}
    lora = read_adapter(write_folder(tmp_path / "a", told, lora_tensors(root=root))).experts[0]
    assert lora.layers == LAYERS and len(lora.sites) == 7
    a = lora_tensors(root=root)[f"base_model.model.{root}.layers.2.mlp.down_proj.lora_A.weight"]
    np.testing.assert_array_equal(lora.a["down_proj"][2], a.T)


def test_hide_brings_experts_anchors_and_projector_and_leaves_out_what_it_never_uses(base, tmp_path):
    given = hide_folder(tmp_path / "hide", twice=True)
    lines = hj.adopt(base, [given], tmp_path / "run", hj.Adoption(("birds", "fish")))
    assert any("never uses it" in line for line in lines) and any("boundary" not in line for line in lines)
    run, tensors = load_run(tmp_path / "run"), load_file(given / "adapter_model.safetensors")
    more = load_file(given / "non_lora_trainables.safetensors")
    method = run.config.method
    assert (method.name, method.expand, method.fusion) == ("hide", "last", "factor_sum") and run.tasks == (
        "birds",
        "fish",
    )
    for task in range(2):
        groups = Ledger(tmp_path / "run" / "seed_0").load(task)[0]
        name = f"base_model.model.model.layers.1.mlp.up_proj.lora_A.loraA.{task}.weight"
        np.testing.assert_array_equal(groups["experts"]["a/up_proj"][1, :, 0], tensors[name].T)
        np.testing.assert_array_equal(groups["memory"]["text_ND"], more[f"base_model.model.text_anchors.{task}"])
        weight = more["base_model.model.model.mm_projector.2.weight"]
        np.testing.assert_array_equal(groups["shared"]["projector/linear2/kernel"], weight.T)


def test_hide_answers_with_its_own_arithmetic(base, tmp_path):
    """Lower layers 2 * (sum B)(sum A), the last one the task's own 2 * B A, with alpha 12 over the whole rank 6."""
    given = hide_folder(tmp_path / "hide")
    hj.adopt(base, [given], tmp_path / "run")
    hj.export(tmp_path / "run", tmp_path / "out", hj.ExportOptions("peft"))
    tensors = load_file(given / "adapter_model.safetensors")

    def factor(layer: int, kind: str, task: int) -> np.ndarray:
        name = f"base_model.model.model.layers.{layer}.self_attn.v_proj.lora_{kind}.lora{kind}.{task}.weight"
        return tensors[name].astype(np.float64)

    fused = 2.0 * (factor(0, "B", 0) + factor(0, "B", 1)) @ (factor(0, "A", 0) + factor(0, "A", 1))
    np.testing.assert_allclose(update(tmp_path / "out" / "task_2", "v_proj", 0), fused, rtol=1e-5, atol=1e-7)
    own = 2.0 * factor(2, "B", 1) @ factor(2, "A", 1)
    np.testing.assert_allclose(update(tmp_path / "out" / "task_2", "v_proj", 2), own, rtol=1e-6, atol=1e-9)


def test_an_adapter_of_another_base_is_refused(base, tmp_path, capsys):
    run = make_run(tmp_path / "run", base, "hide", ("birds",))
    hj.export(run, tmp_path / "out", hj.ExportOptions("peft"))
    other = write_base(tmp_path / "other", seed=1)
    assert main(["adopt", str(other), str(tmp_path / "out" / "birds"), "--out", str(tmp_path / "back")]) == 4
    error = capsys.readouterr().err
    assert "another base model" in error and "SHA-256" in error and not (tmp_path / "back").exists()
    assert main(["adopt", str(base), str(tmp_path / "out" / "birds"), "--out", str(tmp_path / "back")]) == 0
    foreign = peft_folder(tmp_path / "foreign", base_model_name_or_path="somebody/llava")
    assert main(["adopt", str(base), str(foreign), "--out", str(tmp_path / "told")]) == 0
    assert "somebody/llava" in capsys.readouterr().err, "an adapter that carries no SHA-256 is said to carry none"


def test_an_adapter_whose_shapes_do_not_fit_names_the_layer_and_the_field(base, tmp_path):
    tensors = lora_tensors()
    extra = {key.replace("layers.2", "layers.3"): leaf for key, leaf in tensors.items() if "layers.2" in key}
    deep = write_folder(tmp_path / "deep", {"r": 4, "lora_alpha": 8}, tensors | extra)
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        hj.adopt(base, [deep], tmp_path / "run")
    wide = {
        key: np.zeros((4, 24), np.float32) if key.endswith("q_proj.lora_A.weight") else leaf
        for key, leaf in tensors.items()
    }
    with pytest.raises(CheckpointError, match="q_proj"):
        hj.adopt(base, [write_folder(tmp_path / "wide", {"r": 4, "lora_alpha": 8}, wide)], tmp_path / "run")


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / math.sqrt(4)),
        ({"lora_alpha": 3}, 0.75),
    ],
)
def test_alpha_over_r_and_over_its_root(tmp_path, config, scale):
    lora = read_adapter(write_folder(tmp_path / "a", {"r": 4} | config, lora_tensors())).experts[0]
    assert lora.scale == scale
    tensors = lora_tensors()
    wanted = (
        scale * tensors[f"{Q.format(1)}.lora_B.weight"].astype(np.float64) @ tensors[f"{Q.format(1)}.lora_A.weight"]
    )
    np.testing.assert_allclose(lora.delta("q_proj", 1), wanted.T, rtol=1e-12)


def test_hide_and_moelora_divide_alpha_by_the_rank_of_all_experts(tmp_path):
    hide = read_adapter(hide_folder(tmp_path / "hide"))
    assert [lora.scale for lora in hide.experts] == [2.0, 2.0] and hide.experts[0].rank == 2
    with pytest.raises(CheckpointError, match="r 2 for all of them"):
        read_adapter(hide_folder(tmp_path / "wrong", r=2))


def test_ranks_and_alphas_of_single_modules_keep_their_scale(tmp_path):
    tensors = lora_tensors()
    for kind, rows in (("A", 0), ("B", 1)):
        name = f"{Q.format(0)}.lora_{kind}.weight"
        tensors[name] = np.ascontiguousarray(np.take(tensors[name], range(2), axis=rows))
    told = {"r": 4, "lora_alpha": 8, "rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"k_proj": 2}}
    lora = read_adapter(write_folder(tmp_path / "a", told, tensors)).experts[0]
    small = {kind: tensors[f"{Q.format(0)}.lora_{kind}.weight"].astype(np.float64) for kind in "AB"}
    np.testing.assert_allclose(lora.delta("q_proj", 0), (8 / 2 * small["B"] @ small["A"]).T, rtol=1e-6)
    key = Q.format(1).replace("q_proj", "k_proj")
    other = {kind: tensors[f"{key}.lora_{kind}.weight"].astype(np.float64) for kind in "AB"}
    np.testing.assert_allclose(lora.delta("k_proj", 1), (2 / 4 * other["B"] @ other["A"]).T, rtol=1e-6)


def test_a_rank_that_contradicts_the_tensors_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="tensors have rank 4, adapter_config.json says 8"):
        read_adapter(write_folder(tmp_path / "a", {"r": 8, "lora_alpha": 8}, lora_tensors()))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "new", 1])
def test_an_adapter_that_was_trained_on_a_changed_base_is_refused(tmp_path, start):
    """PiSSA and its kin train A and B on W - s B0 A0: on the base as it is they are another model."""
    with pytest.raises(ConfigError, match="init_lora_weights"):
        read_adapter(peft_folder(tmp_path / "a", init_lora_weights=start))


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_an_adapter_that_was_trained_on_the_base_as_it_is_passes(tmp_path, start):
    assert read_adapter(peft_folder(tmp_path / "a", init_lora_weights=start)).experts[0].scale == 2.0


@pytest.mark.parametrize("kind", ["VERA", "LOHA", "lora", 3])
def test_another_kind_of_adapter_is_refused_by_name(tmp_path, kind):
    with pytest.raises(ConfigError, match="peft_type"):
        read_adapter(peft_folder(tmp_path / "a", peft_type=kind))


@pytest.mark.parametrize("root", ["language_model.model", "model", "model.language_model"])
def test_a_pattern_matches_the_names_that_the_modules_have_in_the_file(tmp_path, root):
    """As PEFT: a whole name or what follows a dot, and the first of several patterns counts."""
    full = f"{root}.layers.1.self_attn.q_proj"
    alphas = {full: 80, r"layers\.[01]\.self_attn\.q_proj": 20, f"^{root}.layers.2.mlp.up_proj": 40}
    told = {"r": 4, "lora_alpha": 8, "alpha_pattern": alphas}
    lora = read_adapter(write_folder(tmp_path / "a", told, lora_tensors(root=root))).experts[0]
    tensors = lora_tensors(root=root)

    def scale(module: str, layer: int) -> float:
        name = f"base_model.model.{root}.layers.{layer}.{module}"
        plain = tensors[f"{name}.lora_B.weight"].astype(np.float64) @ tensors[f"{name}.lora_A.weight"]
        return np.vdot(plain.T, lora.delta(module.split(".")[1], layer)) / np.vdot(plain, plain)

    found = [scale("self_attn.q_proj", layer) for layer in range(3)] + [scale("mlp.up_proj", 2)]
    np.testing.assert_allclose(found, [5.0, 20.0, 2.0, 10.0], rtol=1e-6)


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        ({"model.language_model.layers.1.self_attn.q_proj": 4}, "matches none of its modules"),
        ({"(": 2}, "no regular expression"),
        (["q_proj"], "no JSON object"),
        ({"q_proj": "4"}, "expected a number above zero"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(tmp_path, key, pattern, error):
    told = {"r": 4, "lora_alpha": 8, key: pattern}
    with pytest.raises(ConfigError, match=error) as caught:
        read_adapter(write_folder(tmp_path / "a", told, lora_tensors(root="language_model.model")))
    assert key in str(caught.value)


@pytest.mark.parametrize("key", ["use_rslora", "rank_pattern", "alpha_pattern"])
def test_a_scale_that_hide_and_coin_do_not_know_is_refused(tmp_path, key):
    with pytest.raises(ConfigError, match=key):
        read_adapter(moelora_folder(tmp_path / "a", **{key: True if key == "use_rslora" else {"q_proj": 4}}))


@pytest.mark.parametrize(
    ("rank", "header"), [(4, "0"), (4, "-2"), (4, "two"), (4, "99999999999"), (4, "5"), (4, "2"), (4, "\u00b2")]
)
def test_a_header_that_contradicts_the_tensors_is_refused(tmp_path, rank, header):
    with pytest.raises(CheckpointError, match="hidecmoe_rank"):
        read_adapter(peft_folder(tmp_path / "a", rank=rank, header={"hidecmoe_rank": header}))


@pytest.mark.parametrize("config", ["[1]", "3", '"LORA"', '{"r": 4, "lora_alpha": 8, "lora_dropout": "x"}', "{"])
def test_a_malformed_config_is_refused_with_its_place(tmp_path, config):
    folder = peft_folder(tmp_path / "a")
    (folder / "adapter_config.json").write_text(config)
    with pytest.raises(hj.HidecmoeError, match=r"adapter_config\.json"):
        read_adapter(folder)


@pytest.mark.parametrize(("old", "new"), [("layers.2.", "layers.99999999999."), ("lora_A.", "lora_A.loraA.99999999.")])
def test_numbers_that_no_decoder_has_are_refused_at_once(tmp_path, old, new):
    tensors = {key.replace(old, new): leaf for key, leaf in lora_tensors().items()}
    with pytest.raises(CheckpointError, match="unknown"):
        read_adapter(write_folder(tmp_path / "a", {"r": 4, "lora_alpha": 8}, tensors))


@pytest.mark.parametrize("key", ["use_dora", "lora_bias", "fan_in_fan_out"])
def test_what_is_more_than_lora_is_refused_by_name(tmp_path, key):
    told = {"r": 4, "lora_alpha": 8, key: True}
    with pytest.raises(ConfigError, match=key):
        read_adapter(write_folder(tmp_path / "a", told, lora_tensors()))


def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path):
    folder = hide_folder(tmp_path / "hide")
    (folder / "non_lora_trainables.safetensors").rename(folder / "non_lora_trainables.bin")
    with pytest.raises(CheckpointError, match=r"hidecmoe unpickle .*hide NEW"):
        read_adapter(folder)


def test_a_trainers_checkpoint_is_read_and_what_is_no_weights_left_alone(tmp_path):
    folder = peft_folder(tmp_path / "checkpoint-500")
    own = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_3.pth", "training_args.bin")
    for name in own:
        (folder / name).write_bytes(b"\x80")
    (folder / "adapter_model.bin").write_bytes(b"\x80")
    notes = read_adapter(folder).notes
    assert sorted(note.split()[0] for note in notes) == sorted(own)
    (folder / "optimizer_of_pictures.bin").write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match=r"optimizer_of_pictures\.bin"):
        read_adapter(folder)


def test_a_tensor_that_is_unknown_missing_or_not_finite_is_named(tmp_path):
    def refused(name: str, change) -> str:
        folder = hide_folder(tmp_path / name)
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        with pytest.raises(CheckpointError) as error:
            read_adapter(folder)
        return str(error.value)

    one = "base_model.model.model.layers.0.self_attn.k_proj.lora_B.loraB.1.weight"
    assert "layer 0, k_proj, expert 1" in refused("missing", lambda tensors: tensors.pop(one))
    tower = "base_model.model.model.vision_tower.layers.0.self_attn.k_proj.lora_A.weight"
    assert tower in refused("unknown", lambda tensors: tensors.update({tower: np.zeros((2, 2), np.float32)}))

    def without_the_second(tensors) -> None:
        for name in [name for name in tensors if ".loraA.1." in name or ".loraB.1." in name]:
            del tensors[name]

    assert "expert 1" in refused("hole", without_the_second)
    assert one in refused("broken", lambda tensors: tensors.update({one: np.full((16, 2), np.nan, np.float32)}))
    other = one.replace("weight", "mlp.weight")
    assert "mean the same and differ" in refused("two", lambda tensors: tensors.update({other: tensors[one] + 1}))


def test_adapters_that_cannot_stand_in_one_run_are_refused(base, tmp_path):
    hide, lora = hide_folder(tmp_path / "hide"), peft_folder(tmp_path / "lora")
    with pytest.raises(ConfigError, match="kinds: hide, lora"):
        hj.adopt(base, [hide, lora], tmp_path / "run")
    with pytest.raises(ConfigError, match="got 1: birds"):
        hj.adopt(base, [hide], tmp_path / "run", hj.Adoption(("birds",)))
    assert len(split_tensors()) == LAYERS * len(MODULES) * 7


def test_moelora_brings_experts_and_a_router_for_every_linear(base, tmp_path, capsys):
    given = moelora_folder(tmp_path / "moe")
    hj.adopt(base, [given], tmp_path / "run", hj.Adoption(("coin",)))
    run, tensors = load_run(tmp_path / "run"), load_file(given / "adapter_model.safetensors")
    method = run.config.method
    assert (method.name, method.experts, method.lora.rank, method.lora.alpha) == ("moelora", 3, 2, 4)
    groups = Ledger(tmp_path / "run" / "seed_0").load(0)[0]
    name = "base_model.model.model.layers.2.mlp.down_proj"
    for expert in range(3):
        b = groups["experts"]["b/down_proj"][2, expert]
        np.testing.assert_array_equal(b, tensors[f"{name}.lora_B.loraB.{expert}.weight"].T)
    np.testing.assert_array_equal(groups["memory"]["router/down_proj"][2], tensors[f"{name}.lora_router.weight"].T)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "peft"]) == 2
    assert "every token mixes 3 experts" in capsys.readouterr().err
    hj.export(tmp_path / "run", tmp_path / "hub", hj.ExportOptions("hub"))
    hj.adopt(base, [tmp_path / "hub"], tmp_path / "back")
    again = Ledger(tmp_path / "back" / "seed_0").load(0)[0]
    assert trees.digests(again) == trees.digests(groups)


def test_a_base_in_another_dtype_is_opened_once_and_found_again(tmp_path, base, monkeypatch):
    model = load_model(base)
    params = jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16), model.params)
    narrow = tmp_path / "narrow"
    save_model(model.replace(config=replace(TINY, param_dtype="bfloat16"), params=params), narrow)
    shutil.copyfile(base / "tokenizer.json", narrow / "tokenizer.json")
    data, opened = write_stream(tmp_path / "data", ("birds",), train=4, test=2), []
    given = peft_folder(tmp_path / "given")

    def counted(folder, **options):
        opened.append(folder)
        return load_model(folder, **options)

    monkeypatch.setattr("hidecmoe_jax.runs.session.load_model", counted)
    for number, tasks in enumerate((tuple(map(str, data)), ())):
        how = hj.Adoption(data=tasks, template="short", overrides=("base.param_dtype=float32",))
        hj.adopt(narrow, [given], tmp_path / str(number), how)
        assert len(opened) == 1, "a second copy of the base would not fit beside the first"
        run = load_run(tmp_path / str(number))
        assert run.model.params["decoder"]["head"]["kernel"].dtype == "float32"
        opened.clear()


# Of moelora every number that arrives is compared above, and test_moelora.py asks such models.
@pytest.mark.parametrize("kind", ["hide", pytest.param("moelora", marks=pytest.mark.slow)])
def test_what_was_adopted_answers_and_is_measured(tmp_path, base, kind):
    make = {"hide": hide_folder, "moelora": moelora_folder}[kind]
    data = write_stream(tmp_path / "data", ("birds", "fish") if kind == "hide" else ("birds",), train=4, test=2)
    short = ("evaluate.writing.max_new_tokens=2", "evaluate.zero_shot=false", "evaluate.variants=false")
    how = hj.Adoption(data=tuple(map(str, data)), template="short", overrides=short)
    hj.adopt(base, [make(tmp_path / "given")], tmp_path / "run", how)
    picture = str(next((tmp_path / "data" / "birds" / "images").iterdir()))
    reply = hj.load(tmp_path / "run").answer([picture], "What is shown in picture?")
    assert len(reply.weights) == (2 if kind == "hide" else 0)
    hj.evaluate_run(tmp_path / "run", task=len(data))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "birds" in json.dumps(report) and "not measured" not in hj.describe(tmp_path / "run")
