"""What holds for every data set, wherever it comes from."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lt_search.data import Dataset, load_dataset, open_images
from lt_search.data.check import describe
from lt_search.metrics.evaluate import check_metric
from tests.helpers.pictures import make_table, multi_class_rows, multi_label_rows
from tests.helpers.published import (
    add_official_lists,
    make_archive,
    make_cxr_lt,
    make_isic,
    make_kvasir,
    make_nih,
    make_odir,
    make_skin7,
    nih_rows,
)
from trainers.task import Task

Loader = Callable[[int], Dataset]

REAL = Path(__file__).parents[4] / "shared" / "data"
REAL_NAMES = ("chula_rbc_cells", "mhsma_sperm", "nih_cxr1000", "wbc_zheng")


PARAMS = [
    "digits-lt",
    "digits-ml",
    "csv multi-class",
    "csv multi-label",
    "isic2019",
    "isic2019:lt-10",
    "nih-cxr14:patient",
    "nih-cxr14:official",
    "hyper-kvasir",
    "isic-archive-lt",
    "odir5k",
    "odir5k:eyes",
    "cxr-lt-2023:subject",
    "skin7",
    "skin7:fold-2",
]

MAKERS = {
    "hyper-kvasir": make_kvasir,
    "isic-archive-lt": make_archive,
    "odir5k": make_odir,
    "cxr-lt-2023": make_cxr_lt,
    "skin7": make_skin7,
}
"""What makes the folder of a published data set that needs nothing else."""


@pytest.fixture(params=PARAMS)
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Loader:
    name, root = request.param, None
    if name == "csv multi-class":
        name = str(make_table(tmp_path, multi_class_rows({"a": 60, "b": 20, "c": 8})))
    elif name == "csv multi-label":
        name = str(make_table(tmp_path, multi_label_rows(80)))
    elif name.startswith("isic2019"):
        root = make_isic(tmp_path / "isic")
    elif name.startswith("nih-cxr14"):
        root = make_nih(tmp_path / "nih")
        add_official_lists(root, nih_rows())
    elif name.partition(":")[0] in MAKERS:
        root = MAKERS[name.partition(":")[0]](tmp_path / "published")
    return lambda split_seed: load_dataset(name, root, split_seed)


def check_contract(dataset: Dataset) -> None:
    n_classes = len(dataset.classes)
    assert n_classes >= 2 and len(set(dataset.classes)) == n_classes
    assert [part.name for part in dataset.parts()] == ["train", "val", "test"]
    assert (dataset.train_counts() > 0).all()
    ids = [name for part in dataset.parts() for name in part.ids]
    assert len(set(ids)) == len(ids)
    channels = {part.source.channels() for part in dataset.parts()}
    assert channels in ({1}, {3}, {6})
    for part in dataset.parts():
        n = len(part)
        assert n > 0 and len(part.groups) == n
        if dataset.task == Task.MULTI_LABEL:
            assert part.labels.shape == (n, n_classes) and part.labels.dtype == np.uint8
            assert set(np.unique(part.labels)) <= {0, 1}
        else:
            assert part.labels.shape == (n,) and part.labels.dtype == np.int64
            assert set(part.labels) <= set(range(n_classes))
        np.testing.assert_array_equal(
            part.counts(n_classes),
            [(part.labels[:, c] if part.labels.ndim == 2 else part.labels == c).sum() for c in range(n_classes)],
        )
    assert dataset.typical_side() >= 8


def test_parts_are_complete_and_consistent(load: Loader) -> None:
    check_contract(load(0))


def test_no_group_is_in_two_parts(load: Loader) -> None:
    groups = [set(part.groups) for part in load(0).parts()]
    assert len(set.union(*groups)) == sum(map(len, groups))


def test_reading_twice_gives_the_same_and_another_split_seed_another_split(load: Loader) -> None:
    first, again, other = load(0), load(0), load(1)
    assert (first.fingerprint, first.split_hash) == (again.fingerprint, again.split_hash)
    assert [part.fingerprint for part in first.parts()] == [part.fingerprint for part in again.parts()]
    assert first.split_hash != other.split_hash
    assert first.split_origin.endswith("seed 0") and other.split_origin.endswith("seed 1")


def test_images_come_in_the_order_of_the_ids(load: Loader, tmp_path: Path) -> None:
    for part in load(0).parts():
        images = open_images(part, 16, cache_dir=tmp_path / "cache")
        assert images.shape == (len(part), part.source.channels(), 16, 16)
        for index in (0, len(part) // 2, len(part) - 1):
            np.testing.assert_array_equal(images[index], part.source.decode(index, 16))


def test_a_part_survives_pickling_without_the_others(load: Loader) -> None:
    dataset = load(0)
    for part in (dataset.train, dataset.val):
        pickled = pickle.dumps(part)
        again = pickle.loads(pickled)
        assert (again.ids, again.groups, again.fingerprint) == (part.ids, part.groups, part.fingerprint)
        np.testing.assert_array_equal(again.labels, part.labels)
        np.testing.assert_array_equal(again.source.decode(0, 16), part.source.decode(0, 16))
        assert all(name.encode() in pickled for name in part.ids)
        assert not any(name.encode() in pickled for name in dataset.test.ids)


def test_all_images_are_sound(load: Loader) -> None:
    found = describe(load(0))
    assert found.sound and sum(found.modes.values()) == sum(found.sizes.values()) > 0


@pytest.mark.parametrize("name", REAL_NAMES)
def test_real_images_keep_the_contract(name: str, tmp_path: Path) -> None:
    table = REAL / name / "labels.csv"
    if not table.exists():
        pytest.skip("the real images lie beside the repository on some machines only")
    dataset = load_dataset(str(table))
    check_contract(dataset)
    images = open_images(dataset.val, 32, cache_dir=tmp_path)
    assert images.std() > 10


def test_an_objective_of_its_own_is_a_metric_of_its_task_that_can_be_searched_for(load: Loader) -> None:
    dataset = load(0)
    if dataset.objective is not None:
        assert check_metric(dataset.objective, dataset.task).name == dataset.objective
