"""What tables of methods compute themselves."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from benchmarks.one_label_table import draw_chula
from benchmarks.tables import Data, Row, arguments, centred_interval, labels_folder, show
from lt_search.metrics.bootstrap import Bootstrap
from tests.helpers.pictures import make_table, multi_class_rows, write_csv
from trainers.task import Task


def test_the_interval_of_one_seed_is_that_of_the_paired_difference() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 3)) < 0.3).astype(np.uint8)
    a, b = (rng.normal(size=(60, 3)) + shift * labels for shift in (1.0, 0.5))
    bootstrap = Bootstrap("mAP", Task.MULTI_LABEL, labels, [str(index // 2) for index in range(60)])
    found = bootstrap.paired_difference(a, b)
    drawn = [bootstrap.replicates(x, 1000) for x in (a, b)]
    assert centred_interval(drawn[0] - drawn[1], found.difference) == pytest.approx(found.interval, abs=1e-12)


def test_the_table_has_means_over_seeds_and_differences_to_the_first_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Data("fake", str(make_table(tmp_path, multi_class_rows({"a": 60, "b": 40, "c": 20}))))
    dataset = data.load()
    labels, rng = dataset.test.labels, np.random.default_rng(0)
    found = {
        name: [strength * np.eye(3)[labels] + rng.normal(size=(len(labels), 3)) for _ in range(2)]
        for name, strength in (("ce", 0.5), ("good", 2.0), ("perfect", 99.0))
    }
    show(data, found, {"BACC": "BACC", "macro F1": "macro_f1"})
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert f"{len(labels)} test; 3 classes; 2 seeds" in lines["fake:"]
    scores = {name: [balanced_accuracy_score(labels, x.argmax(1)) for x in seeds] for name, seeds in found.items()}
    for name, seeds in scores.items():
        assert f"{np.mean(seeds):.3f} +- {np.std(seeds, ddof=1):.3f}" in lines[name]
        gap = f"{np.mean(seeds) - np.mean(scores['ce']):+.3f} ["
        assert (gap in lines[name]) == (name != "ce")
    assert "1.000 +- 0.000" in lines["perfect"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--seeds", "0"), "'0' is not an integer from 1 on"),
        (("--trials", "-1"), "'-1' is not an integer from 1 on"),
        (("--folder", "typo"), "typo has no labels.csv"),
    ],
)
def test_mistakes_are_refused(argv: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = arguments("", [Row("ce", "baselines")])
    parser.add_argument("--folder", type=labels_folder)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(argv)
    assert message in capsys.readouterr().err


def test_as_many_images_of_chula_as_wanted_are_drawn_by_whole_fields_but_for_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.one_label_table.CHULA_IMAGES", 17)
    rows = [["x", f"{number:03d}.png", "a", f"f{number % 6}"] for number in range(30)]
    write_csv(tmp_path / "labels.csv", ["note", "image", "label", "group"], rows)
    with Path(draw_chula(tmp_path, tmp_path / "out").dataset).open(newline="") as file:
        drawn = list(csv.DictReader(file))
    assert list(drawn[0]) == ["image", "label", "group"]
    assert sorted(Counter(row["group"] for row in drawn).values()) == [2, 5, 5, 5]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["chula_3000.csv"]


def test_a_row_is_searched_as_the_table_says() -> None:
    options = Data("sperm", "labels.csv", image_size=48).options(Row("asl", "baselines-ml", "asymmetric"), 2)
    asked = (options.space, options.row, options.dataset, options.image_size, options.seed, options.extra_data)
    assert asked == ("baselines-ml", "asymmetric", "labels.csv", 48, 2, ())
