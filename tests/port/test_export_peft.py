"""PEFT folders: what is in them, by the arithmetic of PEFT's manual and not by our own reader."""

import re

import numpy as np
import pytest
from export_world import MODULES, TREES, make_run, read_adapter, update
from tiny import run_config, write_base

import hidecmoe_jax as hj
from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import BusyError, ConfigError, HidecmoeError
from hidecmoe_jax.models.store import load_model
from hidecmoe_jax.port.adapters.peft import LoraWeights, alpha_of, served_rank, with_rank
from hidecmoe_jax.port.adopt import write_run
from hidecmoe_jax.port.output import fresh_folder
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.storage.manifest import verify

TASKS = ("birds", "fish")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    base = write_base(root / "base")
    return root, lambda name, **method: make_run(root / name, base, name, TASKS, **method)


@pytest.fixture(scope="module")
def hide(world):
    return world[1]("hide")


def experts(run, task: int) -> dict[str, np.ndarray]:
    """a [L, D, 1, R] and b [L, 1, R, F] as the ledger has them."""
    return Ledger(run / "seed_0").load(task)[0]["experts"]


def test_hide_is_one_adapter_a_task_fused_below_and_its_own_expert_on_top(hide, tmp_path):
    hj.export(hide, tmp_path / "out", hj.ExportOptions("peft"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["MANIFEST.json", *TASKS]
    verify(tmp_path / "out")
    one, two = experts(hide, 0), experts(hide, 1)
    scale, top = 16.0 / 3, 2  # the tiny decoder has layers 0, 1, 2
    for number, name in enumerate(TASKS):
        for site in MODULES:
            for layer in range(3):
                if layer == top:
                    own = (one, two)[number]
                    a, b = own[f"a/{site}"][layer, :, 0], own[f"b/{site}"][layer, 0]
                else:
                    a = one[f"a/{site}"][layer, :, 0] + two[f"a/{site}"][layer, :, 0]
                    b = one[f"b/{site}"][layer, 0] + two[f"b/{site}"][layer, 0]
                wanted = scale * (a.astype(np.float64) @ b).T
                for tree, folder in (("since5", name), ("before5", f"{name}/before5")):
                    found = update(tmp_path / "out" / folder, site, layer, tree)
                    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


def test_ranks_are_those_that_vllm_serves_and_keep_the_scale(hide, tmp_path):
    hj.export(hide, tmp_path / "out", hj.ExportOptions("peft", tree="since5"))
    config, tensors, notes = read_adapter(tmp_path / "out" / "birds")
    assert config["r"] == 8 and config["lora_alpha"] == pytest.approx(8 * 16 / 3, abs=0)
    assert {t.shape[0] for name, t in tensors.items() if "lora_A" in name} == {8}
    assert {t.shape[1] for name, t in tensors.items() if "lora_B" in name} == {8}
    assert notes["hidecmoe_rank"] == "3" and len(notes["hidecmoe_base"]) == 64
    assert not (tmp_path / "out" / "birds" / "before5").exists()
    wide = [tensors[name] for name in tensors if "lora_A" in name]
    assert not any(leaf[3:].any() for leaf in wide)


@pytest.mark.parametrize(("rank", "served"), [(1, 8), (8, 8), (9, 16), (33, 64), (257, 320), (321, 512), (512, 512)])
def test_a_rank_goes_up_to_the_next_served_one(rank, served):
    assert served_rank(rank) == served


def test_a_rank_that_nobody_serves_is_refused():
    with pytest.raises(ConfigError, match="--to hf"):
        served_rank(513)


def test_a_rank_that_vllm_does_not_serve_goes_out_as_it_is_where_vllm_is_not_meant(world, tmp_path, capsys):
    lora = {"rank": 513, "sites": ["k_proj"]}
    run = world[1]("wide", lora=lora, growth="shared", train_projector=False)
    hj.export(run, tmp_path / "peft", hj.ExportOptions("peft", tree="since5"))
    hj.export(run, tmp_path / "hub", hj.ExportOptions("hub"))
    for folder in (tmp_path / "peft" / "wide", tmp_path / "hub" / "experts" / "fish"):
        config, tensors, notes = read_adapter(folder)
        assert config["r"] == 513 and notes["hidecmoe_rank"] == "513"
        assert {leaf.shape[0] for name, leaf in tensors.items() if "lora_A" in name} == {513}
    last = experts(run, 1)
    wanted = 16 / 513 * (last["a/k_proj"][1, :, 0].astype(np.float64) @ last["b/k_proj"][1, 0]).T
    np.testing.assert_allclose(update(tmp_path / "peft" / "wide", "k_proj", 1), wanted, rtol=1e-6, atol=1e-9)
    assert main(["export", str(run), str(tmp_path / "vllm"), "--to", "vllm"]) == 2
    assert "--to hf" in capsys.readouterr().err


@pytest.mark.parametrize("rank", [8, 16, 512])
def test_filling_up_the_rank_keeps_the_update_to_the_bit(rank):
    random = np.random.default_rng(0)
    a, b = random.normal(size=(5, 3)).astype(np.float32), random.normal(size=(3, 4)).astype(np.float32)
    small = LoraWeights({"q_proj": [a]}, {"q_proj": [b]}, 2.0)
    large = with_rank(small, rank)
    assert large.rank == rank and alpha_of(2.0, rank) / rank == 2.0
    np.testing.assert_allclose(large.delta("q_proj", 0), small.delta("q_proj", 0), rtol=1e-15)
    back = with_rank(large, 3)
    assert (back.a["q_proj"][0] == a).all() and (back.b["q_proj"][0] == b).all()
    with pytest.raises(ValueError, match="more than rank 2"):
        with_rank(large, 2)


def test_the_tuned_projector_goes_along_and_nothing_else(hide, tmp_path):
    hj.export(hide, tmp_path / "out", hj.ExportOptions("peft"))
    shared = Ledger(hide / "seed_0").load(1)[0]["shared"]
    for folder, prefix in (("fish", "model."), ("fish/before5", "")):
        config, tensors, _ = read_adapter(tmp_path / "out" / folder)
        assert config["modules_to_save"] == ["multi_modal_projector"]
        projector = {name: leaf for name, leaf in tensors.items() if "lora" not in name}
        assert len(projector) == 4
        weight = projector[f"base_model.model.{prefix}multi_modal_projector.linear_2.weight"]
        np.testing.assert_array_equal(weight, shared["projector/linear2/kernel"].T)


def test_the_names_are_those_of_either_tree_and_never_of_the_vision_tower(hide, tmp_path):
    hj.export(hide, tmp_path / "out", hj.ExportOptions("peft"))
    for folder, tree in (("birds", "since5"), ("birds/before5", "before5")):
        config, tensors, _ = read_adapter(tmp_path / "out" / folder)
        modules = {name[len("base_model.model.") :].rsplit(".lora_", 1)[0] for name in tensors if "lora_" in name}
        assert modules == {f"{TREES[tree]}.{layer}.{part}" for layer in range(3) for part in MODULES.values()}
        pattern = config["target_modules"]
        assert all(re.fullmatch(pattern, module) for module in modules)
        assert not re.fullmatch(pattern, "model.vision_tower.encoder.layers.0.self_attn.q_proj")


def test_a_fusion_that_is_a_sum_of_products_is_one_adapter_of_all_their_ranks(world, tmp_path):
    run = world[1]("product", fusion="product_mean", train_projector=False)
    hj.export(run, tmp_path / "out", hj.ExportOptions("peft", tree="since5"))
    config, _, notes = read_adapter(tmp_path / "out" / "birds")
    assert config["modules_to_save"] is None and notes["hidecmoe_rank"] == "6"
    one, two = experts(run, 0), experts(run, 1)
    products = [part["a/up_proj"][0, :, 0].astype(np.float64) @ part["b/up_proj"][0, 0] for part in (one, two)]
    wanted = 16 / 3 * (products[0] + products[1]) / 2
    np.testing.assert_allclose(update(tmp_path / "out" / "birds", "up_proj", 0), wanted.T, rtol=1e-5, atol=1e-8)


def test_one_shared_expert_is_one_adapter_with_the_name_of_the_method(world, tmp_path):
    run = world[1]("sequential", growth="shared")
    hj.export(run, tmp_path / "out", hj.ExportOptions("peft"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["MANIFEST.json", "sequential"]
    last = experts(run, 1)
    wanted = 16 / 3 * (last["a/k_proj"][1, :, 0].astype(np.float64) @ last["b/k_proj"][1, 0]).T
    np.testing.assert_allclose(update(tmp_path / "out" / "sequential", "k_proj", 1), wanted, rtol=1e-6, atol=1e-9)


def test_token_routed_experts_are_refused_by_name_with_what_to_use(world, tmp_path, capsys):
    root = world[0]
    config = run_config(root / "base", "cmoe", **{"kind": "mixture", "lora": {"rank": 3, "sites": ["ffn"]}})
    write_run(
        root / "cmoe",
        config,
        load_model(root / "base"),
        (),
        (),
        facts={},
        digest=trees.digest(load_model(root / "base").params),
    )
    for form in ("peft", "vllm", "hf"):
        assert main(["export", str(root / "cmoe"), str(tmp_path / form), "--to", form, "--task", "birds"]) == 2
        error = capsys.readouterr().err
        assert "cmoe" in error and "ffn" in error and "--to hub" in error
        assert not (tmp_path / form).exists()


def test_nothing_is_overwritten_unasked_and_nothing_is_left_half_written(hide, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    words = ["export", str(hide), str(out), "--to", "peft", "--tree", "since5"]
    assert main(words) == 2
    assert "mine.txt" in capsys.readouterr().err and (out / "mine.txt").read_text() == "keep"
    assert main([*words, "--task", "brids", "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'birds'" in error and sorted(p.name for p in tmp_path.iterdir()) == [".out.lock", "out"]
    assert main([*words, "--task", "birds", "--overwrite"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["MANIFEST.json", "birds"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.lock", "out"], "the lock stays: it is never deleted"


def test_two_writers_of_one_folder_never_meet(tmp_path):
    """The second is turned away, whatever stage the first is in, and the first one's folder is its own alone."""
    with fresh_folder(tmp_path / "out", overwrite=False) as aside:
        (aside / "first.txt").write_text("whole")
        for overwrite in (False, True):
            with pytest.raises(BusyError, match="another process is writing"):
                with fresh_folder(tmp_path / "out", overwrite=overwrite):
                    pass
        with fresh_folder(tmp_path / "other", overwrite=False):
            pass
    with fresh_folder(tmp_path / "out", overwrite=True) as aside:
        (aside / "second.txt").write_text("whole")
        (tmp_path / "out").rename(tmp_path / ".out.old")  # as far as another one may be between its two renames
        with pytest.raises(BusyError):
            with fresh_folder(tmp_path / "out", overwrite=True):
                pass
        assert not (tmp_path / "out").exists()
        (tmp_path / ".out.old").rename(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["second.txt"]


def test_a_crash_between_the_renames_brings_the_old_folder_back(tmp_path):
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="mine.txt"):
        with fresh_folder(tmp_path / "out", overwrite=False):
            pass
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("place", ["plain/out", "plain/deep/out"])
def test_a_place_where_no_folder_can_be_is_refused(tmp_path, place):
    (tmp_path / "plain").write_text("a file")
    with pytest.raises(HidecmoeError, match="could not make the output folder"):
        with fresh_folder(tmp_path / place, overwrite=False):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]


@pytest.mark.parametrize(("place", "why"), [(".", "what is read"), ("base", "it holds a model")])
def test_the_run_and_its_base_are_never_overwritten_by_their_own_export(hide, tmp_path, place, why, capsys):
    base = hide.parent / "base"
    target = {".": hide, "base": base}[place]
    before = sorted(path.name for path in target.rglob("*"))
    assert main(["export", str(hide), str(target), "--to", "peft", "--overwrite"]) == 2
    assert why in capsys.readouterr().err
    assert sorted(path.name for path in target.rglob("*")) == before
