"""Is the winner worth its search? On `digits-ml`, over several seeds, scored on the test split.

    python -m benchmarks.winner [SEEDS [TRIALS [EPOCHS [STORAGE]]]]

By default 3 seeds, 12 trials and 24 stage-1 epochs, about 20 minutes on two cores; `3 8 12` takes 10. With a STORAGE
folder the runs are kept, and a benchmark that was interrupted goes on where it was.

For each seed: a search as users run it (TPE, stage-wise pruning), and a random search without pruning that is cut off
where it has taken the same training time. Compared on the test split, on the same images, with intervals from paired
bootstrap resamples: the tuned winner, the random search's winner, and the first trial, which has the paper's values.
Each of the three is trained again from its config, which also gives stage 1's own head. The trials of the random
search, none of them pruned, show the rank correlation of stage-1 probe and head with the final value.
"""

from __future__ import annotations

import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from benchmarks.shared import whole_search
from lt_search.config.options import RunOptions, SpecOptions
from lt_search.config.spec import RunSpec
from lt_search.data.registry import load_dataset
from lt_search.data.table import Dataset
from lt_search.metrics.bootstrap import Bootstrap
from lt_search.metrics.class_groups import class_groups
from lt_search.metrics.evaluate import evaluate, mean_over
from lt_search.results.summary import TrialSummary, summarise
from lt_search.storage.files import FolderStore
from lt_search.storage.journal import Journal
from lt_search.storage.records import read_reports
from lt_search.storage.run_folder import open_run
from lt_search.training.inputs import RunInputs

Logits = npt.NDArray[np.float32]
SPACE, DATA = "ldrnet", "digits-ml"


@dataclass(frozen=True)
class Scored:
    """Test logits (N, C) of one configuration: of stage 1's own head, and at the end."""

    stage1: Logits
    final: Logits


def run_search(storage: Path, seed: int, trials: int, epochs: int, *, tuned: bool) -> str:
    """Runs one search and returns its name."""
    name = f"{'tuned' if tuned else 'random'}-{seed}"
    fixed = (f"stage1.epochs={epochs}",)
    sampler: Literal["tpe", "random"] = "tpe" if tuned else "random"
    options = SpecOptions(SPACE, DATA, budget="small", set=fixed, seed=seed, sampler=sampler, prune=tuned)
    known = (storage / name).exists()
    how = RunOptions(storage=str(storage), name=None if known else name, resume=name if known else None, trials=trials)
    whole_search(options, how)
    return name


def within(trials: tuple[TrialSummary, ...], seconds: float) -> list[TrialSummary]:
    """The first trials that fit into a training time; always at least one."""
    taken: list[TrialSummary] = []
    spent = 0.0
    for trial in trials:
        spent += sum(trial.seconds.values())
        if taken and spent > seconds:
            break
        taken.append(trial)
    return taken


def best(trials: list[TrialSummary]) -> TrialSummary:
    """The finished trial with the largest validation value."""
    return max((trial for trial in trials if trial.state == "finished"), key=lambda trial: trial.value or 0.0)


def train_again(spec: RunSpec, params: dict[str, Any]) -> Scored:
    """Trains one configuration from the start and predicts the test split after each stage."""
    import torch

    from lt_search.data.decoded import open_images
    from lt_search.training.inputs import LoadedInputs

    torch.set_num_threads(1)
    dataset = load_dataset(DATA)
    inputs = RunInputs.of(spec, dataset, {}, Path(tempfile.gettempdir()))
    trainer = LoadedInputs(inputs, torch.device("cpu")).build_trainer(spec.resolve(params))
    test = open_images(dataset.test, spec.data.image_size)
    for step in range(spec.stage_lengths[0]):
        trainer.stage1_step(step)
    stage1 = trainer.predict_logits(test).numpy()
    trainer.begin_stage2()
    for step in range(spec.stage_lengths[1]):
        trainer.stage2_step(step)
    return Scored(stage1, trainer.predict_logits(test).numpy())


def compare(label: str, pairs: list[tuple[Logits, Logits]]) -> str:
    """Paired test mAP differences: per seed with a 95 % interval, and their mean over seeds."""
    dataset = load_dataset(DATA)
    bootstrap = Bootstrap("mAP", dataset.task, dataset.test.labels, dataset.test.groups)
    found = [bootstrap.paired_difference(a, b) for a, b in pairs]
    each = ", ".join(f"{d.difference:+.4f} [{d.interval.low:+.4f}, {d.interval.high:+.4f}]" for d in found)
    return f"{label}: {_mean_and_spread([d.difference for d in found])}; by seed {each}"


def compare_tails(label: str, pairs: list[tuple[Logits, Logits]]) -> str:
    """Paired differences of tail mAP on the test split, like `compare`."""
    dataset = load_dataset(DATA)
    bootstrap = Bootstrap("mAP", dataset.task, dataset.test.labels, dataset.test.groups)
    tail = class_groups(dataset.train_counts().tolist()).tail
    differences, each = [], []
    for pair in pairs:
        drawn = [mean_over(bootstrap.class_replicates(logits), tail) for logits in pair]
        low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
        differences.append(_tail_map(dataset, pair[0], tail) - _tail_map(dataset, pair[1], tail))
        each.append(f"{differences[-1]:+.4f} [{low:+.4f}, {high:+.4f}]")
    return f"{label}: {_mean_and_spread(differences)}; by seed {', '.join(each)}"


def _tail_map(dataset: Dataset, logits: Logits, tail: tuple[int, ...]) -> float:
    groups = class_groups(dataset.train_counts().tolist())
    values = evaluate(dataset.task, dataset.test.labels, logits, groups).per_class["mAP"]
    return mean(values[index] for index in tail)


def correlations(store: FolderStore, trials: tuple[TrialSummary, ...], spec: RunSpec) -> dict[str, float]:
    """Spearman's rank correlation of stage-1 values with the final value, over finished trials."""
    final = [trial.value for trial in trials if trial.value is not None]
    found = {}
    steps = [*spec.rungs["stage1"], spec.stage_lengths[0]]
    reports = [
        {report.rung: report for report in read_reports(store, trial.number)}
        for trial in trials
        if trial.state == "finished"
    ]
    for step in steps:
        at = [next(r for rung, r in run.items() if (rung.stage, rung.step) == (1, step)) for run in reports]
        found[f"probe after {step} epochs"] = float(spearmanr([r.value or 0.0 for r in at], final).statistic)
        found[f"head after {step} epochs"] = float(spearmanr([r.scalars["mAP"] for r in at], final).statistic)
    return found


def _mean_and_spread(values: list[float]) -> str:
    spread = f" +- {stdev(values):.4f} (s.d. over {len(values)} seeds)" if len(values) > 1 else ""
    return f"{mean(values):+.4f}{spread}"


def run_seed(storage: FolderStore, seed: int, trials: int, epochs: int) -> tuple[dict[str, Scored], dict[str, float]]:
    """Both searches of one seed: test logits of the three configurations, and the rank correlations."""
    summaries = {}
    for kind in ("tuned", "random"):
        store, spec = open_run(storage, run_search(storage.root, seed, trials, epochs, tuned=kind == "tuned"))
        summaries[kind] = summarise(spec, Journal.reader(store.path("journal.log")))
    spent = sum(sum(trial.seconds.values()) for trial in summaries["tuned"].trials)
    affordable = within(summaries["random"].trials, spent)
    chosen = {
        "tuned": best(list(summaries["tuned"].trials)),
        "random": best(affordable),
        "paper": summaries["random"].trials[0],
    }
    print(f"seed {seed}: {spent:.0f} s of training: {trials} tuned trials, {len(affordable)} random ones")
    for kind, trial in chosen.items():
        print(f"  {kind}: validation mAP {trial.value:.4f}, {json.dumps(dict(trial.params))}", flush=True)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        again = pool.map(train_again, [spec] * 3, [dict(trial.params) for trial in chosen.values()])
        scored = dict(zip(chosen, again, strict=True))
    return scored, correlations(store, summaries["random"].trials, spec)


def show(scored: dict[str, list[Scored]], ranks: dict[str, list[float]]) -> None:
    """Prints all comparisons over the seeds that are done."""
    finals = {kind: [s.final for s in results] for kind, results in scored.items()}
    print("\ntest mAP, paired differences with 95 % intervals over test images")
    print(compare("tuned - paper values", list(zip(finals["tuned"], finals["paper"], strict=True))))
    print(compare("tuned - random search", list(zip(finals["tuned"], finals["random"], strict=True))))
    print("\ntest tail mAP, stage 2 - stage 1's own head")
    for kind, results in scored.items():
        print(compare_tails(kind, [(s.final, s.stage1) for s in results]))
    print("\nSpearman rank correlation with the final value (random trials, none pruned)")
    for name, values in ranks.items():
        print(f"{name}: {mean(values):.2f} (by seed {', '.join(f'{v:.2f}' for v in values)})")
    print(flush=True)


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    trials = int(sys.argv[2]) if len(sys.argv) > 2 else 12
    epochs = int(sys.argv[3]) if len(sys.argv) > 3 else 24
    scored: dict[str, list[Scored]] = {"tuned": [], "random": [], "paper": []}
    ranks: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        storage = FolderStore(Path(sys.argv[4] if len(sys.argv) > 4 else scratch))
        for seed in range(seeds):
            of_seed, of_ranks = run_seed(storage, seed, trials, epochs)
            for kind, result in of_seed.items():
                scored[kind].append(result)
            for name, value in of_ranks.items():
                ranks.setdefault(name, []).append(value)
            show(scored, ranks)


if __name__ == "__main__":
    main()
