"""Checkpoints and hub folders that a run is written to, read back by safetensors itself and by `adopt`."""

import json
import shutil

import numpy as np
import pytest
from export_world import MODULES, make_run, update
from huggingface_hub import ModelCard
from safetensors.numpy import load_file
from tiny import TINY, run_config, write_base

import hidecmoe_jax as hj
from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.models.store import load_model
from hidecmoe_jax.port.adopt import write_run
from hidecmoe_jax.port.checkpoints.convert import convert
from hidecmoe_jax.port.exports.hf import write_clip, write_hf
from hidecmoe_jax.port.exports.hub import read_hub
from hidecmoe_jax.runs.finished import load_run
from hidecmoe_jax.runs.folder import RunFolder
from hidecmoe_jax.runs.ledger import Ledger
from hidecmoe_jax.runs.scores import Cells
from hidecmoe_jax.storage.manifest import verify, write_manifest

TASKS = ("birds", "fish")
LLM = "language_model.model.layers"


@pytest.fixture(scope="module")
def hide(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return make_run(root / "hide", write_base(root / "base"), "hide", TASKS)


def tensors(folder):
    return {name: leaf for path in sorted(folder.glob("*.safetensors")) for name, leaf in load_file(path).items()}


@pytest.mark.parametrize("form", ["hub", "peft", "vllm", "hf", "hf-base"])
def test_no_file_of_an_export_says_where_anything_lies_on_this_machine(hide, tmp_path, form):
    tasks = ("birds",) if form == "hf" else ()
    hj.export(hide, tmp_path / "out", hj.ExportOptions(form, tasks))
    exported = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert exported
    for path in exported:
        content = path.read_bytes()
        for place in (hide.parent, tmp_path):
            assert str(place).encode() not in content, path


def test_the_base_comes_out_with_every_number_of_every_leaf(hide, tmp_path):
    hj.export(hide, tmp_path / "out", hj.ExportOptions("hf-base"))
    found, params = tensors(tmp_path / "out"), load_model(hide.parent / "base").params
    assert len(found) == 9 * 3 + 3 + 4 + 16 * 2 + 3 + 4  # decoder layers, rest, projector, vision layers, stem, norms
    q = np.asarray(params["decoder"]["layers"]["q_proj"]["kernel"])
    for layer in range(3):
        np.testing.assert_array_equal(found[f"{LLM}.{layer}.self_attn.q_proj.weight"], q[layer].T)
    np.testing.assert_array_equal(found["language_model.lm_head.weight"], params["decoder"]["head"]["kernel"].T)
    patch = found["vision_tower.vision_model.embeddings.patch_embedding.weight"]
    assert patch.shape == (16, 3, 8, 8)
    # Our rows run over the patch as it lies in memory: height, width, colour.
    kernel = np.asarray(params["vision"]["stem"]["patch"]["kernel"])
    np.testing.assert_array_equal(patch[:, 2, 5, 1], kernel[(5 * 8 + 1) * 3 + 2])
    clip = tensors(tmp_path / "out" / "clip")
    np.testing.assert_array_equal(clip["text_projection.weight"], params["text"]["head"]["projection"]["kernel"].T)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "llava" and config["image_token_index"] == 4
    assert config["text_config"]["num_hidden_layers"] == 3 and config["vision_config"]["patch_size"] == 8
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    verify(tmp_path / "out")


def test_a_base_folder_can_be_written_without_a_run(hide, tmp_path):
    hj.export(hide.parent / "base", tmp_path / "out", hj.ExportOptions("hf-base"))
    hj.export(hide, tmp_path / "of_run", hj.ExportOptions("hf-base"))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "of_run" / "model.safetensors"
    ).read_bytes()


def test_large_checkpoints_come_in_shards_with_an_index_that_names_every_tensor(hide, tmp_path):
    hj.export(hide, tmp_path / "one", hj.ExportOptions("hf-base"))
    hj.export(hide, tmp_path / "many", hj.ExportOptions("hf-base", shard_gib=30_000 / 2**30))
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2 and sorted(set(index["weight_map"].values())) == files
    one, many = tensors(tmp_path / "one"), tensors(tmp_path / "many")
    assert trees.digests(one) == trees.digests(many)
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in one.values())
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "many" / file)


def test_a_merged_model_is_the_base_plus_the_adapter_of_the_task(hide, tmp_path):
    hj.export(hide, tmp_path / "merged", hj.ExportOptions("hf", tasks=("fish",)))
    hj.export(hide, tmp_path / "base", hj.ExportOptions("hf-base"))
    hj.export(hide, tmp_path / "peft", hj.ExportOptions("peft", tree="since5"))
    merged, base = tensors(tmp_path / "merged"), tensors(tmp_path / "base")
    changed = {name for name in base if not np.array_equal(base[name], merged[name])}
    linears = {f"{LLM}.{layer}.{part}.weight" for layer in range(3) for part in MODULES.values()}
    assert changed == linears | {name for name in base if "projector" in name}
    for site, part in MODULES.items():
        for layer in range(3):
            name = f"{LLM}.{layer}.{part}.weight"
            wanted = base[name] + update(tmp_path / "peft" / "fish", site, layer)
            np.testing.assert_allclose(merged[name], wanted, rtol=1e-5, atol=1e-5)


def test_a_merged_model_needs_one_task(hide, tmp_path, capsys):
    assert main(["export", str(hide), str(tmp_path / "out"), "--to", "hf"]) == 2
    assert "--task birds | fish" in capsys.readouterr().err


def test_for_vllm_the_projector_is_in_the_base_and_not_in_the_adapters(hide, tmp_path, capsys):
    assert main(["export", str(hide), str(tmp_path / "out"), "--to", "vllm"]) == 0
    assert "--max-lora-rank 8" in capsys.readouterr().out
    base, shared = tensors(tmp_path / "out" / "base"), Ledger(hide / "seed_0").load(1)[0]["shared"]
    weight = base["multi_modal_projector.linear_1.weight"]
    np.testing.assert_array_equal(weight, shared["projector/linear1/kernel"].T)
    for name in TASKS:
        config = json.loads((tmp_path / "out" / name / "adapter_config.json").read_text())
        assert config["modules_to_save"] is None and config["r"] == 8
        assert all("lora_" in key for key in tensors(tmp_path / "out" / name))


def test_a_hub_folder_has_its_parts_and_becomes_the_same_run_again(hide, tmp_path):
    hj.export(hide, tmp_path / "hub", hj.ExportOptions("hub"))
    hub = tmp_path / "hub"
    for part in ("README.md", "hidecmoe.json", "projector.safetensors", "MANIFEST.json", "routing/thresholds.json"):
        assert (hub / part).is_file(), part
    assert (hub / "routing" / "prototypes.safetensors").is_file()
    assert sorted(p.name for p in (hub / "experts").iterdir()) == sorted(TASKS)
    assert not [p for p in hub.rglob("*") if p.suffix in (".bin", ".pt", ".pkl", ".py")]
    (hub / "README.md").write_text("a card of my own")
    hj.adopt(hide.parent / "base", [hub], tmp_path / "back")
    for task in range(2):
        before, after = (Ledger(run / "seed_0").load(task)[0] for run in (hide, tmp_path / "back"))
        assert trees.digests(before) == trees.digests(after)
    again, first = load_run(tmp_path / "back"), load_run(hide)
    assert again.config.method == first.config.method and again.tasks == TASKS
    assert trees.digest(again.learner.past) == trees.digest(first.learner.past)


def test_the_card_is_yaml_and_words_and_the_facts_name_the_base(hide, tmp_path):
    import yaml

    hide = shutil.copytree(hide, tmp_path / "run")
    Cells(RunFolder(hide).seed(0).cells).write(len(TASKS), TASKS[0], {"score": 62.5})
    lines = hj.export(hide, tmp_path / "hub", hj.ExportOptions("hub", base="llava-hf/llava-1.5-7b-hf"))
    assert any(line.strip() == f"hf upload YOUR_NAME/hub {tmp_path / 'hub'}" for line in lines)
    text = (tmp_path / "hub" / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["base_model"] == "llava-hf/llava-1.5-7b-hf" and head["pipeline_tag"] == "image-text-to-text"
    assert {"continual-learning", "lora"} <= set(head["tags"])
    # The hub's own reader finds the measured scores.
    (result,) = ModelCard.load(tmp_path / "hub" / "README.md").data.eval_results
    assert (result.dataset_name, result.metric_value) == (TASKS[0], 62.5)
    for section in ("Intended use", "Data", "Scores", "Forgetting", "Routing", "Limits"):
        assert f"## {section}" in text
    facts = json.loads((tmp_path / "hub" / "hidecmoe.json").read_text())
    assert facts["base"]["sha256"] == load_run(hide).base and facts["layer_roles"]["expanded"] == [2]
    assert facts["experts"] == list(TASKS) and len(facts["base"]["files"]["tokenizer.json"]) == 64


def test_a_mixture_goes_to_a_hub_and_back(tmp_path):
    base = write_base(tmp_path / "base")
    plain = {"kind": "mixture", "growth": "uniform", "start": "blank", "lora": {"rank": 2, "sites": ["ffn"]}}
    config, model = run_config(base, "cmoe", **plain), load_model(base)
    method, random = config.method, np.random.default_rng(0)
    learner = method.init(model, 4)
    visible = np.array(learner.memory.visible)
    visible[0, :, :2] = True
    kept = method.to_archive(learner.replace(memory=learner.memory.replace(visible=visible)), 0)
    experts = {p: random.normal(size=x.shape).astype(x.dtype) for p, x in kept["experts"].items() if p != "owner"}
    experts["owner"] = np.zeros(kept["experts"]["owner"].shape, np.int32)
    lesson = {"experts": experts, "shared": {}, "memory": {p: np.asarray(x) for p, x in kept["memory"].items()}}
    write_run(tmp_path / "run", config, model, ("birds",), [lesson], facts={}, digest=trees.digest(model.params))
    hj.export(tmp_path / "run", tmp_path / "hub", hj.ExportOptions("hub"))
    assert (tmp_path / "hub" / "experts" / "birds" / "experts.safetensors").is_file()
    hj.adopt(base, [tmp_path / "hub"], tmp_path / "back")
    before, after = (Ledger(tmp_path / run / "seed_0").load(0)[0] for run in ("run", "back"))
    assert trees.digests(before) == trees.digests(after)


@pytest.fixture(scope="module")
def hub(hide, tmp_path_factory):
    """A hub folder to copy and spoil."""
    folder = tmp_path_factory.mktemp("hub") / "hub"
    hj.export(hide, folder, hj.ExportOptions("hub"))
    return folder


def test_a_damaged_hub_folder_is_refused_with_the_file(hub, tmp_path):
    broken = shutil.copytree(hub, tmp_path / "broken")
    victim = broken / "routing" / "prototypes.safetensors"
    raw = bytearray(victim.read_bytes())
    raw[-3] ^= 1
    victim.write_bytes(bytes(raw))
    with pytest.raises(CheckpointError, match="prototypes"):
        read_hub(broken)


@pytest.mark.parametrize("name", ["routing/more.safetensors", "experts/birds/adapter_model.safetensors"])
def test_a_hub_folder_with_a_file_that_nobody_sealed_or_an_empty_seal_is_refused(hub, tmp_path, name):
    more = shutil.copytree(hub, tmp_path / "more")
    (more / "README.md").write_text("its author's own card")
    (more / ".gitattributes").write_text("of the hub")
    assert len(read_hub(more).lessons) == 2
    shutil.copyfile(hub / "projector.safetensors", more / name)
    with pytest.raises(CheckpointError, match=name):
        read_hub(more)
    (more / "MANIFEST.json").write_text(json.dumps({"files": {}}))
    with pytest.raises(CheckpointError, match="manifest is damaged"):
        read_hub(more)


def spoilt(hub, folder, change):
    """A sealed copy whose facts say something else."""
    shutil.copytree(hub, folder)
    facts = json.loads((folder / "hidecmoe.json").read_text())
    change(facts)
    (folder / "hidecmoe.json").write_text(json.dumps(facts))
    write_manifest(folder)
    return folder


def test_a_hub_folder_that_names_code_is_refused(hide, hub, tmp_path):
    evil = spoilt(hub, tmp_path / "evil", lambda facts: facts["config"]["method"].update(kind="os:system"))
    with pytest.raises(ConfigError, match="never runs code"):
        hj.adopt(hide.parent / "base", [evil], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda facts: facts.pop("experts"), "experts"),
        (lambda facts: facts.update(experts=["birds", 3]), "experts.1"),
        (lambda facts: facts.update(experts=["birds", "../fish"]), "name of a task"),
        (lambda facts: facts.update(experts=["birds", "birds"]), "twice"),
        (lambda facts: facts.update(experts=["birds"]), "routes to a task"),
        (lambda facts: facts.update(base="a name"), "base"),
        (lambda facts: facts.update(base={}), "base.sha256"),
        (lambda facts: facts["config"].update(seeds=[]), "seeds"),
        (lambda facts: facts["config"].update(method="hide"), "method"),
        (lambda facts: facts["config"]["method"]["gate"].update(kind=[1]), "gate.kind"),
        (lambda facts: facts.update(config=[1]), "method"),
        (lambda facts: facts.update(edits={"a": 1}), "edits"),
    ],
)
def test_malformed_facts_of_a_hub_folder_are_refused_with_their_field(hub, tmp_path, change, said):
    with pytest.raises(hj.HidecmoeError, match=said) as error:
        read_hub(spoilt(hub, tmp_path / "hub", change))
    assert "hidecmoe.json" in str(error.value)


def test_the_card_knows_of_leaks_only_where_the_training_was_ours(hide, tmp_path):
    """The first task was learned here, the second one came with an adapter."""
    run = shutil.copytree(hide, tmp_path / "run")
    shutil.rmtree(run / "seed_0")
    for task, name in enumerate(TASKS):
        groups, facts = Ledger(hide / "seed_0").load(task)
        Ledger(run / "seed_0").commit(task, name, groups, meta=facts | ({"adopted": []} if task else {}))
    for row, said in ((1, "was checked before it"), (2, "is not known of fish: ")):
        hj.export(run, tmp_path / str(row), hj.ExportOptions("hub", row=row))
        assert said in (tmp_path / str(row) / "README.md").read_text()


def test_a_hub_folder_of_another_base_is_refused(hide, tmp_path):
    hj.export(hide, tmp_path / "hub", hj.ExportOptions("hub"))
    other = write_base(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="another base model"):
        hj.adopt(other, [tmp_path / "hub"], tmp_path / "out")
    assert TINY.decoder.layers == 3 and not (tmp_path / "out").exists()


def test_a_base_goes_out_and_comes_in_again_byte_for_byte(hide, tmp_path):
    hj.export(hide, tmp_path / "out", hj.ExportOptions("hf-base"))
    convert(tmp_path / "out", tmp_path / "in", clip=tmp_path / "out" / "clip")
    again, before = load_model(tmp_path / "in"), load_model(hide.parent / "base")
    assert trees.digests(again.params) == trees.digests(before.params)
    assert again.config == before.config and again.config.text.eos_token == 2, "transformers' word for the largest id"
    write_hf(again, tmp_path / "twice", tokenizer=tmp_path / "in")
    write_clip(again, tmp_path / "twice" / "clip", tokenizer=tmp_path / "in")
    for name in ("model.safetensors", "clip/model.safetensors"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize("form", ["peft", "hub", "hf-base"])
def test_every_file_that_goes_out_is_as_readable_as_any_other(hide, tmp_path, form):
    (tmp_path / "plain").touch()
    hj.export(hide, tmp_path / "out", hj.ExportOptions(form))
    modes = {path.stat().st_mode for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode}
