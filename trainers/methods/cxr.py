"""A label-query transformer with a bag of tricks, for long-tailed multi-label images.

Hong et al., technical report on CXR-LT 2023, arXiv 2308.08853 (read as a digest). Labels, by the text embeddings of
their names, are queries to the image's tokens; each label has a classifier of its own; MixUp; further data sets with
missing labels; hard classes weighted up; test-time augmentation merged by the geometric mean. Two stages here:

- stage 1 is the plain reference fit, on the training patients but for an inner part of them;
- stage 2 finds the hard classes on that inner part and continues with their weights, on all training images.

Defaults are the report's values; where it gives none, those of [K] KAD (arXiv 2302.14042), the same group's code,
[F] CheXFusion (arXiv 2308.03968), [T] LongTailCXR (arXiv 2208.13365), or [R] our recommendation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from trainers.base import Images, Resource, Stage2Config, State, Task, TrainerConfig, TrainerInputs, Weights
from trainers.image_config import NONE, AugmentedStage1, ImageTrainerConfig
from trainers.image_trainer import EVAL_BATCH, ImageTrainer, fused
from trainers.images import batches
from trainers.images.augment import training_images
from trainers.images.tta import VIEWS, Merge, merge_views
from trainers.losses.hard_classes import class_weights, hardest_first, inner_part
from trainers.losses.sigmoid import (
    asymmetric,
    bce,
    distribution_balanced,
    exponential_weights,
    robust_asymmetric,
    weighted_bce,
)
from trainers.methods.sigmoid_fields import SigmoidLossFields
from trainers.networks.backbones import build, load_trunk
from trainers.networks.ema import copy_buffers, ema_decay, ema_update
from trainers.networks.label_decoder import GroupWiseLinear, check_width
from trainers.networks.network import Network
from trainers.networks.query_decoder import LabelQueryDecoder, SharedLinear
from trainers.schedules import Schedule, learning_rate
from trainers.seeding import generator
from trainers.seeds import derive_seed
from trainers.state import clone

Loss = Literal["bce", "asl", "wbce_exp", "ral", "db"]

WeightedLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Of logits (B, C), targets (B, C) of 0 / 1, and weights that broadcast to them: the mean of weight * loss."""

_log = logging.getLogger(__name__)


class CXRStage1(AugmentedStage1, SigmoidLossFields):
    """The reference fit."""

    epochs: int = Field(30, ge=1, le=10_000)
    """Length of stage 1 in passes over its images, or over `images_per_epoch` of them [R 10-30; K 100, pretraining]."""
    backbone: str = "resnet50"
    """Network whose feature map is used: `conv4` (small images), or any torchvision classification network that gives
    a feature map. Paper: resnet50 or densenet121."""
    batch_size: int = Field(64, ge=2, le=65_536)
    """Images in a training batch [K]."""
    crop: float = Field(1.0, gt=0, le=1)
    """Side of the cropped image as a fraction of the image's. Evaluation takes the centre."""
    augmentation: Literal["none", "crop", "crop+flip", "crop+flip+rotate"] = "crop+flip+rotate"
    """Random place of the crop, horizontal flip, rotation by up to 15 degrees; `none`: always the centre crop [F]."""
    shift: float = Field(0.0625, ge=0, le=0.5)
    """Further random shift in both directions, a fraction of the image's side; 0 = off [F]."""
    scale: float = Field(0.1, ge=0, le=1)
    """Random zoom, log-uniform in [1 / (1 + scale), 1 + scale]; 0 = off [F]."""
    brightness: float = Field(0.2, ge=0, le=1)
    """Random factor on values, uniform in 1 +- brightness; 0 = off [F]."""
    contrast: float = Field(0.2, ge=0, le=1)
    """Random factor on the distance from the image's mean grey, 1 +- contrast; 0 = off [F]."""
    d_model: int = Field(768, ge=4, le=8192)
    """Width D of queries, tokens and features [K]."""
    layers: int = Field(4, ge=1, le=12)
    """Decoder layers [K]."""
    heads: int = Field(4, ge=1, le=64)
    """Attention heads; a divisor of D [K]."""
    ffn: int = Field(1024, ge=1, le=32_768)
    """Hidden width of the decoder's feed-forward nets [K]."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout in the decoder and on its features [K]."""
    positions: bool = False
    """2-D sine position encoding on the image tokens, as in Query2Label; KAD has none [K]."""
    label_embeddings: str = NONE
    """Text embeddings of the labels' names as queries: a .safetensors file with a tensor `embeddings` (labels, width)
    and its row's names in the metadata, `labels`. `none`: learned queries. Paper: PubMedBERT or Clinical-T5."""
    classifier: Literal["separate", "shared"] = "separate"
    """One linear classifier per label (paper), or one for all labels, the paper's baseline."""
    loss: Loss = "bce"
    """Of both stages: `bce`, binary cross-entropy; `wbce_exp`, the same with exp(1 - r) on positives and exp(r) on
    negatives, r the share of images with the label [F]; `asl`, asymmetric; `ral`, robust asymmetric (arXiv 2308.05542);
    `db`, distribution-balanced (arXiv 2007.09654), without its sampling [R: the paper's is not known]."""
    db_gamma: float = Field(2.0, ge=0, le=10)
    """gamma of `db`'s focal loss."""
    mixup_alpha: float = Field(0.2, ge=0, le=10)
    """a of MixUp, in both stages: the share of the first image is drawn from Beta(a, a); 0 = off. Paper: on [T 0.2]."""
    missing_labels: Literal["zero", "mask"] = "zero"
    """Labels that a further data set says nothing of: absent (paper), or left out of the loss."""
    inner_fraction: float = Field(0.2, ge=0, le=0.5)
    """Share of the training patients that this stage leaves out, to find the hard classes on them; 0 = none: the
    rarest labels count as the hardest then [R]."""
    lr: float = Field(5e-5, gt=0, le=1)
    """AdamW's learning rate, the highest of the schedule [K]."""
    weight_decay: float = Field(0.02, ge=0, le=1)
    """AdamW's weight decay, in both stages [K]."""
    schedule: Schedule = "cosine"
    """Of the learning rate: `cosine` after a linear warm-up, `onecycle`, or `constant` [K]."""
    warmup: float = Field(0.2, ge=0, le=0.9)
    """Share of stage 1 in which `cosine` rises [K]."""
    min_lr: float = Field(1e-6, ge=0, le=1)
    """Where `cosine` begins and ends, in both stages [K]."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay, per optimiser step of both stages, of a moving average of the weights, which predicts in their place; in
    the first steps less, see `trainers.networks.ema`. 0 = off [K]; Query2Label 0.9997."""

    @model_validator(mode="after")
    def _consistent(self) -> CXRStage1:
        check_width(self.d_model, self.heads, positions=self.positions)
        return self


class CXRStage2(Stage2Config):
    """The fit goes on with hard classes weighted up."""

    n_hard: int = Field(9, ge=0, le=10_000)
    """Classes with a weight, those of the lowest average precision on the inner part; at most half of all. 0 = off:
    the fit goes on with equal weights. Paper: nine of 26."""
    w_mid: float = Field(2.0, ge=0, le=100)
    """Weight of the loss of hard classes (paper: 2 or 3)."""
    w_hi: float = Field(3.0, ge=0, le=100)
    """Weight of the loss of the hardest of them (paper: 2 or 3)."""
    high_share: float = Field(0.5, ge=0, le=1)
    """Share of the hard classes, the hardest, that have `w_hi` [R: the paper's is unknown]."""
    images_per_round: int | None = Field(None, ge=1)
    """Images in one round; None: all training images, once."""
    lr: float = Field(5e-5, gt=0, le=1)
    """AdamW's learning rate, in half a cosine down to `stage1.min_lr` [R: as stage 1]."""
    tta_views: Literal[1, 2, 5, 8] = 2
    """Views of an image that predictions are merged from: 1 the image, 2 also its mirror image [F], 5 also a zoom and
    turns by 5 degrees, 8 also their mirror images. Needs no training."""
    tta_merge: Merge = "geometric"
    """How the views' probabilities are merged: geometric mean (paper), arithmetic mean, or mean of logits."""


class CXRConfig(ImageTrainerConfig):
    """All parameters of the method, see the module's docstring for their sources."""

    stage1: CXRStage1 = Field(default_factory=CXRStage1)
    stage2: CXRStage2 = Field(default_factory=CXRStage2)

    def most(self, n_classes: int) -> Mapping[str, int]:
        """At most half of the classes are hard."""
        return {"stage2.n_hard": n_classes // 2}

    def resources(self) -> tuple[Resource, ...]:
        """The backbone's weights and the labels' embeddings, where they are not `none`."""
        source = self.stage1.label_embeddings
        own = () if source == NONE else (Resource("label_embeddings", "embeddings", source),)
        return (*super().resources(), *own)


class CXRNetwork(Network):
    """Backbone, label-query decoder, classifiers. Initial weights come from torch's global generator."""

    def __init__(self, config: CXRStage1, n_classes: int, resources: dict[str, Weights]) -> None:
        super().__init__()
        self.backbone, channels = build(config.backbone)
        if "backbone" in resources:
            load_trunk(self.backbone, resources["backbone"], config.backbone)
        self.decoder = LabelQueryDecoder(
            channels,
            n_classes,
            dim=config.d_model,
            layers=config.layers,
            heads=config.heads,
            ffn=config.ffn,
            dropout=config.dropout,
            positions=config.positions,
            embeddings=resources["label_embeddings"]["embeddings"] if "label_embeddings" in resources else None,
        )
        self.dim = config.d_model
        self.head = GroupWiseLinear(n_classes, self.dim) if config.classifier == "separate" else SharedLinear(self.dim)

    def features(self, images: Tensor) -> Tensor:
        """Class-aware features (B, C, D) of normalised images (B, 3, S, S)."""
        features: Tensor = self.decoder(self.backbone(images))
        return features


class CXRTrainer(ImageTrainer[CXRConfig]):
    """Trains the method, see the module's docstring.

    Training labels that are NaN or negative are unknown; `missing_labels` says what becomes of them.
    """

    name: ClassVar[str] = "cxr"
    config_type: ClassVar[type[TrainerConfig]] = CXRConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({Task.MULTI_LABEL})
    code_version: ClassVar[int] = 1
    class_aware: ClassVar[bool] = True
    takes_unknown_labels: ClassVar[bool] = True

    _in_training: Network | None = None
    """The network that the optimiser changes, where `model` is the average of its weights."""
    _averaged: int = 0
    """Optimiser steps in that average."""

    def __init__(self, config: CXRConfig, inputs: TrainerInputs) -> None:
        """As every trainer; raises `ValueError` also for groups that are not one per image."""
        if inputs.groups is not None and len(inputs.groups) != len(inputs.labels):
            raise ValueError(f"there are {len(inputs.groups)} groups for {len(inputs.labels)} training images")
        self._given = torch.where(inputs.labels < 0, torch.nan, inputs.labels.float())
        labels = self._given.nan_to_num(nan=0.0) if config.stage1.missing_labels == "zero" else self._given
        super().__init__(config, replace(inputs, labels=labels))
        self._class_weights = torch.ones(inputs.n_classes, device=self.device)
        known = (~self.labels.isnan()).sum(0).clamp(min=1)
        self._loss = weighted_loss(config.stage1, self.counts * (len(labels) / known), len(labels))
        if config.stage1.ema_decay > 0:
            self._in_training = deepcopy(self.model)
            self.optimizers = self.build_optimizers()

    def build_network(self, resources: dict[str, Weights]) -> CXRNetwork:
        """The network with the backbone's weights and the labels' embeddings, where there are any."""
        return CXRNetwork(self.config.stage1, self.inputs.n_classes, resources)

    @property
    def _learner(self) -> Network:
        return self._in_training or self.model

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One AdamW, a fresh one in each stage."""
        lr = self.config.stage1.lr if self.stage == 1 else self.config.stage2.lr
        decay = self.config.stage1.weight_decay
        return {"fit": torch.optim.AdamW(self._learner.parameters(), lr=lr, weight_decay=decay, **fused(self.device))}

    @cached_property
    def _left_out(self) -> Tensor:
        """Which training images stage 1 leaves out: bool (N,)."""
        draws = generator("cpu", self.inputs.seed, "inner part")
        return inner_part(self._given, self.inputs.groups, self.config.stage1.inner_fraction, draws)

    @cached_property
    def inner_images(self) -> batches.Indices:
        """Indices of the training images of known labels that stage 1 leaves out, in order: the inner part."""
        known = ~self._given.isnan().any(1).cpu()
        return (self._left_out & known).nonzero().squeeze(1).numpy()

    @cached_property
    def _fit_images(self) -> batches.Indices:
        return (~self._left_out).nonzero().squeeze(1).numpy()

    def stage1_step(self, step: int) -> dict[str, float]:
        """An epoch, or the next `images_per_epoch` images, without the inner part; logs `loss`."""
        cfg, fit = self.config.stage1, self._fit_images
        places = batches.step_order(len(fit), cfg.images_per_epoch, self.inputs.seed, 1, step)
        order = fit[places]
        rates = self._rates(step, cfg.epochs, order, cfg.schedule, cfg.lr, cfg.warmup)
        return {"loss": self._fit(1, step, order, rates)}

    def begin_stage2(self) -> None:
        """Finds the hard classes on the inner part, and replaces the optimiser."""
        cfg, n_classes = self.config.stage2, self.inputs.n_classes
        if cfg.n_hard > 0:
            if self.config.stage1.inner_fraction > 0 and not len(self.inner_images):
                _log.warning("the inner part is empty: the rarest labels count as the hardest")
            labels = self.labels[torch.from_numpy(self.inner_images).to(self.device)]
            hardest = hardest_first(self._inner_logits(), labels, self.counts)
            weights = class_weights(hardest, n_classes, cfg.n_hard, cfg.high_share, cfg.w_mid, cfg.w_hi)
            self._class_weights = weights.to(self.device)
        self.enter_stage(2)
        self.optimizers = self.build_optimizers()

    def stage2_step(self, step: int) -> dict[str, float]:
        """A round over all training images with the weights of hard classes; logs `loss`."""
        cfg = self.config.stage2
        order = self.step_order(2, step, cfg.images_per_round)
        return {"loss": self._fit(2, step, order, self._rates(step, cfg.rounds, order, "cosine", cfg.lr, 0.0))}

    def predict_logits(self, images: Images) -> Tensor:
        """Logits (N, C), float32 on CPU, in evaluation mode; in stage 2 those of the merged views."""
        plain, cfg = super().predict_logits(images), self.config.stage2
        if self.stage == 1 or cfg.tta_views == 1:
            return plain
        others = (self.view_logits(images, view) for view in VIEWS[1 : cfg.tta_views])
        return merge_views(torch.stack([plain, *others]), cfg.tta_merge)

    def own_state(self) -> State:
        """The weights of the classes; where weights are averaged, the network in training and its steps so far."""
        state: State = {"class_weights": self._class_weights.clone()}
        if self._in_training is not None:
            state |= {"in_training": clone(self._in_training.state_dict()), "averaged": self._averaged}
        return state

    def load_own_state(self, state: State) -> None:
        """Takes back what `own_state` gave."""
        self._class_weights = state["class_weights"].to(self.device, copy=True)
        if self._in_training is not None:
            self._in_training.load_state_dict(state["in_training"])
            self._averaged = state["averaged"]

    @classmethod
    def from_model(cls, config: CXRConfig, inputs: TrainerInputs, model: State) -> Self:
        """A trainer that predicts with exported weights; the labels' embeddings are among them."""
        named = [resource for resource in config.resources() if resource.kind == "label_embeddings"]
        rows = {resource.key: {"embeddings": model["decoder.embeddings"]} for resource in named}
        stage1 = config.stage1.model_copy(update={"ema_decay": 0.0})  # the weights are the average already
        config = config.model_copy(update={"stage1": stage1})
        return super().from_model(config, replace(inputs, resources=rows), model)

    def _fit(self, stage: int, step: int, order: batches.Indices, rates: Iterator[float]) -> float:
        """One pass over real images in `order`, each batch at the next rate; returns the mean loss."""
        cfg, optimizer, learner = self.config.stage1, self.optimizers["fit"], self._learner
        draws = self.draws(stage, step, "augmentation")
        shares = np.random.default_rng(derive_seed(self.inputs.seed, stage, step, "mixup"))

        def set_rate() -> None:
            optimizer.param_groups[0]["lr"] = next(rates)

        def loss(index: Tensor, raw: Tensor) -> Tensor:
            images, targets = training_images(raw, cfg.augmentations, draws), self.labels[index]
            if cfg.mixup_alpha == 0:
                logits = learner.head(self.forward(images, learner))
                return known_loss(self._loss, logits, targets, self._class_weights)
            share = float(shares.beta(cfg.mixup_alpha, cfg.mixup_alpha))
            partner = torch.randperm(len(images), generator=draws, device=self.device)
            logits = learner.head(self.forward(images[partner].lerp(images, share), learner))
            return mixed_loss(self._loss, logits, targets, targets[partner], share, self._class_weights)

        def average() -> None:
            if self._in_training is not None:
                ema_update(self.model, self._in_training, ema_decay(self._averaged, cfg.ema_decay))
                copy_buffers(self.model, self._in_training)
                self._averaged += 1

        learner.train()
        return self.train_on_images(
            stage,
            step,
            order=order,
            batch_size=cfg.batch_size,
            loss_of=loss,
            optimizer=optimizer,
            before_batch=set_rate,
            after_batch=average,
        )

    def _rates(
        self, step: int, steps: int, order: batches.Indices, schedule: Schedule, top: float, warmup: float
    ) -> Iterator[float]:
        """Learning rates of a step's batches; every step of a stage has as many."""
        cfg, count = self.config.stage1, len(batches.split(order, self.config.stage1.batch_size))
        floor = min(cfg.min_lr, top)
        return (
            learning_rate(schedule, step * count + i, steps * count, top, floor=floor, warmup=warmup)
            for i in range(count)
        )

    def _inner_logits(self) -> Tensor:
        """Logits (N', C) of the inner part by the current network, in evaluation mode, on the device."""
        self.model.eval()
        inner = self.inner_images
        chunks = [inner[batch] for batch in batches.in_order(len(inner), EVAL_BATCH)]
        found = [self.labels.new_zeros(0, self.inputs.n_classes)]
        with torch.no_grad():
            for _, raw in batches.load(self.inputs.images, chunks, self.device):
                found.append(self.model.head(self.forward(self.evaluation_view(raw))))
        return torch.cat(found)


def weighted_loss(config: CXRStage1, counts: Tensor, images: int) -> WeightedLoss:
    """The loss that a config names, on data with `counts` (C,) positives of each label among `images`."""
    positive, negative = exponential_weights(counts, images)
    epsilons = config.ral_linear, config.ral_quadratic
    losses: dict[Loss, WeightedLoss] = {
        "bce": bce,
        "asl": lambda z, y, v: asymmetric(z, y, config.gamma_pos, config.gamma_neg, config.asl_margin, v),
        "wbce_exp": lambda z, y, v: weighted_bce(z, y, positive, negative, v),
        "ral": lambda z, y, v: robust_asymmetric(
            z, y, config.ral_gamma_pos, config.gamma_neg, config.asl_margin, config.ral_hill, epsilons, v
        ),
        "db": lambda z, y, v: distribution_balanced(
            z,
            y,
            counts,
            images,
            centre=config.db_centre,
            scale=config.db_scale,
            kappa=config.db_kappa,
            gamma=config.db_gamma,
            weights=v,
        ),
    }
    return losses[config.loss]


def known_loss(loss: WeightedLoss, logits: Tensor, targets: Tensor, class_weights: Tensor) -> Tensor:
    """The mean of v_c * loss over the entries (B, C) whose target is not NaN; 0 without any."""
    unknown = targets.isnan()
    weights = class_weights * ~unknown
    return loss(logits, targets.nan_to_num(nan=0.0), weights) * (unknown.numel() / (~unknown).sum().clamp(min=1))


def mixed_loss(
    loss: WeightedLoss, logits: Tensor, targets: Tensor, others: Tensor, share: float, class_weights: Tensor
) -> Tensor:
    """MixUp (arXiv 1710.09412): share * loss for `targets` + (1 - share) * loss for `others`, both (B, C).

    For losses that are linear in the target, such as binary cross-entropy, the loss of the mixed target. A mixture with
    an unknown label is unknown.
    """
    unknown = targets.isnan() | others.isnan()
    one, two = (part.masked_fill(unknown, torch.nan) for part in (targets, others))
    first, second = (known_loss(loss, logits, part, class_weights) for part in (one, two))
    return share * first + (1 - share) * second
