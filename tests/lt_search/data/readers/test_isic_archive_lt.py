from collections import defaultdict
from pathlib import Path

import pytest

from lt_search.data import Dataset, load_dataset
from lt_search.data.readers.isic_archive_lt import CLASSES
from lt_search.errors import UserError
from tests.helpers.pictures import write_csv
from tests.helpers.published import add_archive_lists, archive_rows, make_archive, rewrite
from trainers.task import Task

ROWS = archive_rows()


def problems_of(name: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(name, root)
    return str(caught.value)


def found_labels(dataset: Dataset) -> dict[str, str]:
    return {name: CLASSES[c] for part in dataset.parts() for name, c in zip(part.ids, part.labels, strict=True)}


@pytest.mark.parametrize("folder", ["", "images", "ISIC_Archive"])
@pytest.mark.parametrize("lists", ["", "split/ISIC_Archive"])
def test_the_lists_of_lmd_give_parts_and_labels_wherever_they_and_the_images_are(
    tmp_path: Path, folder: str, lists: str
) -> None:
    make_archive(tmp_path, folder=folder)
    add_archive_lists(tmp_path / lists, ROWS)
    dataset = load_dataset("isic-archive-lt", tmp_path)
    assert (dataset.task, dataset.classes, len(CLASSES)) == (Task.MULTI_CLASS, CLASSES, 14)
    assert found_labels(dataset) == {image: label for image, label, *_ in ROWS}
    assert dataset.test.ids == tuple(row[0] for row in ROWS[7::8])
    assert dataset.val.ids == tuple(row[0] for row in ROWS[6::8])
    assert dataset.split_origin == "given by the lists of LMD"
    assert dataset.train.source.decode(0, 4).shape == (3, 4, 4)


def test_what_the_archive_says_against_the_lists_is_counted(tmp_path: Path) -> None:
    make_archive(tmp_path)
    add_archive_lists(tmp_path, ROWS)
    patients = {row[0]: f"IP_{number // 8}" for number, row in enumerate(ROWS) if number % 8 in (5, 6, 7)}
    for label in CLASSES:
        rewrite(tmp_path / f"{label}.csv", "patient_id", patients, key="isic_id")
    moved = (tmp_path / "AK.csv").read_text().splitlines()
    (tmp_path / "AK.csv").write_text("\n".join(moved[:-1]))
    (tmp_path / "AMP.csv").write_text((tmp_path / "AMP.csv").read_text() + moved[-1])
    warnings = load_dataset("isic-archive-lt", tmp_path).warnings
    assert any(
        one.startswith("14 patients or lesions have images in more than one of the published") for one in warnings
    )
    assert any(one.startswith("1 images have another diagnosis in the tables of the archive") for one in warnings)


def test_without_lists_images_are_divided_by_patient_or_lesion(tmp_path: Path) -> None:
    dataset = load_dataset("isic-archive-lt", make_archive(tmp_path))
    assert found_labels(dataset) == {image: label for image, label, *_ in ROWS}
    parts = defaultdict(set)
    for part in dataset.parts():
        for group in part.groups:
            parts[group].add(part.name)
    # Of eight images, four are of two patients, two are of one lesion, and two are alone.
    assert len(parts) == 14 * (2 + 1 + 2) and all(len(of_one) == 1 for of_one in parts.values())
    assert dataset.split_origin == "7:1:2 by patient or lesion where they are known, seed 0"
    assert any(one.startswith("none of training.csv, validation.csv, testing.csv is there") for one in dataset.warnings)
    assert any(one.startswith("28 images have neither a patient_id nor a lesion_id") for one in dataset.warnings)
    add_archive_lists(tmp_path, ROWS)
    said = load_dataset("isic-archive-lt:patient", tmp_path)
    assert said.split_hash == dataset.split_hash and not any("none of" in one for one in said.warnings)


class TestMistakes:
    def test_an_empty_folder(self, tmp_path: Path) -> None:
        message = problems_of("isic-archive-lt", tmp_path)
        assert all(f"no file {name}.csv" in message for name in CLASSES)
        assert "or the lists of LMD (training.csv, validation.csv, testing.csv)" in message
        assert "'isic-archive-lt' has no variant 'all'" in problems_of("isic-archive-lt:all", tmp_path)

    def test_a_missing_list_and_rows_without_one_class(self, tmp_path: Path) -> None:
        make_archive(tmp_path)
        add_archive_lists(tmp_path, ROWS)
        (tmp_path / "validation.csv").rename(tmp_path / "validation (1).csv")
        rewrite(tmp_path / "testing.csv", "AK", {ROWS[7][0]: "0"}, key="image")
        message = problems_of("isic-archive-lt", tmp_path)
        assert "no file validation.csv" in message and "is it validation (1).csv?" in message
        assert "1 rows do not have a 1 for exactly one of AK, AMP" in message

    def test_an_image_in_two_lists_or_tables(self, tmp_path: Path) -> None:
        make_archive(tmp_path)
        write_csv(tmp_path / "AN.csv", ["isic_id"], [[ROWS[0][0]]])
        assert f"1 images are listed more than once: {ROWS[0][0]}" in problems_of("isic-archive-lt", tmp_path)
        make_archive(tmp_path)
        add_archive_lists(tmp_path, ROWS)
        rewrite(tmp_path / "testing.csv", "image", {ROWS[7][0]: ROWS[0][0]}, key="image")
        assert f"1 images are listed more than once: {ROWS[0][0]}" in problems_of("isic-archive-lt", tmp_path)

    def test_missing_images_and_those_of_another_name(self, tmp_path: Path) -> None:
        make_archive(tmp_path)
        add_archive_lists(tmp_path, ROWS)
        (tmp_path / f"{ROWS[1][0]}.jpg").rename(tmp_path / "0001.jpg")
        message = problems_of("isic-archive-lt", tmp_path)
        assert f"1 of 112 images are missing from {tmp_path}: {ROWS[1][0]}" in message
        assert "1 images there are not in the table: 0001.jpg" in message
