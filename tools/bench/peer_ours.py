"""Worker of `peer.py`: the work in this library.

Arguments: the folder of the work, `train` or `answer`, a dtype, and options; see `peer.py`.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
from peer_work import ALPHA, RANK, RATE, SITES, read_arrays, serve, use_threads, worker_parser


def arguments() -> argparse.Namespace:
    """Command line of the worker."""
    parser = worker_parser(__doc__)
    parser.add_argument("--routed", type=int, default=0, help="slots of a bank at the top layer, weighted per sample")
    return parser.parse_args()


def trainer(chosen: argparse.Namespace):
    """A function that takes so many optimiser steps; the vision tower runs in every step."""
    import jax
    import jax.numpy as jnp

    from hidecmoe_jax.methods.gates.anchors import NamedGate
    from hidecmoe_jax.methods.lora import Lora
    from hidecmoe_jax.methods.routed import Routed
    from hidecmoe_jax.models.llava import Batch, Prompt, vision_features
    from hidecmoe_jax.models.store import load_model
    from hidecmoe_jax.train.optim import TrainConfig
    from hidecmoe_jax.train.step import begin, take_step

    arrays = read_arrays(chosen.folder)
    model = load_model(chosen.folder / "ours", dtype=chosen.dtype, **_stored(chosen))
    lora = Lora(rank=RANK, alpha=ALPHA, dropout=chosen.dropout)
    method = Routed(lora=lora, gate=NamedGate(), train_projector=False)
    stage = method.stages(0)[0]
    learner = stage.prepare(model, method.init(model, 1), 0, jax.random.key(0))
    (name,) = learner.live
    bank = learner.live[name]
    a = {site: jnp.asarray(arrays[f"a_{site}"])[:, :, None] for site in SITES}
    learner = learner.replace(live={name: bank.replace(a=a)})
    tokens = arrays["train_tokens"]
    count, length = tokens.shape
    # The state before an answer token predicts it.
    places = np.arange(length - chosen.answers - 1, length - 1, dtype=np.int32)
    where = np.tile(places, (count, 1))
    answer = tokens[:, -chosen.answers :]
    tower = jax.jit(lambda model, pixels: vision_features(model, pixels)[0][None, :, None])
    tune = TrainConfig(batch=count)
    rates = dict.fromkeys(("experts", "routers", "shared"), jnp.float32(RATE))
    state = begin(learner, tune)

    def run(units: int) -> dict:
        nonlocal state
        losses = []
        for _ in range(units):
            patches = tower(model, arrays["train_pixels"])
            prompt = Prompt(tokens[None], np.ones((1, count, length), bool), patches)
            batch = Batch(prompt, where[None], answer[None], np.ones((1, *where.shape), bool))
            key = jax.random.fold_in(jax.random.key(1), len(losses))
            state, metrics = take_step(state, model, learner, batch, rates, key, stage=stage, tune=tune)
            losses.append(float(metrics.loss))
        return {"losses": losses}

    return run


def _stored(chosen: argparse.Namespace) -> dict[str, str]:
    """Parameters are stored in bfloat16 where it is what is computed in, as the other library does."""
    return {"param_dtype": chosen.dtype}


def answerer(chosen: argparse.Namespace):
    """A function that answers all prompts, `batch` together, so many times; towers included."""
    import jax

    from hidecmoe_jax.models.generate import Sampling, generate
    from hidecmoe_jax.models.llava import Prompt, vision_features
    from hidecmoe_jax.models.store import load_model

    arrays = read_arrays(chosen.folder)
    model = load_model(chosen.folder / "ours", dtype=chosen.dtype, **_stored(chosen))
    tower = jax.jit(lambda model, pixels: vision_features(model, pixels)[0][:, None])
    # No end token: every text has its full length, as in the other library.
    sampling = Sampling(max_new_tokens=chosen.written, eos_token=-1)
    write = jax.jit(partial(generate, sampling=sampling))
    voices = _voices(model, chosen)
    tokens = arrays["asked_tokens"]
    key = jax.random.key(0)

    def run(units: int) -> dict:
        texts = []
        for _ in range(units):
            texts = []
            for start in range(0, len(tokens), chosen.batch):
                rows = slice(start, start + chosen.batch)
                ids = tokens[rows]
                patches = tower(model, arrays["asked_pixels"][rows])
                prompt = Prompt(ids, np.ones(ids.shape, bool), patches)
                numbers = np.arange(len(ids), dtype=np.int32)
                out = write(model, prompt, voices, key=key, sample_ids_B=numbers)
                texts += np.asarray(out.tokens_BN).tolist()
        return {"texts": texts}

    return run


def _voices(model, chosen: argparse.Namespace) -> tuple:
    """Experts of the top layer with weights per sample; they are drawn so small that no answer changes."""
    import jax
    import jax.numpy as jnp

    from hidecmoe_jax.experts.routing import Routing, Voice
    from hidecmoe_jax.methods.lora import Lora

    if not chosen.routed:
        return ()
    top = range(model.config.layers - 1, model.config.layers)
    bank = Lora(rank=RANK).blank(model, chosen.routed, top)
    a = {site: 1e-4 * jax.random.normal(jax.random.key(2), leaf.shape) for site, leaf in bank.a.items()}
    b = {site: 1e-4 * jax.random.normal(jax.random.key(3), leaf.shape) for site, leaf in bank.b.items()}
    gain = jnp.full((1, chosen.batch, chosen.routed), 1 / chosen.routed, jnp.float32)
    return (Voice(bank.replace(a=a, b=b), Routing(gain)),)


def main() -> None:
    """Warms up and serves."""
    chosen = arguments()
    use_threads(chosen.threads)
    import jax
    import jaxlib

    run = trainer(chosen) if chosen.work == "train" else answerer(chosen)
    first = run(3 if chosen.work == "train" else 1)
    serve(run, {"first": first, "versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__}})


if __name__ == "__main__":
    main()
