from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import train_test_split

from lt_search.data import Dataset, load_dataset
from lt_search.data.readers.isic2019 import CLASSES, GROUND_TRUTH, IMAGES, METADATA
from lt_search.data.readers.isic2019_lt import (
    balanced_counts,
    divide_balanced,
    divide_long_tailed,
    long_tailed_counts,
    part_counts,
)
from lt_search.data.readers.published import EXCLUDED
from lt_search.errors import UserError
from tests.helpers.pictures import write_csv
from tests.helpers.published import ISIC_COUNTS, make_isic, rewrite
from trainers.task import Task

PUBLISHED = (4522, 12875, 3323, 867, 2624, 239, 253, 628)
"""Images of each class, in class order."""

IN_TABLE_ORDER = [CLASSES.index(name) for name in ("NV", "MEL", "BCC", "BKL", "AK", "SCC", "VASC", "DF")]

LT_TABLE = {
    100: (
        (12875, 4140, 2785, 2013, 609, 404, 149, 129),
        (9012, 2898, 1949, 1409, 426, 282, 104, 90),
        (16170, 2313, 4621),
    ),
    200: (
        (12875, 3750, 2285, 1496, 410, 247, 83, 65),
        (9012, 2625, 1599, 1047, 287, 172, 58, 45),
        (14845, 2124, 4242),
    ),
    500: (
        (12875, 3290, 1759, 1010, 243, 128, 38, 26),
        (9012, 2303, 1231, 707, 170, 89, 26, 18),
        (13556, 1939, 3874),
    ),
}
BALANCED_TABLE = {
    100: (5000, 2590, 1342, 695, 360, 187, 97, 51),
    200: (5000, 2346, 1101, 517, 243, 114, 54, 25),
    500: (5000, 2058, 847, 349, 144, 60, 25, 11),
}


def problems_of(name: str, root: Path | None) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(name, root)
    return str(caught.value)


def lesion_parts(dataset: Dataset) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for part in dataset.parts():
        for group in part.groups:
            found.setdefault(group, set()).add(part.name)
    return found


def published_classes() -> np.ndarray:
    """The class of each image of the published table, in some order."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(8), PUBLISHED))


class TestPublishedCounts:
    @pytest.mark.parametrize("factor", LT_TABLE)
    def test_of_the_code_variant(self, factor: int) -> None:
        kept, train, sums = LT_TABLE[factor]
        found = long_tailed_counts(PUBLISHED, factor)
        assert [found[index] for index in IN_TABLE_ORDER] == list(kept)
        parts = [part_counts(number) for number in found]
        assert [parts[index][0] for index in IN_TABLE_ORDER] == list(train)
        assert tuple(map(sum, zip(*parts, strict=True))) == sums

    @pytest.mark.parametrize("factor", BALANCED_TABLE)
    def test_of_the_balanced_variant(self, factor: int) -> None:
        found = balanced_counts(PUBLISHED, factor)
        assert [found[index] for index in IN_TABLE_ORDER] == list(BALANCED_TABLE[factor])

    def test_with_factor_500_the_rarest_class_keeps_3_validation_and_5_test_images(self) -> None:
        assert part_counts(long_tailed_counts(PUBLISHED, 500)[CLASSES.index("DF")]) == (18, 3, 5)

    @pytest.mark.parametrize("factor", LT_TABLE)
    def test_are_those_of_the_images_drawn(self, factor: int) -> None:
        classes = published_classes()
        kept = long_tailed_counts(PUBLISHED, factor)
        part_of = divide_long_tailed(classes, kept, 42)
        for index, number in enumerate(kept):
            own = part_of[classes == index]
            assert tuple((own == part).sum() for part in range(3)) == part_counts(number)
        part_of = divide_balanced(classes, balanced_counts(PUBLISHED, factor), 0)
        assert (part_of != EXCLUDED).sum() == sum(BALANCED_TABLE[factor]) + 8 * 150
        for part, size in ((1, 50), (2, 100)):
            assert np.bincount(classes[part_of == part]).tolist() == [size] * 8


def test_the_code_variant_draws_the_images_that_pandas_and_scikit_learn_draw() -> None:
    classes = published_classes()
    kept = long_tailed_counts(PUBLISHED, 100)
    part_of = divide_long_tailed(classes, kept, 42)
    frame = pd.DataFrame({"class": classes})
    for index, number in enumerate(kept):
        drawn = frame[frame["class"] == index].sample(n=number, random_state=42)
        train, rest = train_test_split(drawn, test_size=0.3, random_state=42)
        test, val = train_test_split(rest, test_size=1 / 3, random_state=42)
        for part, own in enumerate((train, val, test)):
            assert sorted(own.index) == np.flatnonzero((part_of == part) & (classes == index)).tolist()


def test_the_validation_and_test_images_of_the_balanced_variant_are_the_same_for_every_factor() -> None:
    classes = published_classes()
    first, other = (divide_balanced(classes, balanced_counts(PUBLISHED, factor), 3) for factor in (100, 500))
    assert (np.isin(first, (1, 2)) == np.isin(other, (1, 2))).all()


def test_all_images_are_read_with_their_labels_and_downsampled_names(tmp_path: Path) -> None:
    dataset = load_dataset("isic2019", make_isic(tmp_path))
    assert (dataset.name, dataset.task, dataset.classes) == ("isic2019", Task.MULTI_CLASS, CLASSES)
    truth = pd.read_csv(tmp_path / GROUND_TRUTH, index_col="image")
    ids = [name for part in dataset.parts() for name in part.ids]
    assert sorted(ids) == sorted(f"{image}.jpg" for image in truth.index)
    assert sum("_downsampled" in name for name in ids) == 26
    for part in dataset.parts():
        expected = [truth.loc[name.removesuffix(".jpg"), list(CLASSES)].argmax() for name in part.ids]
        assert part.labels.tolist() == expected
        assert part.source.channels() == 3 and part.source.decode(0, 8).shape == (3, 8, 8)


def test_images_of_a_lesion_stay_together_and_those_without_one_are_alone(tmp_path: Path) -> None:
    dataset = load_dataset("isic2019", make_isic(tmp_path, images_per_lesion=3))
    assert all(len(parts) == 1 for parts in lesion_parts(dataset).values())
    groups = [group for part in dataset.parts() for group in part.groups]
    assert any(groups.count(group) == 3 for group in groups)
    assert sum(group.startswith("image:") for group in groups) == 18
    assert "18 images have no lesion_id; another image of their lesion may be in another part" in dataset.warnings
    assert dataset.split_origin == "7:1:2 by lesion, or by image where that is not known, seed 0"


def test_another_number_of_images_than_published_is_said(tmp_path: Path) -> None:
    dataset = load_dataset("isic2019", make_isic(tmp_path))
    assert "the table has 126 images, the published one 25331" in dataset.warnings


def test_the_long_tailed_version_keeps_and_divides_images_of_each_class(tmp_path: Path) -> None:
    dataset = load_dataset("isic2019:lt-10", make_isic(tmp_path))
    kept = long_tailed_counts(tuple(ISIC_COUNTS.values()), 10)
    for number, part in enumerate(dataset.parts()):
        assert part.counts(8).tolist() == [part_counts(count)[number] for count in kept]
    assert dataset.name == "isic2019:lt-10"
    assert dataset.split_origin == "70:10:20 of each class by image, the published seed 42 + seed 0"
    assert load_dataset("isic2019:lt-10", tmp_path, split_seed=1).split_hash != dataset.split_hash


def test_the_balanced_version_has_as_many_scored_images_of_every_class(tmp_path: Path) -> None:
    counts = dict.fromkeys(ISIC_COUNTS, 340) | {"NV": 5160}
    dataset = load_dataset("isic2019:balanced-10000000000", make_isic(tmp_path, counts, pictures=False))
    assert dataset.val.counts(8).tolist() == [50] * 8
    assert dataset.test.counts(8).tolist() == [100] * 8
    assert dataset.train_counts()[CLASSES.index("NV")] == 5000
    assert dataset.split_origin == "50 val and 100 test images of each class, by image, seed 0"


def test_lesions_that_the_long_tailed_version_divides_are_counted(tmp_path: Path) -> None:
    dataset = load_dataset("isic2019:lt-10", make_isic(tmp_path, images_per_lesion=3))
    divided = sum(len(parts) > 1 for parts in lesion_parts(dataset).values())
    assert divided > 0
    assert any(one.startswith(f"{divided} lesions have images in more than one part") for one in dataset.warnings)


def test_the_unused_class_may_be_left_out_and_the_tables_may_be_in_any_order(tmp_path: Path) -> None:
    root = make_isic(tmp_path)
    before = load_dataset("isic2019", root)
    truth = pd.read_csv(root / GROUND_TRUTH, dtype=str).drop(columns="UNK").iloc[::-1]
    write_csv(root / GROUND_TRUTH, list(truth.columns), truth.to_numpy().tolist())
    after = load_dataset("isic2019", root)
    assert (after.fingerprint, after.split_hash) == (before.fingerprint, before.split_hash)


class TestMistakes:
    def test_no_folder_given(self) -> None:
        assert "--data-root: is missing: isic2019 is not bundled" in problems_of("isic2019", None)

    def test_no_such_folder(self, tmp_path: Path) -> None:
        assert "--data-root: no such folder" in problems_of("isic2019", tmp_path / "absent")

    def test_every_missing_or_misspelled_file_is_named_with_what_is_there(self, tmp_path: Path) -> None:
        root = make_isic(tmp_path)
        (root / GROUND_TRUTH).rename(root / "isic_2019_training_groundtruth (1).csv")
        (root / IMAGES).rename(root / "images")
        message = problems_of("isic2019:lt-0.5", root)
        assert f"no file {GROUND_TRUTH} in {root}; there is: {METADATA}, images/, isic_2019" in message
        assert "is it isic_2019_training_groundtruth (1).csv?" in message
        assert f"no folder {IMAGES} in {root}" in message
        assert "'isic2019' has no variant 'lt-0.5'" in message

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        message = problems_of("isic2019", tmp_path)
        assert message.count("there is: nothing") == 3

    @pytest.mark.parametrize("name", ["isic2019:", "isic2019:50", "isic2019:lt", "isic2019:lt-x", "isic2019:official"])
    def test_an_unknown_variant_is_answered_with_all(self, name: str, tmp_path: Path) -> None:
        assert "isic2019, isic2019:lt-100, isic2019:balanced-100" in problems_of(name, make_isic(tmp_path))

    def test_missing_images_and_those_of_another_name(self, tmp_path: Path) -> None:
        root = make_isic(tmp_path)
        old = root / IMAGES / "ISIC_0000005_downsampled.jpg"
        old.rename(root / IMAGES / "ISIC_0000005.jpg")
        message = problems_of("isic2019", root)
        assert "1 of 126 images are missing" in message and "ISIC_0000005_downsampled.jpg" in message
        assert "1 images there are not in the table: ISIC_0000005.jpg" in message

    def test_missing_images_are_found_also_where_a_table_or_the_variant_is_wrong(self, tmp_path: Path) -> None:
        root = make_isic(tmp_path)
        (root / METADATA).unlink()
        (root / IMAGES / "ISIC_0000003.jpg").unlink()
        message = problems_of("isic2019:lt", root)
        for part in (f"no file {METADATA}", "1 of 126 images are missing", "'isic2019' has no variant 'lt'"):
            assert part in message

    def test_rows_without_exactly_one_class(self, tmp_path: Path) -> None:
        root = make_isic(tmp_path)
        truth = pd.read_csv(root / GROUND_TRUTH, dtype=str)
        truth.loc[3, list(CLASSES)] = "0.0"
        truth.loc[4, list(CLASSES)] = "1.0"
        truth.loc[5, "MEL"] = "?"
        truth.loc[5, list(CLASSES[1:])] = "0.0"
        write_csv(root / GROUND_TRUTH, list(truth.columns), truth.to_numpy().tolist())
        message = problems_of("isic2019", root)
        assert "3 rows do not have a 1 for exactly one of MEL, NV" in message and "lines 5, 6, 7" in message

    def test_images_twice_and_images_without_metadata(self, tmp_path: Path) -> None:
        root = make_isic(tmp_path)
        rewrite(root / GROUND_TRUTH, "image", {"ISIC_0000001": "ISIC_0000002"}, key="image")
        rewrite(root / METADATA, "image", {"ISIC_0000003": "ISIC_9999999"}, key="image")
        message = problems_of("isic2019", root)
        assert "1 images are listed more than once: ISIC_0000002" in message
        assert f"1 images of {GROUND_TRUTH} are not in it: ISIC_0000003" in message

    def test_a_missing_column(self, tmp_path: Path) -> None:
        root = make_isic(tmp_path)
        truth = pd.read_csv(root / GROUND_TRUTH, dtype=str).drop(columns="SCC")
        write_csv(root / GROUND_TRUTH, list(truth.columns), truth.to_numpy().tolist())
        assert "no column 'scc'; the columns are: 'image', 'mel'" in problems_of("isic2019", root)

    def test_too_few_images_for_the_factor(self, tmp_path: Path) -> None:
        root = make_isic(tmp_path)
        assert "isic2019:lt-2 needs more images than there are: " in problems_of("isic2019:lt-2", root)
        assert "5150 of NV (there are 40)" in problems_of("isic2019:balanced-100", root)
