"""Adapters and checkpoints of other tools, and code that a folder names."""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from foreign_adapters import MODULES, lora_tensors, peft_folder, write_folder
from tiny import TINY, run_config, write_stream, write_tokenizer

import hidecmoe_jax as hj
from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import CheckpointError, ConfigError, HidecmoeError
from hidecmoe_jax.models.llava import init_model
from hidecmoe_jax.models.store import save_model
from hidecmoe_jax.port.adapters.read import read_adapter
from hidecmoe_jax.port.checkpoints.settings import llava_config
from hidecmoe_jax.port.checkpoints.source import Source
from hidecmoe_jax.runs.config import config_of, from_mapping, load_config, to_mapping
from hidecmoe_jax.runs.session import open_session
from hidecmoe_jax.scoring.score import score, scorer_of

# What PEFT 0.21 writes for LoraConfig(target_modules=[...]): every field, most of them at their defaults.
PEFT_DEFAULTS = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
    "base_model_name_or_path": "llava-hf/llava-1.5-7b-hf", "bias": "none", "corda_config": None,
    "ensure_weight_tying": False, "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False,
    "inference_mode": True, "init_lora_weights": True, "kasa_config": None, "layer_replication": None,
    "layers_pattern": None, "layers_to_transform": None, "loftq_config": {}, "lora_bias": False,
    "lora_ga_config": None, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
    "monteclora_config": None, "peft_version": "0.21.2", "qalora_group_size": 16, "rank_pattern": {},
    "revision": None, "target_modules": ["q_proj", "v_proj"], "target_parameters": None, "task_type": "CAUSAL_LM",
    "trainable_token_indices": None, "use_bdlora": None, "use_dora": False, "use_qalora": False,
    "use_rslora": False, "velora_config": None,
}  # fmt: skip


def test_fault_a7_a_setting_that_is_on_and_unknown_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="adapter_config.json: use_future_thing") as caught:
        read_adapter(peft_folder(tmp_path / "a", use_future_thing=True))
    assert "hidecmoe convert" in str(caught.value)


def test_fault_a7_every_field_of_the_newest_peft_is_read_and_an_unknown_one_that_is_off_is_no_matter(tmp_path):
    folder = peft_folder(tmp_path / "a", **PEFT_DEFAULTS, use_future_thing=False, later_config=None, lists=[])
    assert read_adapter(folder).experts[0].scale == 2.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("use_qalora", True),
        ("lora_bias", True),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("trainable_token_indices", [5]),
        ("alora_invocation_tokens", [7]),
        ("monteclora_config", {"num_samples": 8}),
        ("kasa_config", {"rank": 4}),
        ("arrow_config", {"top_k": 3}),
        ("megatron_config", {"hidden": 8}),
        ("future_scale", 2.0),
        ("future_text", "on"),
    ],
)
def test_fault_a7_settings_that_change_the_update_are_refused_by_name(tmp_path, key, value):
    with pytest.raises(ConfigError, match=f"adapter_config.json: {key}"):
        read_adapter(peft_folder(tmp_path / "a", **{key: value}))


@pytest.mark.parametrize("value", ["false", "true", 1, [True]])
def test_fault_a7_a_scale_that_is_switched_by_no_bool_is_refused(tmp_path, value):
    with pytest.raises(ConfigError, match="adapter_config.json: use_rslora"):
        read_adapter(peft_folder(tmp_path / "a", use_rslora=value))
    assert read_adapter(peft_folder(tmp_path / "b", use_rslora=True)).experts[0].scale == 8 / 4**0.5


@pytest.mark.parametrize("setting", [{"expert_num": 4}, {"cur_task": 2}, {"peft_type": "MOE_LORA_CoIN"}])
def test_fault_a7_a_mixture_whose_experts_are_not_there_is_no_plain_adapter(tmp_path, setting):
    with pytest.raises((ConfigError, CheckpointError), match=f"{next(iter(setting))}"):
        read_adapter(peft_folder(tmp_path / "a", **setting))


@pytest.mark.parametrize("name", ["lm_head", "multi_modal_projector", "model.embed_tokens"])
def test_fault_a7_a_module_that_is_said_to_be_saved_and_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"modules_to_save\n.*{name}"):
        read_adapter(peft_folder(tmp_path / "a", modules_to_save=[name]))


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_fault_d6_trained_biases_of_linears_without_biases_are_no_obstacle(tmp_path, bias):
    plain = read_adapter(peft_folder(tmp_path / "plain")).experts[0]
    biased = read_adapter(peft_folder(tmp_path / "biased", bias=bias)).experts[0]
    np.testing.assert_array_equal(biased.delta("q_proj", 1), plain.delta("q_proj", 1))


@pytest.mark.parametrize("name", ["q_proj.bias", "q_proj.base_layer.bias"])
def test_fault_d6_biases_that_the_weights_hold_are_refused_by_name(tmp_path, name):
    tensors = lora_tensors(modules=MODULES)
    key = f"base_model.model.model.language_model.layers.0.self_attn.{name}"
    tensors[key] = np.ones(8, np.float32)
    config = {"r": 4, "lora_alpha": 8, "bias": "lora_only"}
    with pytest.raises(CheckpointError, match=name):
        read_adapter(write_folder(tmp_path / "a", config, tensors))


def llava_source(tmp_path, **config) -> Source:
    """The settings of a Hugging Face LLaVA with the sizes of LLaVA-1.5, without its tensors."""
    return Source(tmp_path, "checkpoint", {"model_type": "llava", "text_config": {}} | config, {}, ())


def shapes_of(source: Source, layout: str = "hf-llava"):
    return llava_config(layout, source, tower=source, projection=None, text=None, dtype="bfloat16")


def test_fault_d7_a_list_of_one_feature_layer_is_that_layer(tmp_path):
    assert shapes_of(llava_source(tmp_path, vision_feature_layer=[-2])).feature_layer == -2
    assert shapes_of(llava_source(tmp_path, vision_feature_layer=-3)).feature_layer == -3


@pytest.mark.parametrize("layers", [[-2, -1], [], ["-2"], [True], [99]])
def test_fault_d7_other_lists_are_refused_with_the_reason(tmp_path, layers):
    with pytest.raises(CheckpointError, match="vision_feature_layer\n") as caught:
        shapes_of(llava_source(tmp_path, vision_feature_layer=layers))
    assert ("projector of another width" in str(caught.value)) == (len(layers) > 1)


def test_fault_d7_the_two_sides_of_a_square_are_one_size(tmp_path):
    tower = {"image_size": [336, 336], "patch_size": [14, 14], "hidden_size": 1024, "num_attention_heads": 16}
    vision = shapes_of(llava_source(tmp_path, vision_config=tower)).vision
    assert (vision.image_size, vision.patch_size) == (336, 14)
    with pytest.raises(HidecmoeError, match="image_size"):
        shapes_of(llava_source(tmp_path, vision_config=tower | {"image_size": [336, 224]}))


EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
OPENING = {
    "ask": ("{run}", "Which?"),
    "eval": ("{run}",),
    "add": ("{run}", "{run}/task"),
    "export": ("{run}", "{run}/out", "--to", "peft"),
    "inspect": ("{run}",),
    "report": ("{run}",),
    "overlap": ("{run}",),
    "retire": ("{run}", "birds"),
    "merge": ("{run}", "birds", "fish"),
    "restore": ("{run}",),
    "rollback": ("{run}", "--to", "birds"),
    "cka": ("{run}",),
    "foreign": ("{run}", "{run}/task"),
    "control": ("{run}",),
    "data check": ("{run}/config.yaml",),
    "run": ("{run}/config.yaml", "--out", "{run}", "--resume"),
}


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """A run folder of somebody else whose method is a module that leaves a mark when it is imported."""
    code = tmp_path / "code"
    code.mkdir()
    mark = tmp_path / "mark"
    (code / "strange_method.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Strange:\n    pass\n")
    run = tmp_path / "run"
    (run / "task").mkdir(parents=True)
    (run / "config.yaml").write_text("method: {kind: 'strange_method:Strange'}\n")
    (run / "run.json").write_text('{"format": 1, "identity": {"config": {}, "tasks": ["birds"]}}')
    monkeypatch.syspath_prepend(str(code))
    monkeypatch.delitem(sys.modules, "strange_method", raising=False)
    yield run, mark
    sys.modules.pop("strange_method", None)


@pytest.mark.parametrize("command", OPENING)
def test_fault_c5_no_command_imports_what_a_run_folder_names(strange, command):
    run, mark = strange
    words = [word.format(run=run) for word in OPENING[command]]
    # argparse ends a usage error by an exit of its own.
    try:
        code = main([*command.split(), *words])
    except SystemExit as error:
        code = error.code
    assert code and not mark.exists()


def test_fault_c5_the_refusal_names_the_flag_and_the_flag_imports(strange, capsys):
    run, mark = strange
    assert main(["ask", str(run), "Which?"]) == 2
    said = capsys.readouterr().err
    assert "config.yaml: method" in said and "--trust strange_method" in said and not mark.exists()
    assert main(["ask", str(run), "Which?", "--trust", "strange_method"]) == 2
    assert "this class is no method" in capsys.readouterr().err and mark.exists()


def test_fault_c5_load_takes_the_modules_to_trust(strange):
    run, mark = strange
    with pytest.raises(ConfigError, match="outside this package"):
        hj.load(run)
    assert not mark.exists()
    with pytest.raises(ConfigError, match="no method"):
        hj.load(run, trust=["strange_method"])
    assert mark.exists()


@pytest.mark.parametrize("words", [["--trust"], ["--trust", "a b"], ["--trust=../x"], ["--trust", "nowhere_at_all"]])
def test_fault_c5_a_module_to_trust_that_is_none_is_refused(words, capsys):
    assert main(["inspect", "runs/none", *words]) == 2
    assert "hidecmoe: " in capsys.readouterr().err


def test_fault_c5_a_config_of_ones_own_imports_its_method_and_one_in_a_run_folder_does_not(strange, tmp_path):
    run, mark = strange
    with pytest.raises(ConfigError, match="outside this package"):
        load_config(run / "config.yaml")
    assert not mark.exists()
    mine = tmp_path / "mine.yaml"
    mine.write_text((run / "config.yaml").read_text())
    with pytest.raises(ConfigError, match="no method"):
        load_config(mine)
    assert mark.exists()


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The examples of the docs as an installed package with entry points."""
    info = tmp_path / "site" / "examples-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: examples\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[hidecmoe_jax.methods]\nmedians = median_locator:Medians\n"
        "[hidecmoe_jax.locators]\nnearest_median = median_locator:NearestMedian\nother = median_locator:Medians\n"
        "[hidecmoe_jax.scorers]\nwords = words_scorer:WORDS\nbad = words_scorer:judge\n"
    )
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(info.parent))


def test_fault_c5_entry_points_of_installed_packages_add_methods_and_locators(installed, tmp_path):
    locator = {"kind": "routed", "gate": {"kind": "locator", "by": {"kind": "nearest_median", "clip": 3.0}}}
    for number, method in enumerate(({"kind": "medians"}, {"kind": "median_locator:Medians"}, locator)):
        config = from_mapping({"method": method}, imports=False)
        run = tmp_path / str(number)
        run.mkdir()
        hj_config = to_mapping(config)
        assert hj_config["method"]["kind"] == ("routed" if method is locator else "medians")
        assert from_mapping(hj_config, imports=False) == config
    assert config.method.gate.by.clip == 3.0
    with pytest.raises(ConfigError, match="entry point 'other'"):
        from_mapping({"method": {"kind": "routed", "gate": {"kind": "locator", "by": {"kind": "other"}}}})


def test_fault_c5_scorers_come_from_entry_points_or_trusted_modules_alone(installed, strange):
    _, mark = strange
    assert score("words", {"a": "a red bird"}, {"a": ("red bird",)}).value == 100.0
    for name, why in {"bad": "no Scorer", "strange_method:Strange": "--trust strange_method", "wordz": "words"}.items():
        with pytest.raises(ConfigError, match=why):
            scorer_of(name)
    assert not mark.exists()
    import words_scorer

    assert scorer_of("words_scorer:WORDS") is words_scorer.WORDS


def test_fault_c5_an_old_run_of_a_shipped_method_opens_as_before(tmp_path):
    (tmp_path / "config.yaml").write_text("method: {kind: mixture}\n")
    assert config_of(tmp_path).method.name == "cmoe"


@pytest.fixture(scope="module")
def textless(tmp_path_factory):
    """A tiny base without CLIP's text tower, and a task folder."""
    root = tmp_path_factory.mktemp("textless")
    vision = replace(TINY.vision, projection=0)
    base = write_tokenizer(root / "base")
    save_model(init_model(replace(TINY, text=None, vision=vision), jax.random.key(0)), base)
    return base, write_stream(root, ("birds",), train=4, test=2)


def test_fault_d10_a_gate_of_clip_features_refuses_a_base_without_text_tower_when_the_run_is_opened(textless):
    base, tasks = textless
    for gate in ({"kind": "anchors"}, {"kind": "locator", "by": {"kind": "anchors"}}):
        config = run_config(base, "hide", tasks=tasks, kind="routed", gate=gate)
        with pytest.raises(ConfigError, match="no CLIP text tower") as caught:
            open_session(config)
        assert "--clip" in str(caught.value) and "method.gate.kind=locator" in str(caught.value)


def test_fault_d10_a_locator_on_the_bases_own_state_works_without_text_tower(textless):
    base, tasks = textless
    gate = {"kind": "locator", "by": {"kind": "nearest_mean"}, "foreign": 0.0, "kept_apart": 0.5}
    session = open_session(run_config(base, "mine", tasks=tasks, kind="routed", gate=gate, expand="all"))
    inputs = session.inputs(session.stream.tasks[0])
    features = inputs.frozen(np.arange(2))
    method = session.config.method
    memory = method.gate.blank(2, session.model)
    memory = method.gate.fit(memory, 0, features, key=jax.random.key(0))
    decision = method.gate.decide(memory, features, np.array([True, False]))
    assert decision.weight_BN.shape == (2, 2) and np.isfinite(decision.score_BN).all()


def test_fault_d10_a_base_without_text_tower_answers(textless):
    base, tasks = textless
    picture = tasks[0] / "images" / "0.png"
    (answer,) = hj.load(base).generate([picture], ["What is shown?"], max_new_tokens=2)
    assert isinstance(answer.text, str)
