"""Class-conditional Gaussians of features: streaming estimation, shrinkage and sampling in batches.

Groups are laid out as (P pools, J groups a pool); groups of one pool share a pooled within-group covariance.
A multi-label method has one pool per label with J = 2 groups, absent and present (LDRNet, Eq 9-10). A multi-class
method has a single pool with J = K groups, one per class (MRC-VFC, LMD).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

CovType = Literal["auto", "full", "diag"]
Target = Literal["identity", "pooled"]

MAX_FULL_DIM = 1024
"""Widest feature for which `auto` keeps full covariances."""

RELATIVE_JITTER = 1e-6
"""Added to the diagonal before a Cholesky, times the mean variance: makes singular covariances factorisable and moves
others by a millionth."""

ABSOLUTE_JITTER = 1e-12
"""Added on top, so that a group whose features are all equal (zero variance) factorises, too."""


class GroupSums:
    """Counts, sums and outer products per group, accumulated in float64; features are never stored.

    `count` (P, J), `total` (P, J, D), and `outer` (P, J, D, D), or (P, J, D) squares where `diagonal`.
    """

    def __init__(
        self, pools: int, groups: int, dim: int, *, diagonal: bool, device: torch.device | str = "cpu"
    ) -> None:
        shape = (pools, groups, dim)
        self.count = torch.zeros(shape[:2], dtype=torch.float64, device=device)
        self.total = torch.zeros(shape, dtype=torch.float64, device=device)
        self.outer = torch.zeros(shape if diagonal else (*shape, dim), dtype=torch.float64, device=device)

    @property
    def dim(self) -> int:
        """Width D of a feature vector."""
        return self.total.shape[-1]

    @property
    def diagonal(self) -> bool:
        """Whether only squares are accumulated instead of outer products."""
        return self.outer.dim() == self.total.dim()

    def add_multi_label(self, features: Tensor, labels: Tensor) -> None:
        """Adds features (N, C, D) to group [c, j] by their labels (N, C) of 0 / 1; the pools are the C labels.

        A feature whose label is NaN, unknown, is in neither group.
        """
        x = features.to(torch.float64).transpose(0, 1)
        given = labels.t()
        for j, member in enumerate((given <= 0.5, given > 0.5)):
            masked = x * member.unsqueeze(-1)
            self.count[:, j] += member.sum(1)
            self.total[:, j] += masked.sum(1)
            self.outer[:, j] += masked.square().sum(1) if self.diagonal else masked.mT @ masked

    def add_multi_class(self, features: Tensor, classes: Tensor) -> None:
        """Adds features (N, D) to group [0, k] by their class index (N,); there is one pool."""
        x = features.to(torch.float64)
        for k in torch.unique(classes).tolist():
            rows = x[classes == k]
            self.count[0, k] += len(rows)
            self.total[0, k] += rows.sum(0)
            self.outer[0, k] += rows.square().sum(0) if self.diagonal else rows.mT @ rows

    def state(self) -> dict[str, Tensor]:
        """Copies of the sums by name."""
        return {"count": self.count.clone(), "total": self.total.clone(), "outer": self.outer.clone()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor], device: torch.device) -> GroupSums:
        """The sums that `state` describes, on `device`."""
        sums = cls.__new__(cls)
        sums.count, sums.total, sums.outer = (
            state[key].to(device, torch.float64, copy=True) for key in ("count", "total", "outer")
        )
        return sums


@dataclass(frozen=True)
class Moments:
    """Means and covariances of groups, in float64. See `moments` for groups of no or one vector."""

    count: Tensor
    """(P, J)"""
    mean: Tensor
    """(P, J, D)"""
    cov: Tensor
    """(P, J, D, D), or variances (P, J, D)."""
    within: Tensor
    """Pooled within-group covariance of each pool, (P, D, D), or variances (P, D)."""

    @property
    def diagonal(self) -> bool:
        """Whether covariances are variances only."""
        return self.cov.dim() == self.mean.dim()


def moments(sums: GroupSums, min_count: int = 2, images: Tensor | None = None) -> Moments:
    """Means and covariances with N - 1 (LDRNet Eq 9-10), and each pool's within-group covariance.

    `within` is the groups' summed scatter over N minus the number of groups that have a vector. A group of fewer than
    `min_count` vectors (2 or more) has no covariance of its own and takes `within`; an empty one also takes the mean of
    all its pool's vectors, so that it adds no information to its pool's.

    `images` (P, J) are the groups' different vectors, where `sums` hold some of them several times. They, and not the
    repetitions, decide which group has a covariance of its own, and are the `count` of what is returned.
    """
    count = sums.count[..., None]
    pool_mean = sums.total.sum(1, keepdim=True) / count.sum(1, keepdim=True).clamp(min=1)
    own_mean = sums.total / count.clamp(min=1)
    mean = torch.where(count > 0, own_mean, pool_mean)
    n = count if sums.diagonal else count[..., None]
    different = sums.count if images is None else images.to(sums.count)
    own_images = different[..., None] if sums.diagonal else different[..., None, None]
    # Group by group and in place: with many classes the covariances are by far the largest tensors of a round.
    cov = sums.outer.clone()
    for j in range(count.shape[1]):
        m = own_mean[:, j]
        cov[:, j] -= n[:, j] * (m.square() if sums.diagonal else m.unsqueeze(-1) * m.unsqueeze(-2))
    # Repetitions of a single vector have no scatter, so they may not count as freedom either.
    freedom = ((n - 1) * (own_images > 1)).sum(1).clamp(min=1)
    within = cov.sum(1) / freedom
    for j in range(count.shape[1]):
        own = cov[:, j] / (n[:, j] - 1).clamp(min=1)
        cov[:, j] = torch.where(own_images[:, j] >= max(2, min_count), own, within)
    return Moments(different, mean, cov, within)


def shrink(cov: Tensor, target: Tensor, g: Tensor | float) -> Tensor:
    """(1 - g) * cov + g * target, broadcast over leading dimensions."""
    return (1 - g) * cov + g * target


def scaled_identity(cov: Tensor, *, diagonal: bool) -> Tensor:
    """tr(S) / D * I for each covariance S, in the layout of `cov`."""
    if diagonal:
        return cov.mean(-1, keepdim=True).expand_as(cov)
    variance = cov.diagonal(dim1=-2, dim2=-1).mean(-1)
    return variance[..., None, None] * torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)


def cholesky(cov: Tensor) -> Tensor:
    """Lower factors L, L L^T = S + (`RELATIVE_JITTER` * tr(S) / D + `ABSOLUTE_JITTER`) * I; NaN where there is none.

    With that jitter a covariance of any rank factorises; what remains are NaN and infinite ones, which must surface.
    """
    variance = cov.diagonal(dim1=-2, dim2=-1).mean(-1)
    jitter = RELATIVE_JITTER * variance + ABSOLUTE_JITTER
    eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(cov + jitter[..., None, None] * eye)
    return factor.masked_fill((info != 0)[..., None, None], torch.nan)


@dataclass(frozen=True)
class Gaussians:
    """Gaussians ready to be sampled, and to measure distances by. Made by `fit`, or `of` moments."""

    mean: Tensor
    """(P, J, D) float32."""
    factor: Tensor
    """float32 Cholesky factors (P, J, D, D), or standard deviations (P, J, D)."""

    @classmethod
    def of(cls, mean: Tensor, cov: Tensor) -> Gaussians:
        """Gaussians of means (P, J, D) and covariances (P, J, D, D), or variances (P, J, D), in float64."""
        factor = torch.empty(cov.shape, dtype=torch.float32, device=cov.device)
        for j in range(cov.shape[1]):
            # Rounding may leave the variance of a constant feature a hair below zero.
            own = cov[:, j].clamp(min=0).sqrt() if cov.dim() == mean.dim() else cholesky(cov[:, j])
            factor[:, j] = own.float()
        return cls(mean.float(), factor)

    def sample(self, groups: Tensor, generator: torch.Generator) -> Tensor:
        """Draws mean + L eps for groups (B, P), integers below J; returns (B, P, D) float32.

        The noise belongs to a place (b, p) whatever its group: two runs that differ in few groups differ in few draws.
        """
        pools, per_pool, dim = self.mean.shape
        offsets = torch.arange(pools, device=groups.device) * per_pool
        flat = (groups + offsets).flatten()
        noise = torch.randn((len(flat), dim), generator=generator, device=self.mean.device)
        mean = self.mean.flatten(0, 1)[flat]
        if self.factor.dim() == self.mean.dim():
            drawn = mean + self.factor.flatten(0, 1)[flat] * noise
        else:
            # Sorted by group, so that each factor meets its rows in one product and no (B, D, D) is gathered.
            order = flat.argsort(stable=True)
            sizes = torch.bincount(flat, minlength=pools * per_pool).tolist()
            chunks = torch.split(noise[order], sizes)
            products = [
                rows @ factor.mT for rows, factor in zip(chunks, self.factor.flatten(0, 1), strict=True) if len(rows)
            ]
            drawn = mean.index_add(0, order, torch.cat(products))
        return drawn.view(*groups.shape, dim)

    def mahalanobis(self, features: Tensor) -> Tensor:
        """Squared Mahalanobis distances (P, J, B) of features (B, D), or (P, B, D), to every group; differentiable.

        One triangular solve per group for the whole batch: no covariance is gathered per vector.
        """
        x = features.float()
        away = (x if x.dim() == 3 else x.unsqueeze(0)).unsqueeze(1) - self.mean.unsqueeze(2)
        if self.factor.dim() == self.mean.dim():
            scale = self.factor.clamp(min=torch.finfo(torch.float32).tiny ** 0.5).unsqueeze(2)
            return (away / scale).square().sum(-1)
        solved: Tensor = torch.linalg.solve_triangular(self.factor, away.mT, upper=False)
        return solved.square().sum(-2)


def covariances(
    sums: GroupSums,
    *,
    cov_type: CovType,
    shrinkage: float,
    towards: Target,
    shrinkage_count: float = 0.0,
    ridge: float = 0.0,
    min_count: int = 2,
    images: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Means (P, J, D) and shrunk covariances (P, J, D, D), or variances (P, J, D), of `sums`; float64.

    `cov_type`: `full`; `diag`: variances only; `auto`: variances for groups of fewer than 2 D vectors and for all
    groups where D > `MAX_FULL_DIM`, else full. Each covariance S becomes (1 - g) S + g T + `ridge` * I, where T is
    tr(S) / D * I (`identity`) or its pool's within-group covariance (`pooled`). With g0 = `shrinkage` and
    n0 = `shrinkage_count`, g = 1 - (1 - g0) * n / (n + n0): rare groups are shrunk more where n0 > 0. Groups of fewer
    than `min_count` vectors, and `images`: see `moments`. Raises `ValueError` for full covariances of diagonal sums.
    """
    found = moments(sums, min_count, images)
    cov, within = found.cov, found.within
    wide = sums.dim > MAX_FULL_DIM
    if cov_type == "full" and sums.diagonal:
        raise ValueError("full covariances need outer products, but only squares were accumulated")
    if not sums.diagonal and (cov_type == "diag" or (cov_type == "auto" and wide)):
        cov, within = cov.diagonal(dim1=-2, dim2=-1), within.diagonal(dim1=-2, dim2=-1)
    diagonal = cov.dim() == found.mean.dim()
    few = (found.count >= max(2, min_count)) & (found.count < 2 * sums.dim)
    n = found.count[..., None] if diagonal else found.count[..., None, None]
    g = 1 - (1 - shrinkage) * (n / (n + shrinkage_count) if shrinkage_count > 0 else torch.ones_like(n))
    shrunk = cov if cov.is_contiguous() else cov.contiguous()
    for j in range(cov.shape[1]):
        own = shrunk[:, j]
        if cov_type == "auto" and not diagonal:
            # A group without a covariance of its own keeps its pool's, which is well estimated.
            own = torch.where(few[:, j, None, None], torch.diag_embed(own.diagonal(dim1=-2, dim2=-1)), own)
        target = scaled_identity(own, diagonal=diagonal) if towards == "identity" else within
        own = shrink(own, target, g[:, j])
        (own if diagonal else own.diagonal(dim1=-2, dim2=-1)).add_(ridge)
        shrunk[:, j] = own
    return found.mean, shrunk


def fit(
    sums: GroupSums,
    *,
    cov_type: CovType,
    shrinkage: float,
    towards: Target,
    shrinkage_count: float = 0.0,
    ridge: float = 0.0,
) -> Gaussians:
    """Shrunk Gaussians of `sums`, see `covariances`."""
    mean, cov = covariances(
        sums,
        cov_type=cov_type,
        shrinkage=shrinkage,
        towards=towards,
        shrinkage_count=shrinkage_count,
        ridge=ridge,
    )
    return Gaussians.of(mean, cov)
