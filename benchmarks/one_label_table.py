"""LMD and metric learning beside their baselines on one-label data, scored once on the test split.

    python -m benchmarks.one_label_table [--chula FOLDER] [--storage FOLDER]

On `digits-lt` (306 training images of 32 pixels) and, where its folder is given, on 3,000 images of chula_rbc_cells
drawn by smear field, decoded to 32 pixels. Default 3 seeds and 8 trials: some 15 minutes for digits-lt and 30 for chula
on two cores. With --storage the runs are kept, and a table that was interrupted goes on where it was.

Rows, each with the first values of its space (budget `small`): cross-entropy; cRT, tau-norm, post-hoc logit adjustment
and VFC only on that same cross-entropy model; LMD and metric learning; and both after an 8-trial search on validation
BACC. A seed moves training and search, never the split. Columns: test BACC, macro F1 and tail recall, mean and standard
deviation over seeds; and the paired difference of BACC to cross-entropy with its 95 % bootstrap interval over groups,
scores averaged over seeds first.
"""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

from benchmarks.tables import Data, Row, arguments, chosen, labels_folder, run_rows, show, storage_folder
from lt_search.storage.files import FolderStore

CHULA_IMAGES, CHULA_SIZE = 3_000, 32
ROWS = (
    *(Row(name, "baselines", name, searched=False) for name in ("ce", "crt", "tau-norm", "logit-adjustment", "vfc")),
    Row("lmd", "lmd"),
    Row("metric", "metric"),
)
COLUMNS = {"BACC": "BACC", "macro F1": "macro_f1", "tail recall": "BACC_tail"}


def draw_chula(folder: Path, scratch: Path) -> Data:
    """A table of 3,000 of its images: smear fields in random order, all whole but the last, which is cut off there."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups = sorted({row["group"] for row in rows})
    random.Random(0).shuffle(groups)
    rank = {group: place for place, group in enumerate(groups)}
    drawn = sorted(rows, key=lambda row: (rank[row["group"]], row["image"]))[:CHULA_IMAGES]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["image", "label", "group"], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(drawn)
    store, name = FolderStore(scratch), "chula_3000.csv"
    store.write(name, text.getvalue())  # whole at once: searches of an earlier call may be reading it
    return Data("chula_rbc_cells, 3,000 images", str(store.path(name)), str(folder), CHULA_SIZE)


def main() -> None:
    parser = arguments("One-label methods, default and tuned, on the test split.", ROWS)
    parser.add_argument(
        "--chula", type=labels_folder, metavar="FOLDER", help="folder of chula_rbc_cells, with labels.csv"
    )
    given = parser.parse_args()
    with storage_folder(given.storage) as storage:
        sets = [Data("digits-lt", "digits-lt")]
        if given.chula:
            sets.append(draw_chula(given.chula, storage))
        for data in sets:
            show(data, run_rows(data, chosen(ROWS, given.rows), given.seeds, given.trials, storage), COLUMNS)


if __name__ == "__main__":
    main()
