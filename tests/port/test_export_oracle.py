"""Exports in the hands of those they are for: transformers' PyTorch LLaVA and stock PEFT answer as the run does.

Needs torch, transformers with it, and peft; the default tests compare the same numbers with numpy.
"""

import warnings

import make_checkpoints
import numpy as np
import pytest
from export_world import make_run
from foreign_adapters import peft_folder
from tiny import TINY, write_base

import hidecmoe_jax as hj
from hidecmoe_jax.methods.base import Serving
from hidecmoe_jax.models.store import load_model
from hidecmoe_jax.port.checkpoints import check
from hidecmoe_jax.port.checkpoints.convert import convert
from hidecmoe_jax.port.exports.hf import write_hf
from hidecmoe_jax.port.exports.lora_of_task import merged, names_of
from hidecmoe_jax.runs.assistant import Assistant
from hidecmoe_jax.runs.finished import load_run

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.oracle

NEAR = 1e-4
TASKS = ("birds", "fish")
SIDE, PATCHES = TINY.vision.image_size, TINY.vision.patches


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("oracle")
    write_base(root / "base")
    return root


def inputs() -> dict[str, np.ndarray]:
    """Two prompts, one with a picture, the other padded on the right."""
    random = np.random.default_rng(5)
    ids = random.integers(5, TINY.decoder.vocabulary, (2, 12))
    ids[0, 2 : 2 + PATCHES] = TINY.image_token
    mask = np.ones((2, 12), np.int64)
    mask[1, 9:] = 0
    pixels = random.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def ours(run, task: int) -> np.ndarray:
    found = load_run(run)
    serving = Serving(merged(found, task), None, None, {})
    return Assistant(found.config, found.model, serving, found.tokenizer, ()).logits(**inputs())


def theirs(model) -> np.ndarray:
    with torch.no_grad():
        return model(**{name: torch.from_numpy(value) for name, value in inputs().items()}).logits.numpy()


def llava(folder):
    return transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def apart(one: np.ndarray, other: np.ndarray) -> float:
    valid = inputs()["attention_mask"].astype(bool)
    return float(np.abs(one - other)[valid].max())


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("hide", {}),
        ("product", {"fusion": "product_mean"}),
        ("frozen", {"train_projector": False}),
        ("shared", {"growth": "shared"}),
    ],
)
def test_peft_answers_every_task_as_the_run_does(root, tmp_path, name, method):
    run = make_run(root / name, root / "base", name, TASKS, **method)
    hj.export(run, tmp_path / "base", hj.ExportOptions("hf-base"))
    hj.export(run, tmp_path / "peft", hj.ExportOptions("peft"))
    hj.export(run, tmp_path / "vllm", hj.ExportOptions("vllm"))
    bare = theirs(llava(tmp_path / "base"))
    for task, number in names_of(load_run(run)).items():
        wanted = ours(run, number)
        assert apart(wanted, bare) > 0.01, "a silent adapter would prove nothing"
        for base, adapter in ((tmp_path / "base", "peft"), (tmp_path / "vllm" / "base", "vllm")):
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # PEFT warns about keys that it misses
                model = peft.PeftModel.from_pretrained(llava(base), tmp_path / adapter / task)
            found = apart(theirs(model.eval()), wanted)
            print(f"{name} {task} {adapter}: {found:.2e}")
            assert found < NEAR
        hj.export(run, tmp_path / task, hj.ExportOptions("hf", tasks=(task,)))
        found = apart(theirs(llava(tmp_path / task)), wanted)
        print(f"{name} {task} merged: {found:.2e}")
        assert found < NEAR


class Before5(torch.nn.Module):
    """LLaVA's module tree before transformers 4.52: a whole causal model below `language_model`."""

    def __init__(self, model):
        super().__init__()
        self.config = {"model_type": "other"}
        self.vision_tower, self.multi_modal_projector = model.model.vision_tower, model.model.multi_modal_projector
        self.language_model = transformers.LlamaForCausalLM(model.config.text_config)
        self.language_model.model, self.language_model.lm_head = model.model.language_model, model.lm_head

    def forward(self, input_ids):
        return self.language_model(input_ids=input_ids).logits


def test_the_older_module_tree_takes_the_adapter_too(root, tmp_path):
    run = make_run(root / "older", root / "base", "hide", TASKS)
    hj.export(run, tmp_path / "base", hj.ExportOptions("hf-base"))
    hj.export(run, tmp_path / "peft", hj.ExportOptions("peft"))
    model = peft.PeftModel.from_pretrained(Before5(llava(tmp_path / "base")), tmp_path / "peft" / "fish" / "before5")
    ids = inputs()["input_ids"][1:, :9]
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(ids)).numpy()
    wanted = ours(run, 1)[1:, :9]
    assert np.abs(found - wanted).max() < NEAR
    tuned = model.base_model.model.multi_modal_projector.modules_to_save["default"].linear_1.weight
    kernel = load_run(run).learner.shared["projector/linear1/kernel"]
    np.testing.assert_array_equal(tuned.detach().numpy(), np.asarray(kernel).T)


def test_an_adapter_that_peft_saved_answers_here_as_it_does_there(root, tmp_path):
    run = make_run(root / "bare", root / "base", "hide", TASKS)
    hj.export(run, tmp_path / "base", hj.ExportOptions("hf-base"))
    config = peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=r".*language_model.*\.(q_proj|up_proj)")
    model = peft.get_peft_model(llava(tmp_path / "base"), config)
    with torch.no_grad():
        for name, leaf in model.named_parameters():
            if "lora_B" in name:
                leaf.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "saved")
    hj.adopt(root / "base", [tmp_path / "saved"], tmp_path / "run")
    assert apart(theirs(model.eval()), ours(tmp_path / "run", 0)) < NEAR


def test_the_drawn_adapters_of_the_other_tests_are_such_that_peft_loads(root, tmp_path):
    run = make_run(root / "drawn", root / "base", "hide", TASKS)
    hj.export(run, tmp_path / "base", hj.ExportOptions("hf-base"))
    given = peft_folder(tmp_path / "given", target_modules=r".*language_model.*\.\w+_proj")
    model = peft.PeftModel.from_pretrained(llava(tmp_path / "base"), given)
    hj.adopt(root / "base", [given], tmp_path / "run")
    assert apart(theirs(model.eval()), ours(tmp_path / "run", 0)) < NEAR


def test_a_base_from_vicuna_answers_though_its_table_ends_before_the_image_token(tmp_path):
    source, clip = (make_checkpoints.write(layout, tmp_path) for layout in ("vicuna", "clip_plain"))
    convert(source, tmp_path / "base", clip=clip, projector=tmp_path / "vicuna_projector")
    mine = load_model(tmp_path / "base")
    rows, image = mine.config.decoder.vocabulary, mine.config.image_token
    assert image == rows
    write_hf(mine, tmp_path / "out", tokenizer=tmp_path / "base")
    probe = check.probe(mine.config)
    with torch.no_grad():
        logits = llava(tmp_path / "out")(
            input_ids=torch.from_numpy(probe["tokens"]).long(),
            attention_mask=torch.from_numpy(probe["mask"]).long(),
            pixel_values=torch.from_numpy(probe["pixels"].transpose(0, 3, 1, 2)),
        ).logits.numpy()  # fmt: skip
    assert logits.shape[-1] % 64 == 0 and logits.shape[-1] > image
    places = probe["where"][::2]
    found = logits[places[:, 0], places[:, 1]]
    assert np.abs(found[:, :rows] - check.ours(mine, probe)["logits"]).max() < NEAR
    assert found.argmax(-1).max() < rows
