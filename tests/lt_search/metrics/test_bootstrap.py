import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn import metrics as sk

from lt_search.metrics import bootstrap
from lt_search.metrics.bootstrap import Bootstrap, resample_weights
from lt_search.metrics.class_groups import class_groups
from trainers.task import Task

Array = npt.NDArray[Any]


def weights_of(groups: list[str], n_replicates: int, seed: int) -> Array:
    """The weights (B, N) of all replicates."""
    return np.concatenate([*resample_weights(groups, n_replicates, seed)])


def images(n: int) -> list[str]:
    return [f"image {index}" for index in range(n)]


def multi_label(seed: int, n: int, n_classes: int = 3) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, n_classes)) < [0.5, 0.2, 0.06][:n_classes]).astype(np.float32)
    return labels, np.round(rng.normal(size=labels.shape) + labels, 1)


def test_replicates_are_those_of_a_plain_python_loop() -> None:
    labels, logits = multi_label(0, n=60)
    groups = [f"patient {index // 3}" for index in range(60)]
    expected = []
    for counts in weights_of(groups, 25, seed=7).astype(int):
        rows = [row for row in range(60) for _ in range(counts[row])]
        drawn = [index for index in range(3) if any(labels[row, index] for row in rows)]
        values = [sk.average_precision_score(labels[rows, index], logits[rows, index]) for index in drawn]
        expected.append(sum(values) / len(values))
    found = Bootstrap("mAP", Task.MULTI_LABEL, labels, groups, seed=7).replicates(logits, n_replicates=25)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    error = Bootstrap("mAP", Task.MULTI_LABEL, labels, groups, seed=7).standard_error(logits, n_replicates=25)
    assert error == pytest.approx(np.std(expected, ddof=1))


def test_weights_draw_as_many_groups_as_there_are_and_keep_their_images_together() -> None:
    groups = ["b", "a", "b", "c", "a", "b"]
    weights = weights_of(groups, 500, seed=0)
    assert weights.shape == (500, 6)
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 0] == weights[:, 5]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(6), abs=0.15)


def test_resamples_depend_on_the_seed_and_not_on_names_or_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [str(index % 17) for index in range(40)]
    weights = weights_of(groups, 30, seed=3)
    assert (weights == weights_of([f"patient-{group}" for group in groups], 30, seed=3)).all()
    assert (weights[:10] == weights_of(groups, 10, seed=3)).all()
    assert (weights != weights_of(groups, 30, seed=4)).any()
    monkeypatch.setattr(bootstrap, "_CHUNK_BYTES", 7 * 8 * 40)
    assert (weights == weights_of(groups, 30, seed=3)).all()


def test_error_of_accuracy_is_that_of_a_bernoulli_mean() -> None:
    n, p = 400, 0.7
    labels = np.zeros(n, dtype=int)
    logits = np.zeros((n, 2))
    logits[int(p * n) :, 1] = 1.0
    error = Bootstrap("accuracy", Task.MULTI_CLASS, labels, images(n)).standard_error(logits, n_replicates=4000)
    assert error == pytest.approx(math.sqrt(p * (1 - p) / n), rel=0.05)
    low, high = Bootstrap("accuracy", Task.MULTI_CLASS, labels, images(n)).interval(logits, n_replicates=4000)
    assert low == pytest.approx(p - 1.96 * error, abs=0.005)
    assert high == pytest.approx(p + 1.96 * error, abs=0.005)


@pytest.mark.parametrize("metric", ["mAP", "macro_auc", "mACC", "macro_f1"])
def test_repeated_images_of_a_patient_add_no_certainty(metric: str) -> None:
    labels, logits = multi_label(1, n=80)
    copies = 4
    many_labels, many_logits = np.repeat(labels, copies, axis=0), np.repeat(logits, copies, axis=0)
    patients = [f"patient {index // copies}" for index in range(80 * copies)]
    single = Bootstrap(metric, Task.MULTI_LABEL, labels, images(80)).standard_error(logits)
    clustered = Bootstrap(metric, Task.MULTI_LABEL, many_labels, patients).standard_error(many_logits)
    ignored = Bootstrap(metric, Task.MULTI_LABEL, many_labels, images(80 * copies)).standard_error(many_logits)
    assert clustered == pytest.approx(single, rel=1e-9)
    assert clustered > 1.6 * ignored


def test_a_class_that_a_replicate_did_not_draw_is_left_out_of_it() -> None:
    labels, logits = multi_label(2, n=30)
    labels[:, 2] = 0
    labels[0, 2] = 1
    values = Bootstrap("mAP", Task.MULTI_LABEL, labels, images(30)).class_replicates(logits)
    drawn = weights_of(images(30), 200, seed=0)[:, 0] > 0
    assert 0 < drawn.sum() < 200
    assert (np.isnan(values[:, 2]) == ~drawn).all()
    overall = Bootstrap("mAP", Task.MULTI_LABEL, labels, images(30)).replicates(logits)
    np.testing.assert_allclose(overall[~drawn], values[~drawn, :2].mean(axis=1))
    np.testing.assert_allclose(overall[drawn], values[drawn].mean(axis=1))


def test_a_class_missing_in_the_split_has_no_error_and_does_not_count() -> None:
    labels, logits = multi_label(3, n=50)
    labels[:, 1] = 0
    groups = class_groups([9, 5, 1])
    errors = Bootstrap("mAP", Task.MULTI_LABEL, labels, images(50)).score_errors(logits, groups)
    kept = [0, 2]
    without = Bootstrap("mAP", Task.MULTI_LABEL, labels[:, kept], images(50)).standard_error(logits[:, kept])
    assert errors.overall == pytest.approx(without)
    assert math.isnan(errors.per_class[1]) and errors.per_class[0] > 0
    assert set(errors.groups) == {"head", "tail"}
    assert errors.groups["head"] == pytest.approx(errors.per_class[0])


def test_a_split_without_any_counted_class_has_no_error() -> None:
    labels = np.zeros((20, 2))
    logits = np.random.default_rng(0).normal(size=(20, 2))
    assert math.isnan(Bootstrap("mAP", Task.MULTI_LABEL, labels, images(20)).standard_error(logits))
    assert Bootstrap("mACC", Task.MULTI_LABEL, labels, images(20)).standard_error(logits) > 0


def test_one_group_says_nothing_about_uncertainty() -> None:
    labels, logits = multi_label(4, n=20)
    one = ["patient"] * 20
    assert math.isnan(Bootstrap("mAP", Task.MULTI_LABEL, labels, one).standard_error(logits))
    assert all(math.isnan(edge) for edge in Bootstrap("mAP", Task.MULTI_LABEL, labels, one).interval(logits))


def test_logits_that_are_not_finite_surface() -> None:
    labels, logits = multi_label(5, n=40)
    broken = logits.copy()
    broken[3, 1] = math.nan
    assert np.isnan(Bootstrap("mAP", Task.MULTI_LABEL, labels, images(40)).replicates(broken)).all()
    assert math.isnan(Bootstrap("mAP", Task.MULTI_LABEL, labels, images(40)).standard_error(broken))
    assert math.isnan(
        Bootstrap("accuracy", Task.MULTI_CLASS, np.zeros(2, int), "ab").standard_error([[0.0, math.inf]] * 2)
    )
    compared = Bootstrap("mAP", Task.MULTI_LABEL, labels, images(40)).paired_difference(logits, broken)
    assert math.isnan(compared.difference) and math.isnan(compared.interval.low)


def test_paired_difference_shares_its_resamples() -> None:
    labels, logits = multi_label(6, n=150)
    better = logits + 0.3 * labels
    compared = Bootstrap("mAP", Task.MULTI_LABEL, labels, images(150)).paired_difference(better, logits)
    values = [Bootstrap("mAP", Task.MULTI_LABEL, labels, images(150)).replicates(z) for z in (better, logits)]
    assert compared.standard_error == pytest.approx(
        (
            Bootstrap("mAP", Task.MULTI_LABEL, labels, images(150)).replicates(better, n_replicates=1000)
            - Bootstrap("mAP", Task.MULTI_LABEL, labels, images(150)).replicates(logits, n_replicates=1000)
        ).std(ddof=1)
    )
    assert 0 < compared.interval.low < compared.difference < compared.interval.high
    assert compared.standard_error < 0.5 * math.hypot(*(v.std() for v in values))
    same = Bootstrap("mAP", Task.MULTI_LABEL, labels, images(150)).paired_difference(logits, logits)
    assert (same.difference, same.standard_error, same.interval) == (0.0, 0.0, (0.0, 0.0))


def test_score_errors_of_a_pooled_metric() -> None:
    labels, logits = np.array([0, 1, 0, 1]), np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    errors = Bootstrap("accuracy", Task.MULTI_CLASS, labels, "abcd").score_errors(logits, class_groups([2, 2]))
    assert errors.overall > 0 and errors.groups == {} and errors.per_class == ()
    with pytest.raises(ValueError, match="no per-class values"):
        Bootstrap("accuracy", Task.MULTI_CLASS, labels, "abcd").class_replicates(logits)


def test_misuse_is_refused() -> None:
    labels, logits = multi_label(7, n=10)
    with pytest.raises(ValueError, match="9 groups for 10 images"):
        Bootstrap("mAP", Task.MULTI_LABEL, labels, images(9)).standard_error(logits)
    with pytest.raises(ValueError, match="BACC does not apply to multi-label data"):
        Bootstrap("BACC", Task.MULTI_LABEL, labels, images(10)).standard_error(logits)


def test_memory_is_bounded_by_the_chunk() -> None:
    import tracemalloc

    labels, logits = multi_label(8, n=20_000)
    groups = images(20_000)
    tracemalloc.start()
    Bootstrap("macro_auc", Task.MULTI_LABEL, labels, groups).standard_error(logits, n_replicates=150)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20  # all weights at once would be 24 MB, and several arrays of that size are needed
