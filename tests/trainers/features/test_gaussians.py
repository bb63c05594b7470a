from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from trainers.features.gaussians import (
    ABSOLUTE_JITTER,
    RELATIVE_JITTER,
    Gaussians,
    GroupSums,
    cholesky,
    covariances,
    fit,
    moments,
)
from trainers.seeding import generator

N, C, D = 200, 3, 4
Array = npt.NDArray[np.float64]


@pytest.fixture
def features() -> Array:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(C, D, D))
    return np.asarray(np.einsum("ncd,cde->nce", rng.normal(size=(N, C, D)), mix) + 3 * rng.normal(size=(C, D)))


@pytest.fixture
def labels() -> Array:
    return (np.random.default_rng(1).random((N, C)) < [0.5, 0.2, 0.1]).astype(float)


def streamed(features: Array, labels: Array, *, diagonal: bool = False, batch: int = 7) -> GroupSums:
    sums = GroupSums(features.shape[1], 2, features.shape[2], diagonal=diagonal)
    for start in range(0, len(features), batch):
        rows = slice(start, start + batch)
        sums.add_multi_label(torch.from_numpy(features[rows]), torch.from_numpy(labels[rows]).float())
    return sums


def pooled(features: Array, labels: Array, c: int) -> Array:
    scatter = np.zeros((features.shape[2],) * 2)
    freedom = 0
    for j in (0, 1):
        rows = features[labels[:, c] == j, c]
        if len(rows):
            scatter += (rows - rows.mean(0)).T @ (rows - rows.mean(0))
            freedom += len(rows) - 1
    return scatter / freedom


def covariance(gaussians: Gaussians, c: int, j: int) -> Array:
    factor = gaussians.factor[c, j].double().numpy()
    return np.diag(factor**2) if factor.ndim == 1 else factor @ factor.T


def test_streamed_moments_are_those_of_numpy(features: Array, labels: Array) -> None:
    found = moments(streamed(features, labels))
    for c in range(C):
        for j in (0, 1):
            rows = features[labels[:, c] == j, c]
            assert found.count[c, j] == len(rows)
            np.testing.assert_allclose(found.mean[c, j], rows.mean(0), rtol=1e-10)
            np.testing.assert_allclose(found.cov[c, j], np.cov(rows.T), rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(found.within[c], pooled(features, labels, c), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("diagonal", [False, True])
def test_features_of_unknown_labels_are_in_neither_group(features: Array, labels: Array, diagonal: bool) -> None:
    some = labels.copy()
    some[::3, 1] = np.nan
    found = moments(streamed(features, some, diagonal=diagonal))
    for j in (0, 1):
        rows = features[some[:, 1] == j, 1]
        assert found.count[1, j] == len(rows)
        np.testing.assert_allclose(found.mean[1, j], rows.mean(0), rtol=1e-10)
        variances = found.cov[1, j] if diagonal else found.cov[1, j].diagonal()
        np.testing.assert_allclose(variances, rows.var(0, ddof=1), rtol=1e-9)
    others = moments(streamed(features, labels, diagonal=diagonal))
    torch.testing.assert_close(found.cov[0], others.cov[0])


def test_diagonal_sums_give_variances(features: Array, labels: Array) -> None:
    found = moments(streamed(features, labels, diagonal=True))
    assert found.diagonal
    for c in range(C):
        for j in (0, 1):
            rows = features[labels[:, c] == j, c]
            np.testing.assert_allclose(found.cov[c, j], rows.var(0, ddof=1), rtol=1e-9)


def test_multi_class_groups_share_one_pool(features: Array) -> None:
    x = features[:, 0]
    classes = np.random.default_rng(2).integers(0, 5, N)
    sums = GroupSums(1, 5, D, diagonal=False)
    for start in range(0, N, 9):
        sums.add_multi_class(torch.from_numpy(x[start : start + 9]), torch.from_numpy(classes[start : start + 9]))
    found = moments(sums)
    within = np.zeros((D, D))
    for k in range(5):
        rows = x[classes == k]
        np.testing.assert_allclose(found.mean[0, k], rows.mean(0), rtol=1e-10)
        np.testing.assert_allclose(found.cov[0, k], np.cov(rows.T), rtol=1e-9, atol=1e-11)
        within += np.cov(rows.T) * (len(rows) - 1)
    np.testing.assert_allclose(found.within[0], within / (N - 5), rtol=1e-9, atol=1e-11)


def test_float32_features_far_from_the_origin_keep_their_covariance() -> None:
    rows = (np.random.default_rng(3).normal(size=(500, 2, D)) * 0.1 + 100).astype(np.float32)
    found = moments(streamed(rows.astype(np.float64), np.zeros((500, 2))))
    np.testing.assert_allclose(found.cov[0, 0], np.cov(rows[:, 0].astype(np.float64).T), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("towards", ["identity", "pooled"])
@pytest.mark.parametrize("g", [0.0, 0.3, 1.0])
def test_full_shrinkage(features: Array, labels: Array, towards: str, g: float) -> None:
    gaussians = fit(streamed(features, labels), cov_type="full", shrinkage=g, towards=towards)  # type: ignore[arg-type]
    for c in range(C):
        for j in (0, 1):
            s = np.cov(features[labels[:, c] == j, c].T)
            target = np.trace(s) / D * np.eye(D) if towards == "identity" else pooled(features, labels, c)
            np.testing.assert_allclose(covariance(gaussians, c, j), (1 - g) * s + g * target, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("towards", ["identity", "pooled"])
@pytest.mark.parametrize("diagonal_sums", [False, True])
def test_diagonal_shrinkage(features: Array, labels: Array, towards: str, diagonal_sums: bool) -> None:
    sums = streamed(features, labels, diagonal=diagonal_sums)
    gaussians = fit(sums, cov_type="diag", shrinkage=0.3, towards=towards)  # type: ignore[arg-type]
    assert gaussians.factor.shape == (C, 2, D)
    v = features[labels[:, 1] == 1, 1].var(0, ddof=1)
    target = np.full(D, v.mean()) if towards == "identity" else np.diag(pooled(features, labels, 1))
    np.testing.assert_allclose(gaussians.factor[1, 1] ** 2, 0.7 * v + 0.3 * target, rtol=1e-5)


def test_auto_drops_covariances_of_groups_with_few_vectors() -> None:
    rng = np.random.default_rng(4)
    features, labels = rng.normal(size=(60, 1, D)), np.zeros((60, 1))
    labels[: 2 * D - 1] = 1
    few = fit(streamed(features, labels), cov_type="auto", shrinkage=0, towards="identity")
    rows = features[: 2 * D - 1, 0]
    np.testing.assert_allclose(covariance(few, 0, 1), np.diag(rows.var(0, ddof=1)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(covariance(few, 0, 0), np.cov(features[2 * D - 1 :, 0].T), rtol=1e-4, atol=1e-5)
    labels[2 * D - 1] = 1
    enough = fit(streamed(features, labels), cov_type="auto", shrinkage=0, towards="identity")
    np.testing.assert_allclose(covariance(enough, 0, 1), np.cov(features[: 2 * D, 0].T), rtol=1e-4, atol=1e-5)


def test_auto_is_diagonal_for_wide_features() -> None:
    features = np.random.default_rng(5).normal(size=(3, 1, 1025))
    sums = streamed(features, np.array([[0.0], [1.0], [1.0]]), diagonal=True)
    gaussians = fit(sums, cov_type="auto", shrinkage=0.1, towards="identity")
    assert gaussians.factor.shape == (1, 2, 1025)


def test_full_covariances_of_diagonal_sums_are_refused(features: Array, labels: Array) -> None:
    sums = streamed(features, labels, diagonal=True)
    with pytest.raises(ValueError, match="outer products"):
        fit(sums, cov_type="full", shrinkage=0.1, towards="identity")


def test_rare_groups_are_shrunk_more_by_count(features: Array, labels: Array) -> None:
    gaussians = fit(streamed(features, labels), cov_type="full", shrinkage=0.1, towards="pooled", shrinkage_count=30)
    for j in (0, 1):
        rows = features[labels[:, 2] == j, 2]
        g = 1 - 0.9 * len(rows) / (len(rows) + 30)
        expected = (1 - g) * np.cov(rows.T) + g * pooled(features, labels, 2)
        np.testing.assert_allclose(covariance(gaussians, 2, j), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cov_type", ["auto", "full", "diag"])
@pytest.mark.parametrize("count", [0.0, 10.0])
def test_groups_of_no_and_of_one_vector_take_what_their_pool_knows(
    features: Array, labels: Array, cov_type: str, count: float
) -> None:
    labels[:, 0] = 0
    labels[:, 1] = 0
    labels[5, 1] = 1
    gaussians = fit(
        streamed(features, labels),
        cov_type=cov_type,  # type: ignore[arg-type]
        shrinkage=0.0,
        towards="pooled",
        shrinkage_count=count,
    )
    np.testing.assert_allclose(gaussians.mean[0, 1], features[:, 0].mean(0), rtol=1e-5)
    np.testing.assert_allclose(gaussians.mean[1, 1], features[5, 1], rtol=1e-5)
    for c in (0, 1):
        expected = pooled(features, labels, c)
        if cov_type == "diag":
            expected = np.diag(np.diag(expected))
        np.testing.assert_allclose(covariance(gaussians, c, 1), expected, rtol=1e-4, atol=1e-4)


def test_a_single_vector_in_all_is_a_point() -> None:
    features = np.ones((1, 1, D))
    gaussians = fit(streamed(features, np.ones((1, 1))), cov_type="full", shrinkage=0.1, towards="identity")
    drawn = gaussians.sample(torch.ones(50, 1, dtype=torch.int64), generator("cpu", 0))
    np.testing.assert_allclose(drawn, 1.0, atol=1e-4)


def test_cholesky_has_the_documented_jitter(features: Array) -> None:
    cov = np.cov(features[:, 0].T)
    factor = cholesky(torch.from_numpy(cov)).numpy()
    jitter = RELATIVE_JITTER * np.trace(cov) / D + ABSOLUTE_JITTER
    np.testing.assert_allclose(factor @ factor.T, cov + jitter * np.eye(D), rtol=1e-12)
    assert (np.triu(factor, 1) == 0).all()


def test_cholesky_of_a_singular_covariance_is_finite_and_of_nan_is_nan() -> None:
    flat = torch.ones(D, D, dtype=torch.float64)
    factor = cholesky(flat)
    np.testing.assert_allclose(factor @ factor.mT, flat, atol=1e-5)
    assert cholesky(torch.full((D, D), torch.nan, dtype=torch.float64)).isnan().all()


@pytest.mark.parametrize("cov_type", ["full", "diag"])
def test_virtual_features_have_the_moments_of_their_gaussians(features: Array, labels: Array, cov_type: str) -> None:
    gaussians = fit(streamed(features, labels), cov_type=cov_type, shrinkage=0.1, towards="identity")  # type: ignore[arg-type]
    groups = torch.randint(0, 2, (40_000, C), generator=generator("cpu", 1))
    drawn = gaussians.sample(groups, generator("cpu", 2))
    assert drawn.shape == (40_000, C, D)
    assert drawn.dtype == torch.float32
    for c in range(C):
        for j in (0, 1):
            rows = drawn[groups[:, c] == j, c].double().numpy()
            cov = covariance(gaussians, c, j)
            scale = np.sqrt(np.diag(cov))
            z = (rows.mean(0) - gaussians.mean[c, j].numpy()) / (scale / np.sqrt(len(rows)))
            assert np.abs(z).max() < 4.5
            spread = np.sqrt((np.outer(scale**2, scale**2) + cov**2) / len(rows))
            assert (np.abs(np.cov(rows.T) - cov) / spread).max() < 4.5


def test_noise_belongs_to_a_place_whatever_its_group(features: Array, labels: Array) -> None:
    gaussians = fit(streamed(features, labels), cov_type="full", shrinkage=0.1, towards="identity")
    groups = torch.zeros(20, C, dtype=torch.int64)
    one = gaussians.sample(groups, generator("cpu", 3))
    groups[4, 1] = 1
    two = gaussians.sample(groups, generator("cpu", 3))
    same = torch.ones(20, C, dtype=torch.bool)
    same[4, 1] = False
    torch.testing.assert_close(one[same], two[same])
    assert not torch.allclose(one[4, 1], two[4, 1])


def test_sums_survive_their_state(features: Array, labels: Array) -> None:
    sums = streamed(features, labels)
    state = sums.state()
    sums.add_multi_label(torch.from_numpy(features), torch.from_numpy(labels))
    back = GroupSums.from_state(state, torch.device("cpu"))
    assert not back.diagonal
    assert back.dim == D
    assert torch.equal(back.count.sum(1), torch.full((C,), float(N), dtype=torch.float64))
    assert torch.equal(back.outer, state["outer"])


@pytest.mark.parametrize("diagonal", [False, True])
def test_mahalanobis_distances_are_those_of_scipy_and_have_its_gradient(diagonal: bool) -> None:
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(1, 3, 4))
    root = rng.normal(size=(3, 4, 4))
    cov = root @ root.transpose(0, 2, 1) + 0.5 * np.eye(4)
    if diagonal:
        cov = np.stack([np.diag(np.diag(matrix)) for matrix in cov])
    given = np.stack([np.diag(matrix) for matrix in cov]) if diagonal else cov
    z = torch.tensor(rng.normal(size=(5, 4)), dtype=torch.float32, requires_grad=True)
    found = Gaussians.of(torch.tensor(mean), torch.tensor(given)[None]).mahalanobis(z)
    assert found.shape == (1, 3, 5)
    for k, b in np.ndindex(3, 5):
        away = mahalanobis(z[b].detach().numpy(), mean[0, k], np.linalg.inv(cov[k])) ** 2
        assert found[0, k, b].item() == pytest.approx(away, rel=1e-4)
    found[0, 1].sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    expected = 2 * (z.detach().numpy() - mean[0, 1]) @ np.linalg.inv(cov[1])
    np.testing.assert_allclose(z.grad.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_ridge_is_added_after_shrinkage_and_rare_classes_take_the_pooled_covariance() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 3)) * [1, 2, 3]
    classes = np.array([0] * 30 + [1] * 7 + [2] * 3)
    sums = GroupSums(1, 3, 3, diagonal=False)
    sums.add_multi_class(torch.tensor(x), torch.tensor(classes))
    _, cov = covariances(sums, cov_type="full", shrinkage=0.25, towards="identity", ridge=0.5, min_count=5)
    scatters = [(n - 1) * np.cov(x[classes == k].T) for k, n in ((0, 30), (1, 7), (2, 3))]
    pooled = sum(scatters) / (40 - 3)
    for k, own in enumerate((scatters[0] / 29, scatters[1] / 6, pooled)):
        expected = 0.75 * own + 0.25 * np.trace(own) / 3 * np.eye(3) + 0.5 * np.eye(3)
        np.testing.assert_allclose(cov[0, k].numpy(), expected, rtol=1e-10)
