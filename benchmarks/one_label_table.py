"""LMD beside its baselines on one-label data, scored once on the test split.

    python -m benchmarks.one_label_table [SEEDS [CHULA_FOLDER [STORAGE]]]

On `digits-lt` (306 training images of 32 pixels) and, where its folder is given, on 3,000 images of chula_rbc_cells
drawn by smear field, decoded to 32 pixels. Default 3 seeds: some 8 minutes for digits-lt and 15 for chula on two cores.
With STORAGE the searches are kept, and a table that was interrupted goes on where it was.

Rows, each with the first values of its space (budget `small`): cross-entropy; cRT, tau-norm, post-hoc logit adjustment
and VFC only on that same cross-entropy model; LMD; and LMD after an 8-trial search. A seed moves training and search,
never the split. Columns: test BACC, macro F1 and tail recall, mean and standard deviation over seeds; and the paired
difference of BACC to cross-entropy with its 95 % bootstrap interval over groups, scores averaged over seeds first.
"""

from __future__ import annotations

import csv
import random
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import numpy.typing as npt
from rich.console import Console

from lt_search.bootstrap import replicates
from lt_search.class_groups import class_groups
from lt_search.data.registry import load_dataset
from lt_search.data.table import Dataset
from lt_search.drive import RunOptions
from lt_search.export import FOLDER, read_export
from lt_search.messages import RunInputs
from lt_search.metrics import evaluate
from lt_search.prediction import predict
from lt_search.run import search
from lt_search.run_folder import SPEC
from lt_search.spec import SpecOptions, resolve_spec

TRIALS, CHULA_IMAGES, CHULA_SIZE = 8, 3_000, 32
POST_HOC = ("crt", "tau-norm", "logit-adjustment", "vfc")
ROWS = ("ce", *POST_HOC, "lmd", "lmd tuned")

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Data:
    """A data set as the command line names it."""

    name: str
    dataset: str
    data_root: str | None = None
    image_size: int | None = None

    def load(self) -> Dataset:
        """The data set, read."""
        return load_dataset(self.dataset, Path(self.data_root) if self.data_root else None)

    def options(self, space: str, seed: int, row: str | None = None) -> SpecOptions:
        """What `run_search.py` would be asked for."""
        return SpecOptions(space, self.dataset, self.data_root, self.image_size, budget="small", seed=seed, row=row)


def draw_chula(folder: Path, scratch: Path) -> Data:
    """A table of 3,000 of its images: whole smear fields in random order, until there are enough."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups = sorted({row["group"] for row in rows})
    random.Random(0).shuffle(groups)
    rank = {group: place for place, group in enumerate(groups)}
    chosen = sorted(rows, key=lambda row: (rank[row["group"]], row["image"]))[:CHULA_IMAGES]
    table = scratch / "chula_3000.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "label", "group"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(chosen)
    return Data("chula_rbc_cells, 3,000 images", str(table), str(folder), CHULA_SIZE)


def train_rows(data: Data, seed: int) -> dict[str, Logits]:
    """Test logits of every row that is not searched; the rows on cross-entropy share its stage 1."""
    import torch

    from lt_search.data.decoded import open_images
    from lt_search.session import LoadedInputs
    from trainers.base import TwoStageTrainer

    torch.set_num_threads(1)
    dataset = data.load()

    def build(space: str, row: str | None = None) -> TwoStageTrainer:
        spec = resolve_spec(data.options(space, seed, row), dataset, gpu=False)
        inputs = RunInputs.of(spec, dataset, {}, Path(tempfile.gettempdir()))
        return LoadedInputs(inputs, torch.device("cpu")).build_trainer(spec.config)

    def stage1(trainer: TwoStageTrainer) -> None:
        for step in range(trainer.config.stage1.epochs):
            trainer.stage1_step(step)

    def finish(trainer: TwoStageTrainer) -> Logits:
        trainer.begin_stage2()
        for step in range(trainer.config.stage2.rounds):
            trainer.stage2_step(step)
        side = resolve_spec(data.options("lmd", seed), dataset, gpu=False).data.image_size
        return trainer.predict_logits(open_images(dataset.test, side)).numpy()

    ce = build("baselines", "ce")
    stage1(ce)
    state = ce.state()
    found = {"ce": finish(ce)}
    for row in POST_HOC:
        trainer = build("baselines", row)
        trainer.load_state(state)
        found[row] = finish(trainer)
    lmd = build("lmd")
    stage1(lmd)
    found["lmd"] = finish(lmd)
    return found


def search_lmd(data: Data, seed: int, storage: Path) -> Logits:
    """Test logits of LMD's winner after a search."""
    name = f"{data.name.split(',')[0]}-{seed}"
    how = RunOptions(storage=str(storage), name=name, trials=TRIALS)
    if (storage / name / SPEC).exists():
        how = replace(how, name=None, resume=name)
    search(data.options("lmd", seed), how, Console(quiet=True))
    export = read_export(storage / name / FOLDER)
    dataset = data.load()
    return predict(export, dataset, dataset.test).numpy()


def show(data: Data, found: dict[str, list[Logits]]) -> None:
    """Prints the table of one data set."""
    dataset = data.load()
    test, groups = dataset.test, class_groups(dataset.train_counts().tolist())
    sizes = ", ".join(f"{len(part)} {part.name}" for part in dataset.parts())
    print(f"\n{data.name}: {sizes}; {len(dataset.classes)} classes; {len(next(iter(found.values())))} seeds")
    print(f"{'row':18}{'BACC':>18}{'macro F1':>18}{'tail recall':>18}   BACC - CE [95 %]")
    resampled = {
        row: np.mean(
            [replicates("BACC", dataset.task, test.labels, x, test.groups, n_replicates=1000) for x in logits], axis=0
        )
        for row, logits in found.items()
    }
    scores = {
        row: [evaluate(dataset.task, test.labels, x, groups).scalars for x in logits] for row, logits in found.items()
    }
    for row, seeds in scores.items():
        cells = [_spread([s[metric] for s in seeds]) for metric in ("BACC", "macro_f1", "BACC_tail")]
        gap = mean(s["BACC"] for s in seeds) - mean(s["BACC"] for s in scores["ce"])
        low, high = np.percentile(resampled[row] - resampled["ce"], [2.5, 97.5])
        shown = "" if row == "ce" else f"   {gap:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(f"{row:18}{cells[0]:>18}{cells[1]:>18}{cells[2]:>18}{shown}", flush=True)


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" +- {stdev(values):.3f}" if len(values) > 1 else "")


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as scratch:
        storage = Path(sys.argv[3] if len(sys.argv) > 3 else scratch)
        storage.mkdir(parents=True, exist_ok=True)
        sets = [Data("digits-lt", "digits-lt")]
        if len(sys.argv) > 2 and sys.argv[2]:
            sets.append(draw_chula(Path(sys.argv[2]).absolute(), storage))
        for data in sets:
            with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
                trained = list(pool.map(train_rows, [data] * seeds, range(seeds)))
            tuned = [search_lmd(data, seed, storage) for seed in range(seeds)]
            found = {row: [logits[row] for logits in trained] for row in ROWS if row in trained[0]}
            show(data, {**found, "lmd tuned": tuned})


if __name__ == "__main__":
    main()
