"""BCE, ASL, LDRNet and CXR on multi-label data, at their defaults and after a search, scored once on the test split.

    python -m benchmarks.multi_label_table [--mhsma FOLDER] [--storage FOLDER]

On `digits-ml` (2,000 training images of 32 pixels) and, where its folder is given, on mhsma_sperm (1,000 training
images, its official split), decoded to 48 of its 64 pixels. Default 3 seeds and 8 trials: some 35 minutes for digits-ml
and 50 for mhsma_sperm on two cores. With --storage the runs are kept, and a table that was interrupted goes on where it
was.

Rows, with budget `small`: binary cross-entropy and asymmetric loss (rows of `baselines-ml`), LDRNet, CXR; each with the
first values of its space, and the winner of an 8-trial search on validation mAP. A seed moves training and search,
never the split. Columns: test mAP, tail mAP and macro AUC, mean and standard deviation over seeds; and the paired
difference of mAP to BCE with its 95 % bootstrap interval over groups, scores averaged over seeds first.
"""

from __future__ import annotations

from benchmarks.tables import Data, Row, arguments, chosen, labels_folder, run_rows, show, storage_folder

MHSMA_SIZE = 48
ROWS = (
    Row("bce", "baselines-ml", "bce"),
    Row("asl", "baselines-ml", "asymmetric"),
    Row("ldrnet", "ldrnet"),
    Row("cxr", "cxr"),
)
COLUMNS = {"mAP": "mAP", "tail mAP": "mAP_tail", "macro AUC": "macro_auc"}


def main() -> None:
    parser = arguments("Multi-label methods, default and tuned, on the test split.", ROWS)
    parser.add_argument("--mhsma", type=labels_folder, metavar="FOLDER", help="folder of mhsma_sperm, with labels.csv")
    parser.add_argument("--data", nargs="+", choices=("digits-ml", "mhsma_sperm"), help="default: all that are there")
    given = parser.parse_args()
    there = [Data("digits-ml", "digits-ml")]
    if given.mhsma:
        there.append(Data("mhsma_sperm", str(given.mhsma / "labels.csv"), image_size=MHSMA_SIZE))
    if "mhsma_sperm" in (given.data or ()) and not given.mhsma:
        parser.error("--data mhsma_sperm needs its folder: --mhsma FOLDER")
    with storage_folder(given.storage) as storage:
        for data in there:
            if given.data is None or data.name in given.data:
                found = run_rows(data, chosen(ROWS, given.rows), given.seeds, given.trials, storage)
                show(data, found, COLUMNS)


if __name__ == "__main__":
    main()
