from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from trainers.features.gaussians import GroupSums
from trainers.features.probes import lda, lda_per_label

D = 5
Array = npt.NDArray[np.float64]


def make(n: int, classes: int) -> tuple[Array, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(classes)
    y = rng.choice(classes, n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    mix = np.eye(D) + np.triu(np.full((D, D), 0.5), 1)
    x = rng.normal(size=(n, D)) @ mix + rng.normal(size=(classes, D))[y]
    return x, y


def multi_class_sums(x: Array, y: npt.NDArray[np.int64], classes: int, *, diagonal: bool = False) -> GroupSums:
    sums = GroupSums(1, classes, D, diagonal=diagonal)
    sums.add_multi_class(torch.from_numpy(x), torch.from_numpy(y))
    return sums


@pytest.mark.parametrize("classes", [2, 4])
def test_unshrunk_probe_is_the_discriminant_of_scikit_learn_with_equal_priors(classes: int) -> None:
    x, y = make(400, classes)
    weight, bias = lda(multi_class_sums(x, y, classes), shrinkage=0.0)
    scores = x @ weight[0].numpy().T + bias[0].numpy()

    reference = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    # Its covariance divides the scatter by N instead of N - K, and its bias has the log priors of the training data.
    coef, intercept = reference.coef_, reference.intercept_
    if classes == 2:
        expected = (x @ coef[0] + intercept[0] - np.log(reference.priors_[1] / reference.priors_[0])) * (398 / 400)
        np.testing.assert_allclose(scores[:, 1] - scores[:, 0], expected, rtol=1e-4, atol=1e-4)
    else:
        expected = (x @ coef.T + intercept - np.log(reference.priors_)) * ((400 - classes) / 400)
        expected -= expected.mean(1, keepdims=True)
        np.testing.assert_allclose(scores - scores.mean(1, keepdims=True), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("diagonal", [False, True])
def test_shrunk_probe_per_label_is_the_closed_form(diagonal: bool) -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(80, 2, D)), (rng.random((80, 2)) < 0.2).astype(float)
    sums = GroupSums(2, 2, D, diagonal=diagonal)
    sums.add_multi_label(torch.from_numpy(features), torch.from_numpy(labels))
    weight, bias = lda_per_label(sums, shrinkage=0.4)
    for c in range(2):
        groups = [features[labels[:, c] == j, c] for j in (0, 1)]
        within = sum((len(g) - 1) * np.cov(g.T) for g in groups) / 78
        if diagonal:
            within = np.diag(np.diag(within))
        within = 0.6 * within + 0.4 * np.trace(within) / D * np.eye(D)
        w = np.linalg.solve(within, groups[1].mean(0) - groups[0].mean(0))
        np.testing.assert_allclose(weight[c], w, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(bias[c], -w @ (groups[0].mean(0) + groups[1].mean(0)) / 2, rtol=1e-4, atol=1e-6)


def test_probe_ignores_how_frequent_a_label_is() -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=(2000, D)), rng.normal(size=(20, D)) + 4])
    y = (np.arange(2020) >= 2000).astype(np.int64)
    weight, bias = lda(multi_class_sums(x, y, 2))
    scores = x @ weight[0].numpy().T + bias[0].numpy()
    found = scores.argmax(1)
    assert (found[y == 1] == 1).mean() == 1
    assert (found[y == 0] == 0).mean() > 0.99


def test_label_without_positives_gets_the_logit_zero() -> None:
    sums = GroupSums(1, 2, D, diagonal=False)
    sums.add_multi_label(torch.randn(30, 1, D, dtype=torch.float64), torch.zeros(30, 1))
    weight, bias = lda_per_label(sums)
    assert weight.abs().max() == 0
    assert bias.abs().max() == 0
