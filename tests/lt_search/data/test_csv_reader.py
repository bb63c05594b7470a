import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lt_search.data import load_dataset
from lt_search.data.csv_cells import LISTED
from lt_search.data.table import Dataset
from lt_search.errors import UserError
from tests.helpers.pictures import make_table, multi_class_rows, multi_label_rows, save_grey, write_csv
from trainers.task import Task

GIVEN = [
    {"image": f"{split}{number}.png", "label": label, "patient": f"{split}{number}", "split": split}
    for split in ("train", "val", "test")
    for number, label in enumerate(("cat", "dog", "cat"))
]


def problems_of(table: Path, data_root: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(str(table), data_root)
    return str(caught.value)


def changed(index: int, **cells: str) -> list[dict[str, str]]:
    return [{**row, **cells} if number == index else dict(row) for number, row in enumerate(GIVEN)]


def all_ids(dataset: Dataset) -> list[str]:
    return sorted(name for part in dataset.parts() for name in part.ids)


def test_one_label_each_is_multi_class(tmp_path: Path) -> None:
    dataset = load_dataset(str(make_table(tmp_path / "cells", multi_class_rows({"red": 20, "blue": 10}))))
    assert dataset.task == Task.MULTI_CLASS
    assert dataset.name == "cells"
    assert dataset.classes == ("blue", "red")
    for part in dataset.parts():
        assert part.labels.dtype == np.int64
        assert [dataset.classes[label] for label in part.labels] == [name.split("/")[0] for name in part.ids]


def test_several_labels_or_none_are_multi_label(tmp_path: Path) -> None:
    rows = multi_label_rows(50)
    dataset = load_dataset(str(make_table(tmp_path, rows)))
    assert dataset.task == Task.MULTI_LABEL
    assert dataset.classes == ("edema", "mass", "nodule")
    label_of = {row["image"]: row["label"] for row in rows}
    for part in dataset.parts():
        assert part.labels.dtype == np.uint8 and part.labels.shape == (len(part), 3)
        for name, row in zip(part.ids, part.labels, strict=True):
            assert "|".join(np.array(dataset.classes)[row == 1]) == label_of[name]


@pytest.mark.parametrize("labels", [("a", "b", "a|b"), ("a", "b", "")])
def test_one_bar_or_one_empty_label_makes_a_table_multi_label(tmp_path: Path, labels: Sequence[str]) -> None:
    rows = [{"image": f"{number}.png", "label": labels[number % 3]} for number in range(30)]
    assert load_dataset(str(make_table(tmp_path, rows))).task == Task.MULTI_LABEL


def test_a_few_empty_labels_are_pointed_out(tmp_path: Path) -> None:
    rows = multi_class_rows({"a": 30, "b": 30})
    rows[7]["label"] = ""
    dataset = load_dataset(str(make_table(tmp_path, rows)))
    assert any("read as multi-label only because of 1 empty labels (lines 9)" in one for one in dataset.warnings)


def test_blanks_repeats_and_empty_names_in_labels_do_not_count(tmp_path: Path) -> None:
    rows = [{"image": f"{number}.png", "label": "a | b" if number % 2 else "b||b| "} for number in range(20)]
    dataset = load_dataset(str(make_table(tmp_path, rows)))
    assert dataset.classes == ("a", "b")
    assert dataset.train.labels.sum(axis=1).max() == 2


def test_other_columns_case_and_the_order_of_rows_are_ignored(tmp_path: Path) -> None:
    rows = multi_label_rows(40)
    plain = load_dataset(str(make_table(tmp_path, rows)))
    odd = [[row["label"], "x", f" {row['image']} ", row["patient"]] for row in reversed(rows)]
    write_csv(tmp_path / "odd.csv", ["Label", "view", " IMAGE", "patient"], odd)
    other = load_dataset(str(tmp_path / "odd.csv"))
    assert (other.fingerprint, other.split_hash) == (plain.fingerprint, plain.split_hash)
    assert [part.fingerprint for part in other.parts()] == [part.fingerprint for part in plain.parts()]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    table = make_table(tmp_path, multi_class_rows({"a": 20, "b": 20}))
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert len(load_dataset(str(table)).classes) == 2


def test_images_are_found_from_data_root(tmp_path: Path) -> None:
    rows = multi_class_rows({"a": 20, "b": 20})
    for index, row in enumerate(rows):
        save_grey(tmp_path / "pictures" / row["image"], index)
    table = write_csv(tmp_path / "tables" / "mine.csv", list(rows[0]), [list(row.values()) for row in rows])
    dataset = load_dataset(str(table), tmp_path / "pictures")
    assert dataset.name == "mine"
    assert len(all_ids(dataset)) == 40


def test_patients_and_groups_stay_on_one_side_also_through_each_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "image": f"{number:03d}.png",
            "label": "ab"[number % 2],
            "patient": str(rng.integers(40)) if number % 3 else "",
            "group": str(rng.integers(40)) if number % 4 == 0 else "",
        }
        for number in range(120)
    ]
    dataset = load_dataset(str(make_table(tmp_path, rows)))
    part_of = {name: part.name for part in dataset.parts() for name in part.ids}
    unit_of = {n: group for part in dataset.parts() for n, group in zip(part.ids, part.groups, strict=True)}
    for kind in ("patient", "group"):
        for key in {row[kind] for row in rows} - {""}:
            tied = [row["image"] for row in rows if row[kind] == key]
            assert len({part_of[name] for name in tied}) == 1
            assert len({unit_of[name] for name in tied}) == 1
    free = [row["image"] for row in rows if not row["patient"] and not row["group"]]
    assert len({unit_of[name] for name in free}) == len(free) > 0
    assert dataset.split_origin == "7:1:2 by group and patient and image, seed 0"


def test_a_patient_and_a_group_of_the_same_name_are_not_tied(tmp_path: Path) -> None:
    rows = multi_class_rows({"a": 20, "b": 20})
    tied = [
        {**row, "patient": "7" if index == 0 else "", "group": "7" if index == 1 else ""}
        for index, row in enumerate(rows)
    ]
    dataset = load_dataset(str(make_table(tmp_path, tied)))
    assert len({group for part in dataset.parts() for group in part.groups}) == 40


@pytest.mark.parametrize(
    ("train", "val", "test"), [("train", "val", "test"), ("Training", "VALID", "testing"), ("TRAIN", "dev", "Test ")]
)
def test_a_given_split_wins(tmp_path: Path, train: str, val: str, test: str) -> None:
    spelled = {"train": train, "val": val, "test": test}
    rows = [{**row, "split": spelled[row["split"]]} for row in GIVEN]
    table = make_table(tmp_path, rows)
    for seed in (0, 1):
        dataset = load_dataset(str(table), split_seed=seed)
        for part in dataset.parts():
            assert part.ids == tuple(f"{part.name}{number}.png" for number in range(3))
        assert dataset.split_origin == "given by the split column"


def test_a_blank_split_column_is_no_split(tmp_path: Path) -> None:
    rows = [{**row, "split": ""} for row in multi_class_rows({"a": 20, "b": 20})]
    assert load_dataset(str(make_table(tmp_path, rows))).split_origin == "7:1:2 by image, seed 0"


def test_the_split_seed_moves_images_and_the_split_hash_but_not_the_fingerprint(tmp_path: Path) -> None:
    table = make_table(tmp_path, multi_class_rows({"a": 40, "b": 20}))
    first, again, other = (load_dataset(str(table), split_seed=seed) for seed in (0, 0, 1))
    assert first.train.ids == again.train.ids != other.train.ids
    assert first.split_hash == again.split_hash != other.split_hash
    assert first.fingerprint == other.fingerprint
    assert all_ids(first) == all_ids(other)


def test_labels_groups_and_file_sizes_move_the_fingerprint(tmp_path: Path) -> None:
    table = make_table(tmp_path, GIVEN)
    before = load_dataset(str(table))
    columns = list(GIVEN[0])

    def rewritten(rows: list[dict[str, str]]) -> Dataset:
        write_csv(table, columns, [list(row.values()) for row in rows])
        return load_dataset(str(table))

    relabelled = rewritten(changed(0, label="dog"))
    regrouped = rewritten(changed(0, patient="other"))
    save_grey(tmp_path / "train0.png", side=13)
    resized = rewritten(GIVEN)
    found = [before, relabelled, regrouped, resized]
    assert len({dataset.fingerprint for dataset in found}) == 4
    assert len({dataset.train.fingerprint for dataset in found}) == 4
    assert len({dataset.test.fingerprint for dataset in found}) == 1
    assert len({dataset.split_hash for dataset in found}) == 1


def test_labels_do_not_move_the_pixels_key_and_touched_files_do(tmp_path: Path) -> None:
    table = make_table(tmp_path, GIVEN)
    key = load_dataset(str(table)).train.source.pixels_key()
    write_csv(table, list(GIVEN[0]), [list(row.values()) for row in changed(0, label="dog")])
    assert load_dataset(str(table)).train.source.pixels_key() == key
    os.utime(tmp_path / "train0.png", (1, 1))
    assert load_dataset(str(table)).train.source.pixels_key() != key


def test_one_colour_image_makes_the_whole_data_set_rgb(tmp_path: Path) -> None:
    table = make_table(tmp_path, GIVEN)
    assert [part.source.channels() for part in load_dataset(str(table)).parts()] == [1, 1, 1]
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "test1.png")
    dataset = load_dataset(str(table))
    assert [part.source.channels() for part in dataset.parts()] == [3, 3, 3]
    assert dataset.train.source.decode(0, 8).shape == (3, 8, 8)


def test_typical_side_is_the_median_of_the_shorter_sides(tmp_path: Path) -> None:
    table = make_table(tmp_path, GIVEN)
    for number, size in enumerate([(10, 40), (30, 20), (90, 60)]):
        Image.new("L", size).save(tmp_path / f"train{number}.png")
    assert load_dataset(str(table)).typical_side() == 20


def test_parts_of_a_split_say_nothing_of_each_other(tmp_path: Path) -> None:
    rows = [{**row, "image": f"{row['image']}-{row['split']}-secret.png"} for row in GIVEN]
    dataset = load_dataset(str(make_table(tmp_path, rows)))
    for part in (dataset.train, dataset.val):
        pickled = pickle.dumps(part)
        assert f"{part.name}-secret".encode() in pickled
        assert b"test-secret" not in pickled


def test_few_images_of_a_class_are_warned_about(tmp_path: Path) -> None:
    dataset = load_dataset(str(make_table(tmp_path, multi_class_rows({"a": 60, "rare": 2}))))
    assert "train has fewer than 5 images of: rare (1)" in dataset.warnings


def test_a_group_in_two_given_splits_is_warned_about(tmp_path: Path) -> None:
    rows = [{**row, "group": "same" if row["image"] in ("train0.png", "test0.png") else ""} for row in GIVEN]
    dataset = load_dataset(str(make_table(tmp_path, rows)))
    assert "1 groups are in more than one given split: same (train, test)" in dataset.warnings


class TestMistakes:
    def test_no_such_table(self, tmp_path: Path) -> None:
        assert "absent.csv: no such file" in problems_of(tmp_path / "absent.csv")

    @pytest.mark.parametrize("content", [b"image,label\n\xff\xfe\x00,a\n", "image,label\nä.png,a\n".encode("latin-1")])
    def test_not_utf_8(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "t.csv").write_bytes(content)
        assert "not UTF-8 text" in problems_of(tmp_path / "t.csv")

    def test_not_csv(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text('image,label\n"a.png,a\nb.png,b\n')
        assert "line 3: not CSV" in problems_of(tmp_path / "t.csv")

    def test_missing_columns(self, tmp_path: Path) -> None:
        message = problems_of(write_csv(tmp_path / "t.csv", ["file", "class"], [["a.png", "a"]]))
        assert "no column 'image'; the columns are: 'file', 'class'" in message
        assert "no column 'label'" in message

    def test_another_separator_shows_in_the_columns(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("image;label\na.png;a\n")
        message = problems_of(tmp_path / "t.csv")
        assert "the columns are: 'image;label'" in message and "separated by commas" in message

    def test_a_column_twice(self, tmp_path: Path) -> None:
        table = write_csv(tmp_path / "t.csv", ["image", "label", "Label"], [["a.png", "a", "b"]])
        assert "2 columns are named 'label'" in problems_of(table)

    def test_rows_of_another_length(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("image,label\na.png,a\nb.png\nc.png,a,b\n")
        assert "2 rows do not have 2 cells as the header has: lines 3, 4" in problems_of(tmp_path / "t.csv")

    @pytest.mark.parametrize("content", ["", "image,label\n", "image,label\n\n,\n"])
    def test_no_rows(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "t.csv").write_text(content)
        assert "no rows below the header" in problems_of(tmp_path / "t.csv")

    def test_a_row_without_an_image(self, tmp_path: Path) -> None:
        assert "1 rows name no image: lines 3" in problems_of(make_table(tmp_path, changed(1, image="")))

    def test_images_listed_twice_also_in_another_spelling(self, tmp_path: Path) -> None:
        message = problems_of(make_table(tmp_path, changed(1, image="./train0.png")))
        assert "1 images are listed more than once: train0.png (lines 2, 3)" in message

    def test_one_class(self, tmp_path: Path) -> None:
        message = problems_of(make_table(tmp_path, multi_class_rows({"only": 9})))
        assert "only one class, 'only'; there must be at least two" in message

    def test_no_class(self, tmp_path: Path) -> None:
        rows = [{"image": f"{number}.png", "label": ""} for number in range(9)]
        assert "no class at all" in problems_of(make_table(tmp_path, rows))

    def test_a_patient_in_two_splits(self, tmp_path: Path) -> None:
        message = problems_of(make_table(tmp_path, changed(4, patient="train0")))
        assert "1 patients are in more than one split: train0 (train, val)" in message

    def test_a_class_absent_from_training(self, tmp_path: Path) -> None:
        message = problems_of(make_table(tmp_path, changed(8, label="bird")))
        assert "1 classes have no training image: bird" in message

    def test_an_unknown_split(self, tmp_path: Path) -> None:
        message = problems_of(make_table(tmp_path, changed(8, split="holdout")))
        assert "unknown splits: 'holdout' (1 rows)" in message and "use train, val, test" in message

    def test_a_split_for_some_rows_only(self, tmp_path: Path) -> None:
        message = problems_of(make_table(tmp_path, changed(8, split="")))
        assert "1 rows have no split while others have one: lines 10" in message

    @pytest.mark.parametrize("empty", ["train", "val", "test"])
    def test_an_empty_part(self, tmp_path: Path, empty: str) -> None:
        other = "test" if empty == "train" else "train"
        rows = [{**row, "split": other if row["split"] == empty else row["split"]} for row in GIVEN]
        assert f"no image is in the {empty} split" in problems_of(make_table(tmp_path, rows))

    def test_too_few_images_to_divide(self, tmp_path: Path) -> None:
        message = problems_of(make_table(tmp_path, multi_class_rows({"a": 1, "b": 1})))
        assert "nothing is left for val and test" in message

    def test_missing_images_are_listed_up_to_a_limit_with_their_number(self, tmp_path: Path) -> None:
        rows = multi_class_rows({"a": 20, "b": 20})
        absent = [row["image"] for row in rows[: LISTED + 3]]
        message = problems_of(make_table(tmp_path, rows, missing=absent))
        assert f"{LISTED + 3} of 40 images are missing from {tmp_path}" in message
        assert absent[LISTED - 1] in message and absent[LISTED] not in message
        assert "and 3 more" in message and "--data-root" not in message

    def test_all_images_missing_points_to_data_root(self, tmp_path: Path) -> None:
        rows = multi_class_rows({"a": 20, "b": 20})
        message = problems_of(make_table(tmp_path, rows, missing=[row["image"] for row in rows]))
        assert "40 of 40 images are missing" in message and "--data-root" in message

    def test_no_such_data_root(self, tmp_path: Path) -> None:
        message = problems_of(make_table(tmp_path, GIVEN), tmp_path / "absent")
        assert "--data-root: no such folder" in message

    def test_files_that_are_no_image(self, tmp_path: Path) -> None:
        table = make_table(tmp_path, GIVEN)
        (tmp_path / "val1.png").write_text("text")
        (tmp_path / "test1.png").unlink()
        (tmp_path / "test1.png").mkdir()
        message = problems_of(table)
        assert "2 of 9 files are not images" in message
        assert "val1.png (not an image)" in message and "test1.png (" in message

    def test_a_path_that_no_file_can_have(self, tmp_path: Path) -> None:
        table = make_table(tmp_path, GIVEN)
        table.write_text(table.read_text().replace("val1.png", "val1\0.png"))
        assert "1 of 9 files are not images" in problems_of(table)

    def test_all_mistakes_are_reported_at_once(self, tmp_path: Path) -> None:
        rows = changed(1, image="train0.png", split="holdout")
        rows[4]["patient"] = "train0"
        table = make_table(tmp_path, rows, missing=["test2.png"])
        message = problems_of(table)
        for part in ("more than once", "unknown splits", "more than one split", "missing from"):
            assert part in message


def test_one_file_under_two_names_is_refused(tmp_path: Path) -> None:
    table = make_table(tmp_path, multi_class_rows({"a": 30, "b": 20}))
    first, second = table.read_text().splitlines()[1:3]
    name, other = first.split(",", 1)[0], second.split(",", 1)[0]
    (tmp_path / "link").symlink_to((tmp_path / name).parent)
    lines = [*table.read_text().splitlines(), first.replace(name, str(tmp_path / name))]
    lines.append(second.replace(other, f"link/{Path(other).name}"))
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="2 files are listed under several names"):
        load_dataset(str(table))
