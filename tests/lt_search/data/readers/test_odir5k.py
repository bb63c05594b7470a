from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lt_search.data import Dataset, load_dataset
from lt_search.data.check import describe
from lt_search.data.readers.odir5k import CLASSES, IMAGES, TABLES, eye_labels, patient_labels
from lt_search.errors import UserError
from tests.helpers.pictures import write_csv
from tests.helpers.published import ODIR_COLUMNS, make_odir, odir_rows, write_xlsx
from trainers.task import Task

ROWS = odir_rows()
LONG_NAMES = (
    *("Normal ", "Diabetes", "Glaucoma", "Cataract", "Age related Macular Degeneration "),
    *("Hypertension", "Pathological Myopia", "Other diseases/abnormalities"),
)
"""Labels as one copy of `full_df.csv` calls them, blanks included."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that tests only read."""
    return make_odir(tmp_path_factory.mktemp("odir"))


def problems_of(name: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(name, root)
    return str(caught.value)


def letters(labels: list[int]) -> str:
    return "".join(name for name, label in zip(CLASSES, labels, strict=True) if label)


def found_labels(dataset: Dataset) -> dict[str, str]:
    return {n: letters(row.tolist()) for part in dataset.parts() for n, row in zip(part.ids, part.labels, strict=True)}


@pytest.mark.parametrize(
    ("keywords", "labels"),
    [
        ("normal fundus", "N"),
        ("normal fundus\uff0clens dust", "N"),
        ("lens dust\uff0cdrusen", "O"),
        ("laser spot\uff0cwhite vessel\uff0cmoderate non proliferative retinopathy", "DO"),
        ("severe nonproliferative retinopathy, hypertensive retinopathy", "DH"),
        ("severe proliferative diabetic retinopathy", "D"),
        ("suspected diabetic retinopathy", "D"),
        ("suspected glaucoma", "G"),
        ("Suspected Cataract ", "C"),
        ("wet age-related macular degeneration\uff0cglaucoma", "GA"),
        ("myopia retinopathy", "M"),
        ("myopic maculopathy", "M"),
        ("maculopathy", "O"),
        ("normal fundus\uff0cmyelinated nerve fibers", "O"),
        ("anterior segment image", ""),
        ("no fundus image\uff0clow image quality", ""),
        ("optic disk photographically invisible\uff0cimage offset\uff0c", ""),
    ],
)
def test_labels_of_an_eye_follow_from_its_keywords(keywords: str, labels: str) -> None:
    assert letters(eye_labels(keywords)) == labels


@pytest.mark.parametrize(
    ("left", "right", "labels"),
    [
        ("normal fundus", "normal fundus", "N"),
        ("cataract", "normal fundus", "C"),
        ("normal fundus", "anterior segment image", "N"),
        ("glaucoma", "drusen\uff0cglaucoma", "GO"),
    ],
)
def test_a_patient_is_normal_only_with_two_eyes_without_a_disease(left: str, right: str, labels: str) -> None:
    assert letters(patient_labels((left, right))) == labels


def test_a_patient_is_one_image_of_both_eyes_with_the_labels_of_the_table(root: Path) -> None:
    dataset = load_dataset("odir5k", root)
    assert (dataset.task, dataset.classes) == (Task.MULTI_LABEL, CLASSES)
    assert found_labels(dataset) == {row[0]: letters([int(cell) for cell in row[7:]]) for row in ROWS}
    part = dataset.val
    assert part.groups == tuple(f"patient:{name}" for name in part.ids)
    pixels = part.source.decode(2, 8)
    assert part.source.channels() == 6 and pixels.shape == (6, 8, 8)
    for view, side in enumerate(("left", "right")):
        with Image.open(root / IMAGES[0] / f"{part.ids[2]}_{side}.jpg") as image:
            expected = np.asarray(image.resize((8, 8), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
        np.testing.assert_array_equal(pixels[3 * view : 3 * view + 3], expected)
    assert (part.source.header(2).width, part.source.header(2).height) == (12, 9)
    assert dataset.split_origin == "7:1:2 by patient, seed 0"
    assert "the table has 70 patients, the published one 3500" in dataset.warnings


def test_an_eye_is_one_image_with_the_labels_of_its_keywords(root: Path) -> None:
    dataset = load_dataset("odir5k:eyes", root)
    eyes = {eye: letters(eye_labels(notes)) for row in ROWS for eye, notes in zip(row[3:5], row[5:7], strict=True)}
    assert found_labels(dataset) == {eye: labels for eye, labels in eyes.items() if labels}
    assert found_labels(dataset)[f"{ROWS[0][0]}_right.jpg"] == "N" and ROWS[0][7:9] == ["0", "0"]
    assert any(one.startswith("10 eyes are left out") for one in dataset.warnings)
    assert dataset.train.source.channels() == 3
    for part, patients in zip(dataset.parts(), load_dataset("odir5k", root).parts(), strict=True):
        assert set(part.groups) == set(patients.groups)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("folder", "images"), [("", IMAGES[1]), ("ODIR-5K/ODIR-5K", IMAGES[0])])
def test_every_published_layout_gives_the_same_data(
    tmp_path: Path, root: Path, table: str, folder: str, images: str
) -> None:
    rows = [row for row in ROWS for _ in range(2)] if table == "full_df.csv" else ROWS
    columns = (*ODIR_COLUMNS[:7], *LONG_NAMES) if table == "full_df.csv" else ODIR_COLUMNS
    make_odir(tmp_path / folder, rows, table=table, columns=columns, images=images)
    found, plain = load_dataset("odir5k", tmp_path), load_dataset("odir5k", root)
    assert found_labels(found) == found_labels(plain) and found.split_hash == plain.split_hash


def test_the_check_states_both_eyes_and_the_score_of_the_challenge(root: Path) -> None:
    found = describe(load_dataset("odir5k", root))
    assert found.sound
    text = found.render()
    assert "2 RGB views an image to a trainer" in text
    assert (
        "objective: odir_score of any search, unless --metric says otherwise; also scored: mAP, macro_auc, mACC" in text
    )
    assert "objective: mAP unless" in describe(load_dataset("odir5k:eyes", root)).render()


def test_labels_that_are_not_those_of_the_keywords_are_counted(tmp_path: Path) -> None:
    rows = [[*row] for row in ROWS]
    rows[0][7:9] = ["1", "0"]
    warnings = load_dataset("odir5k", make_odir(tmp_path, rows)).warnings
    assert any(
        one == f"1 patients have other labels in the table than by the keywords of their eyes: {rows[0][0]}"
        for one in warnings
    )


class TestMistakes:
    def test_an_empty_folder_and_an_unknown_variant(self, tmp_path: Path) -> None:
        message = problems_of("odir5k:eye", tmp_path)
        assert f"no file {TABLES[0]}" in message and "no folder Training Images" in message
        assert "'odir5k' has no variant 'eye'\n    fix: use one of odir5k, odir5k:eyes" in message

    def test_cells_that_cannot_be(self, tmp_path: Path) -> None:
        rows = [[*row] for row in ROWS]
        rows[0][7:] = ["0"] * 8
        rows[1][9] = "2"
        rows[2][5] = ""
        rows[3][4] = rows[4][4]
        rows.append([*rows[5][:5], "drusen", *rows[5][6:]])
        message = problems_of("odir5k", make_odir(tmp_path, rows))
        assert "1 rows have none of the labels N, D, G, C, A, H, M, O, not even N: lines 2" in message
        assert "1 rows have a label that is neither 0 nor 1: lines 3" in message
        assert "1 rows have no id, image or keywords: lines 4" in message
        assert f"1 images are listed for more than one eye: {rows[4][4]}" in message
        assert f"1 patients have several rows that differ: {rows[5][0]}" in message

    def test_a_missing_column_and_a_damaged_workbook(self, tmp_path: Path) -> None:
        make_odir(tmp_path, ROWS[:3])
        write_xlsx(tmp_path / TABLES[0], ODIR_COLUMNS[:-1], [row[:-1] for row in ROWS])
        assert "no column 'o'; the columns are: 'id', 'patient age'" in problems_of("odir5k", tmp_path)
        (tmp_path / TABLES[0]).write_bytes(b"PK")
        assert "cannot be read as an Excel workbook" in problems_of("odir5k", tmp_path)

    def test_missing_eyes_and_those_of_another_name(self, tmp_path: Path) -> None:
        make_odir(tmp_path)
        eye = tmp_path / IMAGES[0] / ROWS[2][4]
        eye.rename(eye.with_name("2_right (1).jpg"))
        message = problems_of("odir5k", tmp_path)
        assert f"1 of 140 images are missing from {eye.parent}: {ROWS[2][4]}" in message
        assert "1 images there are not in the table: 2_right (1).jpg" in message

    def test_an_eye_that_cannot_be_decoded_is_named(self, tmp_path: Path) -> None:
        make_odir(tmp_path)
        eye = tmp_path / IMAGES[0] / ROWS[2][4]
        eye.write_bytes(eye.read_bytes()[:-60])
        (found,) = describe(load_dataset("odir5k", tmp_path)).unreadable
        assert ROWS[2][0] in found and eye.name in found

    def test_a_csv_that_is_none(self, tmp_path: Path) -> None:
        make_odir(tmp_path, table="data.csv")
        write_csv(tmp_path / "data.csv", ["ID"], [["1"]])
        assert "no column 'left-fundus'" in problems_of("odir5k", tmp_path)
