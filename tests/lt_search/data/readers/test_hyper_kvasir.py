from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import train_test_split

from lt_search.data import load_dataset
from lt_search.data.readers.hyper_kvasir import CLASSES, IMAGES, TABLE, divide_like_lmd
from lt_search.errors import UserError
from tests.helpers.pictures import write_csv
from tests.helpers.published import kvasir_rows, make_kvasir, rewrite
from trainers.task import Task

PUBLISHED = (
    *(41, 53, 646, 1148, 1009, 1002, 989, 403, 260, 6, 9, 131, 1028, 999, 391, 764, 35, 201, 11, 443, 28, 133, 932),
)
TRAINING = (33, 43, 516, 918, 807, 802, 791, 323, 208, 4, 7, 105, 822, 799, 313, 610, 27, 161, 9, 355, 22, 107, 746)
"""Images of each class in the published table, and in the training list of LMD."""

LIST_COLUMNS = ["Video file", "Organ", "Finding", "Classification", "labels"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that tests only read."""
    return make_kvasir(tmp_path_factory.mktemp("kvasir"))


def problems_of(name: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(name, root)
    return str(caught.value)


def small(root: Path) -> Path:
    """A folder with few images, for what is found before they are divided."""
    return make_kvasir(root, kvasir_rows(1))


def write_lists(folder: Path, rows: list[tuple[str, str, str, str]]) -> None:
    """Lists in LMD's columns: of each 13 images, the second last is in validation and the last in test."""
    lists: dict[str, list[list[str]]] = {"training": [], "validation": [], "testing": []}
    for number, row in enumerate(rows):
        name = {11: "validation", 12: "testing"}.get(number % 13, "training")
        lists[name].append([*row, str(CLASSES.index(row[2]))])
    for name, own in lists.items():
        write_csv(folder / f"{name}.csv", LIST_COLUMNS, own)


def write_folds(path: Path, n_folds: int, rows: list[tuple[str, str, str, str]]) -> None:
    """Folds as published: separated by semicolons, with `.jpg` and with another name for some classes."""
    lines = [
        f"{image}.jpg;{finding.replace('eso', 'oeso')};{number % n_folds}"
        for number, (image, _, finding, _) in enumerate(rows)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["file-name;class-name;split-index", *lines]))


def test_images_are_read_from_the_folders_of_their_organ_kind_and_finding(root: Path) -> None:
    dataset = load_dataset("hyper-kvasir", root)
    assert (dataset.task, dataset.classes, len(CLASSES)) == (Task.MULTI_CLASS, CLASSES, 23)
    assert list(CLASSES) == sorted(CLASSES)
    found = {name: CLASSES[c] for part in dataset.parts() for name, c in zip(part.ids, part.labels, strict=True)}
    assert found == {image: finding for image, _, finding, _ in kvasir_rows()}
    assert dataset.train.source.decode(0, 4).shape == (3, 4, 4)
    assert any("frames of one video may be in several parts" in one for one in dataset.warnings)


def test_the_folder_of_the_images_may_be_given_itself(root: Path) -> None:
    assert load_dataset("hyper-kvasir", root / IMAGES).fingerprint == load_dataset("hyper-kvasir", root).fingerprint


def test_without_lists_the_split_is_that_of_the_code_of_lmd(root: Path) -> None:
    frame = pd.DataFrame({"image": [row[0] for row in kvasir_rows()], "class": [row[2] for row in kvasir_rows()]})
    frame = frame.sample(frac=1, random_state=42).reset_index(drop=True)
    rest, test = train_test_split(frame, test_size=0.1, random_state=42, stratify=frame["class"])
    train, val = train_test_split(rest, test_size=1 / 9, random_state=42, stratify=rest["class"])
    dataset = load_dataset("hyper-kvasir", root)
    for part, expected in zip(dataset.parts(), (train, val, test), strict=True):
        assert list(part.ids) == sorted(expected["image"])
    assert dataset.split_origin == "80:10:10 of each class by image, the published seed 42 + seed 0"


def test_the_split_of_the_published_table_has_the_sizes_of_the_published_lists() -> None:
    classes = np.repeat(np.arange(23), PUBLISHED)
    part_of = divide_like_lmd(classes, 42)
    assert np.bincount(part_of).tolist() == [8528, 1067, 1067]
    assert np.bincount(classes[part_of == 0]).tolist() == list(TRAINING)
    assert np.bincount(classes[part_of == 2])[[9, 10, 18]].tolist() == [1, 1, 1]


@pytest.mark.parametrize("folder", ["", "split/hyper-kvasir"])
def test_the_lists_of_lmd_win_where_they_are(tmp_path: Path, folder: str) -> None:
    rows = kvasir_rows()
    make_kvasir(tmp_path, rows)
    write_lists(tmp_path / folder, rows)
    dataset = load_dataset("hyper-kvasir", tmp_path)
    assert dataset.test.ids == tuple(sorted(row[0] for row in rows[12::13]))
    assert dataset.val.ids == tuple(sorted(row[0] for row in rows[11::13]))
    assert dataset.split_origin == "given by the lists of LMD"
    assert load_dataset("hyper-kvasir:lists", tmp_path).split_hash == dataset.split_hash


@pytest.mark.parametrize(("n_folds", "folder"), [(2, ""), (5, "official_splits")])
def test_an_official_fold_is_the_test_part(tmp_path: Path, n_folds: int, folder: str) -> None:
    rows = kvasir_rows()
    make_kvasir(tmp_path, rows)
    write_folds(tmp_path / folder / f"{n_folds}_fold_split.csv", n_folds, rows)
    dataset = load_dataset(f"hyper-kvasir:official-{n_folds}-1", tmp_path)
    assert dataset.test.ids == tuple(sorted(row[0] for row in rows[1::n_folds]))
    assert dataset.split_origin.startswith(f"fold 1 of the official {n_folds} for test, the others divided 7:1")
    assert set(dataset.val.counts(23)) <= {1, 2} and len(dataset.train) > 3 * len(dataset.val)


class TestMistakes:
    def test_an_empty_folder_and_an_unknown_variant(self, tmp_path: Path) -> None:
        message = problems_of("hyper-kvasir:official-2-2", tmp_path)
        assert f"no folder {IMAGES} in {tmp_path}; there is: nothing" in message
        assert "'hyper-kvasir' has no variant 'official-2-2'" in message

    def test_unknown_words_repeated_images_and_missing_files(self, tmp_path: Path) -> None:
        small(tmp_path)
        images = [row[0] for row in kvasir_rows(1)]
        table = tmp_path / IMAGES / TABLE
        rewrite(table, "Finding", {images[0]: "oesophagitis-a"}, key="Video file")
        rewrite(table, "Organ", {images[1]: "Middle GI"}, key="Video file")
        rewrite(table, "Video file", {images[2]: images[3]}, key="Video file")
        message = problems_of("hyper-kvasir", tmp_path)
        assert "unknown findings: 'oesophagitis-a' (1 rows)" in message
        assert "unknown organs: 'Middle GI' (1 rows)" in message
        assert f"1 images are listed more than once: {images[3]}" in message

    def test_missing_images(self, tmp_path: Path) -> None:
        small(tmp_path)
        next(tmp_path.rglob(f"{kvasir_rows(1)[5][0]}.jpg")).unlink()
        message = problems_of("hyper-kvasir", tmp_path)
        assert "1 of 23 images are missing" in message and "lower-gi-tract/anatomical-landmarks/dyed-lifted" in message
        assert "too few images to divide every class 80:10:10" in message

    def test_lists_that_are_missing_or_do_not_fit(self, tmp_path: Path) -> None:
        rows = kvasir_rows(1)
        small(tmp_path)
        assert "copy the lists of LMD (split/hyper-kvasir) there" in problems_of("hyper-kvasir:lists", tmp_path)
        for name, own in (("training", rows[:20]), ("validation", rows[19:22]), ("testing", [("absent", "", "", "")])):
            write_csv(tmp_path / f"{name}.csv", LIST_COLUMNS, [[*row, "0"] for row in own])
        message = problems_of("hyper-kvasir", tmp_path)
        assert f"1 images are in another list, too: {rows[19][0]}" in message
        assert f"1 images are not in {TABLE}: absent" in message
        assert f"are in none of training.csv, validation.csv, testing.csv: {rows[22][0]}" in message

    def test_official_folds_that_are_missing_or_wrong(self, tmp_path: Path) -> None:
        small(tmp_path)
        assert "no file 5_fold_split.csv" in problems_of("hyper-kvasir:official-5-4", tmp_path)
        write_folds(tmp_path / "5_fold_split.csv", 7, kvasir_rows(1))
        message = problems_of("hyper-kvasir:official-5-4", tmp_path)
        assert "6 rows have a split-index that is none of 0, 1, 2, 3, 4: lines 7, 8, 14" in message
