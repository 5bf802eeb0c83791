"""Run by `test_layouts.py` in a process of its own with eight virtual CPU devices; prints results as one JSON line."""

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS)]

import jax  # noqa: E402
import numpy as np  # noqa: E402
from lessons import Silent  # noqa: E402
from lowering import lower_in_shared_contexts  # noqa: E402
from tiny import SMALL_LORA, run_config, write_base, write_stream  # noqa: E402

from hidecmoe_jax.core import trees  # noqa: E402
from hidecmoe_jax.core.layout import layout_of, place, replicate, split_batch  # noqa: E402
from hidecmoe_jax.core.sharding import make_mesh  # noqa: E402
from hidecmoe_jax.evaluate import engine  # noqa: E402
from hidecmoe_jax.methods.base import trainable, with_trainable  # noqa: E402
from hidecmoe_jax.models.llava import model_axes  # noqa: E402
from hidecmoe_jax.runs.scale import MeshSizes, Scale  # noqa: E402
from hidecmoe_jax.runs.session import open_session  # noqa: E402
from hidecmoe_jax.studies.planning.collectives import collectives_of, elements_by_kind  # noqa: E402
from hidecmoe_jax.train import stage  # noqa: E402
from hidecmoe_jax.train.packed import packer_of  # noqa: E402

POOL = {
    "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "sites": ["ffn"]},
    "probe": {"share": 0.75, "measured": 0.4, "steps": 2},
    "gate": {"kind": "locator", "by": {"kind": "vae", "hidden": 8, "latent": 2, "epochs": 2}, "kept_apart": 0.25},
}
BELOW = {"layers": 2, "lora": {"rank": 2, "alpha": 4, "dropout": 0.1}}
METHODS = {
    "hide": {"lora": SMALL_LORA},
    "sequential": {"growth": "shared"},
    "cmoe": {"kind": "mixture", **POOL},
    "stacked": {"kind": "stacked", "below": BELOW, "above": POOL},
    "moelora": {"kind": "moelora", "lora": {"rank": 2, "alpha": 4, "dropout": 0.1}, "experts": 3},
    "ewc": {"kind": "ewc", "inner": {"growth": "shared", "lora": {"rank": 2, "alpha": 4, "dropout": 0}}},
    "lwf": {"kind": "lwf", "inner": {"growth": "shared", "lora": {"rank": 2, "alpha": 4, "dropout": 0}}},
    "olora": {"kind": "olora", "train_projector": True, "lora": {"rank": 2, "alpha": 4, "dropout": 0}},
    "reglora": {"kind": "reglora", "train_projector": True, "lora": {"rank": 2, "alpha": 4, "dropout": 0}},
    "incmoe": {"kind": "incmoe", "lora": {"rank": 2, "alpha": 4, "dropout": 0.1}, "experts": 2},
    "full": {"kind": "full"},
}
# Sizes of data, fsdp and tensor, and where the base lies while training and while answering.
LAYOUTS = {
    "8x1x1": ((8, 1, 1), "replicated", "replicated"),
    "1x8x1": ((1, 8, 1), "sharded", "replicated"),
    "2x2x2": ((2, 2, 2), "sharded", "tensor"),
    "1x4x2": ((1, 4, 2), "tensor", "tensor"),
}


def laid(model, name: str, recompute: str = "named"):
    """The model on the mesh of a layout, for training and for answers."""
    if name == "none":
        return model, model
    (data, fsdp, tensor), train, answer = LAYOUTS[name]
    layout = layout_of(make_mesh(data=data, fsdp=fsdp, tensor=tensor), train, answer, recompute=recompute)
    axes = model_axes(model.config)
    placed = []
    for one in (layout, layout.for_answers()):
        placed.append(model.replace(params=place(one, model.params, axes), layout=one))
    return placed


def small_session(method: str, pack: int = 0):
    """An opened session of one task with two steps of eight records, which share rows with `pack`."""
    root = Path(tempfile.mkdtemp())
    tasks = write_stream(root, ("birds",), train=16, test=8)
    tune = {"bucket": 32, "batch": 8, "pack": pack}
    # Dropout is drawn for positions, which a shared row has others of.
    of_method = METHODS[method] if not pack else {"lora": SMALL_LORA | {"dropout": 0}}
    config = run_config(write_base(root / "base"), method, tasks=tasks, tune=tune, **of_method)
    writing = replace(config.evaluate.writing, batch=8)
    # One device, where nothing else is said.
    config = replace(config, evaluate=replace(config.evaluate, writing=writing), scale=Scale(mesh=MeshSizes(1)))
    session = open_session(config)
    assert session.model.layout is None
    return session


def check_packed(layouts: list[str]) -> dict:
    """Losses and distance of the trained leaves of steps whose records share rows, on one device (`none`) and on
    layouts; `unpacked` is a row for each record on one device."""
    session = small_session("hide", pack=3)
    training = first_training(session)
    rows = {}
    alone = None
    for name in ("none", *layouts):
        losses, leaves = steps_on(session, training, laid(session.model, name)[0])
        alone = leaves if alone is None else alone
        apart = jax.tree.map(lambda a, b: float(abs(a - b).max()), alone, leaves)
        rows[name] = {"loss": losses, "apart": max(jax.tree.leaves(apart))}
    _, part, data = training
    arranged = packer_of(data, part, session.config.tune, None).arrange([len(each.tokens) for each in data.encoded[:8]])
    rows["none"]["records of a row"] = max(map(len, arranged.groups))
    plain = replace(session.config.tune, pack=0)
    losses, _ = steps_on(session, training, session.model, plain)
    return rows | {"unpacked": {"loss": losses}}


def first_training(session):
    """(learner, stage, data) of the first stage that trains, on one device."""
    method = session.config.method
    learner = method.init(session.model, session.config.capacity)
    data = session.material(session.stream.tasks[0].train, (0,), "birds")
    for part in method.stages(0):
        learner = part.prepare(session.model, learner, 0, jax.random.key(1))
        if part.trains:
            return learner, part, data
    raise AssertionError(f"{method.name} trains nothing")


def steps_on(session, training, model, tune=None) -> tuple[list[float], dict]:
    """Losses of the stage's steps on a model, and what it trained."""
    learner, part, data = training
    watch = Silent()
    after = stage.run_stage(
        model,
        learner,
        part,
        data,
        tune=tune or session.config.tune,
        key=jax.random.key(2),
        seed=0,
        observer=watch,
        task="birds",
    )
    return [facts["loss"] for facts in watch.facts], jax.device_get(trainable(after))


def tokens_on(session, serving, inputs, decision, answering) -> list[str]:
    """Answers of a serving state whose base lies as that of `answering`."""
    layout = answering.layout
    params = place(layout, serving.model.params, model_axes(answering.config))
    folded = replicate(layout, serving.replace(model=None))
    serving = folded.replace(model=answering.replace(params=params))
    on_mesh = replace(session.engine, base=answering)
    texts = []
    for batch in on_mesh.answer(serving, inputs, decision, key=jax.random.key(0), length=session.prompt_length):
        texts += [answer.text for answer in batch]
    return texts


class Recorder:
    """A jitted function of which one program is compiled, for the arguments of its first call, and used for all."""

    def __init__(self, function, *, skipped: int, static: tuple[str, ...]):
        self.function = function
        self.skipped = skipped
        self.static = static
        self.program = None

    def __call__(self, *args, **settings):
        if self.program is None:
            self.program = self.function.lower(*args, **settings).compile()
        dynamic = {name: value for name, value in settings.items() if name not in self.static}
        # A second step of other shardings than the first is refused here.
        return self.program(*args[self.skipped :], **dynamic)


def check(methods: list[str], layouts: list[str]) -> dict:
    """Losses, distance of the trained leaves, answers and exchanged elements of methods, on one device (`none`) and on
    layouts."""
    found = {}
    take_step = stage.take_step
    write = engine._write
    for method in methods:
        session = small_session(method)
        training = first_training(session)
        learner = training[0]
        serving = session.config.method.serve(session.model, session.config.method.init(session.model, 4))
        inputs = session.inputs(session.stream.tasks[0])
        decision = session.engine.decide(serving, inputs, None)
        rows = {"sizes": sizes_of(session.model, learner)}
        alone = None
        for name in ("none", *layouts):
            on_mesh, answering = laid(session.model, name)
            stage.take_step = Recorder(take_step, skipped=0, static=("stage", "tune"))
            engine._write = Recorder(write, skipped=1, static=("sampling",))
            losses, leaves = steps_on(session, training, on_mesh)
            texts = tokens_on(session, serving, inputs, decision, answering)
            alone = leaves if alone is None else alone
            apart = jax.tree.map(lambda a, b: float(abs(a - b).max()), alone, leaves)
            rows[name] = {"loss": losses, "texts": texts, "apart": max(jax.tree.leaves(apart))}
            rows[name] |= exchange_of(stage.take_step.program.as_text(), engine._write.program.as_text())
        found[method] = rows
    stage.take_step = take_step
    engine._write = write
    return found


def check_answers(layout: str) -> dict:
    """Answers of a layout, and elements that are exchanged for one decoded token."""
    session = small_session("hide")
    method = session.config.method
    serving = method.serve(session.model, method.init(session.model, 4))
    inputs = session.inputs(session.stream.tasks[0])
    decision = session.engine.decide(serving, inputs, None)
    _, answering = laid(session.model, layout)
    recorded = Recorder(engine._write, skipped=1, static=("sampling",))
    engine._write = recorded
    texts = tokens_on(session, serving, inputs, decision, answering)
    return {"texts": texts, "token": exchange_of("", recorded.program.as_text())["token"]}


def sizes_of(model, learner) -> dict[str, int]:
    """Elements of the decoder's layers, of the rest of the frozen weights that a step reads, and of what trains."""
    decoder = model.params["decoder"]
    layers = sum(leaf.size for leaf in jax.tree.leaves(decoder["layers"]))
    rest = sum(leaf.size for leaf in jax.tree.leaves(decoder)) - layers
    if not learner.tuned:
        axes = trees.flatten(
            jax.tree.map(str, model_axes(model.config)["projector"], is_leaf=lambda n: isinstance(n, tuple))
        )
        frozen = trees.flatten(model.params["projector"])
        rest += sum(leaf.size for path, leaf in frozen.items() if "width" in axes[path])
    trained = sum(leaf.size for leaf in jax.tree.leaves(trainable(learner)))
    return {"layers": layers, "rest": rest, "trained": trained}


def exchange_of(step: str, write: str) -> dict:
    """Elements by kind: in a step, outside of its loops, and for one decoded token."""
    of_step = collectives_of(step)
    of_answers = collectives_of(write)
    return {
        "step": elements_by_kind(of_step),
        "outside": elements_by_kind(item for item in of_step if not item.in_loop),
        "token": elements_by_kind(item for item in of_answers if item.in_open_loop),
    }


def check_sums() -> dict:
    """How far gradients of a bfloat16 step on eight devices are from those on one, relative to the largest."""
    session = small_session("hide")
    learner, part, data = first_training(session)
    model = session.model.replace(config=replace(session.model.config, dtype="bfloat16"))
    batch = data.batch(np.arange(8, dtype=np.int32))
    # Factors `b` start at zero, which gives `a` no gradient.
    leaves = jax.tree.map(lambda leaf: leaf + 0.02, trainable(learner))

    def gradient(model, batch):
        def loss(leaves):
            return part.loss(model, with_trainable(learner, leaves), batch, jax.random.key(3)).total

        return jax.grad(loss)(leaves)

    one_device = model.replace(layout=layout_of(make_mesh()))
    alone = jax.device_get(jax.jit(gradient)(one_device, batch))
    on_mesh, _ = laid(model, "8x1x1")
    program = jax.jit(gradient)
    shared = jax.device_get(program(on_mesh, split_batch(on_mesh.layout, batch)))
    apart = jax.tree.map(lambda a, b: float(abs(a - b).max() / abs(a).max()), alone, shared)
    return trees.flatten(apart)


if __name__ == "__main__":
    lower_in_shared_contexts()
    method_names, layout_names, *more = (argument.split(",") for argument in sys.argv[1:])
    found = {"packed": check_packed(layout_names)} if method_names == ["packed"] else check(method_names, layout_names)
    more = more[0] if more else []
    if "sums" in more:
        found["sums"] = check_sums()
    if "answers" in more:
        found["answers"] = check_answers("8x1x1")
    print(json.dumps(found))
