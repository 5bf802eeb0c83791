"""Do experts of earlier tasks help a new task that has few items? Ways to build on them, without replay, in one table.

Every way stores one expert of one rank for a task, and at most a gain for every earlier expert and layer besides. What
earlier tasks have is never changed, so their answers with the task named keep every bit. `isolated` is what all others
are compared with; `joint`, one expert of all tasks' items together with as many numbers, is no continual method and
shows what there is to share. Choices are made on validation items, with the task named; no locator is fitted. What was
measured is kept in --folder and not measured again.

    python tools/bench/transfer.py                               100 items a task, earlier tasks in both orders
    python tools/bench/transfer.py --library others              every other task's isolated expert is there
    python tools/bench/transfer.py --items 50 --seeds 0 1 2      each seed draws a stream and experts of its own
    python tools/bench/transfer.py --ways mean-beside --library others --tasks counting grounding --epochs 8
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from transfer_ways import ISOLATED, JOINT, WAYS, Way, first_gains, started

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.compile_cache import use_compile_cache
from hidecmoe_jax.core.keys import key_for
from hidecmoe_jax.data.pocket.tasks import TASKS
from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.experts.routing import Routing, Voice, all_slots
from hidecmoe_jax.methods.base import Learner, Loss, Serving, with_experts_folded
from hidecmoe_jax.methods.lora import LINEARS
from hidecmoe_jax.methods.routed import RoutedMemory
from hidecmoe_jax.methods.stages import Stage
from hidecmoe_jax.models.llava import Batch, Model, answer_loss
from hidecmoe_jax.runs.config import load_config
from hidecmoe_jax.runs.session import Session, open_session
from hidecmoe_jax.scoring.score import by_id, score
from hidecmoe_jax.studies.probe_control import Unwatched
from hidecmoe_jax.train.optim import TrainConfig
from hidecmoe_jax.train.stage import StageData, run_stage

GAINS = "gains"
PICKED_ON = 16  # training items by whose loss the nearest earlier expert is picked
MOST_ITEMS = 300  # training items that are drawn of a task; fewer are the first of these
GAIN_RATE = 10.0  # a gain moves so many times as fast as a factor
SHORT, LONG = (72, 16), (88, 32)  # (length, answers) of batches: two programs for seven tasks
LONG_TASKS = ("charts", "captioning")
ORDERS = ("in-order", "reverse")
OTHERS = "others"


@dataclass(frozen=True, kw_only=True)
class Beside(Stage):
    """Trains an expert; with `uses_past`, beside frozen earlier ones whose gains are trained along."""

    kind: str = "beside"

    def loss(self, model: Model, learner: Learner, batch: Batch, key: jax.Array) -> Loss:
        """Answer loss under the live expert and, where they are there, the earlier ones."""
        live = learner.live[LINEARS]
        voices = [Voice(live, all_slots(live))]
        if self.uses_past:
            gain_LS = GAIN_RATE * learner.routers[GAINS]
            voices.append(Voice(learner.past[LINEARS], Routing(gain_LS[:, None])))
        total, tokens, _ = answer_loss(model, batch, tuple(voices))
        return Loss(total, tokens)


@dataclass(frozen=True)
class Taught:
    """An expert and the gains [L, S] of the bank of earlier ones that stand beside it."""

    expert: Bank
    gain_LS: np.ndarray
    nearest: int | None = None


@dataclass(frozen=True)
class Bench:
    """What all ways have in common.

    Attributes:
      items: training items of a task.
      tune: optimiser settings, the same for every way.
    """

    session: Session
    seed: int
    items: int
    tune: TrainConfig
    materials: dict[str, StageData] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """Names of the stream's tasks, in order."""
        return [task.name for task in self.session.stream.tasks]

    def material(self, name: str) -> StageData:
        """The first training items of a task."""
        if name not in self.materials:
            number = self.tasks.index(name)
            records = self.session.stream.tasks[number].train[: self.items]
            data = self.session.material(records, (number,), name)
            shape = LONG if name in LONG_TASKS else SHORT
            self.materials[name] = replace(data, shape=shape, lengths=())
        return self.materials[name]

    def union(self, names: Sequence[str]) -> StageData:
        """The training items of several tasks as one task."""
        records = []
        for name in names:
            records += self.material(name).records
        tasks = tuple(range(len(self.tasks)))
        return replace(self.session.material(tuple(records), tasks, JOINT), shape=LONG, lengths=())

    def fresh(self, name: str, rank: int | None = None) -> Bank:
        """A blank expert; its draw depends on the seed and the task alone."""
        lora = self.session.config.method.lora
        blank = replace(lora, rank=rank or lora.rank).blank(self.session.model, 1)
        return surgery.sprout(blank, 0, 0, key_for(self.seed, name, "expert"))

    def bank(self, experts: Sequence[Bank]) -> Bank:
        """Experts of several tasks, with a slot for every task of the stream."""
        bank = self.session.config.method.lora.blank(self.session.model, len(self.tasks))
        for slot, expert in enumerate(experts):
            bank = surgery.plant(bank, slot, expert, slot)
        return bank

    def nearest(self, name: str, bank: Bank, count: int) -> int:
        """Of the first `count` experts of a bank, the one under which a task's first items have the least loss."""
        rows = np.arange(PICKED_ON)
        # -1 is a row that counts for nothing: there may be fewer items.
        rows = np.where(rows < self.items, rows, -1)
        batch = jax.tree.map(jnp.asarray, self.material(name).batch(rows))
        losses = []
        for slot in range(count):
            gain_LS = jnp.zeros(bank.owner_LS.shape).at[:, slot].set(1.0)
            losses.append(float(_loss(self.session.model, bank, gain_LS, batch)))
        return int(np.argmin(losses))

    def teach(self, way: Way, name: str, earlier: Sequence[Bank]) -> Taught:
        """Trains the expert of a task."""
        bank = self.bank(earlier)
        nearest = self.nearest(name, bank, len(earlier)) if earlier and way.picks else None
        gain_LS = first_gains(way, bank, len(earlier), nearest)
        live = started(way, self.fresh(name), earlier, nearest)
        model = self.session.model
        learner = _learner(live)
        if earlier and way.beside == "gain":
            routers = {GAINS: jnp.asarray(gain_LS / GAIN_RATE)}
            learner = learner.replace(past={LINEARS: bank}, routers=routers)
        elif gain_LS.any():
            model = with_experts_folded(model, bank, gain_LS)
        learner = self._train(model, name, learner, self.material(name))
        if learner.routers:
            gain_LS = GAIN_RATE * np.asarray(learner.routers[GAINS])
        return Taught(learner.live[LINEARS], gain_LS, nearest)

    def teach_joint(self, names: Sequence[str]) -> Bank:
        """One expert of all tasks, as large as theirs together."""
        rank = self.session.config.method.lora.rank * len(names)
        learner = self._train(self.session.model, JOINT, _learner(self.fresh(JOINT, rank)), self.union(names))
        return learner.live[LINEARS]

    def _train(self, model: Model, name: str, learner: Learner, data: StageData) -> Learner:
        stage = Beside(uses_past=bool(learner.past))
        key = key_for(self.seed, name, "tune")
        return run_stage(
            model, learner, stage, data, tune=self.tune, key=key, seed=self.seed, observer=Unwatched(), task=name
        )

    def score(self, name: str, taught: Taught, earlier: Sequence[Bank]) -> float:
        """Score 0-100 of the answers to a task's validation items, all experts folded into the base."""
        expert = taught.expert
        model = with_experts_folded(self.session.model, expert, np.ones((expert.layers, 1), np.float32))
        if taught.gain_LS.any():
            model = with_experts_folded(model, self.bank(earlier), taught.gain_LS)
        task = self.session.stream.tasks[self.tasks.index(name)]
        engine = self.session.engine
        inputs = engine.inputs(task.val, f"{name} val")
        serving = Serving(model, None, None, RoutedMemory())
        decision = engine.decide(serving, inputs, task.index)
        texts = []
        for batch in engine.answer(serving, inputs, decision, key=key_for(0, "answer", name), length=80):
            texts += [(answer.id, answer.text) for answer in batch]
        references = {record.id: record.references for record in inputs.records}
        return score(task.scorer, by_id(texts, where=name), references).value


def _learner(live: Bank) -> Learner:
    return Learner({LINEARS: live}, {}, {}, {}, RoutedMemory())


@jax.jit
def _loss(model: Model, bank: Bank, gain_LS: jax.Array, batch: Batch) -> jax.Array:
    total, _, _ = answer_loss(model, batch, (Voice(bank, Routing(gain_LS[:, None])),))
    return total


@dataclass(frozen=True)
class Folder:
    """Cells that were measured, one line each, and experts that were trained."""

    path: Path

    def cells(self) -> list[dict]:
        """All cells, in the order in which they were measured."""
        lines = self.path / "cells.jsonl"
        return [json.loads(line) for line in lines.read_text().splitlines()] if lines.is_file() else []

    def cell(self, facts: dict) -> dict | None:
        """The cell with these facts; None where it was not measured."""
        return next((cell for cell in self.cells() if facts.items() <= cell.items()), None)

    def add(self, cell: dict) -> None:
        """Writes a cell and prints it."""
        line = json.dumps(cell)
        with (self.path / "cells.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def expert_path(self, facts: dict) -> Path:
        """File of the expert with these facts."""
        return self.path / ("-".join(str(value) for value in facts.values()) + ".npz")

    def save(self, facts: dict, expert: Bank) -> None:
        """Writes an expert's factors."""
        np.savez(self.expert_path(facts), **trees.flatten(expert.factors))

    def load(self, facts: dict, like: Bank) -> Bank:
        """The expert with these facts."""
        arrays = np.load(self.expert_path(facts))
        leaves = {path: jnp.asarray(arrays[path]) for path in arrays.files}
        return like.with_factors(trees.unflatten(leaves))


def facts_of(bench: Bench, way: str, library: str, name: str) -> dict:
    """What a cell is measured with."""
    tune = bench.tune
    lora = bench.session.config.method.lora
    library = "none" if way in (ISOLATED, JOINT) else library
    judged = len(bench.session.stream.tasks[0].val)
    return {"way": way, "library": library, "seed": bench.seed, "items": bench.items, "val": judged, "rank": lora.rank,
            "rate": tune.rate, "epochs": tune.epochs, "batch": tune.batch, "task": name}  # fmt: skip


def measured(bench: Bench, folder: Folder, way: str, library: str, name: str, earlier: Sequence[Bank]) -> Bank:
    """The expert of a task, trained and scored, or read where that was done before."""
    # The first task has nothing to build on: every way learns it in isolation.
    way = way if earlier else ISOLATED
    facts = facts_of(bench, way, library, name)
    if folder.cell(facts):
        return folder.load(facts, bench.fresh(name))
    taught = bench.teach(WAYS[way], name, earlier)
    folder.save(facts, taught.expert)
    gains = taught.gain_LS.size and np.abs(taught.gain_LS).max()
    value = bench.score(name, taught, earlier)
    folder.add(facts | {"score": value, "nearest": taught.nearest, "largest_gain": float(gains)})
    return taught.expert


def measure(bench: Bench, folder: Folder, ways: Sequence[str], libraries: Sequence[str], names: Sequence[str]) -> None:
    """All cells of one seed."""
    for way in ways:
        if way == JOINT:
            measure_joint(bench, folder)
            continue
        for library in libraries if way != ISOLATED else ("none",):
            order = bench.tasks[::-1] if library == "reverse" else bench.tasks
            earlier: list[Bank] = []
            for name in order if library != OTHERS else names:
                if library == OTHERS:
                    others = [other for other in order if other != name]
                    earlier = [measured(bench, folder, ISOLATED, "none", other, ()) for other in others]
                expert = measured(bench, folder, way, library, name, () if way == ISOLATED else earlier)
                earlier = [*earlier, expert]


def measure_joint(bench: Bench, folder: Folder) -> None:
    """The cells of one expert for all tasks."""
    facts = [facts_of(bench, JOINT, "none", name) for name in bench.tasks]
    if all(folder.cell(one) for one in facts):
        return
    expert = bench.teach_joint(bench.tasks)
    taught = Taught(expert, np.zeros(0))
    for one in facts:
        folder.add(one | {"score": bench.score(one["task"], taught, ()), "nearest": None, "largest_gain": 0.0})


def stored_numbers(bench: Bench, way: str) -> int:
    """Numbers stored of the stream with the tasks named: factors, and gains where they are trained."""
    tasks = len(bench.tasks)
    layers = bench.session.model.config.layers
    factors = tasks * layers * bench.session.config.method.lora.size(bench.session.model)
    has_gains = way in WAYS and WAYS[way].beside == "gain"
    # Of every layer and pair of a task and an earlier one.
    gains = layers * tasks * (tasks - 1) // 2 if has_gains else 0
    return factors + gains


def table(benches: Sequence[Bench], folder: Folder, ways: Sequence[str], libraries: Sequence[str]) -> str:
    """Scores by task, their mean, and what that is above the isolated mean on the same tasks and seeds."""
    tasks = benches[0].tasks
    lines = [
        f"| way | earlier experts | {' | '.join(tasks)} | mean | above isolated, by seed | numbers stored |",
        "|---" * (len(tasks) + 5) + "|",
    ]
    for way in ways:
        for library in libraries if way not in (ISOLATED, JOINT) else ("none",):
            lines.append(_line(benches, folder, way, library))
    return "\n".join(lines)


def _line(benches: Sequence[Bench], folder: Folder, way: str, library: str) -> str:
    scores_KN = np.array([_scores(bench, folder, way, library) for bench in benches])
    isolated_KN = np.array([_scores(bench, folder, ISOLATED, "none") for bench in benches])
    means_N = scores_KN.mean(axis=0)
    cells = ["" if np.isnan(mean) else f"{mean:.1f}" for mean in means_N]
    # Over the tasks that were measured with both.
    above_K = np.nanmean(scores_KN - isolated_KN, axis=1)
    above = ", ".join(f"{value:+.1f}" for value in above_K)
    numbers = stored_numbers(benches[0], way)
    return f"| {way} | {library} | {' | '.join(cells)} | {np.nanmean(means_N):.1f} | {above} | {numbers:,} |"


def _scores(bench: Bench, folder: Folder, way: str, library: str) -> list[float]:
    """Scores of the stream's tasks; NaN where none was measured."""
    scores = []
    first = bench.tasks[-1] if library == "reverse" else bench.tasks[0]
    for name in bench.tasks:
        alone = library in ORDERS and name == first
        cell = folder.cell(facts_of(bench, ISOLATED if alone else way, library, name))
        scores.append(cell["score"] if cell else float("nan"))
    return scores


def opened(seed: int, options: argparse.Namespace) -> Bench:
    """The bench of a seed: its stream and the pocket model."""
    overrides = [f"stream.pocket.train={MOST_ITEMS}", f"stream.pocket.val={options.val}", "stream.pocket.test=20",
                 "evaluate.split=val", f"stream.pocket.seed={seed}", "evaluate.writing.max_new_tokens=30",
                 f"method.lora.rank={options.rank}", "method.lora.alpha=64"]  # fmt: skip
    session = open_session(load_config("pocket/per_task", overrides=overrides))
    tune = TrainConfig(epochs=options.epochs, batch=options.batch, rate=options.rate, warmup=0.05, bucket=8)
    return Bench(session, seed, options.items, tune)


def main() -> None:
    """Measures what is not measured yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100, help=f"training items of a task, at most {MOST_ITEMS}")
    parser.add_argument("--val", type=int, default=100, help="validation items of a task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=[*WAYS, JOINT])
    parser.add_argument("--library", nargs="+", default=[*ORDERS], choices=[*ORDERS, OTHERS])
    parser.add_argument("--tasks", nargs="+", help="measure these alone; with --library others")
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("transfer_cells"))
    options = parser.parse_args()
    if not 1 <= options.items <= MOST_ITEMS:
        parser.error(f"--items {options.items}: 1 to {MOST_ITEMS} are drawn of a task")
    if options.tasks and options.library != [OTHERS]:
        parser.error(f"--tasks leaves tasks out, so it needs --library {OTHERS}: an order has all of them")
    if set(options.tasks or ()) - set(TASKS):
        parser.error(f"--tasks {' '.join(options.tasks)}: the pocket stream has {', '.join(TASKS)}")
    use_compile_cache()
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = Folder(options.folder)
    benches = []
    for seed in options.seeds:
        bench = opened(seed, options)
        measure(bench, folder, options.ways, options.library, options.tasks or bench.tasks)
        benches.append(bench)
    print(table(benches, folder, options.ways, options.library))


if __name__ == "__main__":
    main()
