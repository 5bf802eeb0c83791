"""A run or a base opened as a library user does: logits, answers, routing, earlier tasks, refusals."""

import json
import logging
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from runs_world import make_world, outcome
from tiny import TINY, write_base

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import CheckpointError, ConfigError, DataError
from hidecmoe_jax.data.images import load as load_picture
from hidecmoe_jax.data.images import normalise
from hidecmoe_jax.data.pictures import Pictures
from hidecmoe_jax.methods.gates.anchors import NamedGate
from hidecmoe_jax.models.llava import Prompt, logits, vision_features
from hidecmoe_jax.runs import evaluation
from hidecmoe_jax.runs.assistant import load
from hidecmoe_jax.runs.generation import generate_file
from hidecmoe_jax.runs.prompt_records import records_of
from hidecmoe_jax.runs.questions import Question, ask
from hidecmoe_jax.runs.stream_loop import learn
from hidecmoe_jax.serve.shapes import Shape
from hidecmoe_jax.serve.versions import Version

LOGITS = jax.jit(logits)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("load")
    config = make_world(root)
    return root, config, learn(config, root / "run")


@pytest.fixture(scope="module")
def run(world):
    return load(world[2])


@pytest.fixture(scope="module")
def base(world):
    return load(world[0] / "base")


def picture(world, number: int, task: str = "birds") -> str:
    return str(world[0] / task / "images" / f"{number}.png")


def question(number: int) -> str:
    return f"What is shown in picture {number}?"


def test_a_base_has_no_tasks_and_its_own_parameters(base):
    assert base.tasks == () and base.config == TINY
    assert trees.digest(base.params) == trees.digest(base.base.params)
    assert base.route([None], ["What?"]) == [{}]


def test_logits_take_what_a_processor_makes_padded_on_either_side(base, world):
    patches, token = TINY.vision.patches, TINY.image_token
    pixels = normalise(np.stack([load_picture(picture(world, number), 16) for number in range(3)]))
    text = [1, 50, 60, 70]
    rows = [[1, *[token] * patches, 50, *[token] * patches, 60], text, [1, 50, *[token] * patches]]
    length = max(map(len, rows))
    right = np.array([row + [0] * (length - len(row)) for row in rows])
    left = np.array([[0] * (length - len(row)) + row for row in rows])
    real = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    shown = np.asarray(pixels).transpose(0, 3, 1, 2)
    found, turned = base.logits(right, real, shown), base.logits(left, real[:, ::-1], shown)
    assert found.shape == (3, length, TINY.decoder.vocabulary) and found.dtype == np.float32
    seen, _ = jax.jit(vision_features)(base.base, pixels)
    for row, pictures in enumerate(([0, 1], [], [2])):
        ids = np.array([rows[row]], np.int32)
        own = np.asarray(seen)[pictures][None] if pictures else None
        alone = LOGITS(base.base, Prompt(ids, np.ones_like(ids, bool), own))[0]
        np.testing.assert_allclose(found[row, : len(rows[row])], alone, atol=1e-5)
        np.testing.assert_allclose(turned[row, length - len(rows[row]) :], alone, atol=1e-5)


def test_logits_refuse_what_does_not_fit(base):
    ones = np.ones((1, 3), int)
    pixels = np.zeros((1, 3, 16, 16), np.float32)
    for ids, mask, shown, message in (
        ([[1, -200, 5]], ones, None, "outside the vocabulary"),
        ([[1, 320, 5]], ones, None, "outside the vocabulary"),
        ([[1, 4, 5]], ones, pixels, "do not match"),
        ([[1, 6, 5]], ones, pixels, "do not match"),
        ([[1, 4, 4, 4, 4]], np.ones((1, 5)), None, "do not match"),
        ([[1, 6, 5]], np.ones((1, 4)), None, "mask"),
    ):
        with pytest.raises(DataError, match=message):
            base.logits(ids, mask, shown)


def test_a_run_answers_as_it_was_evaluated(run, world):
    lines = evaluation.read_answers(world[2] / "seed_0" / "answers" / "row_002" / "birds.jsonl")
    given = run.generate([picture(world, n) for n in range(8, 12)], [question(n) for n in range(8, 12)])
    assert [answer.text for answer in given] == [line["text"] for line in lines]
    for answer, line in zip(given, lines, strict=True):
        np.testing.assert_allclose(answer.weights[:2], [line["weights"]["birds"], line["weights"]["fish"]], atol=1e-5)
    routed = run.route([picture(world, 8)], [question(8)])[0]
    assert list(routed) == ["birds", "fish"] and sum(routed.values()) == pytest.approx(1.0, abs=1e-5)
    named = evaluation.read_answers(world[2] / "seed_0" / "answers" / "row_002" / "birds.named.jsonl")
    assert run.generate([picture(world, 8)], [question(8)], named="birds")[0].text == named[0]["text"]


def test_a_file_of_questions_gets_the_same_answers_in_batches_of_1_8_and_64(world, tmp_path):
    items = []
    for number in range(70):
        task = ("birds", "fish")[number % 2]
        text = f"What is shown in picture {number}?{' Which one?' * (number % 3)}"
        items.append({"question_id": number, "image": f"{task}/images/{number % 12}.png", "text": text})
    asked = tmp_path / "questions.jsonl"
    asked.write_text("\n".join(map(json.dumps, items)))
    lines = {}
    for batch in (1, 8, 64):
        out = tmp_path / f"{batch}.jsonl"
        made = generate_file(world[2], asked, out, image_folder=world[0], batch=batch, max_length=96, status_minutes=0)
        lines[batch] = [json.loads(line) for line in out.read_text().splitlines()]
        assert made.count == 70 and set(made.tasks) <= {"birds", "fish"}
    texts = {batch: [line["text"] for line in found] for batch, found in lines.items()}
    assert texts[1] == texts[8] == texts[64] and len(set(texts[1])) > 5
    tasks = {batch: [line["metadata"]["task"] for line in found] for batch, found in lines.items()}
    assert tasks[1] == tasks[8] == tasks[64]
    assert all(set(line["metadata"]["weights"]) == {"birds", "fish"} for line in lines[64])


def test_text_alone_and_several_pictures_are_routed(run, world):
    pair = [picture(world, 1), picture(world, 9, "fish")]
    several, none = run.route([pair, None], [question(1), question(1)])
    assert sum(several.values()) == pytest.approx(1.0, abs=1e-5) and sum(none.values()) == pytest.approx(1.0, abs=1e-5)
    assert len({round(part["birds"], 5) for part in (several, none, run.route([pair[:1]], [question(1)])[0])}) == 3
    records = records_of([pair, pair[:1], pair[1:]], [question(1)] * 3)
    features = run.engine(records).features(records)
    np.testing.assert_allclose(features.image_NE[0], features.image_NE[1:].mean(axis=0), atol=1e-6)


def test_an_answer_says_who_was_heard(run, world):
    reply = run.answer([picture(world, 8)], question(8))
    assert list(reply.weights.values()) == sorted(reply.weights.values(), reverse=True)
    assert reply.decision.startswith(f"routed to {next(iter(reply.weights))}")
    assert load(world[0] / "base").answer([], "What?").weights == {}
    assert run.answer([picture(world, 8)], question(8), named="fish").decision == "answered as fish, which was named"


def test_sampling_depends_on_the_seed_and_on_nothing_else(run, world):
    asked = ([picture(world, 8)] * 2, [question(8)] * 2)
    draw = lambda seed: [one.text for one in run.generate(*asked, seed=seed, temperature=2.0, max_new_tokens=8)]  # noqa: E731
    assert draw(1) == draw(1) != draw(2)
    assert draw(1)[0] != draw(1)[1], "two samples of one prompt are two draws"


def test_a_question_is_answered_by_the_expert_that_is_named(run, world):
    asked = [Question(question(9), (picture(world, 9, "fish"),))]
    (named,) = ask(world[2], asked, named="birds")
    (routed,) = ask(world[2], asked)
    assert (named.task, routed.task) == ("birds", "fish") and "which was named" in named.decision
    assert named.text == run.answer(picture(world, 9, "fish"), question(9), named="birds").text
    for path, task, names in ((world[2], None, "birds, fish"), (world[2], 1, "birds"), (world[0] / "base", None, "no")):
        with pytest.raises(ConfigError, match=f"has learned {names}"):
            ask(path, asked, named="stamps" if task is None else "fish", task=task)


def test_a_run_is_opened_as_it_was_after_an_earlier_task(world):
    early, zero = load(world[2], task=1), load(world[2], task=0)
    assert early.tasks == ("birds",) and zero.tasks == ()
    assert early.route([picture(world, 8)], [question(8)]) == [{"birds": pytest.approx(1.0)}]
    lines = evaluation.read_answers(world[2] / "seed_0" / "answers" / "row_001" / "birds.jsonl")
    assert early.generate([picture(world, 8)], [question(8)])[0].text == lines[0]["text"]
    with pytest.raises(CheckpointError, match="learned are 2"):
        load(world[2], task=3)


def test_wrong_questions_are_refused(run, world):
    with pytest.raises(DataError, match="one entry of `images` per prompt"):
        run.generate([None], ["a", "b"])
    with pytest.raises(DataError, match="in the question but"):
        run.route([None], ["<image> What?"])
    with pytest.raises(DataError, match="birds, fish"):
        run.generate([None], ["What?"], named="trees")
    with pytest.raises(DataError):
        run.generate([str(world[0] / "none.png")], ["What?"])
    assert run.generate([], []) == [] and run.route([], []) == []


def test_a_run_is_not_opened_on_another_base(world):
    root, config, run = world
    other = shutil.copytree(run, root / "foreign")
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace(config.base.path, str(write_base(root / "other", seed=1))))
    with pytest.raises(CheckpointError, match="another base model"):
        load(other)
    with pytest.raises(CheckpointError, match="neither a run nor a base model"):
        load(root / "nothing")


def test_an_anchor_that_is_not_finite_is_not_served(run):
    method, gate = run.run.method, run.serving.memory.gate
    learner = method.init(run.base, 2)
    broken = gate | {"image_NE": gate["image_NE"].at[1, 0].set(np.nan)}
    with pytest.raises(Exception, match="what the gate stores is not finite") as refused:
        method.serve(run.base, learner.replace(memory=learner.memory.replace(gate=broken)))
    assert refused.value.exit_code == 5 and "gate/image_NE" in refused.value.where


def test_a_method_that_needs_the_name_says_so(world):
    root, config, _ = world
    method = replace(config.method, name="per_task", expand="all", gate=NamedGate())
    run = load(learn(replace(config, method=method), root / "named"))
    with pytest.raises(ConfigError, match="needs the task's name"):
        run.route([None], ["What?"])
    assert run.generate([None], ["What?"], named="fish")[0].choice == 1
    assert outcome(root / "named")["cells"]["1"]["birds"]["routed"] is not None


def test_a_run_leaves_the_base_alone(run, base):
    assert trees.digest(run.base.params) == trees.digest(base.params)
    changed = jax.tree.leaves(run.params)
    assert trees.count(changed) == trees.count(base.params)


def test_served_answers_are_those_of_ask_whoever_else_is_in_the_batch(run, world, caplog):
    """SV13 and RT4 of a served run: pictures, lengths and company change no answer and compile no program."""
    writing = replace(run.run.evaluate.writing, max_length=96)
    version = Version("first", run, (Shape(2, 96),), (4,), writing, 0)
    pictures = [
        [picture(world, number, ("birds", "fish")[number % 2]) for _ in range(number % 3)] for number in range(8)
    ]
    texts = [f"What is shown in picture {number}?{' Which?' * (number % 4)}" for number in range(8)]
    asked = records_of(pictures, texts)
    version.warm_up()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        served = {}
        for rows in (slice(0, 4), slice(4, 8), slice(2, 3), slice(3, 0, -1)):
            for record, reply in zip(asked[rows], version.replies(asked[rows], version.shapes[0]), strict=True):
                served.setdefault(record.id, []).append(reply)
        assert [line.getMessage() for line in caplog.records if line.getMessage().startswith("Compiling ")] == []
    alone = run.replies(pictures[:4], texts[:4])
    for record, expected in zip(asked[:4], alone, strict=True):
        for reply in served[record.id]:
            assert (reply.text, reply.task) == (expected.text, expected.task)
            np.testing.assert_allclose(reply.answer.finding.score, expected.answer.finding.score, atol=1e-5)
            assert run.tokenizer.decode_whole(reply.answer.tokens).strip() == reply.text
    (named,) = version.replies(asked[:1], version.shapes[0], "fish")
    assert named.text == run.answer(pictures[0], texts[0], named="fish").text


def test_a_picture_of_a_request_is_decoded_once(run, world, tmp_path):
    """What was read when the request came is what its batch sees: the file may be anything by then."""
    version = Version("first", run, (Shape(2, 96),), (4,), replace(run.run.evaluate.writing, max_length=96), 0)
    path = tmp_path / "picture.png"
    shutil.copyfile(picture(world, 1), path)
    first, second = version.new_pictures(), version.new_pictures()
    assert first.read([str(path)])[str(path)].problem is None
    second.read([picture(world, 2)])
    path.write_bytes(b"no picture any more")
    asked = records_of([[str(path)], [picture(world, 2)]], [question(1), question(2)])
    replies = version.replies(asked, version.shapes[0], pictures=Pictures.joined([first, second]))
    expected = run.replies([picture(world, 1), picture(world, 2)], [question(1), question(2)])
    assert [reply.text for reply in replies] == [reply.text for reply in expected]
    with pytest.raises(DataError):
        version.replies(asked, version.shapes[0])


def test_two_states_of_a_run_share_one_base(run, world, base):
    again = load(world[2], beside=run)
    assert again.base is run.base and again.serving is not run.serving
    before = load(world[2], task=1, beside=run)
    assert before.base is run.base and before.tasks == run.tasks[:1]
    assert load(world[2], beside=base).base is not base.base, "its digest is not known"
    other = replace(run, loaded_base=replace(run.loaded_base, digest="0" * 64))
    assert load(world[2], beside=other).base is not run.base
    expected = run.answer(picture(world, 1), question(1))
    assert again.answer(picture(world, 1), question(1)).text == expected.text
