"""Which locator finds the task of a question in any wording: ours, HiDe's anchors, CMoE's autoencoder, a classifier.

Features of the frozen base are read once, for every wording, and kept in --cache; all locators are then fitted to the
same records in both task orders. The logistic regression sees all tasks at once, which no continual locator may: it
shows what a locator loses. No expert is trained.

    python tools/bench/locators.py                          pocket stream, 200 training and 60 test records a task
    python tools/bench/locators.py --stream-seed 1          another drawing of it
    python tools/bench/locators.py --tasks DIR DIR          task folders of your own
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from hidecmoe_jax.data.media import IMAGE
from hidecmoe_jax.data.records import Record, Turn
from hidecmoe_jax.data.rewording import MEASURED, common_line, fitted_wordings, reworded, without_text
from hidecmoe_jax.locators.anchors import ClipAnchors, Pooled
from hidecmoe_jax.locators.calibrate import auroc, threshold
from hidecmoe_jax.locators.gaussian import SharedGaussian
from hidecmoe_jax.locators.joined import JoinedGaussians
from hidecmoe_jax.locators.vae import Vae
from hidecmoe_jax.models.reading import Reading
from hidecmoe_jax.runs.config import load_config
from hidecmoe_jax.runs.session import Session, open_session

PARTS = Reading("half", "parts")
LAST = Reading()
RULES = ("as_given", *MEASURED)
PARAPHRASES = Path(__file__).with_name("paraphrases.json")
FIT = ("as_given", "words", "parts")
LAST_FITTED = ("as_given",)  # wordings in which the last token's state of training prompts is read
FOLDS = 5
ALARMS = 0.01
Rows = dict[str, np.ndarray]


def paraphrased(record: Record, task: str, number: int) -> Record | None:
    """The record's question as a person might ask it; None for a task without paraphrases."""
    question = record.turns[-1].question.replace(IMAGE, "").strip()
    first, *lines = question.split("\n")
    for pattern, *wordings in json.loads(PARAPHRASES.read_text()).get(task, []):
        matched = re.fullmatch(pattern, first)
        if matched:
            groups = [group for group in matched.groups() if group is not None]
            text = wordings[number].format(*groups)
            # The first paraphrase keeps the instruction line, the second leaves it out.
            below = lines if number == 0 else []
            return replace(record, turns=(Turn("\n".join([IMAGE, text, *below]), record.turns[-1].answer),))
    return None


def worded(records: Sequence[Record], task: str, wording: str, line: str | None) -> tuple[Record, ...]:
    """Test records in a wording."""
    if wording == "as_given":
        return tuple(records)
    if wording == "no_text":
        return tuple(map(without_text, records))
    if wording.startswith("paraphrase"):
        number = int(wording[-1]) - 1
        return tuple(paraphrased(record, task, number) or record for record in records)
    return tuple(reworded(record, wording, line=line) for record in records)


def read_features(session: Session, train: int, test: int, cache: Path) -> dict[str, dict[str, Rows]]:
    """Features by task and by `fit_WORDING` or `test_WORDING`: `parts`, `last`, and CLIP's `image` and `text`."""
    features = {}
    cache.mkdir(parents=True, exist_ok=True)
    for task in session.stream.tasks:
        path = cache / f"{task.name}-{task.fingerprint[:8]}-{train}-{test}.npz"
        if not path.is_file():
            np.savez(path, **_read_task(session, task, train, test))
        arrays = np.load(path)
        by_wording: dict[str, Rows] = {}
        for name in arrays.files:
            wording, kind = name.rsplit(".", 1)
            by_wording.setdefault(wording, {})[kind] = arrays[name]
        features[task.name] = by_wording
    return features


def _read_task(session: Session, task, train: int, test: int) -> Rows:
    engine = session.engine
    arrays: Rows = {}
    for split, records in (("fit", task.train[:train]), ("test", task.test[:test])):
        records = tuple(replace(record, turns=record.turns[-1:]) for record in records)
        pictures = engine.features(records, task.name)
        line = common_line(records)
        wordings = FIT if split == "fit" else (*RULES, "paraphrase1", "paraphrase2", "no_text")
        for wording in wordings:
            if split == "fit":
                asked = fitted_wordings(records, wording)
            else:
                asked = worded(records, task.name, wording, line)
            inputs = engine.reworded_inputs(asked, pictures)
            name = f"{split}_{wording}"
            arrays[f"{name}.parts"] = engine.states(asked, PARTS, "", pictures)
            if wording in LAST_FITTED or split == "test":
                arrays[f"{name}.last"] = engine.states(asked, LAST, "", pictures)
            arrays[f"{name}.image"] = inputs.features.image_NE
            arrays[f"{name}.text"] = inputs.features.text_ND
            print(task.name, name, flush=True)
    return arrays


@dataclass(frozen=True)
class Rival:
    """A locator with what it reads and what it is fitted to."""

    name: str
    by: object
    reads: str
    fit: str


RIVALS = (
    Rival("HiDe's anchors (CLIP, cosine)", ClipAnchors(), "clip", "as_given"),
    Rival("one Gaussian, last token", SharedGaussian(directions=16), "last", "as_given"),
    Rival("CMoE's VAE, last token", Vae(hidden=64, latent=32, batch=32, rate=3e-3, epochs=100, patience=8), "last",
          "as_given"),
    Rival("joined Gaussians", JoinedGaussians(), "parts", "as_given"),
    Rival("joined Gaussians, reworded: words", JoinedGaussians(), "parts", "words"),
    Rival("joined Gaussians, reworded: words, parts", JoinedGaussians(), "parts", "parts"),
    Rival("joined, whole scatters, reworded: words", JoinedGaussians(part=SharedGaussian()), "parts", "words"),
)  # fmt: skip


def rows_for(reads: str, rows: Rows):
    """What a locator reads of records."""
    if reads != "clip":
        return rows[reads]
    there = np.ones(len(rows["image"]), bool)
    # A question without text has the text tower's state of nothing, which anchors leave out.
    return Pooled(rows["image"], there, rows["text"], there)


def measure(rival: Rival, features: dict[str, dict[str, Rows]], order: Sequence[str]) -> dict:
    """Accuracy and unknown by wording, and leave-one-out AUROC, of a locator fitted in an order."""
    capacity = len(order)
    first = rows_for(rival.reads, features[order[0]][f"fit_{rival.fit}"])
    width = (first.image_BE.shape[1], first.text_BD.shape[1]) if rival.reads == "clip" else first.shape[1]
    memory = rival.by.blank(capacity, width)
    limits = []
    for number, task in enumerate(order):
        rows = rows_for(rival.reads, features[task][f"fit_{rival.fit}"])
        key = jax.random.key(number)
        limits.append(_limit(rival, memory, number, rows, key))
        memory = rival.by.fit(memory, number, rows, key=key)
    return _table(_scorer(rival, memory), features, order, np.array(limits), rival.reads)


def _limit(rival: Rival, memory, number: int, rows, key) -> float:
    """Threshold of held-out scores, in folds; of the VAE, which is slow to fit, in one."""
    count = jax.tree.leaves(rows)[0].shape[0]
    folds = 1 if isinstance(rival.by, Vae) else FOLDS
    only = jnp.arange(memory_size(memory)) == number
    scores = []
    for fold in range(folds):
        held = np.arange(count) % FOLDS == fold
        without = rival.by.fit(memory, number, jax.tree.map(lambda leaf, held=held: leaf[~held], rows), key=key)
        seen = jax.tree.map(lambda leaf, held=held: leaf[held], rows)
        score_BN = rival.by.scores(without, seen, only)
        scores.append(np.asarray(rival.by.typical_scores(without, seen, score_BN))[:, number])
    return threshold(np.concatenate(scores), ALARMS)


def memory_size(memory) -> int:
    """Task slots of a memory."""
    names = [name for name in memory if name.endswith(("_N", "_NE", "_ND", "encode"))]
    return len(memory[names[0]])


def _scorer(rival: Rival, memory) -> Callable:
    @jax.jit
    def score(rows, learned_N):
        score_BN = rival.by.scores(memory, rows, learned_N)
        return score_BN, rival.by.typical_scores(memory, rows, score_BN)

    return score


def _table(score: Callable, features, order: Sequence[str], limits: np.ndarray, reads: str) -> dict:
    everything = jnp.ones(len(order), bool)
    wordings = [name.removeprefix("test_") for name in features[order[0]] if name.startswith("test_")]
    right = {}
    alarms = {}
    for wording in wordings:
        hits = []
        refused = []
        for number, task in enumerate(order):
            score_BN, typical_BN = score(rows_for(reads, features[task][f"test_{wording}"]), everything)
            nearest = np.argmax(score_BN, axis=1)
            fit = np.take_along_axis(np.asarray(typical_BN), nearest[:, None], axis=1)[:, 0]
            hits.append(100 * np.mean(nearest == number))
            refused.append(100 * np.mean(fit < limits[nearest]))
        right[wording] = hits
        alarms[wording] = refused
    areas = []
    caught = []
    for left in range(len(order)):
        learned = everything.at[left].set(False)
        margins = {}
        for number, task in enumerate(order):
            score_BN, typical_BN = score(rows_for(reads, features[task]["test_as_given"]), learned)
            nearest = np.argmax(score_BN, axis=1)
            fit = np.take_along_axis(np.asarray(typical_BN), nearest[:, None], axis=1)[:, 0]
            margins[number] = fit - limits[nearest]
        inside = np.concatenate([margins[number] for number in range(len(order)) if number != left])
        areas.append(auroc(inside, margins[left]))
        caught.append(100 * np.mean(margins[left] < 0))
    return {"right": right, "alarms": alarms, "auroc": areas, "caught": caught}


def regression(features, order: Sequence[str], fit: str) -> dict:
    """Logistic regression on the same three parts, all tasks at once; it has no thresholds."""
    x = np.concatenate([features[task][f"fit_{fit}"]["parts"] for task in order])
    y = np.concatenate([np.full(len(features[task][f"fit_{fit}"]["parts"]), n) for n, task in enumerate(order)])
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(max_iter=300).fit(scaler.transform(x), y)
    right = {}
    for name in features[order[0]]:
        if name.startswith("test_"):
            hits = []
            for number, task in enumerate(order):
                guess = model.predict(scaler.transform(features[task][name]["parts"]))
                hits.append(100 * np.mean(guess == number))
            right[name.removeprefix("test_")] = hits
    return {"right": right, "alarms": {}, "auroc": [], "caught": []}


def line(name: str, result: dict) -> str:
    """A row of the table."""
    shown = [f"{np.mean(hits):.1f}" for hits in result["right"].values()]
    ruled = [np.mean(result["right"][rule]) for rule in MEASURED]
    kept = 100 * min(ruled) / np.mean(result["right"]["as_given"])
    alarms = [np.mean(values) for wording, values in result["alarms"].items() if wording != "no_text"]
    unknown = f"{alarms[0]:.1f}, {max(alarms):.1f}" if alarms else "-"
    area = f"{np.mean(result['auroc']):.3f}, {np.mean(result['caught']):.0f}" if result["auroc"] else "-"
    return f"| {name} | {' | '.join(shown)} | {kept:.1f} | {unknown} | {area} |"


def main() -> None:
    """Reads features, fits every locator in both orders, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=[])
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--stream-seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("locator_features"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sizes = [f"stream.pocket.train={options.train}", "stream.pocket.val=20", f"stream.pocket.test={options.test}",
             f"stream.pocket.seed={options.stream_seed}"]  # fmt: skip
    # Few padded lengths, so that few programs compile.
    overrides = ["evaluate.writing.bucket=32", *(["stream.policy.max_bad=0.01"] if options.tasks else sizes)]
    session = open_session(load_config("pocket/hidecmoe", overrides=overrides, tasks=options.tasks))
    features = read_features(session, options.train, options.test, options.cache)
    names = list(features)
    record = {}
    for label, order in (("in order", names), ("in reverse", names[::-1])):
        wordings = [name.removeprefix("test_") for name in features[names[0]] if name.startswith("test_")]
        print(f"\n{label}: {', '.join(order)}\n")
        print(f"| locator | {' | '.join(wordings)} | kept, worst rule | unknown: as given, worst | AUROC, caught |")
        print("|---" * (len(wordings) + 4) + "|")
        for rival in RIVALS:
            record[f"{label}: {rival.name}"] = measure(rival, features, order)
            print(line(rival.name, record[f"{label}: {rival.name}"]), flush=True)
        for fit in ("as_given", "words", "parts"):
            name = f"logistic regression, {fit}"
            record[f"{label}: {name}"] = regression(features, order, fit)
            print(line(name, record[f"{label}: {name}"]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(record, default=float))


if __name__ == "__main__":
    main()
