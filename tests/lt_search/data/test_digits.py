import pickle

import numpy as np
import pytest

from lt_search.data import load_dataset
from lt_search.data.digits import MOSAICS, POOL_SIZES, pools, train_count, train_label_count
from lt_search.data.table import PART_NAMES
from lt_search.errors import UserError
from trainers.task import Task

RANKS = np.arange(1, 11)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_pools_are_disjoint(seed: int) -> None:
    found = pools(seed)
    indices = np.concatenate([found[part].ravel() for part in PART_NAMES])
    assert len(set(indices)) == len(indices) == 10 * sum(POOL_SIZES.values())


def test_pools_hold_digits_of_their_class() -> None:
    from sklearn.datasets import load_digits

    for indices in pools(0).values():
        np.testing.assert_array_equal(load_digits().target[indices], np.arange(10)[:, None].repeat(indices.shape[1], 1))


@pytest.mark.parametrize("factor", [1, 20, 50, 90])
def test_digits_lt_counts_fall_exponentially_to_one_in_the_factor(factor: int) -> None:
    dataset = load_dataset(f"digits-lt:{factor}")
    most = POOL_SIZES["train"]
    np.testing.assert_array_equal(dataset.train_counts(), np.round(most * (1 / factor) ** ((RANKS - 1) / 9)))
    assert dataset.train_counts()[9] == round(most / factor) == train_count(10, factor)
    assert dataset.task == Task.MULTI_CLASS


def test_digits_lt_scores_on_balanced_parts_of_pool_size() -> None:
    dataset = load_dataset("digits-lt")
    assert dataset.val.counts(10).tolist() == [POOL_SIZES["val"]] * 10
    assert dataset.test.counts(10).tolist() == [POOL_SIZES["test"]] * 10


def test_digits_lt_uses_each_digit_in_one_image_of_one_part() -> None:
    dataset = load_dataset("digits-lt")
    ids = [name for part in dataset.parts() for name in part.ids]
    assert len(set(ids)) == len(ids)
    found = pools(0)
    for part in dataset.parts():
        assert {int(name.removeprefix("digit-")) for name in part.ids} <= set(found[part.name].ravel())


@pytest.mark.parametrize("mosaics", [100, 2000, 5000])
def test_digits_ml_label_frequency_falls_as_the_power_law(mosaics: int) -> None:
    dataset = load_dataset(f"digits-ml:{mosaics}")
    counts = dataset.train_counts()
    assert len(dataset.train) == mosaics
    np.testing.assert_allclose(counts, counts[0] * RANKS**-1.8, atol=1)
    assert counts[3] == train_label_count(4, mosaics)
    assert dataset.task == Task.MULTI_LABEL


def test_digits_ml_scores_on_balanced_parts() -> None:
    dataset = load_dataset("digits-ml")
    for part in (dataset.val, dataset.test):
        assert len(part) == MOSAICS[part.name]
        assert part.counts(10).tolist() == [len(part) // 5] * 10


def test_digits_ml_mosaics_have_one_to_three_labels() -> None:
    for part in load_dataset("digits-ml").parts():
        assert set(part.labels.sum(axis=1)) == {1, 2, 3}


def test_ink_is_in_as_many_cells_as_there_are_labels() -> None:
    part = load_dataset("digits-ml").val
    for index in range(50):
        cells = part.source.decode(index, 32)[0].reshape(2, 16, 2, 16).transpose(0, 2, 1, 3).reshape(4, -1)
        assert (cells.max(axis=1) > 125).sum() == part.labels[index].sum()


@pytest.mark.parametrize("name", ["digits-lt", "digits-ml"])
def test_only_the_split_seed_moves_digits(name: str) -> None:
    first, again, other = load_dataset(name), load_dataset(name), load_dataset(name, split_seed=1)
    assert (first.fingerprint, first.split_hash) == (again.fingerprint, again.split_hash)
    assert first.split_hash != other.split_hash and first.fingerprint != other.fingerprint
    np.testing.assert_array_equal(first.train.labels, other.train.labels)
    for one, two in zip(first.parts(), again.parts(), strict=True):
        np.testing.assert_array_equal(one.source.decode(3, 32), two.source.decode(3, 32))
    differing = [(first.val.source.decode(i, 32) != other.val.source.decode(i, 32)).mean() for i in range(5)]
    assert max(differing) > 0.1


def test_the_amount_of_training_images_does_not_move_what_is_scored() -> None:
    small, large = load_dataset("digits-ml:200"), load_dataset("digits-ml:400")
    assert small.val.fingerprint == large.val.fingerprint and small.test.fingerprint == large.test.fingerprint
    assert small.train.fingerprint != large.train.fingerprint


def test_images_can_be_drawn_in_another_process() -> None:
    part = load_dataset("digits-ml:200").train
    source = pickle.loads(pickle.dumps(part.source))
    np.testing.assert_array_equal(source.decode(150, 32), part.source.decode(150, 32))
    assert len(pickle.dumps(part.source)) < 1000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits-lt:0.5", "'0.5' after 'digits-lt' is not an imbalance factor from 1 to 90"),
        ("digits-lt:91", "is not an imbalance factor from 1 to 90"),
        ("digits-lt:nan", "is not an imbalance factor"),
        ("digits-lt:many", "is not an imbalance factor"),
        ("digits-ml:99", "is not a number of mosaics from 100 to 1,000,000"),
        ("digits-ml:1000.5", "is not a number of mosaics"),
        ("digits-ml:1000001", "is not a number of mosaics"),
        ("digits-ml:", "ends with a colon"),
    ],
)
def test_amounts_out_of_range_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match="--dataset") as caught:
        load_dataset(name)
    assert message in str(caught.value)
