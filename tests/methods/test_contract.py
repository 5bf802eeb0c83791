"""Laws of every method, over a table: `from_archive` undoes `to_archive`, old experts stay, serving is exact.

A mixture with probes and a stack on it keep them in test_mixture.py and test_stacked.py, which teach both anyway.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lessons import teach
from method_laws import (
    a_second_task_compiles_nothing,
    answers_do_not_depend_on_batch_mates,
    ask,
    earlier_experts_keep_every_byte,
    from_archive_undoes_to_archive,
    nothing_is_left_in_training,
    served,
)
from tiny import SMALL_LORA, run_config, write_base, write_stream

from hidecmoe_jax.core import trees
from hidecmoe_jax.evaluate import engine
from hidecmoe_jax.methods.base import FrozenFeatures
from hidecmoe_jax.models.llava import Prompt, answer_loss, logits
from hidecmoe_jax.runs.session import open_session

MIXTURE = {
    "kind": "mixture",
    "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "sites": ["ffn"]},
    "probe": {"share": 0.75, "measured": 0.4, "steps": 2},
    "gate": {"kind": "locator", "by": {"kind": "vae", "hidden": 8, "latent": 2, "epochs": 2}, "kept_apart": 0.25},
}

METHODS = {
    "hide": {},
    "hide_frozen_projector": {"train_projector": False, "lora": SMALL_LORA},
    "hide_legacy": {"gate": {"kind": "anchors", "legacy": True}},
    "merge_all": {"expand": "none"},
    "expand_all": {"expand": "all"},
    "hide_located": {"gate": {"kind": "locator", "by": {"kind": "nearest_mean"}, "kept_apart": 0.25}},
    "expand_outer": {"expand": [0, 2], "eps": [1.0, 0.5, 0.25]},
    "chosen": {"expand": {"layers": 1, "share": 0.5}},
    "chosen_by_cka": {"expand": {"layers": 2, "by": "cka", "share": 1.0}, "fusion": "product_mean"},
    "chosen_by_probe": {"expand": {"layers": 1, "by": "probe", "share": 0.75, "steps": 2}, "lora": SMALL_LORA},
    "product_sum": {"fusion": "product_sum", "eps": [1.0, 0.5, 0.25]},
    "product_mean": {"fusion": "product_mean"},
    "product_root": {"fusion": "product_sum", "volume": "1/sqrt(T)"},
    "served": {"fusion": "product_sum", "volume": 0.4, "train_as": "served", "lora": SMALL_LORA},
    "per_task": {"expand": "all", "gate": {"kind": "named"}},
    "sequential": {"growth": "shared", "lora": SMALL_LORA},
    "joint": {"growth": "shared", "union": True, "lora": SMALL_LORA},
    "zero_shot": {"growth": "none"},
    "cmoe_uniform": MIXTURE | {"growth": "uniform", "start": "blank", "gate": {"kind": "anchors"}},
    "shared_router": MIXTURE | {"growth": "uniform", "start": "blank", "gate": {"kind": "newest"}},
    "replay": {"kind": "replay", "stored": 2, "inner": {"growth": "shared", "lora": SMALL_LORA}},
    # At all seven linears in test_token_gate.py.
    "cmoe_open": MIXTURE | {"growth": "uniform", "start": "blank", "token_gate": "open", "gate": {"kind": "anchors"}},
    "moelora": {"kind": "moelora", "lora": SMALL_LORA | {"alpha": 4}, "experts": 3},
    "ewc": {"kind": "ewc", "inner": {"growth": "shared", "lora": SMALL_LORA | {"dropout": 0}}},
    "lwf": {"kind": "lwf", "inner": {"growth": "shared", "lora": SMALL_LORA}},
    "olora": {"kind": "olora", "lora": SMALL_LORA},
    "reglora": {"kind": "reglora", "share": 0.1, "lora": SMALL_LORA},
    "incmoe": {"kind": "incmoe", "lora": SMALL_LORA | {"alpha": 4}},
    "full": {"kind": "full"},
    "merged": {"kind": "merged", "rule": "ties", "train_projector": True, "lora": {"rank": 2, "dropout": 0.1}},
}
# Each compiles training of its own. The like of the first six runs in test_layer_choice.py, test_mixture.py and
# test_edits.py, and an open pool keeps the laws in test_worth.py; rules of the others are in test_rules_of_rivals.py,
# and test_export_rivals.py sends archives of most of them out and back, byte by byte.
SLOW = (
    *("hide_frozen_projector", "chosen_by_cka", "chosen_by_probe", "cmoe_uniform", "shared_router", "full"),
    "cmoe_open",
    *("ewc", "lwf", "olora", "reglora", "incmoe"),
)

# The others train as `hide` does and differ in what they make of it, which saves a compilation each.
TRAINED = ("hide", "hide_frozen_projector", "served", "chosen_by_probe", "sequential", "joint", "zero_shot")
POOLED = tuple(name for name, method in METHODS.items() if method.get("kind", "routed") not in ("routed", "merged"))
SHARED = ("sequential", "joint", "moelora", "ewc", "lwf", "replay", "full")  # one set of experts for all tasks


def rows(*names: str) -> list:
    """Parameters of a test: the named methods, without a marker or with `slow`."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("contract")
    base, tasks = write_base(root / "base"), write_stream(root)
    return open_session(run_config(base, "hide", tasks=tasks, tune={"bucket": 32}, rank=2))


@pytest.fixture(scope="module")
def taught(world):
    """`taught(name)`: the method after three tasks, learned once."""
    known = {}

    def learned(name: str):
        if name not in known:
            base = world.config.base.path
            tasks = [spec.folder for spec in world.config.stream.tasks]
            own = run_config(base, name, tasks=tasks, tune={"bucket": 32}, **METHODS[name])
            like = None if name in TRAINED + POOLED else learned("hide")
            # Differs from the uniform mixture in whose router answers.
            like = learned("cmoe_uniform") if name == "shared_router" else like
            known[name] = teach(replace(world, config=own), like=like)
        return known[name]

    return learned


@pytest.mark.parametrize("name", rows(*METHODS))
def test_from_archive_undoes_to_archive_bit_for_bit(taught, name):
    from_archive_undoes_to_archive(taught(name))


@pytest.mark.parametrize("name", rows(*METHODS))
def test_earlier_experts_keep_every_byte(taught, name):
    done = taught(name)
    lessons = len(done.kept)
    assert lessons == {"zero_shot": 0, "joint": 1}.get(name, 3)
    assert done.method.traits.keeps_old_experts == (name not in (*SHARED, "zero_shot"))
    earlier_experts_keep_every_byte(done)
    if name in ("sequential", "moelora"):
        assert trees.digests(done.kept[0]["experts"]) != trees.digests(done.kept[1]["experts"])


@pytest.mark.parametrize("name", rows(*METHODS))
def test_nothing_is_left_in_training_between_lessons(taught, name):
    nothing_is_left_in_training(taught(name))


@pytest.mark.parametrize("name", rows(*TRAINED, *POOLED))
def test_a_second_task_of_a_kind_compiles_nothing(taught, name):
    # Probing begins with the second task.
    a_second_task_compiles_nothing(taught(name), later=1 if name == "chosen_by_probe" else 0)


def by_hand(done, weight_N: np.ndarray) -> dict:
    """The parameters one sample should meet: every expert multiplied out and added to the base by numpy."""
    method, model = done.method, done.session.model
    params = jax.device_get(model.params)
    if not done.kept:
        return params
    layers, scale = model.config.decoder.layers, method.lora.alpha / method.lora.rank
    kept = done.kept if method.growth == "per_task" else done.kept[-1:]
    eps = method.eps[: len(kept)] or (1.0,) * len(kept)
    expanded = method.expanded(layers, done.learners[-1].memory)
    for site in method.lora.sites:
        kernel = np.array(params["decoder"]["layers"][site]["kernel"], np.float64)
        for layer in range(layers):
            a = [groups["experts"][f"a/{site}"][layer, :, 0].astype(np.float64) for groups in kept]
            b = [groups["experts"][f"b/{site}"][layer, 0].astype(np.float64) for groups in kept]
            if layer in expanded:
                update = sum(w * x @ y for w, x, y in zip(weight_N, a, b, strict=False))
            elif method.fusion == "factor_sum":
                update = sum(a) @ sum(e * y for e, y in zip(eps, b, strict=True))
            else:
                share = len(kept) if method.fusion == "product_mean" else 1
                share = {"1/sqrt(T)": len(kept) ** 0.5, 0.4: 2.5}.get(method.volume, share)
                update = sum(e / share * x @ y for e, x, y in zip(eps, a, b, strict=True))
            kernel[layer] += scale * update
        params["decoder"]["layers"][site]["kernel"] = kernel.astype(np.float32)
    for path, leaf in done.kept[-1]["shared"].items():
        _, part, kind = path.split("/")
        params["projector"][part][kind] = leaf
    return params


LISTEN = jax.jit(logits)
LOSS = jax.jit(lambda stage, *given: stage.loss(*given), static_argnums=0)


@pytest.mark.parametrize("name", rows(*(name for name in METHODS if name not in (*POOLED, "merged"))))
def test_serving_is_the_sum_that_the_method_promises(taught, name):
    done = taught(name)
    serving, session = served(done), done.session
    records = session.test(session.stream.tasks[1])[:2]
    features = session.engine.features(records)
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 300, (2, 12)).astype(np.int32)
    tokens[:, 2:6] = session.model.config.image_token
    prompt = Prompt(tokens, np.ones_like(tokens, bool), features.patches(np.arange(2)))
    named = jnp.full((2,), 1) if done.method.traits.needs_task_name else None
    reading = done.method.traits.reads
    state = None if reading is None else session.engine.states(records, reading)
    decision = done.method.decide(serving, FrozenFeatures(features.pooled(np.arange(2)), state), named)
    found = LISTEN(serving.model, prompt, done.method.voices(serving, decision))
    assert np.isfinite(found).all()
    for row in range(2):
        own = session.model.replace(params=by_hand(done, np.asarray(decision.weight_BN)[row]))
        alone = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], prompt)
        np.testing.assert_allclose(found[row : row + 1], LISTEN(own, alone), atol=2e-5, err_msg=name)


def test_an_expert_trained_as_served_is_served_as_it_trained(taught):
    """Right after learning: beside the fusion of the tasks before, at the volume that serving has."""
    done = taught("served")
    method, session = done.method, done.session
    batch = session.material(session.stream.tasks[2].train, (2,), "asked").batch(np.arange(2))
    stage = method.stages(2)[0]
    ready = stage.prepare(session.model, done.learners[2], 2, jax.random.key(0))
    trained = ready.replace(live=done.trained[2].live, tuned=done.trained[2].tuned)
    quiet = replace(method, lora=replace(method.lora, dropout=0.0))
    loss = LOSS(replace(stage, method=quiet), session.model, trained, batch, jax.random.key(0))
    serving = method.serve(session.model, done.learners[3])
    voices = method.voices(serving, method.decide(serving, None, jnp.full((2,), 2)))
    total, tokens, _ = jax.jit(answer_loss)(serving.model, batch, voices)
    assert int(loss.tokens) == int(tokens)
    np.testing.assert_allclose(loss.total, total, rtol=1e-4)
    alone = replace(method, train_as="alone").stages(2)[0]
    assert abs(float(LOSS(alone, session.model, trained, batch, jax.random.key(0)).total) - float(total)) > 1e-3


def test_experts_say_something_after_training(taught):
    for name in ("hide", "sequential"):
        kept = taught(name).kept
        assert all(np.abs(groups["experts"]["b/q_proj"]).max() > 1e-4 for groups in kept)
    shared = [groups["shared"]["projector/linear1/kernel"] for groups in taught("hide").kept]
    assert not np.array_equal(shared[0], shared[1]) and shared[0].dtype == np.float32


@pytest.mark.slow
def test_a_projector_that_is_frozen_is_not_archived(taught):
    assert taught("hide_frozen_projector").kept[0]["shared"] == {}


# Samples of two batches meet other batch mates in `test_serving_is_the_sum_that_the_method_promises` too.
ALONE_TOO = [pytest.param(name, marks=pytest.mark.slow) for name in ("merge_all", "per_task")]


@pytest.mark.parametrize(
    "name", rows("hide", "zero_shot", "cmoe_uniform", "cmoe_open", "moelora", "incmoe", "full") + ALONE_TOO
)
def test_answers_do_not_depend_on_batch_mates(taught, name):
    together, first = answers_do_not_depend_on_batch_mates(taught(name))
    if name == "hide":
        assert sum(together[first.id].weights) == pytest.approx(1.0, abs=1e-5)


def test_a_stream_is_answered_by_one_program(taught):
    done = taught("hide")
    model, counts = done.session.model, []
    for count in range(4):
        serving = done.method.serve(model, done.method.from_archive(model, 4, done.kept[:count]))
        records = done.session.test(done.session.stream.tasks[0])
        for named in (None, 0) if count == 3 else (None,):
            ask(done, serving, records, label="in order", named=named)
            counts.append(engine._write._cache_size())
    assert counts[1] == counts[2] == counts[3] == counts[4], "only the base without experts is a program of its own"


def test_tasks_not_learned_yet_have_no_weight(taught):
    done = taught("hide")
    serving = done.method.serve(done.session.model, done.method.from_archive(done.session.model, 4, done.kept[:2]))
    records = done.session.test(done.session.stream.tasks[2])
    for one in ask(done, serving, records, label="third").values():
        assert one.weights[2:] == (0.0, 0.0) and sum(one.weights) == pytest.approx(1.0, abs=1e-5)


def test_naming_the_task_silences_all_others(taught):
    done = taught("hide")
    records = done.session.test(done.session.stream.tasks[0])
    for one in ask(done, served(done), records, label="in order", named=2).values():
        assert one.weights == (0.0, 0.0, 1.0, 0.0) and one.choice == 2
