"""LMD: relation-aware representations, then iterative classifier calibration, for one label per image.

Pan et al., "Long-tailed Medical Diagnosis", Comput. Biol. Med. 188:109772 (arXiv 2502.03238), and its predecessor
MRC-VFC (MICCAI 2023). Stage 1 trains a student on strongly augmented images and keeps its probabilities, its sample
relations and its channel relations near those of an EMA teacher on weakly augmented ones. Stage 2 starts a new linear
classifier and alternates:

- virtual features compensation and M-step: the classifier learns from R features per class, drawn from the class's
  Gaussian, the encoder is frozen;
- E-step: the encoder learns from real images through the frozen classifier, and is drawn to its own class's Gaussian.

Where the released code departs from the papers, a field has the values `paper` and `released`. What both leave open
is marked [R]: our recommendation.
"""

from __future__ import annotations

import copy
import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainers.base import Stage2Config, State, Task, TrainerConfig, TrainerInputs, Weights, first_step
from trainers.features.gaussians import Gaussians, GroupSums, covariances
from trainers.features.sampling import same_number_each
from trainers.image_config import ImageStage1, ImageTrainerConfig
from trainers.image_trainer import EVAL_BATCH, ImageTrainer
from trainers.images.augment import centre_crop
from trainers.images.views import Flips, strong_view, weak_view
from trainers.losses.compensation import FdcMode, FdcSign, fdc
from trainers.losses.relation import channel_relation, probability_consistency, sample_relation
from trainers.losses.softmax import cross_entropy, softmax_gce
from trainers.networks.ema import ema_decay, ema_update
from trainers.networks.network import Network, PooledNetwork
from trainers.seeding import generator
from trainers.state import clone


class LMDStage1(ImageStage1):
    """Relation-aware representation learning. Defaults are the paper's values, or [R]."""

    epochs: int = Field(100, ge=1, le=10_000)
    """Length of stage 1 in passes over the training images (paper 100), or over `images_per_epoch` of them."""
    batch_size: int = Field(128, ge=2, le=65_536)
    """Images in a batch (paper 128); the Gram losses grow with it."""
    crop: float = Field(1.0, gt=0, le=1)
    """Side of the centre crop as a fraction of the image's, in both views and in evaluation (paper: none)."""
    lr: float = Field(0.01, gt=0, le=10)
    """SGD's learning rate, constant (paper)."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD's momentum (released code)."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """SGD's L2 penalty (released code: none)."""
    use_mrc: bool = True
    """Consistency with the teacher; off: cross-entropy only (ablation)."""
    consistency_start: float = Field(0.21, ge=0, lt=1)
    """Fraction of stage 1 after which the consistency terms are on (paper: epoch 21 of 100, without a ramp)."""
    classification_weight: float = Field(1.0, gt=0, le=1000)
    """Weight of the cross-entropy."""
    probability_weight: float = Field(5.0, ge=0, le=10_000)
    """lambda_3: weight of the probability consistency (paper 5)."""
    sample_weight: float = Field(10.0, ge=0, le=10_000)
    """lambda_1: weight of the sample-relation consistency (paper 10)."""
    channel_weight: float = Field(10.0, ge=0, le=10_000)
    """lambda_2: weight of the channel-relation consistency (paper 10)."""
    gram_form: Literal["paper", "released"] = "released"
    """Gram matrices as printed, or with rows of unit length as in the code. The paper's weights fit the latter only:
    the printed norm is about a thousand times larger."""
    ce_view: Literal["paper", "released"] = "released"
    """View of the cross-entropy: `paper` weak (its text), `released` strong (the code and the paper's figure). The
    other view is made, and seen, only where there is consistency."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Largest decay of the teacher's average (released code). The teacher's batch norms use batch statistics."""
    flips: Flips = "both"
    """Random flips of both views (paper: both). `none` where left, right, top and bottom mean something."""
    strength: float = Field(1.0, ge=0, le=2)
    """Factor on the chances of the strong view's transforms [R], see `trainers.images.views`."""

    @property
    def consistency_from(self) -> int:
        """First epoch (from 0) with consistency terms; `epochs` or more if there are none."""
        return first_step(self.consistency_start, self.epochs) if self.use_mrc else self.epochs


class LMDStage2(Stage2Config):
    """Iterative classifier calibration. Defaults are the paper's values, or [R]."""

    rounds: int = Field(200, ge=1, le=10_000)
    """Rounds of statistics, M-step and E-step (released code 200; MRC-VFC 500)."""
    use_vfc: bool = True
    """Virtual features; off: the M-step resamples real features class-balanced (ablation)."""
    virtual_size: int = Field(50_000, ge=1, le=10_000_000)
    """R, virtual features per class and round, drawn anew in each."""
    cov_type: Literal["full", "diag"] = "full"
    """Class covariances, or variances only."""
    cov_eps: float = Field(0.01, ge=0, le=100)
    """Added to the diagonal of each covariance (released code 0.01, MRC-VFC 0)."""
    shrinkage: float = Field(0.0, ge=0, le=1)
    """g in (1 - g) S + g tr(S) / D * I [R, 0 = paper]."""
    min_cov_samples: int = Field(2, ge=2, le=1_000_000)
    """Classes of fewer images take the classes' pooled covariance [R: an own covariance needs 2]."""
    statistics: Literal["paper", "released"] = "paper"
    """Class statistics from every training image once, or from as many draws with replacement in every class, N / K,
    as the code's inverse-frequency sampler gives it on average."""
    distribution_decay: float = Field(0.999, ge=0, lt=1)
    """Largest decay of the running Gaussians that the compensation measures by; 0.99 and more are a plain average."""
    classifier_lr: float = Field(1e-5, gt=0, le=10)
    """SGD's learning rate of the classifier (paper, with its many steps)."""
    m_batch_size: int = Field(352, ge=1, le=65_536)
    """Virtual features in a batch (released code 352, MRC-VFC 256)."""
    update_encoder: bool = True
    """E-step on or off; off is plain virtual features compensation (ablation)."""
    backbone_lr: float = Field(1e-6, gt=0, le=1)
    """SGD's learning rate of the encoder in the E-step (paper)."""
    e_batch_size: int = Field(128, ge=2, le=65_536)
    """Real images in an E-step batch."""
    e_step_images: int | None = Field(None, ge=1)
    """Real images in one E-step; None: all training images (paper)."""
    balanced_e: bool = False
    """E-step images class-balanced with replacement, instead of each once."""
    bn_mode_e: Literal["eval", "train"] = "eval"
    """Batch norms in the E-step keep their statistics, or move them [R eval]."""
    label_loss: Literal["ce", "gce"] = "ce"
    """The E-step's loss on labels: cross-entropy (LMD) or generalised cross-entropy (MRC-VFC)."""
    q: float = Field(0.8, gt=0, le=1)
    """Exponent of the generalised cross-entropy (MRC-VFC 0.8; its code 0.7)."""
    label_gradient: Literal["paper", "released"] = "paper"
    """`paper`: the loss on labels trains the encoder through the frozen classifier; `released`: its gradient does not
    reach the encoder, only the compensation's does."""
    use_fdc: bool = True
    """Feature distribution compensation in the E-step (ablation)."""
    fdc_weight: float = Field(1e-4, ge=0, le=1000)
    """lambda_e (released code; the paper tunes 1e-5 to 1e-3)."""
    fdc_mode: FdcMode = "linear"
    """`linear` is the paper's and unbounded below; `hinge` and `softmax` are bounded [R], see
    `trainers.losses.compensation`."""
    fdc_sign: FdcSign = "paper"
    """`released` pushes features away from their own class, as the published code does."""
    fdc_per_dimension: bool = False
    """Distances divided by the width D, which makes `fdc_weight` independent of it [R, off = paper]."""
    fdc_margin: float = Field(1.0, ge=0, le=1e6)
    """Margin of the hinge, in the distances' unit [R]."""
    fdc_temperature: float = Field(1.0, gt=0, le=1e6)
    """T in the softmax over -M / (2 T) [R]."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD's momentum in both steps (released code)."""
    weight_decay: float = Field(1e-4, ge=0, le=1)
    """SGD's L2 penalty in both steps (released code)."""
    start_from: Literal["student", "teacher"] = "student"
    """Which network of stage 1 goes on: the last student (released code), or its average."""

    @model_validator(mode="after")
    def _encoder_has_a_gradient(self) -> LMDStage2:
        compensates = self.use_fdc and self.fdc_weight > 0
        if self.update_encoder and self.label_gradient == "released" and not compensates:
            raise ValueError(
                "label_gradient released needs use_fdc and an fdc_weight above 0, or the encoder has no gradient; set "
                "update_encoder off, or one of the three otherwise"
            )
        return self


class LMDConfig(ImageTrainerConfig):
    """All of LMD's parameters."""

    stage1: LMDStage1 = Field(default_factory=LMDStage1)
    stage2: LMDStage2 = Field(default_factory=LMDStage2)

    @model_validator(mode="after")
    def _teacher_exists(self) -> LMDConfig:
        if self.stage2.start_from == "teacher" and not self.stage1.use_mrc:
            raise ValueError("stage2.start_from teacher needs stage1.use_mrc, which makes the teacher")
        return self

    def losses_active_from(self) -> dict[int, int]:
        """All losses of stage 1 are active after its first epoch with consistency terms."""
        return {1: self.stage1.consistency_from if self.stage1.use_mrc else 0, 2: 0}


class LMDTrainer(ImageTrainer[LMDConfig]):
    """Trains LMD, see the module's docstring."""

    name: ClassVar[str] = "lmd"
    config_type: ClassVar[type[TrainerConfig]] = LMDConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({Task.MULTI_CLASS})
    code_version: ClassVar[int] = 2

    def __init__(self, config: LMDConfig, inputs: TrainerInputs) -> None:
        super().__init__(config, inputs)
        self.present = self.counts > 0
        self.teacher = _follower(self.model) if config.stage1.use_mrc else None
        self._updates = 0
        self._rounds_measured = 0
        self._running: tuple[Tensor, Tensor] | None = None

    def build_network(self, resources: dict[str, Weights]) -> PooledNetwork:
        """Backbone, global average pooling and stage 1's throw-away linear classifier."""
        return PooledNetwork(self.config.stage1.backbone, resources.get("backbone"), self._classifier)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One SGD in stage 1; in stage 2 one for the M-step and, where the encoder is updated, one for the E-step."""
        one, two = self.config.stage1, self.config.stage2
        if self.stage == 1:
            return {"stage1": self.sgd(self.model.parameters(), one.lr, one.momentum, one.weight_decay)}
        found = {"m_step": self.sgd(self.model.head.parameters(), two.classifier_lr, two.momentum, two.weight_decay)}
        if two.update_encoder:
            encoder = self.model.encoder_parameters()
            found["e_step"] = self.sgd(encoder, two.backbone_lr, two.momentum, two.weight_decay)
        return found

    def stage1_step(self, step: int) -> dict[str, float]:
        """An epoch: cross-entropy and, from `consistency_start` on, consistency with the teacher; logs `loss`."""
        cfg = self.config.stage1
        self.model.train()
        # Draws of their own for either view: leaving one out leaves the other's as they are.
        strong_draws, weak_draws = self.draws(1, step, "strong view"), self.draws(1, step, "weak view")
        consistent, on_strong = step >= cfg.consistency_from, cfg.ce_view == "released"

        def loss(index: Tensor, raw: Tensor) -> Tensor:
            images = centre_crop(raw, cfg.crop)
            further = torch.zeros((), device=self.device)
            if consistent or on_strong:
                features = self.forward(strong_view(images, cfg.flips, cfg.strength, strong_draws))
                logits = self.model.head(features)
            if consistent or not on_strong:
                weak = weak_view(images, cfg.flips, weak_draws)
            if consistent:
                further = self._consistency(features, logits, weak)
            if not on_strong:
                logits = self.model.head(self.forward(weak))
            return cfg.classification_weight * cross_entropy(logits, self.labels[index]) + further

        mean = self.train_on_images(
            1,
            step,
            order=self.step_order(1, step, cfg.images_per_epoch),
            batch_size=cfg.batch_size,
            loss_of=loss,
            optimizer=self.optimizers["stage1"],
            after_batch=self._follow,
        )
        return {"loss": mean}

    def begin_stage2(self) -> None:
        """A new linear classifier on the student's encoder, or the teacher's."""
        if self.config.stage2.start_from == "teacher" and self.teacher is not None:
            self.model.load_state_dict(self.teacher.state_dict())
            self.encoder_changed()
        self.enter_stage(2)
        self.teacher = None
        self.fresh_head(lambda: self._classifier(self.model.dim))
        self.optimizers = self.build_optimizers()

    def stage2_step(self, step: int) -> dict[str, float]:
        """A round: statistics, M-step, E-step; logs `m_loss` and, where there is an E-step, `e_loss`."""
        losses = {"m_loss": self._m_step(step)}
        if self.config.stage2.update_encoder:
            losses["e_loss"] = self._e_step(step)
        return losses

    def own_state(self) -> State:
        """The teacher, and the running Gaussians."""
        return {
            "teacher": None if self.teacher is None else clone(self.teacher.state_dict()),
            "updates": self._updates,
            "rounds_measured": self._rounds_measured,
            "running": None if self._running is None else clone(list(self._running)),
        }

    def load_own_state(self, state: State) -> None:
        """Takes back what `own_state` gave."""
        self._updates, self._rounds_measured = state["updates"], state["rounds_measured"]
        self.teacher = None
        if state["teacher"] is not None:
            self.teacher = _follower(self.model)
            self.teacher.load_state_dict(state["teacher"])
        running = state["running"]
        # Copies, because they are moved in place.
        self._running = (
            None if running is None else (running[0].to(self.device, copy=True), running[1].to(self.device, copy=True))
        )

    def _classifier(self, dim: int) -> nn.Module:
        return nn.Linear(dim, self.inputs.n_classes)

    def _follow(self) -> None:
        """The teacher's update after a batch."""
        if self.teacher is not None:
            ema_update(self.teacher, self.model, ema_decay(self._updates, self.config.stage1.ema_decay))
        self._updates += 1

    def _consistency(self, features: Tensor, logits: Tensor, weak: Tensor) -> Tensor:
        """lambda_3 L_prob + lambda_1 L_batch + lambda_2 L_channel against the teacher on the weak view."""
        cfg = self.config.stage1
        assert self.teacher is not None
        self.teacher.train()
        with torch.no_grad():
            reference = self.forward(weak, self.teacher)
            reference_logits = self.teacher.head(reference)
        normalised = cfg.gram_form == "released"
        return (
            cfg.probability_weight * probability_consistency(logits, reference_logits)
            + cfg.sample_weight * sample_relation(features, reference, normalised=normalised)
            + cfg.channel_weight * channel_relation(features, reference, normalised=normalised)
        )

    def _moments(self, step: int) -> tuple[Tensor, Tensor]:
        """This round's means (1, K, D) and covariances (1, K, D, D), or variances (1, K, D), in float64."""
        cfg = self.config.stage2
        return covariances(
            self._statistics(step),
            cov_type=cfg.cov_type,
            shrinkage=cfg.shrinkage,
            towards="identity",
            ridge=cfg.cov_eps,
            min_count=cfg.min_cov_samples,
            images=self.counts[None],
        )

    def _statistics(self, step: int) -> GroupSums:
        cfg = self.config.stage2
        if cfg.statistics == "paper":
            return self.current_sums(cfg.cov_type)
        draws = generator("cpu", self.inputs.seed, 2, step, "statistics")
        each = math.ceil(len(self.labels) / int(self.present.sum()))
        order = same_number_each(self.labels, each, draws).to(self.device)
        diagonal = cfg.cov_type == "diag"
        sums = GroupSums(1, self.inputs.n_classes, self.model.dim, diagonal=diagonal, device=self.device)
        for index in torch.split(order, EVAL_BATCH):
            sums.add_multi_class(self.training_features()[index], self.labels[index])
        return sums

    def _fdc(self, gaussians: Gaussians, features: Tensor, targets: Tensor) -> Tensor:
        cfg = self.config.stage2
        distances = gaussians.mahalanobis(features)[0].mT
        return fdc(
            distances / self.model.dim if cfg.fdc_per_dimension else distances,
            targets,
            self.present,
            mode=cfg.fdc_mode,
            sign=cfg.fdc_sign,
            margin=cfg.fdc_margin,
            temperature=cfg.fdc_temperature,
        )

    def _measured(self, step: int) -> Gaussians:
        """This round's Gaussians; where the E-step measures by them, the running ones move, too."""
        cfg = self.config.stage2
        mean, cov = self._moments(step)
        gaussians = Gaussians.of(mean, cov)
        if cfg.update_encoder and cfg.use_fdc:
            self._average(mean, cov)
        return gaussians

    def _average(self, mean: Tensor, cov: Tensor) -> None:
        """Moves the running Gaussians by this round's: a plain average until `distribution_decay` binds.

        In place from the second round on, and the first round's tensors are taken as they are: with many classes a
        covariance tensor more would be felt.
        """
        decay = ema_decay(self._rounds_measured, self.config.stage2.distribution_decay)
        self._rounds_measured += 1
        if self._running is None:
            self._running = (mean, cov)
            return
        for running, new in zip(self._running, (mean, cov), strict=True):
            running.lerp_(new, 1 - decay)

    def _m_step(self, step: int) -> float:
        """Trains the classifier on R features per class that has images; returns the mean loss."""
        cfg = self.config.stage2
        # Released statistics are drawn anew each round, whether or not the encoder has changed.
        gaussians = (
            self._measured(step) if cfg.statistics == "released" else self.kept_gaussians(lambda: self._measured(step))
        )
        if cfg.use_vfc:
            drawn = self.virtual_features(step, gaussians, cfg.virtual_size, cfg.m_batch_size)
        else:
            drawn = self.balanced_features(step, cfg.virtual_size * int(self.present.sum()), cfg.m_batch_size)
        return self.train_on_features(drawn, loss_of=cross_entropy, optimizer=self.optimizers["m_step"])

    def _e_step(self, step: int) -> float:
        """Trains the encoder on un-augmented images, the classifier frozen; returns the mean loss."""
        cfg = self.config.stage2
        self.encoder_changed()  # about to: what was measured of it makes room for the running Gaussians
        gaussians = Gaussians.of(*self._running) if self._running is not None else None

        def loss(index: Tensor, raw: Tensor) -> Tensor:
            features, targets = self.forward(self.evaluation_view(raw)), self.labels[index]
            logits = self.model.head(features if cfg.label_gradient == "paper" else features.detach())
            total = cross_entropy(logits, targets) if cfg.label_loss == "ce" else softmax_gce(logits, targets, cfg.q)
            return total if gaussians is None else total + cfg.fdc_weight * self._fdc(gaussians, features, targets)

        return self.train_encoder(
            step,
            order=self.step_order(2, step, cfg.e_step_images, exponent=1.0 if cfg.balanced_e else None),
            batch_size=cfg.e_batch_size,
            loss_of=loss,
            batch_norm_moves=cfg.bn_mode_e == "train",
        )


def _follower(network: Network) -> Network:
    """A copy that is never trained by gradients: a teacher at the start."""
    return copy.deepcopy(network).requires_grad_(False)
