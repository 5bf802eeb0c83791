"""Ratios of the experts at one linear: the bank against a loop over experts, and against other ways to mix them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flops import products_of
from jax import Array
from ratio_timing import control_of, interleaved
from ratio_work import Size

from hidecmoe_jax.experts.bank import apply_experts, multiplied_slots, sums_of_chosen

# FLOP/s and bytes/s of the GPU that the goals are stated for; only their quotient matters to the counts.
COMPUTE = 788e12
BANDWIDTH = 4.3e12
EXPERTS = 8
RANK = 8


def one_bank(x: Array, a: Array, b: Array, weight: Array) -> Array:
    """The library's own: all experts in two products."""
    return apply_experts(x, a, b, weight, 2.0)


def one_by_one(x: Array, a: Array, b: Array, weight: Array) -> Array:
    """A loop over the experts, as CoIN and HiDe-LLaVA mix them."""
    total = jnp.zeros((*x.shape[:2], b.shape[2]), x.dtype)
    for slot in range(a.shape[1]):
        share = 2.0 * weight[:, slot, None, None].astype(x.dtype)
        total = total + share * ((x @ a[:, slot].astype(x.dtype)) @ b[slot].astype(x.dtype))
    return total


def gathered(x: Array, a: Array, b: Array, weight: Array, top_k: int) -> Array:
    """The library's own for a long prompt: the `top_k` experts of every sample, taken out of the bank first."""
    return sums_of_chosen(x, a, b, weight, 2.0, top_k).astype(x.dtype)


def chosen_path(case: tuple[int, int, int, int], width: int, batch: int) -> str:
    """Which of `bank` and `gather` the library takes by itself, where a gate chooses tasks for a sample."""
    experts, rank, tokens, top_k = case
    multiplied = multiplied_slots((batch, tokens, width), experts, rank, width, top_k)
    return "bank" if multiplied == experts else "gather"


def ragged(x: Array, a: Array, b: Array, weight: Array, top_k: int) -> Array:
    """Rows sorted by expert and multiplied group by group."""
    share, chosen = jax.lax.top_k(weight, top_k)
    batch, length, width = x.shape
    expert = jnp.broadcast_to(chosen[:, None], (batch, length, top_k)).reshape(-1)
    scale = 2.0 * jnp.broadcast_to(share[:, None], (batch, length, top_k)).reshape(-1)
    order = jnp.argsort(expert)
    row = order // top_k
    sizes = jnp.bincount(expert, length=a.shape[1]).astype(jnp.int32)
    u = jax.lax.ragged_dot(x.reshape(-1, width)[row], a.astype(x.dtype).transpose(1, 0, 2), sizes)
    y = jax.lax.ragged_dot(u, b.astype(x.dtype), sizes) * scale[order, None].astype(x.dtype)
    total = jnp.zeros((batch * length, b.shape[2]), x.dtype).at[row].add(y)
    return total.reshape(batch, length, -1)


def drawn(width: int, tokens: int, batch: int, experts: int, rank: int, top_k: int, dtype: str) -> tuple:
    """(x, a, b, weight) with `top_k` experts a sample."""
    random = np.random.default_rng(0)
    x = random.normal(size=(batch, tokens, width))
    a = random.normal(size=(width, experts, rank)) / np.sqrt(width)
    b = random.normal(size=(experts, rank, width)) / np.sqrt(rank)
    weight = np.zeros((batch, experts), np.float32)
    for row in weight:
        row[random.permutation(experts)[:top_k]] = 1 / top_k
    return jnp.asarray(x, dtype), jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), jnp.asarray(weight)


def _ready(function: Callable, inputs: tuple) -> Callable[[], object]:
    return lambda: jax.block_until_ready(function(*inputs))


def _apart(first: Array, second: Array) -> float:
    """Largest difference of two results, by the largest number of the first."""
    first = np.asarray(first, np.float32)
    return float(np.abs(first - np.asarray(second, np.float32)).max() / np.abs(first).max())


def bank(size: Size, kind: str) -> dict:
    """Row 7. On a GPU the loop runs operation by operation, as PyTorch would run it."""
    config = size.config
    tokens = {"prefill": size.prompt, "decode": 1}
    dtype = config.dtype
    batch = 8 if kind == "gpu" else 4
    row = {}
    for part, length in tokens.items():
        inputs = drawn(config.width, length, batch, EXPERTS, RANK, EXPERTS, dtype)
        loop = one_by_one if kind == "gpu" else jax.jit(one_by_one)
        seconds = interleaved(
            {"bank": _ready(jax.jit(one_bank), inputs), "loop": _ready(loop, inputs)}, 4 * size.rounds, kind
        )
        row[part] = seconds["loop"] / seconds["bank"]
        row[f"{part} control"] = control_of(seconds)
        row[f"{part} apart"] = _apart(jax.jit(one_bank)(*inputs), jax.jit(one_by_one)(*inputs))
        if part == "prefill":
            row["CPU time"] = row[part]
            row["products of the bank"] = products_of(jax.make_jaxpr(one_bank)(*inputs).jaxpr)
            row["products of the loop"] = products_of(jax.make_jaxpr(one_by_one)(*inputs).jaxpr)
    if kind == "gpu":
        row.pop("CPU time")
    return {7: row}


def grid_of(size: Size) -> list[tuple[int, int, int, int]]:
    """(experts, rank, tokens, top_k) of the cases."""
    if size.name == "smallest":
        return [(4, 4, 8, 2)]
    return [(e, r, t, k) for e in (4, 8, 16) for r in (8, 32) for t in (1, 640) for k in (1, 2)]


def _paths(top_k: int) -> dict[str, Callable]:
    return {"bank": one_bank, "gather": partial(gathered, top_k=top_k), "ragged": partial(ragged, top_k=top_k)}


def cost_of(path: str, case: tuple[int, int, int, int], width: int, batch: int) -> float:
    """Seconds at the rates above in bfloat16: products and moved bytes, by formula; a ragged product as a real kernel.

    The compilers' own counts do not serve: on a CPU and without a plugin on a GPU a ragged product is expanded.
    """
    experts, rank, tokens, top_k = case
    rows = batch * tokens
    active = experts if path == "bank" else top_k
    operations = 4 * rows * width * active * rank
    # The input is read, the output read and written; then the experts that are read, once or for every sample.
    moved = 3 * rows * width
    read = {"bank": experts, "ragged": min(experts, batch * top_k), "gather": 3 * batch * top_k}[path]
    moved += 2 * read * width * rank
    if path == "ragged":
        # Rows are put in the order of their experts, and back.
        moved += 4 * rows * top_k * width
    return operations / COMPUTE + 2 * moved / BANDWIDTH


def _apart_at_most(case: tuple[int, int, int, int], batch: int) -> float:
    """Largest difference between the bank's output and those of the other ways, at a narrow width."""
    experts, rank, tokens, top_k = case
    inputs = drawn(64, min(tokens, 8), batch, experts, rank, top_k, "float32")
    results = {path: jax.jit(function)(*inputs) for path, function in _paths(top_k).items()}
    return max(_apart(results["bank"], other) for other in results.values())


def paths(size: Size, kind: str) -> dict:
    """Row 8: the largest ratio of the library's way to the best one over the grid; on a GPU by time."""
    width = size.config.width if kind == "gpu" else 4096
    batch = 8
    costs = {}
    times = {}
    equal = 0.0
    compared: set[tuple[int, int]] = set()
    for case in grid_of(size):
        experts, rank, tokens, top_k = case
        by_path = {path: cost_of(path, case, width, batch) for path in _paths(top_k)}
        taken = chosen_path(case, width, batch)
        costs[str(case)] = by_path[taken] / min(by_path.values())
        # Whether the ways agree depends on experts and k alone, and compiling them takes longest.
        if (experts, top_k) not in compared:
            compared.add((experts, top_k))
            equal = max(equal, _apart_at_most(case, batch))
        if kind == "gpu":
            inputs = drawn(width, tokens, batch, experts, rank, top_k, size.config.dtype)
            works = {path: _ready(jax.jit(function), inputs) for path, function in _paths(top_k).items()}
            seconds = interleaved(works, size.rounds, kind)
            times[str(case)] = seconds[taken] / min(seconds[path] for path in works)
    worst = max(costs, key=costs.get)
    row = {"cost": costs[worst], "worst case (experts, rank, tokens, k)": worst, "apart": equal, "costs": costs}
    if times:
        row |= {"time": max(times.values()), "times": times}
    return {8: row}
