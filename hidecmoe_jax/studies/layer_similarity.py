"""Layer-similarity study: which layers do tasks share? Features of single-task models compared layer by layer.

HiDe-LLaVA keeps the top layer apart because features of differently tuned models agree below it (arXiv 2503.12941,
section 3). Every task's expert is taken from the archive and used alone in all layers, with the projector it was
trained with. Centred kernel alignment (CKA, arXiv 1905.00414) compares two sets of features; it is meaningful only
where row i of both comes from the same input.

* The default study shows every model the same questions and removes the estimator's bias (arXiv 2006.05247).
* The `legacy` study is the published one: each model reads its own task's questions, an RBF kernel, a biased estimate.
  On unrelated Gaussian samples of 50 rows it gives 0.99, so a high legacy value is no evidence of similarity.

Letters after names are axes: T tasks (one model each), L layers, N questions, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.data.records import Record
from hidecmoe_jax.data.stream import Task
from hidecmoe_jax.evaluate.engine import batch_rows
from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.routing import Voice, all_slots
from hidecmoe_jax.methods.base import Learner, with_leaves
from hidecmoe_jax.methods.routed import LINEARS
from hidecmoe_jax.models.llava import Model, layer_features
from hidecmoe_jax.report.canvas import DOT, INK, axis_label, canvas, heat, png, titles
from hidecmoe_jax.runs.finished import open_with_data
from hidecmoe_jax.runs.session import Session
from hidecmoe_jax.runs.writing import writes_run
from hidecmoe_jax.storage.files import write_bytes, write_json

Voices = tuple[Voice, ...]


@writes_run
def study(run: str | Path, *, count: int = 500, legacy: bool = False) -> Path:
    """Writes `cka.json` (or `cka_legacy.json`) and its heat map into the run folder; returns the figure's path.

    Args:
      count: questions shown to every model: test questions of all tasks in equal parts, or (legacy) of its own task.

    Raises:
      ConfigError: the run has fewer than two experts to compare.
    """
    finished = open_with_data(run)
    session = finished.session
    method = finished.config.method
    archive = finished.ledger().archive()
    # Without edits: experts that were retired since are compared too.
    learner = finished.learner(archive, edits=False)
    has_experts = method.traits.keeps_old_experts and LINEARS in learner.past
    if not has_experts or len(archive) < 2:
        raise ConfigError(
            "nothing to compare", where=str(run),
            why=f"{method.name} keeps no expert per task, or learned one task",
            remedy="give a run with one expert per task, such as configs/pocket/hide.yaml",
        )  # fmt: skip
    tasks = session.stream.tasks[: len(archive)]
    common = _questions_of_all(session, tasks, count)
    features = []
    for index, task in enumerate(session.status.bar("similarity")(tasks)):
        projector = archive[index]["shared"]
        model, voices = _single_task_model(session.model, learner, projector, index)
        records = common
        label = "all shown"
        if legacy:
            records = session.test(task)[:count]
            label = f"{task.name} shown"
        feature_LND = _features(session, model, voices, records, label)
        features.append(feature_LND)
    # Legacy: tasks may have different numbers of questions.
    rows = min(feature_LND.shape[1] for feature_LND in features)
    features_TLND = np.stack([feature_LND[:, :rows] for feature_LND in features])
    layers_LTT = cka_matrices(features_TLND, legacy=legacy)
    name = "cka_legacy" if legacy else "cka"
    names = [task.name for task in tasks]
    result = {"tasks": names, "rows": rows, "legacy": legacy, "layers": layers_LTT.tolist()}
    write_json(finished.folder.study(name), result)
    picture = finished.folder.figures / f"{name}.png"
    picture.parent.mkdir(exist_ok=True)
    figure = similarity_map(layers_LTT, names, legacy=legacy)
    write_bytes(picture, png(figure))
    return picture


def similarity_map(layers_LTT, tasks: Sequence[str], *, legacy: bool):
    """Figure of the CKA (centred kernel alignment) of every two single-task models by layer.

    Bars are the mean over pairs of models; the heat map below has a row for each pair.

    Args:
      layers_LTT: similarities of `cka_matrices`.
      tasks: names of the T tasks, one model each.
      legacy: whether they are those of the published study; it changes the title alone.
    """
    layers = range(len(layers_LTT))
    first, second = np.triu_indices(len(tasks), k=1)
    values = np.array(layers_LTT)[:, first, second].T  # [pairs, layers]
    map_height = 0.28 * len(values)
    width = 2.5 + 0.5 * len(layers)
    height = 2.6 + map_height
    figure, (bars, pairs) = canvas(width, height, rows=2, ratios=(2, 0.4 + map_height))
    bars.bar(layers, values.mean(0), color=INK, width=0.6)
    bars.set_xticks(layers, layers)
    bars.set_ylim(0, 1.02)
    kind = "legacy (unpaired, biased RBF)" if legacy else "paired, debiased linear"
    titles(bars, f"CKA of single-task models {DOT} {kind}", x="", y="mean over pairs")

    def text(pair: int, layer: int) -> str:
        similarity = values[pair, layer]
        return f"{similarity:.2f}"

    heat(pairs, values, top=1.0, text=text)
    names = []
    for i, j in zip(first, second, strict=True):
        names.append(f"{axis_label(tasks[i])} / {axis_label(tasks[j])}")
    pairs.set_xticks(layers, layers)
    pairs.set_yticks(range(len(names)), names)
    titles(pairs, "", x="decoder layer", y="")
    return figure


def _questions_of_all(session: Session, tasks: Sequence[Task], count: int) -> tuple[Record, ...]:
    """About `count` test records, of all tasks in equal parts; at least one of each."""
    share = max(1, count // len(tasks))
    records: list[Record] = []
    for task in tasks:
        records += session.test(task)[:share]
    return tuple(records)


def _single_task_model(
    base: Model,
    learner: Learner,
    leaves: dict[str, np.ndarray],
    task: int,
) -> tuple[Model, Voices]:
    """The base with a task's own projector (`leaves`, by path), and the task's expert alone in all layers."""
    arrays = {path: jnp.asarray(leaf) for path, leaf in leaves.items()}
    voices = []
    for bank in learner.past.values():
        expert = surgery.extract(bank, task)
        voices.append(Voice(expert, all_slots(expert)))
    return with_leaves(base, arrays), tuple(voices)


_features_of = jax.jit(layer_features)


def _features(
    session: Session,
    model: Model,
    voices: Voices,
    records: tuple[Record, ...],
    label: str,
) -> np.ndarray:
    """Mean feature of every layer for each record's question, float32 [L, N, D]."""
    engine = session.engine
    prompts = engine.prompts(records)
    towers = engine.features(records, label)
    size = session.config.evaluate.writing.batch
    batches = []
    for start in range(0, len(records), size):
        rows, filled = batch_rows(len(records), start, size)
        prompt = engine.prompt(prompts, towers, filled, session.prompt_length)
        feature_LBD = np.asarray(_features_of(model, prompt, voices))
        # The last batch is filled with repeats, which are cut off.
        batches.append(feature_LBD[:, : len(rows)])
    return np.concatenate(batches, axis=1)


def cka_matrices(features_TLND: np.ndarray, *, legacy: bool = False) -> np.ndarray:
    """CKA of every two models in every layer, float64 [L, T, T]."""
    tasks, layers = features_TLND.shape[:2]
    similarity_LTT = np.ones((layers, tasks, tasks))
    for layer in range(layers):
        features_TND = features_TLND[:, layer]
        for i, j in combinations(range(tasks), 2):
            value = cka(features_TND[i], features_TND[j], legacy=legacy)
            similarity_LTT[layer, i, j] = value
            similarity_LTT[layer, j, i] = value
    return similarity_LTT


def cka(x_ND: np.ndarray, y_ND: np.ndarray, *, legacy: bool = False) -> float:
    """CKA of two feature sets: linear and debiased, or RBF and biased as published (`legacy`).

    1 for sets that agree up to rotation and scale; around 0 (debiased, possibly below) for unrelated ones.

    Raises:
      ValueError: unequal numbers of rows, or fewer than 4.
    """
    if len(x_ND) != len(y_ND) or len(x_ND) < 4:
        raise ValueError(f"two sets of at least 4 rows are needed, got {len(x_ND)} and {len(y_ND)}")
    # float64: products of N rows cancel in the debiased sum.
    x = np.asarray(x_ND, np.float64)
    y = np.asarray(y_ND, np.float64)
    if legacy:
        k = _rbf(x)
        m = _rbf(y)
        estimate = _biased_hsic
    else:
        x = x - x.mean(0)
        y = y - y.mean(0)
        k = x @ x.T
        m = y @ y.T
        estimate = _debiased_hsic
    power = estimate(k, k) * estimate(m, m)
    if power <= 0:
        return 0.0
    norm = float(np.sqrt(power))
    return estimate(k, m) / norm


def _rbf(x_ND: np.ndarray) -> np.ndarray:
    """RBF kernel [N, N] whose squared width is the median of the non-zero squared distances."""
    norms = (x_ND**2).sum(1)
    sums = norms[:, None] + norms[None]
    doubled_products = 2 * x_ND @ x_ND.T
    # Rounding can make |a|^2 + |b|^2 - 2ab slightly negative.
    squared = np.maximum(sums - doubled_products, 0.0)
    np.fill_diagonal(squared, 0.0)
    positive = squared[squared > 0]
    if not positive.size:
        return np.ones_like(squared)
    width = np.median(positive)
    return np.exp(-squared / (2 * width))


def _biased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Biased Hilbert-Schmidt independence criterion of two kernels [N, N], without its constant factor."""
    n = len(k)
    centre = np.eye(n) - 1.0 / n
    centred_k = centre @ k @ centre
    centred_m = centre @ m @ centre
    return float((centred_k * centred_m).sum())


def _debiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion (Song et al. 2012), for n >= 4."""
    n = len(k)
    # A sample's similarity to itself is what biases the estimate.
    k = k - np.diag(np.diag(k))
    m = m - np.diag(np.diag(m))
    pairs = (n - 1) * (n - 2)
    totals = k.sum() * m.sum() / pairs
    column_product = k.sum(0) @ m.sum(0)
    columns = 2.0 / (n - 2) * column_product
    products = (k * m).sum()
    correction = totals - columns
    return float((products + correction) / (n * (n - 3)))
