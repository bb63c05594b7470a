"""Choice of a long-tail loss for stage 1: config fields, and the loss functions that they name.

Sources are in `trainers.losses.softmax` and `trainers.losses.sigmoid`; defaults are the papers'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from trainers.base import first_step
from trainers.image_config import AugmentedStage1
from trainers.losses.sigmoid import (
    asymmetric,
    bce,
    class_balanced,
    distribution_balanced,
    focal_bce,
    positive_weights,
    robust_asymmetric,
)
from trainers.losses.softmax import (
    class_balanced_weights,
    cloud_noise,
    cloud_sizes,
    cross_entropy,
    focal,
    gaussian_clouded,
    label_smoothing,
    ldam,
    ldam_margins,
    logit_adjusted,
    seesaw,
    vector_scaling,
)
from trainers.methods.sigmoid_fields import SigmoidLossFields

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Of logits (B, C) and targets."""

Loss = Literal[
    "plain",
    "balanced_sampling",
    "mixup",
    "balanced_mixup",
    "focal",
    "class_balanced",
    "label_smoothing",
    "ldam_drw",
    "balanced_softmax",
    "logit_adjustment",
    "vector_scaling",
    "seesaw",
    "gcl",
    "asymmetric",
    "robust_asymmetric",
    "distribution_balanced",
    "pos_weight",
]
COSINE_LOSSES = frozenset({"ldam_drw", "gcl"})
"""Those on cosines, between normalised features and class weights."""
ONE_LABEL_LOSSES = COSINE_LOSSES | {
    "label_smoothing",
    "balanced_softmax",
    "logit_adjustment",
    "vector_scaling",
    "seesaw",
}
SEVERAL_LABEL_LOSSES = frozenset({"asymmetric", "robust_asymmetric", "distribution_balanced", "pos_weight"})


class LongTailStage1(AugmentedStage1, SigmoidLossFields):
    """A stage 1 under one of the losses."""

    loss: Loss = "plain"
    """`plain` is cross-entropy, or binary cross-entropy for several labels an image. `balanced_sampling`, `mixup`,
    `balanced_mixup` (arXiv 2109.09850), `focal` and `class_balanced` work for both; `label_smoothing`, `ldam_drw`,
    `balanced_softmax`, `logit_adjustment`, `vector_scaling`, `seesaw` and `gcl` for one label; `asymmetric`,
    `robust_asymmetric`, `distribution_balanced` and `pos_weight` for several."""
    sampling_exponent: float = Field(1.0, ge=0, le=2)
    """r of `balanced_sampling`: image i has probability ~ n_y^-r; 0.5 is square-root sampling. Of
    `distribution_balanced`, whose paper samples by class (1), too; there 0 is every image once an epoch, also those
    without labels, which sampling by class never draws."""
    mixup_alpha: float = Field(0.2, gt=0, le=10)
    """a of `mixup`: the share of the first image is drawn from Beta(a, a). Of `balanced_mixup`: the share of the image
    that is sampled by class is drawn from Beta(a, 1)."""
    focal_gamma: float = Field(2.0, ge=0, le=10)
    """gamma of `focal`, and of `distribution_balanced`."""
    beta: float = Field(0.9999, ge=0, lt=1)
    """beta of the effective numbers in `class_balanced` and `ldam_drw`; near inverse frequency for small classes."""
    smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of the target that `label_smoothing` spreads over all classes."""
    ldam_scale: float = Field(30.0, gt=0, le=1000)
    """s of `ldam_drw`."""
    ldam_margin: float = Field(0.5, ge=0, le=2)
    """Margin of the rarest class in `ldam_drw`."""
    drw_start: float = Field(0.8, ge=0, le=1)
    """Fraction of stage 1 after which `ldam_drw` weights classes."""
    drw_lr_factor: float = Field(0.1, gt=0, le=1)
    """Factor on the learning rate from `drw_start` on."""
    tau: float = Field(1.0, ge=0, le=10)
    """tau of `logit_adjustment` in training, and of `vector_scaling`."""
    vs_gamma: float = Field(0.3, ge=0, le=2)
    """gamma of `vector_scaling`: logits times (n_k / n_max)^gamma in training; 0 is `logit_adjustment`."""
    seesaw_p: float = Field(0.8, ge=0, le=10)
    """p of `seesaw`: how much frequent classes spare rarer ones."""
    seesaw_q: float = Field(2.0, ge=0, le=10)
    """q of `seesaw`: how much rivals more probable than the image's class are punished."""
    gcl_scale: float = Field(30.0, gt=0, le=1000)
    """s of `gcl`."""
    gcl_noise: float = Field(0.5, ge=0, le=10)
    """Largest noise on a cosine of the rarest class in `gcl`."""
    weight_power: float = Field(0.5, ge=0, le=2)
    """k of `pos_weight`: positives weigh ((1 - r) / r)^k, r the share of images with the label."""

    @property
    def cosine_scale(self) -> float | None:
        """Scale s of the losses on cosines; None for the others."""
        return {"ldam_drw": self.ldam_scale, "gcl": self.gcl_scale}.get(self.loss)

    @property
    def reweighted_from(self) -> int:
        """First epoch (from 0) in which `ldam_drw` weights classes; `epochs` where `drw_start` is 1: never."""
        return first_step(self.drw_start, self.epochs)

    @property
    def order_exponent(self) -> float | None:
        """Exponent of class-balanced sampling; None where every image is seen once an epoch."""
        if self.loss == "distribution_balanced":
            return self.sampling_exponent or None
        return self.sampling_exponent if self.loss == "balanced_sampling" else None


def loss_on_cosines(
    cfg: LongTailStage1,
    counts: Tensor,
    cosines: Tensor,
    targets: Tensor,
    draws: torch.Generator,
    *,
    reweighted: bool,
) -> Tensor:
    """The chosen one of `COSINE_LOSSES`, on cosines (B, K); `draws` gives GCL's noise."""
    if cfg.loss == "gcl":
        noise = cloud_noise(tuple(cosines.shape), draws)
        return gaussian_clouded(cosines, targets, cloud_sizes(counts, cfg.gcl_noise), noise, cfg.gcl_scale)
    weights = class_balanced_weights(counts, cfg.beta) if reweighted else None
    return ldam(cosines, targets, ldam_margins(counts, cfg.ldam_margin), cfg.ldam_scale, weights)


def one_label_loss(cfg: LongTailStage1, counts: Tensor) -> LossFunction:
    """The chosen loss for one label an image; cross-entropy where it is a way to sample or to mix.

    `counts` (K,) are training images per class.
    """
    losses: dict[str, LossFunction] = {
        "focal": lambda z, y: focal(z, y, cfg.focal_gamma),
        "class_balanced": lambda z, y: cross_entropy(z, y, class_balanced_weights(counts, cfg.beta)),
        "label_smoothing": lambda z, y: label_smoothing(z, y, cfg.smoothing),
        "balanced_softmax": lambda z, y: logit_adjusted(z, y, counts),
        "logit_adjustment": lambda z, y: logit_adjusted(z, y, counts, cfg.tau),
        "vector_scaling": lambda z, y: vector_scaling(z, y, counts, cfg.vs_gamma, cfg.tau),
        "seesaw": lambda z, y: seesaw(z, y, counts, cfg.seesaw_p, cfg.seesaw_q),
    }
    return losses.get(cfg.loss, cross_entropy)


def several_label_loss(cfg: LongTailStage1, counts: Tensor, images: int) -> LossFunction:
    """As `one_label_loss`, for several labels an image; `counts` (C,) are positive ones among the training `images`."""
    weights = positive_weights(counts, images, cfg.weight_power)
    epsilons = cfg.ral_linear, cfg.ral_quadratic
    losses: dict[str, LossFunction] = {
        "focal": lambda z, y: focal_bce(z, y, cfg.focal_gamma),
        "class_balanced": lambda z, y: class_balanced(z, y, counts, cfg.beta),
        "asymmetric": lambda z, y: asymmetric(z, y, cfg.gamma_pos, cfg.gamma_neg, cfg.asl_margin),
        "robust_asymmetric": lambda z, y: robust_asymmetric(
            z, y, cfg.ral_gamma_pos, cfg.gamma_neg, cfg.asl_margin, cfg.ral_hill, epsilons
        ),
        "distribution_balanced": lambda z, y: distribution_balanced(
            z,
            y,
            counts,
            images,
            centre=cfg.db_centre,
            scale=cfg.db_scale,
            kappa=cfg.db_kappa,
            gamma=cfg.focal_gamma,
        ),
        "pos_weight": lambda z, y: bce(z, y, 1 + y * (weights - 1)),
    }
    return losses.get(cfg.loss, bce)
