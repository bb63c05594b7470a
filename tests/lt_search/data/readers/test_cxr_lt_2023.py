from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lt_search.data import Dataset, load_dataset
from lt_search.data.readers.cxr_lt_2023 import CLASSES, TABLES
from lt_search.errors import UserError
from tests.helpers.pictures import write_csv
from tests.helpers.published import cxr_lt_rows, make_cxr_lt, rewrite
from trainers.task import Task

ROWS = cxr_lt_rows()
MIRROR = "physionet.org/files/mimic-cxr-jpg/2.0.0"


def problems_of(name: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(name, root)
    return str(caught.value)


def found_labels(dataset: Dataset) -> dict[str, list[int]]:
    return {n: row.tolist() for part in dataset.parts() for n, row in zip(part.ids, part.labels, strict=True)}


@pytest.mark.parametrize(("tables", "images"), [("", ""), ("cxr-lt-2023", MIRROR)])
def test_the_published_parts_are_read_from_every_layout(tmp_path: Path, tables: str, images: str) -> None:
    root = make_cxr_lt(tmp_path, tables=tables, images=images)
    dataset = load_dataset("cxr-lt-2023", root)
    assert (dataset.task, dataset.classes, len(CLASSES)) == (Task.MULTI_LABEL, CLASSES, 26)
    assert found_labels(dataset) == {row["dicom_id"]: [int(row[name]) for name in CLASSES] for row in ROWS}
    for part, name in zip(dataset.parts(), TABLES, strict=True):
        table = pd.read_csv(root / tables / name, dtype=str).sort_values("dicom_id")
        assert part.ids == tuple(table["dicom_id"])
        assert part.groups == tuple(f"subject:{subject}" for subject in table["subject_id"])
    path = root / images / next(row["path"] for row in ROWS if row["dicom_id"] == dataset.val.ids[0])
    np.testing.assert_allclose(dataset.val.source.decode(0, 8)[0], np.asarray(Image.open(path)))
    assert dataset.train.source.channels() == 1
    assert dataset.split_origin == "given by train.csv, development.csv, test.csv"
    assert load_dataset("cxr-lt-2023:official", root).split_hash == dataset.split_hash


def test_images_without_any_label_are_kept_and_counted(tmp_path: Path) -> None:
    dataset = load_dataset("cxr-lt-2023", make_cxr_lt(tmp_path))
    assert sum(not any(labels) for labels in found_labels(dataset).values()) == 12
    assert any(one.startswith("12 images have none of the 26 labels, not even No Finding") for one in dataset.warnings)


def test_study_ids_with_a_letter_labels_as_floats_and_another_name_of_the_path_are_the_same_data(
    tmp_path: Path,
) -> None:
    other = [
        {"fpath" if key == "path" else key: value for key, value in row.items()}
        | {"study_id": f"s{row['study_id']}"}
        | {name: f"{row[name]}.0" for name in CLASSES}
        for row in ROWS
    ]
    plain = load_dataset("cxr-lt-2023", make_cxr_lt(tmp_path))
    for part, name in enumerate(TABLES):
        own = [row for number, row in enumerate(other) if {4: 1, 5: 2}.get(number // 2 % 6, 0) == part]
        write_csv(tmp_path / name, list(own[0]), [list(row.values()) for row in own])
    again = load_dataset("cxr-lt-2023", tmp_path)
    assert (again.fingerprint, again.split_hash) == (plain.fingerprint, plain.split_hash)


def test_by_subject_all_views_and_studies_of_a_subject_stay_together(tmp_path: Path) -> None:
    dataset = load_dataset("cxr-lt-2023:subject", make_cxr_lt(tmp_path))
    sides = [set(part.groups) for part in dataset.parts()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 60
    assert sum(map(len, dataset.parts())) == 120
    assert dataset.split_origin == "7:1:2 by subject, seed 0"


@pytest.mark.parametrize("unlabelled", [False, True])
def test_without_labels_of_all_parts_the_labelled_images_are_divided(tmp_path: Path, unlabelled: bool) -> None:
    root = make_cxr_lt(tmp_path)
    for name in TABLES[1:]:
        table = pd.read_csv(root / name, dtype=str)
        (root / name).unlink()
        if unlabelled:
            table.drop(columns=list(CLASSES)).to_csv(root / name, index=False)
    dataset = load_dataset("cxr-lt-2023", root)
    assert sum(map(len, dataset.parts())) == 80
    assert any(one.startswith("not all of train.csv, development.csv, test.csv are there") for one in dataset.warnings)
    assert "development.csv" in problems_of("cxr-lt-2023:official", root)


def test_subjects_that_the_published_parts_divide_are_counted(tmp_path: Path) -> None:
    root = make_cxr_lt(tmp_path)
    train, test = (pd.read_csv(root / name, dtype=str) for name in (TABLES[0], TABLES[2]))
    test.iloc[1:].to_csv(root / TABLES[2], index=False)
    pd.concat([train, test.iloc[:1]]).to_csv(root / TABLES[0], index=False)
    warnings = load_dataset("cxr-lt-2023", root).warnings
    assert any(one.startswith("1 subjects have images in more than one published part") for one in warnings)


class TestMistakes:
    def test_an_empty_folder_and_an_unknown_variant(self, tmp_path: Path) -> None:
        assert "no file train.csv or cxr-lt-2023/train.csv" in problems_of("cxr-lt-2023", tmp_path)
        assert "'cxr-lt-2023' has no variant 'study'" in problems_of("cxr-lt-2023:study", tmp_path)

    def test_labels_paths_and_studies_that_cannot_be(self, tmp_path: Path) -> None:
        root = make_cxr_lt(tmp_path)
        ids = [row["dicom_id"] for row in ROWS]
        rewrite(root / "train.csv", "Edema", {ids[0]: "-1", ids[1]: ""}, key="dicom_id")
        rewrite(root / "train.csv", "study_id", {ids[2]: ROWS[0]["study_id"]}, key="dicom_id")
        message = problems_of("cxr-lt-2023", root)
        assert "2 rows have a label that is neither 0 nor 1: lines 2, 3" in message
        assert "1 rows have a path that does not end with their subject, study and image: lines 4" in message
        assert f"1 studies are of more than one subject: {ROWS[0]['study_id']}" in message

    def test_a_missing_column_an_image_twice_and_missing_files(self, tmp_path: Path) -> None:
        root = make_cxr_lt(tmp_path)
        (root / ROWS[0]["path"]).unlink()
        message = problems_of("cxr-lt-2023", root)
        assert f"1 of 120 images are missing from {root}: {ROWS[0]['path']}" in message
        test = pd.read_csv(root / "test.csv", dtype=str)
        pd.concat([test, pd.read_csv(root / "train.csv", dtype=str).iloc[:1]]).to_csv(root / "test.csv", index=False)
        assert f"1 images are listed more than once: {ROWS[0]['dicom_id']}" in problems_of("cxr-lt-2023", root)
        test.drop(columns=["path", "Hernia"]).to_csv(root / "test.csv", index=False)
        assert "no column 'hernia'" in problems_of("cxr-lt-2023", root)
        test.drop(columns=["path"]).to_csv(root / "test.csv", index=False)
        assert "no column 'path' or 'fpath'" in problems_of("cxr-lt-2023", root)
