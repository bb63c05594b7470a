"""Extra training data: what is added, unknown and dropped."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lt_search.data.check import describe
from lt_search.data.decoded import open_images
from lt_search.data.extra import UNKNOWN, add_extra_data
from lt_search.data.registry import load_dataset, split_root
from lt_search.data.table import Dataset, ExtraData
from lt_search.errors import UserError
from tests.helpers.pictures import make_table, multi_class_rows, multi_label_rows, write_csv
from tests.helpers.published import make_cxr_lt, make_nih, make_odir, save_rgb

Row = dict[str, str]


@pytest.fixture
def own(tmp_path: Path) -> Dataset:
    """80 images of 40 patients; classes edema, mass, nodule."""
    return load_dataset(str(make_table(tmp_path / "own", multi_label_rows(80))))


@pytest.fixture
def add(own: Dataset, tmp_path: Path) -> Callable[..., ExtraData]:
    """Adds a table of rows."""

    def added(rows: Sequence[Row], name: str = "more") -> ExtraData:
        table = make_table(tmp_path / name, rows)
        (extra,) = add_extra_data(own, [str(table)]).extra
        return extra

    return added


def rows_of(*labels: str, first_patient: int = 900, split: str = "train") -> list[Row]:
    """A row for each cell of labels, each of a patient of its own."""
    return [
        {"image": f"e{number}.png", "label": label, "patient": str(first_patient + number), "split": split}
        for number, label in enumerate(labels)
    ]


def refused(own: Dataset, *texts: object) -> str:
    with pytest.raises(UserError) as raised:
        add_extra_data(own, [str(text) for text in texts])
    return str(raised.value)


def test_classes_that_it_lacks_are_unknown_and_its_own_names_are_left_out(add: Callable[..., ExtraData]) -> None:
    extra = add(rows_of("Mass", "Mass|Hernia", "", "hernia|NODULE"))
    assert extra.train.ids == ("e0.png", "e1.png", "e2.png", "e3.png")
    np.testing.assert_array_equal(
        extra.train.labels, [[UNKNOWN, 1, 0], [UNKNOWN, 1, 0], [UNKNOWN, 0, 0], [UNKNOWN, 0, 1]]
    )
    assert extra.train.labels.dtype == np.int8
    assert extra.train.counts(3).tolist() == [0, 2, 1]
    assert extra.unknown == ("edema",)
    assert extra.left_out == ("Hernia", "hernia")
    sentences = "\n".join(extra.sentences())
    for words in (
        "4 images of its training split are added to training, of 4 in all",
        "unknown there: edema",
        "labels that match no class are dropped: Hernia, hernia",
    ):
        assert words in sentences


def test_nothing_of_the_data_set_itself_changes(own: Dataset, tmp_path: Path) -> None:
    table = make_table(tmp_path / "more", rows_of("mass", "edema|nodule"))
    more = add_extra_data(own, [str(table)])
    assert len(more.extra) == 1
    for before, after in zip(own.parts(), more.parts(), strict=True):
        assert before is after
    assert (more.fingerprint, more.split_hash, more.classes) == (own.fingerprint, own.split_hash, own.classes)
    np.testing.assert_array_equal(more.train_counts(), own.train_counts())
    assert add_extra_data(own, []).extra == ()


def test_only_its_training_part_is_added(own: Dataset, tmp_path: Path) -> None:
    rows = rows_of("mass", "nodule", "mass|nodule", "", "mass", "nodule|mass")
    for row, split in zip(rows, ("train", "val", "test", "train", "test", "val"), strict=True):
        row["split"] = split
    (extra,) = add_extra_data(own, [str(make_table(tmp_path / "given", rows))]).extra
    assert extra.train.ids == ("e0.png", "e3.png")
    divided = [{key: cell for key, cell in row.items() if key != "split"} for row in multi_label_rows(60)]
    for number, row in enumerate(divided):
        row |= {"image": f"d{number}.png", "patient": f"x{number // 2}"}
    table = make_table(tmp_path / "divided", divided)
    for seed in (0, 1):
        (extra,) = add_extra_data(own, [str(table)], seed).extra
        assert extra.train.ids == load_dataset(str(table), split_seed=seed).train.ids
    assert "of 60 in all" in extra.sentences()[0]


def test_a_table_of_one_class_and_of_one_label_an_image_can_be_added(add: Callable[..., ExtraData]) -> None:
    np.testing.assert_array_equal(add(rows_of("mass", ""), "one").train.labels[:, 1], [1, 0])
    labels = add(rows_of("mass", "nodule", "mass"), "multi-class").train.labels
    np.testing.assert_array_equal(labels[:, 1:], [[1, 0], [0, 1], [1, 0]])


def test_patients_who_are_scored_do_not_come_back_in(
    own: Dataset, add: Callable[..., ExtraData], tmp_path: Path
) -> None:
    scored = [group.partition(":")[2] for group in (own.val.groups[0], own.test.groups[0])]
    trained = own.train.groups[0].partition(":")[2]
    rows = rows_of("mass", "mass", "nodule", "nodule")
    for row, patient in zip(rows, (*scored, trained), strict=False):
        row["patient"] = patient
    extra = add(rows)
    assert extra.train.ids == ("e2.png", "e3.png")
    assert len(extra.train.labels) == len(extra.train.groups) == 2
    (sentence,) = extra.dropped
    assert "2 of its images are dropped" in sentence and scored[0] in sentence
    images = open_images(extra.train, 12)
    np.testing.assert_array_equal(images[0], extra.train.source.decode(0, 12))
    with Image.open(tmp_path / "more/e2.png") as picture:
        np.testing.assert_array_equal(images[0, 0], np.asarray(picture))


@pytest.mark.parametrize("columns", [("group",), ("patient", "group")])
def test_a_patient_is_known_by_whatever_column_names_him(tmp_path: Path, columns: tuple[str, ...]) -> None:
    rows = multi_label_rows(80)
    for row in rows:
        patient = row.pop("patient")
        row.update({"group": f"site{int(patient) % 3}x{patient}" if len(columns) > 1 else patient})
        if len(columns) > 1:
            row["patient"] = patient
    own = load_dataset(str(make_table(tmp_path / "own", rows)))
    column = columns[0]
    patient_of = {row["image"]: row[column] for row in rows}
    more = rows_of("mass", "nodule", "mass")
    more[0]["patient"], more[1]["patient"] = (patient_of[part.ids[0]] for part in (own.val, own.test))
    (extra,) = add_extra_data(own, [str(make_table(tmp_path / "more", more))]).extra
    assert extra.train.ids == ("e2.png",)


def test_equal_file_names_alone_tie_nothing(tmp_path: Path) -> None:
    def without_patients(seed: int) -> str:
        rows = [{"image": row["image"], "label": row["label"]} for row in multi_label_rows(60)]
        table = make_table(tmp_path / str(seed), rows)
        for number, row in enumerate(rows):
            pixels = np.random.default_rng((seed, number)).integers(0, 256, (12, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / str(seed) / row["image"])
        return str(table)

    dataset = load_dataset(without_patients(0))
    (extra,) = add_extra_data(dataset, [without_patients(1)], 1).extra
    assert extra.dropped == ()


def test_files_that_are_there_already_are_left_out(own: Dataset, tmp_path: Path) -> None:
    rows = rows_of("mass", "nodule", "mass", "nodule")
    table = make_table(tmp_path / "more", rows)
    for index, part in enumerate(own.parts()):
        name = part.ids[0]
        shutil.copyfile(tmp_path / "own" / name, tmp_path / "more" / name)
        rows[index]["image"] = name
    write_csv(table, list(rows[0]), [list(row.values()) for row in rows])
    extended = add_extra_data(own, [str(table)])
    (extra,) = extended.extra
    assert extra.train.ids == ("e3.png",)
    assert "3 of its images are dropped: the data already has them" in extra.dropped[0]
    (tmp_path / "more" / own.test.ids[0]).rename(tmp_path / "more/renamed.png")
    rows[2]["image"] = "renamed.png"
    write_csv(table, list(rows[0]), [list(row.values()) for row in rows])
    assert add_extra_data(own, [str(table)]).extra[0].train.ids == ("e3.png",), "by another name it is the same image"
    again = make_table(tmp_path / "again", [*rows[3:], *rows_of("nodule", first_patient=990)])
    shutil.copyfile(tmp_path / "more/e3.png", tmp_path / "again/e3.png")
    first, second = add_extra_data(own, [str(table), str(again)]).extra
    assert first.train.ids == ("e3.png",) and second.train.ids == ("e0.png",), "no image joins twice"


def test_the_whole_of_its_own_data_is_refused(own: Dataset, tmp_path: Path) -> None:
    assert "none of its images can be added" in refused(own, tmp_path / "own/labels.csv")


def test_grey_and_colour_become_what_the_data_set_is(own: Dataset, tmp_path: Path) -> None:
    rows = rows_of("mass", "nodule")
    table = make_table(tmp_path / "colour", rows)
    for number, row in enumerate(rows):
        save_rgb(tmp_path / "colour" / row["image"], number, (12, 12))
    colour = load_dataset(str(table), training_only=True).train
    (extra,) = add_extra_data(own, [str(table)]).extra
    red, green, blue = (open_images(colour, 12)[:, plane].astype(float) for plane in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    np.testing.assert_allclose(open_images(extra.train, 12)[:, 0], luma, atol=1)

    save_rgb(tmp_path / "own" / own.train.ids[0], 1, (12, 12))
    rgb = load_dataset(str(tmp_path / "own/labels.csv"))
    grey = make_table(tmp_path / "grey", rows)
    (extra,) = add_extra_data(rgb, [str(grey)]).extra
    found = open_images(extra.train, 12)
    assert found.shape == (2, 3, 12, 12)
    plain = load_dataset(str(grey), training_only=True).train
    np.testing.assert_array_equal(found, np.repeat(open_images(plain, 12), 3, axis=1))
    again = pickle.loads(pickle.dumps(extra.train))
    np.testing.assert_array_equal(open_images(again, 12), found)


def test_views_cannot_be_made_up(tmp_path: Path) -> None:
    odir = load_dataset("odir5k", make_odir(tmp_path / "odir"))
    table = make_table(tmp_path / "more", rows_of("N", "D"))
    assert "an image of odir5k is 2 views, one of more is one view" in refused(odir, table)


def test_chest_xray14_joins_cxr_lt_with_its_no_finding(tmp_path: Path) -> None:
    dataset = load_dataset("cxr-lt-2023", make_cxr_lt(tmp_path / "cxr"))
    make_nih(tmp_path / "nih")
    (extra,) = add_extra_data(dataset, [f"nih-cxr14:patient={tmp_path / 'nih'}"]).extra
    nih = load_dataset("nih-cxr14:patient", tmp_path / "nih").train
    assert extra.left_out == () and extra.dropped == () and len(extra.unknown) == 26 - 15
    column = {name: index for index, name in enumerate(dataset.classes)}
    labels = extra.train.labels
    np.testing.assert_array_equal(labels[:, column["Pleural Effusion"]], nih.labels[:, 2])
    np.testing.assert_array_equal(labels[:, column["No Finding"]], nih.labels.max(axis=1) == 0)
    assert 0 < labels[:, column["No Finding"]].sum() < len(labels)
    assert (labels[:, [column[name] for name in extra.unknown]] == UNKNOWN).all()


def test_its_fingerprint_moves_with_all_that_is_trained_on(own: Dataset, tmp_path: Path) -> None:
    def fingerprint(name: str, rows: Sequence[Row]) -> str:
        (extra,) = add_extra_data(own, [str(make_table(tmp_path / name, rows))]).extra
        return extra.train.fingerprint

    plain = rows_of("mass", "nodule")
    first = fingerprint("first", plain)
    assert fingerprint("elsewhere", plain) == first
    changes = {
        "label": rows_of("mass", "mass|nodule"),
        "one name mapped otherwise": rows_of("edema", "nodule"),
        "patient": rows_of("mass", "nodule", first_patient=950),
        "more": rows_of("mass", "nodule", "mass"),
    }
    found = {fingerprint(name, rows) for name, rows in changes.items()}
    assert len(found | {first}) == 1 + len(changes)


def test_mistakes_of_all_further_data_come_in_one_message(own: Dataset, tmp_path: Path) -> None:
    strangers = make_table(tmp_path / "strangers", rows_of("cat", "dog|cat"))
    twins = make_table(tmp_path / "twins", rows_of("mass", "Mass"))
    same = make_table(tmp_path / "same", rows_of("mass", "nodule"))
    message = refused(own, strangers, twins, tmp_path / "no.csv", "nih", "nih-cxr14", "odir5k=/no/where", same, same)
    for words in (
        "none of the labels cat, dog is one of the classes edema, mass, nodule",
        "several labels are the same class: Mass and mass",
        f"{tmp_path / 'no.csv'}",
        "--extra-data nih: unknown data set 'nih'",
        "say where it was unpacked: --extra-data nih-cxr14=DIR",
        "--extra-data odir5k=/no/where: no such folder",
        "is given twice",
    ):
        assert words in message
    assert "--data-root" not in message and "--dataset" not in message


def test_missing_images_are_answered_with_this_options_root(own: Dataset, tmp_path: Path) -> None:
    table = make_table(tmp_path / "more", rows_of("mass", "nodule"), missing=("e0.png", "e1.png"))
    assert f"--extra-data {table}=DIR" in refused(own, table)
    make_table(tmp_path / "elsewhere", rows_of("mass", "nodule"))
    (extra,) = add_extra_data(own, [f"{table}={tmp_path / 'elsewhere'}"]).extra
    assert len(extra.train) == 2


def test_a_split_column_without_training_images_is_refused(own: Dataset, tmp_path: Path) -> None:
    table = make_table(tmp_path / "more", rows_of("mass", "nodule", split="test"))
    assert "no image is in the train split" in refused(own, table)


def test_data_of_one_class_an_image_takes_none(tmp_path: Path) -> None:
    dataset = load_dataset(str(make_table(tmp_path / "own", multi_class_rows({"a": 20, "b": 20}))))
    table = make_table(tmp_path / "more", rows_of("a", "b"))
    assert "cannot be partly unknown" in refused(dataset, table)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("nih-cxr14", ("nih-cxr14", None)),
        ("nih-cxr14:official=/data/nih=2", ("nih-cxr14:official", "/data/nih=2")),
        ("a/b.csv", ("a/b.csv", None)),
        ("a/x=1/b.csv", ("a/x=1/b.csv", None)),
        ("a/x=1/b.CSV=/data", ("a/x=1/b.CSV", "/data")),
    ],
)
def test_the_root_follows_an_equals_sign(text: str, parts: tuple[str, str | None]) -> None:
    assert split_root(text) == parts


def test_the_check_counts_it_beside_the_parts_and_decodes_it(own: Dataset, tmp_path: Path) -> None:
    tables = [make_table(tmp_path / name, rows_of("mass", "mass|hernia", "", "nodule")) for name in ("more", "val")]
    for row in rows_of("", "", "", ""):  # the second table has other images of other patients
        save_rgb(tmp_path / "val" / row["image"], 7, (9, 9))
    extended = add_extra_data(own, [str(table) for table in tables])
    found = describe(extended)
    assert found.sound and found.modes == describe(own).modes
    lines = {line.split()[0]: line.split() for line in found.render().splitlines() if line}
    assert lines["class"] == ["class", "train", "val", "test", "more", "val", "(extra", "2)"]
    assert lines["edema"][-2:] == ["?", "?"] and lines["mass"][-2:] == ["2", "2"] and lines["images"][-2:] == ["4", "4"]
    for words in ("unknown there: edema", "are dropped: hernia", "head, medium and tail go by the data set's own"):
        assert words in found.render()
    victim = tmp_path / "more/e2.png"
    victim.write_bytes(victim.read_bytes()[:-60])
    broken = describe(extended)
    assert not broken.sound and broken.unreadable[0].startswith("more: e2.png")
