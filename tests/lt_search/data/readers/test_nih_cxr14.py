from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lt_search.data import Dataset, load_dataset
from lt_search.data.readers.nih_cxr14 import CLASSES
from lt_search.errors import UserError
from tests.helpers.published import add_chexnet_lists, add_official_lists, make_nih, nih_rows, write_list
from trainers.task import Task

ROWS = nih_rows()
SPLIT_FOLDERS = tuple(f"images_{number:03d}/images" for number in range(1, 13))


def problems_of(name: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(name, root)
    return str(caught.value)


def found_labels(dataset: Dataset) -> dict[str, str]:
    return {
        name: "|".join(np.array(CLASSES)[labels == 1]) or "No Finding"
        for part in dataset.parts()
        for name, labels in zip(part.ids, part.labels, strict=True)
    }


def sorted_labels(rows: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    return {image: "|".join(sorted(found.split("|"), key=(*CLASSES, "No Finding").index)) for image, found, _ in rows}


@pytest.mark.parametrize("table", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"])
@pytest.mark.parametrize("folders", [("images",), SPLIT_FOLDERS])
@pytest.mark.parametrize("trailing", [False, True])
def test_every_published_layout_gives_the_same_data(
    tmp_path: Path, table: str, folders: Sequence[str], trailing: bool
) -> None:
    dataset = load_dataset(
        "nih-cxr14:patient", make_nih(tmp_path / "a", table=table, folders=folders, trailing=trailing)
    )
    plain = load_dataset("nih-cxr14:patient", make_nih(tmp_path / "b"))
    assert (dataset.task, dataset.classes, len(CLASSES)) == (Task.MULTI_LABEL, CLASSES, 14)
    assert found_labels(dataset) == sorted_labels(ROWS)
    assert dataset.fingerprint == plain.fingerprint and dataset.split_hash == plain.split_hash
    for part, other in zip(dataset.parts(), plain.parts(), strict=True):
        np.testing.assert_array_equal(part.source.decode(0, 12), other.source.decode(0, 12))


def test_patients_stay_together(tmp_path: Path) -> None:
    dataset = load_dataset("nih-cxr14:patient", make_nih(tmp_path))
    patient_of = {image: f"patient:{patient}" for image, _, patient in ROWS}
    for part in dataset.parts():
        assert part.groups == tuple(patient_of[name] for name in part.ids)
    sides = [set(part.groups) for part in dataset.parts()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 60
    assert dataset.split_origin == "7:1:2 by patient, seed 0"


def test_official_lists_give_the_test_part_and_the_rest_is_divided_by_patient(tmp_path: Path) -> None:
    root = make_nih(tmp_path)
    add_official_lists(root, ROWS)
    first, other = (load_dataset("nih-cxr14:official", root, split_seed=seed) for seed in (0, 1))
    assert first.test.ids == other.test.ids == tuple(sorted((root / "test_list.txt").read_text().split()))
    assert first.val.ids != other.val.ids
    train, val = set(first.train.groups), set(first.val.groups)
    assert len(train) + len(val) == 40 and 4 <= len(val) <= 8 and not train & val
    assert first.split_origin == "official lists, train_val_list.txt divided 7:1 by patient, seed 0"


def test_without_a_variant_the_official_lists_win_where_they_are(tmp_path: Path) -> None:
    root = make_nih(tmp_path)
    by_patient = load_dataset("nih-cxr14", root)
    assert by_patient.split_origin == "7:1:2 by patient, seed 0"
    assert any(one.startswith("neither train_val_list.txt nor test_list.txt") for one in by_patient.warnings)
    add_official_lists(root, ROWS)
    official = load_dataset("nih-cxr14", root)
    assert official.split_hash == load_dataset("nih-cxr14:official", root).split_hash != by_patient.split_hash
    assert not any("neither" in one for one in official.warnings)
    assert load_dataset("nih-cxr14:patient", root).split_hash == by_patient.split_hash


@pytest.mark.parametrize("folder", ["", "labels", "ChestX-ray14/labels"])
def test_chexnet_lists_give_all_parts_and_the_labels(tmp_path: Path, folder: str) -> None:
    root = make_nih(tmp_path)
    revised = [(ROWS[0][0], "Hernia", ROWS[0][2]), *ROWS[1:]]
    add_chexnet_lists(root / folder, revised)
    dataset = load_dataset("nih-cxr14:chexnet", root)
    for part in dataset.parts():
        lines = (root / folder / f"{part.name}_list.txt").read_text().splitlines()
        assert part.ids == tuple(sorted(line.split()[0] for line in lines))
    assert found_labels(dataset) == sorted_labels(revised)
    assert dataset.split_origin == "given by the CheXNet lists"
    assert any("1 images have others in Data_Entry_2017_v2020.csv" in one for one in dataset.warnings)


def test_both_kinds_of_lists_can_be_there(tmp_path: Path) -> None:
    root = make_nih(tmp_path)
    add_official_lists(root, ROWS)
    add_chexnet_lists(root / "labels", ROWS)
    official, chexnet = (load_dataset(f"nih-cxr14:{variant}", root) for variant in ("official", "chexnet"))
    assert len(official.test) == 40 and len(chexnet.test) == 20


def test_images_are_grey_also_where_a_file_is_rgba(tmp_path: Path) -> None:
    root = make_nih(tmp_path)
    Image.new("RGBA", (12, 12), (90, 90, 90, 255)).save(root / "images" / ROWS[0][0])
    dataset = load_dataset("nih-cxr14", root)
    (part,) = [part for part in dataset.parts() if ROWS[0][0] in part.ids]
    assert {one.source.channels() for one in dataset.parts()} == {1}
    np.testing.assert_array_equal(part.source.decode(part.ids.index(ROWS[0][0]), 8), np.full((1, 8, 8), 90))


def test_reading_opens_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_nih(tmp_path)
    monkeypatch.setattr(Image, "open", lambda path: pytest.fail(f"{path} was opened"))
    load_dataset("nih-cxr14", root)


def test_which_of_two_tables_was_read_is_said(tmp_path: Path) -> None:
    root = make_nih(tmp_path)
    (root / "Data_Entry_2017.csv").write_bytes((root / "Data_Entry_2017_v2020.csv").read_bytes())
    assert any("Data_Entry_2017_v2020.csv was read" in one for one in load_dataset("nih-cxr14", root).warnings)


class TestMistakes:
    def test_everything_in_an_empty_folder_is_asked_for(self, tmp_path: Path) -> None:
        message = problems_of("nih-cxr14:oficial", tmp_path)
        assert "no file Data_Entry_2017_v2020.csv or Data_Entry_2017.csv" in message
        assert "no folder images or images_001/images" in message
        assert "'nih-cxr14' has no variant 'oficial'" in message

    def test_a_misspelled_table_and_missing_lists(self, tmp_path: Path) -> None:
        root = make_nih(tmp_path, table="Data_Entry_2017 (2).csv")
        message = problems_of("nih-cxr14:official", root)
        assert "there is: Data_Entry_2017 (2).csv, images/" in message
        assert "is it Data_Entry_2017 (2).csv?" in message

    @pytest.mark.parametrize("variant", ["", ":official"])
    def test_one_official_list_alone(self, tmp_path: Path, variant: str) -> None:
        root = make_nih(tmp_path)
        add_official_lists(root, ROWS)
        (root / "train_val_list.txt").rename(root / "train_val.txt")
        message = problems_of(f"nih-cxr14{variant}", root)
        assert "no file train_val_list.txt" in message and "train_val.txt" in message
        assert "nih-cxr14:patient" in message

    def test_no_chexnet_lists(self, tmp_path: Path) -> None:
        root = make_nih(tmp_path)
        add_official_lists(root, ROWS)
        message = problems_of("nih-cxr14:chexnet", root)
        assert "no file train_list.txt" in message and "no file val_list.txt" in message
        assert f"to {root / 'labels'}" in message

    def test_lists_of_the_other_kind(self, tmp_path: Path) -> None:
        root = make_nih(tmp_path)
        add_chexnet_lists(root, ROWS)
        write_list(root / "train_val_list.txt", [image for image, _, _ in ROWS])
        message = problems_of("nih-cxr14:official", root)
        assert "20 lines are not a file name alone: lines 1, 2" in message and "keep the latter in labels/" in message
        add_official_lists(root, ROWS)
        assert "40 lines are not a file name and 14 times 0 or 1" in problems_of("nih-cxr14:chexnet", root)

    def test_lists_that_do_not_fit_the_table_or_each_other(self, tmp_path: Path) -> None:
        root = make_nih(tmp_path)
        images = [image for image, _, _ in ROWS]
        write_list(root / "train_val_list.txt", [*images[1:80], images[5], "absent.png"])
        write_list(root / "test_list.txt", images[79:])
        message = problems_of("nih-cxr14", root)
        assert f"1 images are listed more than once: {images[5]}" in message
        write_list(root / "train_val_list.txt", [*images[1:80], "absent.png"])
        message = problems_of("nih-cxr14", root)
        assert "1 images are not in Data_Entry_2017_v2020.csv: absent.png" in message
        assert f"1 images are in another list, too: {images[79]}" in message
        assert f"are in none of train_val_list.txt, test_list.txt: {images[0]}" in message

    def test_a_patient_in_two_lists(self, tmp_path: Path) -> None:
        root = make_nih(tmp_path)
        images = [image for image, _, _ in ROWS]
        write_list(root / "train_val_list.txt", images[:79])
        write_list(root / "test_list.txt", images[79:])
        assert "1 patients are in more than one list: patient:40" in problems_of("nih-cxr14", root)

    def test_unknown_findings_repeated_images_and_blank_patients(self, tmp_path: Path) -> None:
        rows = [*ROWS[:-3], (ROWS[-3][0], "Masss|Hernia", "59"), ROWS[0], (ROWS[-1][0], "", "")]
        message = problems_of("nih-cxr14", make_nih(tmp_path, rows))
        assert "unknown findings: 'Masss' (1 rows), '' (1 rows)" in message
        assert f"1 images are listed more than once: {ROWS[0][0]}" in message
        assert "1 rows have no image or no patient: lines 121" in message

    def test_missing_images_with_where_they_were_looked_for(self, tmp_path: Path) -> None:
        root = make_nih(tmp_path, folders=SPLIT_FOLDERS)
        old = root / SPLIT_FOLDERS[3] / ROWS[3][0]
        old.rename(old.with_name("00000002_001 (1).png"))
        message = problems_of("nih-cxr14", root)
        first, second = (root / folder for folder in SPLIT_FOLDERS[:2])
        assert f"1 of 120 images are missing from {first}, {second}, " in message and f": {ROWS[3][0]}\n" in message
        assert "1 images there are not in the table: 00000002_001 (1).png" in message

    def test_missing_images_are_found_also_where_the_table_is_wrong(self, tmp_path: Path) -> None:
        root = make_nih(tmp_path, [*ROWS[:-1], (ROWS[-1][0], "Masss", "60")])
        (root / "images" / ROWS[3][0]).unlink()
        message = problems_of("nih-cxr14", root)
        assert "unknown findings: 'Masss'" in message and "1 of 120 images are missing" in message

    def test_a_finding_without_training_images(self, tmp_path: Path) -> None:
        rows = [(image, "Mass" if found == "Hernia" else found, patient) for image, found, patient in ROWS]
        rows = [(image, found.replace("|Hernia", "").replace("Hernia|", ""), patient) for image, found, patient in rows]
        assert "1 classes have no training image: Hernia" in problems_of("nih-cxr14", make_nih(tmp_path, rows))
