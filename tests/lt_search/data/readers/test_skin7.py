from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest

from lt_search.data import Dataset, load_dataset
from lt_search.data.readers.skin7 import CLASSES, GROUND_TRUTH, IMAGES, LESIONS
from lt_search.errors import UserError
from tests.helpers.published import SKIN7_COUNTS, make_skin7, rewrite
from trainers.task import Task


def problems_of(name: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(name, root)
    return str(caught.value)


def parts_of_lesions(dataset: Dataset) -> dict[str, set[str]]:
    found = defaultdict(set)
    for part in dataset.parts():
        for group in part.groups:
            found[group].add(part.name)
    return found


@pytest.mark.parametrize("lesions", LESIONS)
@pytest.mark.parametrize("unpacked", [False, True])
def test_every_published_layout_is_read_with_its_labels_and_lesions(
    tmp_path: Path, lesions: str, unpacked: bool
) -> None:
    root = make_skin7(tmp_path, lesions=lesions, unpacked=unpacked)
    dataset = load_dataset("skin7", root)
    assert (dataset.name, dataset.task, dataset.classes) == ("skin7", Task.MULTI_CLASS, CLASSES)
    truth = pd.read_csv(next(root.rglob(GROUND_TRUTH)), index_col="image")
    assert sum(len(part) for part in dataset.parts()) == len(truth) == 120
    for part in dataset.parts():
        expected = [truth.loc[name.removesuffix(".jpg")].argmax() for name in part.ids]
        assert part.labels.tolist() == expected
        assert part.source.channels() == 3 and part.source.decode(0, 8).shape == (3, 8, 8)
    parts = parts_of_lesions(dataset)
    assert len(parts) == 61 and all(len(of_one) == 1 for of_one in parts.values())
    assert dataset.split_origin == "7:1:2 by lesion, seed 0"
    assert "the table has 120 images, the published one 10015" in dataset.warnings


def test_the_five_folds_are_stratified_and_test_every_image_once(tmp_path: Path) -> None:
    root = make_skin7(tmp_path)
    folds = [load_dataset(f"skin7:fold-{number}", root) for number in range(1, 6)]
    tested = [name for fold in folds for name in fold.test.ids]
    assert len(set(tested)) == len(tested) == 120
    for number, fold in enumerate(folds, 1):
        assert all(len(of_one) == 1 for of_one in parts_of_lesions(fold).values())
        for count, total in zip(fold.test.counts(7), SKIN7_COUNTS.values(), strict=True):
            assert abs(count - total / 5) <= 2
        assert (fold.name, fold.split_origin.split(" for")[0]) == (f"skin7:fold-{number}", f"fold {number} of 5")


class TestMistakes:
    def test_everything_in_an_empty_folder_is_asked_for(self, tmp_path: Path) -> None:
        message = problems_of("skin7:fold-6", tmp_path)
        assert f"no folder {IMAGES}" in message and f"no file {GROUND_TRUTH}" in message
        assert f"no file {LESIONS[0]}" in message and LESIONS[1] in message
        assert "'skin7' has no variant 'fold-6'\n    fix: use one of skin7, skin7:fold-1, skin7:fold-2" in message

    def test_rows_without_one_class_without_a_lesion_and_missing_images(self, tmp_path: Path) -> None:
        root = make_skin7(tmp_path)
        rewrite(root / GROUND_TRUTH, "MEL", {"ISIC_0024306": "0.0"}, key="image")
        rewrite(root / LESIONS[0], "lesion_id", {"ISIC_0024308": ""}, key="image")
        image = root / IMAGES / "ISIC_0024310.jpg"
        image.rename(image.with_suffix(".JPG"))
        message = problems_of("skin7", root)
        assert "1 rows do not have a 1 for exactly one of MEL, NV" in message and "lines 2" in message
        assert f"1 images of {GROUND_TRUTH} have no lesion in it: ISIC_0024308" in message
        assert "1 of 120 images are missing" in message
        assert "1 images there are not in the table: ISIC_0024310.JPG" in message
