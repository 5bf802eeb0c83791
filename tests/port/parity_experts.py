"""HiDe and MoELoRA out of our own parts, on the numbers of `tools/oracle/oracle_experts.py`, measured against torch.

Tests and the table in docs/parity.md call the same functions; every one gives a largest absolute difference.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle_experts as given
import parity_cases as cases

from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.bank import Bank, apply_experts
from hidecmoe_jax.experts.routing import Routing, Voice, routed_weights
from hidecmoe_jax.locators.anchors import Anchors, Pooled, gate
from hidecmoe_jax.methods.base import Decision, Learner
from hidecmoe_jax.methods.lora import LINEARS, Lora
from hidecmoe_jax.methods.routed import Routed, RoutedMemory
from hidecmoe_jax.models.llava import Prompt, head, hidden, logits
from hidecmoe_jax.port.checkpoints import check

TASKS, LAYERS = given.TASKS, given.case().text["num_hidden_layers"]


def largest(mine, theirs) -> float:
    """Largest absolute difference."""
    return float(np.abs(np.asarray(mine) - np.asarray(theirs)).max())


def anchors(learned: int | None = None) -> Anchors:
    """Anchors of the first `learned` tasks (None: the official code's random rest counts too)."""
    image, text = (jnp.asarray(value) for value in given.anchors())
    count = jnp.asarray(np.arange(given.SLOTS) < (learned or given.SLOTS), jnp.int32)
    return Anchors(image, count, text, count)


def pooled() -> Pooled:
    """CLIP features of four samples."""
    image, text = (jnp.asarray(value) for value in given.pooled())
    there = jnp.ones(len(image), bool)
    return Pooled(image, there, text, there)


def learned() -> jax.Array:
    """Which of the slots belong to tasks."""
    return jnp.arange(given.SLOTS) < TASKS


def clean_gate(temperature: float) -> float:
    """Our gate against the reference's; slots without a task must weigh nothing at all."""
    weight_BN = gate(anchors(TASKS), pooled(), learned(), temperature=temperature).weight_BN
    return max(largest(weight_BN[:, :TASKS], cases.stored("hide")[f"gate_{temperature}"]),
               float(weight_BN[:, TASKS:].max()))  # fmt: skip


def legacy_gate(temperature: float) -> float:
    """The official code's gate."""
    weight_BN = gate(anchors(), pooled(), learned(), temperature=temperature, legacy=True).weight_BN
    return largest(weight_BN, np.tile(cases.stored("hide")[f"legacy_{temperature}"], (4, 1)))


def wrong_gates() -> dict[str, float]:
    """Mistakes in the gate, and how far each moves the weights."""
    everyone = jnp.ones(given.SLOTS, bool)
    found = {
        "gate per batch, not per sample": gate(anchors(), pooled(), learned(), legacy=True),
        "gate temperature 0.05 for 0.1": gate(anchors(TASKS), pooled(), learned(), temperature=0.05),
        "gate reads pictures alone": gate(anchors(TASKS), pooled(), learned(), mixing=1.0),
        "gate counts tasks that are not learned": gate(anchors(), pooled(), everyone),
    }
    expected = cases.stored("hide")["gate_0.1"]
    sizes = {name: largest(one.weight_BN[:, :TASKS], expected) for name, one in found.items()}
    (image, text), (image_anchor, text_anchor) = given.pooled(), given.anchors()
    raw = (image @ image_anchor.T + text @ text_anchor.T)[:, :TASKS]
    return sizes | {"gate without normalisation": largest(jax.nn.softmax(raw / 0.2), expected)}


def stacked(kind: str, experts: int, site: str, *, rank: int) -> tuple[jax.Array, jax.Array]:
    """a [L, D, S, R] and b [L, S, R, F] of one site from PEFT's A [R, D] and B [F, R]."""
    pairs = [[given.factors(kind, e, layer, site, rank=rank) for e in range(experts)] for layer in range(LAYERS)]
    a = np.stack([np.stack([a.T for a, _ in layer], axis=1) for layer in pairs])
    return jnp.asarray(a), jnp.asarray(np.stack([np.stack([b.T for _, b in layer]) for layer in pairs]))


def bank(*, scale: float = given.SCALE) -> Bank:
    """Slot 0 free for the fusion, task t in slot t + 1."""
    a, b = {}, {}
    for site in given.site_widths(given.case().text):
        a_LDSR, b_LSRF = stacked("hide", TASKS, site, rank=given.RANK)
        a[site] = jnp.pad(a_LDSR, ((0, 0), (0, 0), (1, 0), (0, 0)))
        b[site] = jnp.pad(b_LSRF, ((0, 0), (1, 0), (0, 0), (0, 0)))
    owner = jnp.broadcast_to(jnp.arange(-1, TASKS, dtype=jnp.int32), (LAYERS, TASKS + 1))
    return Bank(a, b, owner, scale)


@functools.cache
def prompt() -> Prompt:
    """The probe's right-padded prompts."""
    model, inputs = cases.by_hand("plain"), cases.inputs("plain")
    patches = check.patches_of(check.features_and_states(model, inputs)["vision_features"], inputs["pictures"])
    return Prompt(jnp.asarray(inputs["tokens"]), jnp.asarray(inputs["mask"]), patches)


_state = jax.jit(lambda model, prompt, voices: hidden(model, prompt, voices)[0])


def served(reading: str, weight_BN: np.ndarray, *, whole: Bank | None = None) -> tuple[jax.Array, jax.Array]:
    """States and last logits with HiDe's own fusion, `serve` and `voices`."""
    method = Routed(lora=Lora(rank=given.RANK, alpha=given.SCALE * given.RANK), fusion=reading)
    experts = bank() if whole is None else whole
    if reading == "factor_sum":
        experts = surgery.fuse(experts, range(TASKS), mode=reading, layers=range(LAYERS - 1), slot=0)
    serving = method.serve(cases.by_hand("plain"), Learner({}, {}, {LINEARS: experts}, {}, RoutedMemory()))
    decision = Decision(jnp.asarray(weight_BN), jnp.asarray(weight_BN))
    state = _state(serving.model, prompt(), method.voices(serving, decision))
    inputs = cases.inputs("plain")
    last, (rows, columns) = inputs["mask"].sum(axis=1) - 1, inputs["where"].T
    return state[rows, columns], head(serving.model, state[np.arange(4), last])


def worst(reading: str, suffix: str = "", *, weight: np.ndarray | None = None, whole: Bank | None = None) -> float:
    """HiDe in the whole model against the reference."""
    stored = cases.stored("hide")
    right = np.tile(stored["legacy_0.1"][:TASKS], (4, 1)) if suffix else stored["gate_0.1"]
    state, last = served(reading, right if weight is None else weight, whole=whole)
    return max(largest(state, stored[f"state_{reading}{suffix}"]), largest(last, stored[f"last_{reading}{suffix}"]))


def wrong_experts() -> dict[str, dict]:
    """Mistakes in the experts, as arguments of `worst`."""
    return {
        "missing LoRA scale": {"whole": bank(scale=1.0)},
        "all tasks equally loud": {"weight": np.full((4, TASKS), 1 / TASKS, np.float32)},
        "tasks in another order": {"weight": cases.stored("hide")["gate_0.1"][:, ::-1].copy()},
    }


def moe(leaves: dict) -> jax.Array:
    """One MoELoRA linear: dense softmax over all experts, per token."""
    x = leaves["x"]
    weight, _ = routed_weights(x, jnp.ones((1, given.EXPERTS)), leaves["router"].T[None], given.EXPERTS)
    a, b = jnp.transpose(leaves["a"], (2, 0, 1)), jnp.transpose(leaves["b"], (0, 2, 1))
    return x @ leaves["w"].T + apply_experts(x, a, b, weight, leaves.get("scale", given.SCALE))


def one_linear() -> tuple[dict[str, jax.Array], jax.Array]:
    """The linear's leaves and the weights of its loss."""
    leaves = {name: jnp.asarray(value) for name, value in given.one_linear().items()}
    return leaves, leaves.pop("loss")


def moelora_linear() -> dict[str, float]:
    """Output and gradients of one MoELoRA linear."""
    (leaves, asked), stored = one_linear(), cases.stored("moelora")
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(moe(p) * asked)))(leaves)
    found = {name: largest(gradient, stored[f"d_{name}"]) for name, gradient in gradients.items()}
    return {"output": largest(moe(leaves), stored["y"])} | found


def _voices(leaves: dict) -> tuple[Voice, ...]:
    """One bank, with a router of its own for every linear."""
    owner = jnp.broadcast_to(jnp.arange(given.EXPERTS, dtype=jnp.int32), (LAYERS, given.EXPERTS))
    factors = [{site: leaf[place] for site, leaf in leaves.items()} for place in (0, 1)]
    routers = {site: jnp.swapaxes(router_LSD, 1, 2) for site, (_, _, router_LSD) in leaves.items()}
    routing = Routing(jnp.ones((LAYERS, 1, given.EXPERTS)), site_routers=routers)
    return (Voice(Bank(*factors, owner, given.SCALE), routing),)


def _moelora_loss(leaves: dict) -> jax.Array:
    """Mean loss of the text tokens."""
    model, read = cases.by_hand("plain"), prompt()
    following = read.tokens_BT[:, 1:]
    asked = read.mask_BT[:, 1:] & (following != model.config.image_token)
    log_p = jax.nn.log_softmax(logits(model, read, _voices(leaves))[:, :-1])
    nll = -jnp.take_along_axis(log_p, following[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(asked, nll, 0.0)) / jnp.sum(asked)


def moelora_model() -> dict[str, float]:
    """Loss of the whole model, and gradients of every linear's experts and router."""
    leaves, stored = {}, cases.stored("moelora")
    for site in given.ROUTED:
        router = jnp.stack([jnp.asarray(given.router(layer, site)) for layer in range(LAYERS)])
        leaves[site] = (*stacked("moe", given.EXPERTS, site, rank=given.SMALL_RANK), router)
    prompt()  # outside of the trace
    value, gradients = jax.jit(jax.value_and_grad(_moelora_loss))(leaves)
    found = {"loss": largest(value, stored["loss"])}
    for site, (a_LDSR, b_LSRF, router) in gradients.items():
        a, b = jnp.transpose(a_LDSR, (0, 2, 3, 1)), jnp.transpose(b_LSRF, (0, 1, 3, 2))
        for name, gradient in (("a", a), ("b", b), ("router", router)):
            found[f"{site} {name}"] = largest(gradient, stored[f"model_d_{name}_{site}"])
    return found
