"""A conversion is exact, goes on where it was stopped, writes nothing by halves, and brings words and settings along.

That the converted model is the model it was, layout by layout, is shown against the oracle in test_parity_layouts.py.
"""

from __future__ import annotations

import hashlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import convert_world as world
import make_checkpoints
import ml_dtypes
import numpy as np
import pytest
import sentencepiece
from PIL import Image
from safetensors.numpy import load_file
from tiny import write_tokenizer

from hidecmoe_jax.core.errors import CheckpointError, HidecmoeError, ResourceError
from hidecmoe_jax.data.images import load, normalise
from hidecmoe_jax.data.tokenizer import Tokenizer
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.models.store import load_model
from hidecmoe_jax.port.checkpoints.convert import convert
from hidecmoe_jax.port.checkpoints.sentencepiece import PROBES, from_sentencepiece, wrong_ids
from hidecmoe_jax.port.exports.hf import write_hf
from hidecmoe_jax.runs.config import Base, RunConfig
from hidecmoe_jax.runs.session import open_base
from hidecmoe_jax.storage.manifest import NAME as MANIFEST
from hidecmoe_jax.storage.manifest import verify

ROOT = Path(__file__).resolve().parents[2]
KEY = "language_model.model.layers.1.self_attn.q_proj.weight"
LEAF = "decoder/layers/q_proj/kernel"


def leaves_of(folder: Path) -> dict[str, np.ndarray]:
    """The stored leaves of a small base model."""
    return load_file(folder / "model.safetensors")


def test_a_dry_run_settles_everything_and_writes_nothing(hub, clip, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    report = convert(hub, tmp_path / "out", clip=clip, dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    real = convert(hub, tmp_path / "out", clip=clip)
    assert (report.tensors, report.leaves, report.nbytes) == (real.tensors, real.leaves, real.nbytes)
    assert report.seconds == 0 and "MB/s" in " ".join(real.lines()) and "disk needed" in " ".join(report.lines())
    assert real.nbytes == sum(leaf.nbytes for leaf in leaves_of(tmp_path / "out").values())


def test_the_folder_is_sealed_and_its_record_says_where_everything_came_from(hub, clip, tmp_path):
    report = convert(hub, tmp_path / "out", clip=clip)
    verify(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["checked"] == "not checked" and "oracle" in report.lines()[-1]
    main, pair = record["sources"]
    files = main["files"]
    assert (main["role"], main["folder"], pair["role"]) == ("checkpoint", "hub", "--clip")
    assert {"config.json", "tokenizer.model", "tokenizer_config.json", "preprocessor_config.json"} < set(files)
    own = hashlib.sha256((hub / "model.safetensors").read_bytes()).hexdigest()
    assert files["model.safetensors"]["sha256"] == own
    leaf = leaves_of(tmp_path / "out")[LEAF]
    assert record["leaves"][LEAF] == hashlib.sha256(leaf.tobytes()).hexdigest()
    assert record["source_config"]["model_type"] == "llava"
    assert not list(tmp_path.glob("*.partial"))


def test_two_conversions_of_the_same_files_are_the_same_bytes(hub, clip, tmp_path):
    convert(hub, tmp_path / "one", clip=clip)
    convert(hub, tmp_path / "two", clip=clip)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_float16_is_widened_exactly_and_rounded_only_when_asked(hub, clip, tmp_path):
    def halve(state):
        for key in state:
            state[key] = state[key].astype(np.float16)

    state = load_file(world.weights(hub))
    halve(state)
    header, parts, at = {}, [], 0
    for key, value in state.items():
        header[key] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
        parts, at = [*parts, value.tobytes()], at + value.nbytes
    world.write_raw(world.weights(hub), header, b"".join(parts))
    convert(hub, tmp_path / "wide", clip=clip)
    report = convert(hub, tmp_path / "narrow", clip=clip, dtype="bfloat16")
    wide, narrow = leaves_of(tmp_path / "wide")[LEAF], leaves_of(tmp_path / "narrow")[LEAF]
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide[1], state[KEY].astype(np.float32).T)
    np.testing.assert_array_equal(narrow[1], state[KEY].astype(np.float32).astype(ml_dtypes.bfloat16).T)
    assert any("rounded" in note for note in report.notes)


def test_towers_may_lie_in_folders_of_their_own(made, clip, tmp_path):
    apart = convert(
        made / "vicuna", tmp_path / "apart", projector=made / "vicuna_projector" / "mm_projector.safetensors",
        clip=[made / "clip_vision_plain", made / "clip_text_plain"],
    )  # fmt: skip
    together = convert(made / "vicuna", tmp_path / "together", projector=made / "vicuna_projector", clip=clip)
    assert apart.config == together.config
    one, two = leaves_of(tmp_path / "apart"), leaves_of(tmp_path / "together")
    assert all(np.array_equal(one[path], two[path]) for path in two)


def test_another_clip_than_the_vision_towers_is_told(hub, made, tmp_path):
    other = world.fresh(made, "clip_plain", tmp_path)
    key = "vision_model.pre_layrnorm.weight"
    world.change(other / "model.safetensors", lambda state: state.update({key: state[key] + 1}))
    report = convert(hub, tmp_path / "out", clip=other)
    assert any(f"1 of 55 differ: {key}" in note for note in report.notes)


def test_a_table_that_ends_before_the_image_token_is_lengthened_on_the_way_out(made, clip, tmp_path):
    convert(made / "vicuna", tmp_path / "base", clip=clip, projector=made / "vicuna_projector")
    base = load_model(tmp_path / "base")
    assert base.config.image_token == base.config.decoder.vocabulary == 360
    write_hf(base, tmp_path / "out", tokenizer=tmp_path / "base")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["vocab_size"] == 384 and config["image_token_index"] == 360
    written, leaves = load_file(tmp_path / "out" / "model.safetensors"), leaves_of(tmp_path / "base")
    head, table = written["language_model.lm_head.weight"], written["language_model.model.embed_tokens.weight"]
    np.testing.assert_array_equal(table[:360], leaves["decoder/embedding/table"])
    np.testing.assert_array_equal(head[:360], leaves["decoder/head/kernel"].T)
    np.testing.assert_allclose(head[360:], np.broadcast_to(head[:360].mean(0), (24, 32)), atol=1e-6)
    again = convert(tmp_path / "out", tmp_path / "again", clip=clip)
    assert (again.config.image_token, again.config.decoder.vocabulary) == (360, 384)


def test_an_existing_target_is_never_touched_and_a_small_disk_is_said_before(hub, clip, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="exists"):
        convert(hub, tmp_path / "out", clip=clip)
    monkeypatch.setattr("hidecmoe_jax.port.checkpoints.convert._SPARE", 2**60)
    with pytest.raises(ResourceError, match="bytes are needed"):
        convert(hub, tmp_path / "new", clip=clip)


MESHES = """
import jax, numpy as np, sys
from pathlib import Path
from hidecmoe_jax.core import trees
from hidecmoe_jax.core.sharding import make_mesh
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.models.store import load_model
alone = trees.flatten(load_model(Path(sys.argv[1])).params)
for sizes, folders in (({"fsdp": 4, "tensor": 2}, sys.argv[1:]), ({"data": 8}, sys.argv[2:])):
    for folder in folders:
        laid = trees.flatten(load_model(Path(folder), mesh=make_mesh(**sizes)).params)
        assert all(np.array_equal(laid[path], alone[path]) for path in alone)
        kernel = laid["decoder/layers/up_proj/kernel"]
        cut = kernel.sharding.shard_shape(kernel.shape)
        assert cut == (3, 32 // sizes.get("fsdp", 1), 56 // sizes.get("tensor", 1)), cut
print("same")
"""


@pytest.mark.slow  # test_convert_attempts.py restores pieces on one device, test_sharding.py divides arrays over eight
def test_pieces_and_file_restore_onto_any_mesh(hub, clip, tmp_path, run_python):
    convert(hub, tmp_path / "file", clip=clip)
    convert(hub, tmp_path / "pieces", clip=clip, layout="sharded")
    words = ["", str(tmp_path / "file"), str(tmp_path / "pieces")]
    done = run_python(f"import sys\nsys.argv = {words!r}\n{MESHES}", devices=8, timeout=300)
    assert "same" in done.stdout, done.stderr[-2000:]


def test_damaged_pieces_are_refused_by_leaf(hub, clip, tmp_path):
    convert(hub, tmp_path / "out", clip=clip, layout="sharded")
    home = tmp_path / "out" / "weights" / LEAF.replace("/", ".")
    data = max((file for file in home.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    raw = data.read_bytes()
    data.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="SHA-256"):
        verify(tmp_path / "out")
    data.write_bytes(raw[: len(raw) // 2])
    # By the manifest, which names the file; and without one, as a base of an earlier version has none, by its reading.
    with pytest.raises(CheckpointError, match=rf"{LEAF.replace('/', '.')}.* is truncated"):
        load_model(tmp_path / "out")
    (tmp_path / "out" / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=LEAF):
        load_model(tmp_path / "out")


def test_processor_and_chat_template_come_along_and_go_out_again(hub, clip, tmp_path):
    """Pictures of any shape become the same pixels in transformers' processor of the export."""
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    (hub / "chat_template.jinja").write_text("{{ messages }}")
    processor = {"processor_class": "LlavaProcessor", "patch_size": 8, "chat_template": "{{ old }}"}
    (hub / "processor_config.json").write_text(json.dumps(processor))
    convert(hub, tmp_path / "base", clip=clip)
    base = load_model(tmp_path / "base")
    write_hf(base, tmp_path / "out", tokenizer=tmp_path / "base")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    vision = base.config.vision
    found = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert found["patch_size"] == vision.patch_size and found["chat_template"] == "{{ old }}"
    side, extra = vision.image_size, found["num_additional_image_tokens"]
    assert found["vision_feature_select_strategy"] == "default"
    assert (side // found["patch_size"]) ** 2 + extra - 1 == vision.patches
    picture = Image.effect_noise((4 * side, 2 * side), 60).convert("RGB")
    picture.save(tmp_path / "wide.png")
    theirs = LlavaImageProcessorPil.from_pretrained(tmp_path / "out")(picture, return_tensors="np")["pixel_values"]
    mine = normalise(load(tmp_path / "wide.png", side, fit=base.config.image_fit)).transpose(2, 0, 1)
    assert base.config.image_fit == "crop"
    assert theirs.shape == (1, 3, side, side)
    np.testing.assert_allclose(theirs[0], mine, atol=1e-6)
    convert(tmp_path / "out", tmp_path / "again", clip=clip)


def opened(base: Path) -> None:
    """A base as every run opens it."""
    open_base(RunConfig(method=Routed(name="base", growth="none"), base=Base(path=str(base))))


def test_the_text_tower_reads_with_its_own_tokenizer(hub, made, tmp_path):
    """Runs open the folder, and the routing text takes CLIP's ids, not the language model's."""
    clip = world.fresh(made, "clip_plain", tmp_path)
    report = convert(hub, tmp_path / "without", clip=clip)
    assert any("runs refuse this base" in note for note in report.notes)
    with pytest.raises(HidecmoeError, match="--clip"):
        opened(tmp_path / "without")
    write_tokenizer(clip)
    said = world.refusal(hub, clip=clip)
    assert "text tower" in said and "vocab_size" in said

    def wider(state):
        key = "text_model.embeddings.token_embedding.weight"
        state[key] = np.resize(state[key], (400, state[key].shape[1]))

    world.change(clip / "model.safetensors", wider)
    world.change_json(clip / "config.json", text_config__vocab_size=400, text_config__eos_token_id=2)
    said = world.refusal(hub, clip=clip)
    assert "end token is 2, the text tower's is 399 (eos_token_id)" in said
    world.change_json(clip / "config.json", text_config__end_token=2)
    convert(hub, tmp_path / "out", clip=clip)
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert tokenizer.text is not None and tokenizer.text.size != tokenizer.size
    opened(tmp_path / "out")


def test_a_bpe_rebuilt_from_sentencepiece_gives_the_ids_of_sentencepiece(tmp_path):
    """Random texts of letters, spaces, digits, accents and emoji, on a model trained on the spot."""
    model = make_checkpoints.GOLDENS / "tokenizer.model"
    backend, judge = from_sentencepiece(model), sentencepiece.SentencePieceProcessor(model_file=str(model))
    backend.encode_special_tokens = True
    rng, letters = np.random.default_rng(0), list("aabcdeeimnorstu   .,:0159\n\t'<>/s\u00e9\u4f60\U0001f600\u2581")
    texts = ["".join(rng.choice(letters, rng.integers(1, 60))) for _ in range(400)]
    wrong = [text for text in texts if backend.encode(text, add_special_tokens=False).ids != judge.encode(text)]
    assert not wrong, wrong[:3]
    assert wrong_ids(backend, model) == "" and len(PROBES) > 5


def test_a_tokenizer_json_that_disagrees_with_sentencepiece_is_built_anew(hub, clip, tmp_path):
    write_tokenizer(hub)  # a byte-level BPE of other words
    report = convert(hub, tmp_path / "out", clip=clip)
    assert any("built anew from tokenizer.model" in note for note in report.notes)
    tokenizer = Tokenizer.load(tmp_path / "out")
    judge = sentencepiece.SentencePieceProcessor(model_file=str(hub / "tokenizer.model"))
    assert tokenizer.encode("what is shown?") == judge.encode("what is shown?")


def test_a_padding_token_that_differs_is_reported(hub, clip, made):
    report = convert(hub, hub.parent / "never", clip=clip, dry_run=True)
    assert not [note for note in report.notes if "padding is" in note]
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        world.change_json(hub / name, pad_token="</s>")
    report = convert(hub, hub.parent / "never", clip=clip, dry_run=True)
    assert any("padding is the end token, id 2" in note for note in report.notes)
    report = convert(made / "original", hub.parent / "never", clip=clip, dry_run=True)
    assert any("padding is the unknown token, id 0" in note for note in report.notes)


def test_the_command_prints_the_report_and_refuses_with_the_libraries_exit_code(
    hub, clip, tmp_path, monkeypatch, capsys
):
    def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, str(ROOT / "tools" / "convert.py"), *map(str, words)]
        return subprocess.run(call, capture_output=True, text=True, check=False, timeout=300)

    done = command(hub, tmp_path / "out", "--clip", clip, "--dry-run")
    assert done.returncode == 0 and "would be written" in done.stdout and "127 tensors -> 61 leaves" in done.stdout
    # The same file run within this process.
    words = [str(ROOT / "tools" / "convert.py"), str(hub), str(tmp_path / "out"), "--clip", str(tmp_path / "nowhere")]
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [*words, "--dry-run"])
    with pytest.raises(SystemExit) as refused:
        runpy.run_path(words[0], run_name="__main__")
    said = capsys.readouterr().err
    assert refused.value.code == CheckpointError.exit_code and "nowhere" in said
    assert "Traceback" not in said


def test_a_base_without_a_tokenizer_says_so(hub, clip, tmp_path):
    for file in hub.glob("*token*"):
        file.unlink()
    report = convert(hub, tmp_path / "out", clip=clip)
    assert any("no tokenizer" in note for note in report.notes)
    assert load_model(tmp_path / "out").config.image_token == 360
