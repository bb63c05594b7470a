"""Metric learning in two stages: a metric loss beside the classification of stage 1, then a re-balanced classifier.

Zeng et al., "Learning Discriminative Representation via Metric Learning for Imbalanced Medical Image Classification"
(arXiv 2207.06975). Of that paper only the abstract could be read: stage 1 learns an extractor with a metric loss added,
stage 2 re-balances the head. So what it leaves open is taken from the same group's public code, Triplet_Center and
Gradient_Perturb of KHao123, below [TC] and [GP], and for stage 2 from Kang et al. (arXiv 1910.09217), below [D]; what
is our recommendation is marked [R].

    h = mean of the backbone's map, e = normalise(linear(h)), L_stage1 = L_cls + lambda L_metric(e)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.base import Task, TrainerConfig, TrainerInputs, Weights
from trainers.features.gaussians import GroupSums, moments
from trainers.image_config import AugmentedStage1
from trainers.image_trainer import fused
from trainers.images import batches
from trainers.images.augment import training_images
from trainers.images.class_batches import class_batches
from trainers.losses.metric import (
    CentreNegatives,
    Mined,
    Pairs,
    Selector,
    contrastive,
    mean_negative_distance,
    n_pair,
    supervised_contrastive,
    triplet,
    triplet_centre,
)
from trainers.losses.softmax import class_balanced_weights, cross_entropy, logit_adjusted
from trainers.methods.rebalancing import RebalancingConfig, RebalancingStage2, RebalancingTrainer
from trainers.networks.heads import ClassHead
from trainers.networks.network import PooledNetwork
from trainers.seeding import generator, seeded

Metric = Literal["triplet", "triplet_center", "npair", "supcon", "contrastive", "none"]
HeadInput = Literal["h", "e"]
Method = Literal["none", "crt", "reweight", "balsoft", "lws", "tau_norm", "ncm"]

FROM_SCRATCH = frozenset({"crt", "reweight", "balsoft"})
"""Methods that train weights of the head; they may start from new ones."""

COLLAPSED = 1e-2
"""Mean distance of negatives below which all embeddings are as good as one, and the log says so."""

_log = logging.getLogger(__name__)


class MetricStage1(AugmentedStage1):
    """Classification plus a metric loss. Defaults are the public code's, or [R]."""

    epochs: int = Field(100, ge=1, le=10_000)
    """Length of stage 1 in passes over the training images, or over `images_per_epoch` of them ([TC] 100 to 200). Where
    metric batches come beside those of the classification (`loaders` two), their images are not counted."""
    backbone: str = "resnet50"
    """Network whose feature map is used ([TC], [GP] resnet50): `conv4` (small images), or any torchvision
    classification network that gives a feature map."""
    batch_size: int = Field(16, ge=2, le=65_536)
    """Images in a batch of the classification ([TC] 16)."""
    crop: float = Field(224 / 300, gt=0, le=1)
    """Side of the cropped image as a fraction of the image's ([TC], [GP] 224 of 300). Evaluation takes the centre."""
    augmentation: Literal["none", "crop", "crop+flip", "crop+flip+rotate"] = "crop"
    """Random place of the crop ([TC], [GP]), horizontal flip, rotation by up to 15 degrees; `none`: the centre crop."""
    metric: Metric = "triplet"
    """L_metric: `triplet`, with a `selector`; `triplet_center`, against the classes' mean embeddings, which are taken
    anew at each step; `npair`; `supcon`, supervised contrastive; `contrastive`. `none` leaves it out (ablation)."""
    selector: Selector = "random_hard"
    """Triplets of `triplet` ([TC] mostly random_hard), see `trainers.losses.metric`. `batch_hard` and `hardest_neg`
    may collapse from random weights: warm up, or use `semi_hard`."""
    margin: float = Field(0.5, ge=0, le=4)
    """m of `triplet`, of squared distances between unit vectors, which are at most 4 ([TC] 0.5). Too small where the
    logged share `active` falls below 1 % early."""
    center_margin: float = Field(0.5, ge=0, le=4)
    """m of `triplet_center`, of squared distances ([TC] 0.5; 0 in one script that starts from a trained network)."""
    center_negatives: CentreNegatives = "all"
    """Other classes in `triplet_center`: all that violate the margin, or the worst one only (both [TC])."""
    contrastive_margin: float = Field(0.5, gt=0, le=2)
    """m of `contrastive`, of distances between unit vectors, which are at most 2 ([TC] 0.5)."""
    temperature: float = Field(0.1, gt=0, le=100)
    """T of `supcon` (arXiv 2004.11362: 0.1)."""
    metric_weight: float = Field(1.0, gt=0, le=1000)
    """lambda, the weight of L_metric beside L_cls [R]."""
    warm_up: float = Field(0.0, ge=0, le=1)
    """Fraction of stage 1 over which lambda grows linearly from 0 [R, 0 = at once]. Without a classification there is
    nothing to warm up with, and it grows at once."""
    mode: Literal["joint", "metric_only"] = "joint"
    """`metric_only`: without L_cls, as in [TC]; then stage 2 must start a new head, or be `ncm`."""
    loaders: Literal["two", "one"] = "two"
    """Batches: a natural one for L_cls and one of P classes x S images for L_metric, in one step [R]; or the latter for
    both, with the prior taken out of L_cls, z_k - log pi_k, which leaves its optimum where natural sampling has it."""
    class_weights: Literal["none", "effective"] = "none"
    """Weights of classes in L_cls: by effective number (arXiv 1901.05555) [R, off]. With two loaders only."""
    class_beta: float = Field(0.9999, ge=0, lt=1)
    """beta of those effective numbers."""
    head_input: HeadInput = "h"
    """What the classifier reads in both stages: pooled features h [R], or ReLU(e) as in [TC]."""
    embedding_dim: int = Field(128, ge=2, le=8192)
    """d, the width of e ([TC] 128)."""
    classes_per_batch: int = Field(7, ge=2, le=10_000)
    """P, classes in a metric batch; fewer where there are fewer ([TC] 7 of 7 on Skin7, 20 on SD-198)."""
    images_per_class: int = Field(10, ge=2, le=1000)
    """S, images of each ([TC] 10 on Skin7, 5 on SD-198). Classes with fewer images repeat some; the pair of an image
    with itself counts for nothing."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """`adam`: betas 0.9 and 0.99, AMSGrad ([TC]); `sgd` ([GP], with a learning rate of 1e-3)."""
    lr: float = Field(1e-4, gt=0, le=10)
    """Learning rate at the start ([TC] 1e-4)."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD's momentum ([GP])."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """L2 penalty ([TC] 0, [GP] 5e-4)."""
    lr_schedule: Literal["step", "cosine", "constant"] = "step"
    """`step`: a tenth after each `lr_step` ([TC]); `cosine` to 0."""
    lr_step: float = Field(0.5, gt=0, le=1)
    """Fraction of stage 1 after which `step` divides the rate ([TC] 50 of 100 epochs)."""

    @property
    def embeds(self) -> bool:
        """Whether anything trains the embedding."""
        return self.metric != "none" or self.head_input == "e"

    @property
    def warmed_up_after(self) -> int:
        """Steps before lambda reaches its full value; 0 without a ramp."""
        mixed = self.mode == "joint" and self.metric != "none"
        return math.ceil(self.warm_up * self.epochs - 1e-9) if mixed else 0

    def lambda_at(self, step: int) -> float:
        """lambda in step `step` (from 0)."""
        ramp = self.warmed_up_after
        return self.metric_weight * (min(1.0, step / ramp) if ramp else 1.0)

    def lr_at(self, step: int) -> float:
        """The learning rate in step `step` (from 0)."""
        if self.lr_schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * step / self.epochs)) / 2
        if self.lr_schedule == "step":
            return float(self.lr * 0.1 ** math.floor(step / (self.lr_step * self.epochs) + 1e-9))
        return self.lr

    @model_validator(mode="after")
    def _losses_fit(self) -> MetricStage1:
        if self.mode == "metric_only" and self.metric == "none":
            raise ValueError("mode metric_only needs a metric; set metric to triplet, ..., or mode to joint")
        if self.loaders == "one" and self.class_weights != "none":
            raise ValueError("class_weights are for natural batches; set loaders to two, or class_weights to none")
        return self


class MetricStage2(RebalancingStage2):
    """The classifier, re-balanced on the frozen extractor. Defaults are those of [D], or [R]."""

    method: Method = "crt"
    """`none`: stage 1's head. `crt`: a head on class-balanced samples. `reweight`: on natural ones, weighted by
    effective number. `balsoft`: on natural ones by balanced softmax (arXiv 2007.10740). `lws`: a learned scale per
    class, class-balanced. `tau_norm`: weights divided by their norm^tau. `ncm`: nearest class mean by cosine, of e
    where there is one."""
    lr: float = Field(0.1, gt=0, le=100)
    """SGD's learning rate of the methods that learn, at a batch of 512, scaled with the batch; a cosine to 0 ([D] 0.1
    to 0.2)."""
    head_init: Literal["reinit", "stage1"] = "reinit"
    """Where `crt`, `reweight` and `balsoft` start: a new head ([D]) or stage 1's."""
    beta: float = Field(0.9999, ge=0, lt=1)
    """beta of the effective numbers in `reweight` (arXiv 1901.05555)."""
    bn_update: bool = False
    """Before each round of the methods that learn, batch norms adapt to images sampled as the method samples [R off]:
    features are then extracted anew in each round."""

    @property
    def trains(self) -> bool:
        """Whether rounds train something; else stage 2 is a formula."""
        return self.method not in ("none", "tau_norm", "ncm")

    @property
    def balanced(self) -> bool:
        """Whether what rounds train on is class-balanced."""
        return self.method in ("crt", "lws")

    @property
    def needs_stage1_head(self) -> bool:
        """Whether the method starts from the head of stage 1."""
        return self.method in ("none", "lws", "tau_norm") or (
            self.method in FROM_SCRATCH and self.head_init == "stage1"
        )


class MetricConfig(RebalancingConfig):
    """All parameters of two-stage metric learning."""

    stage1: MetricStage1 = Field(default_factory=MetricStage1)
    stage2: MetricStage2 = Field(default_factory=MetricStage2)

    def most(self, n_classes: int) -> Mapping[str, int]:
        """A batch has no more classes than there are."""
        return {"stage1.classes_per_batch": n_classes}

    @model_validator(mode="after")
    def _head_exists(self) -> MetricConfig:
        if self.stage1.mode == "metric_only" and self.stage2.needs_stage1_head:
            raise ValueError(
                "stage1.mode metric_only trains no head: stage2.method must be crt, reweight or balsoft with head_init "
                "reinit, or ncm"
            )
        return self

    def losses_active_from(self) -> dict[int, int]:
        """All losses of stage 1 are fully active once lambda has its full value."""
        return {1: self.stage1.warmed_up_after, 2: 0}

    def notes(self, train_counts: Mapping[str, int]) -> tuple[str, ...]:
        """Names the classes that cannot fill their share of a metric batch."""
        one = self.stage1
        few = {name: n for name, n in train_counts.items() if 0 < n < one.images_per_class}
        if not few or (one.metric == "none" and one.loaders == "two"):
            return ()
        named = ", ".join(f"{name} ({n})" for name, n in few.items())
        return (
            f"metric batches take {one.images_per_class} images a class (stage1.images_per_class), and repeat some of "
            f"the classes that have fewer: {named}",
        )


class EmbeddingHead(ClassHead):
    """A `ClassHead` that reads ReLU(e) where it reads an embedding, unless it compares directions."""

    def __init__(self, dim: int, n_classes: int, *, rectify: bool) -> None:
        super().__init__(dim, n_classes)
        self.rectify = rectify

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to logits (B, K)."""
        return super().forward(F.relu(features) if self.rectify and not self.cosine else features)


class EmbeddingNetwork(PooledNetwork):
    """Backbone, pooling, a normalised linear embedding and a head on either. Features are what the head reads: h or e.

    Initial weights come from torch's global generator.
    """

    def __init__(self, config: MetricStage1, weights: Weights | None, n_classes: int) -> None:
        super().__init__(config.backbone, weights, lambda _: nn.Identity())
        self.n_classes, self.pooled_dim, self.embedding_dim = n_classes, self.dim, config.embedding_dim
        self.embedding: nn.Linear | None = None
        self._read(config.head_input)
        self.arrange(config.head_input, embeds=config.embeds)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to h (B, D) or e (B, d)."""
        pooled = super().features(images)
        return self.embed(pooled) if self.reads == "e" else pooled

    def embed(self, pooled: Tensor) -> Tensor:
        """e (B, d) of h (B, D), of unit length; float32 whatever autocast does, because margins are small."""
        assert self.embedding is not None
        with torch.autocast(pooled.device.type, enabled=False):
            return F.normalize(self.embedding(pooled.float()))

    def embedding_of(self, features: Tensor) -> Tensor:
        """e (B, d) of what the head reads."""
        return features if self.reads == "e" else self.embed(features)

    def arrange(self, reads: HeadInput, *, embeds: bool) -> None:
        """Lets the head read h or e, and has an embedding or none. Parts that are new have weights without meaning."""
        if reads != self.reads:
            self._read(reads)
        if embeds != (self.embedding is not None):
            self.embedding = nn.Linear(self.pooled_dim, self.embedding_dim).to(self._device) if embeds else None

    def _read(self, reads: HeadInput) -> None:
        self.reads = reads
        self.dim = self.embedding_dim if reads == "e" else self.pooled_dim
        self.head = EmbeddingHead(self.dim, self.n_classes, rectify=reads == "e").to(self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.backbone.parameters()).device


class MetricTrainer(RebalancingTrainer[MetricConfig]):
    """Trains both stages, see the module's docstring."""

    name: ClassVar[str] = "metric"
    config_type: ClassVar[type[TrainerConfig]] = MetricConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({Task.MULTI_CLASS})
    code_version: ClassVar[int] = 1
    model: EmbeddingNetwork

    def __init__(self, config: MetricConfig, inputs: TrainerInputs) -> None:
        super().__init__(config, inputs)
        self.present = self.counts > 0

    def build_network(self, resources: dict[str, Weights]) -> EmbeddingNetwork:
        """Backbone, pooling, embedding and stage 1's head."""
        return EmbeddingNetwork(self.config.stage1, resources.get("backbone"), self.inputs.n_classes)

    def enter_stage(self, stage: int) -> None:
        """Also says what the head reads, and drops an embedding that nothing in stage 2 needs."""
        super().enter_stage(stage)
        one, means = self.config.stage1, stage == 2 and self.config.stage2.method == "ncm"
        reads: HeadInput = "e" if means and one.embeds else one.head_input
        with seeded(torch.device("cpu"), self.inputs.seed, stage, "parts"):
            self.model.arrange(reads, embeds=one.embeds if stage == 1 else reads == "e")
        self._head.cosine = means

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Adam or SGD in stage 1; in stage 2 SGD of what the method learns, if anything."""
        one, two, head = self.config.stage1, self.config.stage2, self._head
        if self.stage == 1:
            parameters = [p for p in self.model.parameters() if p is not head.scale]  # scales are stage 2's
            if one.optimizer == "sgd":
                return {"stage1": self.sgd(parameters, one.lr, one.momentum, one.weight_decay)}
            adam = torch.optim.Adam(
                parameters,
                lr=one.lr,
                betas=(0.9, 0.99),
                weight_decay=one.weight_decay,
                amsgrad=True,
                **fused(self.device),
            )
            return {"stage1": adam}
        if not two.trains:
            return {}
        learned = [head.scale] if two.method == "lws" else [head.weight, head.bias]
        return {"head": self.sgd(learned, two.lr, two.momentum, two.weight_decay)}

    def stage1_step(self, step: int) -> dict[str, float]:
        """An epoch of L_cls + lambda L_metric.

        Logs the mean `loss`, and where there is a metric `metric_loss`, `negative_distance` and, of losses with a
        margin, `active`, the share of candidates that violate it: means over batches.
        """
        cfg = self.config.stage1
        centres = self._centres() if cfg.metric == "triplet_center" else None
        self.model.train()
        optimizer = self.optimizers["stage1"]
        optimizer.param_groups[0]["lr"] = cfg.lr_at(step)
        draws, mining = self.draws(1, step, "augmentation"), self.draws(1, step, "mining")
        weight, seen = cfg.lambda_at(step), _BatchMeans()
        order, batch_size, beside = self._batches(step)

        def loss(index: Tensor, raw: Tensor) -> Tensor:
            features = self.forward(training_images(raw, cfg.augmentations, draws))
            natural = len(index) - beside
            total = torch.zeros((), device=self.device)
            if cfg.mode == "joint":
                total = self._classification(self._head(features[:natural]), self.labels[index[:natural]])
            if cfg.metric != "none":
                own = slice(natural if beside else 0, None)
                mined = self._metric(self.model.embedding_of(features[own]), index[own], centres, mining, seen)
                total = total + weight * mined
            return total

        mean = self.train_on_images(1, step, order=order, batch_size=batch_size, loss_of=loss, optimizer=optimizer)
        measured = seen.means()
        if measured.get("negative_distance", COLLAPSED) < COLLAPSED:
            _log.warning(
                "epoch %d: the embeddings of different classes are one: use stage1.warm_up, or selector "
                "semi_hard or random_hard",
                step + 1,
            )
        return {"loss": mean, **measured}

    def begin_stage2(self) -> None:
        """Applies the methods that are formulas, and starts those that learn."""
        cfg, before = self.config.stage2, self.model.reads
        self.enter_stage(2)
        if self.model.reads != before:
            self.encoder_changed()
        if cfg.method in FROM_SCRATCH and cfg.head_init == "reinit":
            self.fresh_head(lambda: ClassHead(self.model.dim, self.inputs.n_classes))
        self.rebalance_by_formula()
        self.optimizers = self.build_optimizers()

    def stage2_step(self, step: int) -> dict[str, float]:
        """A round of the methods that learn, logging `head_loss`; nothing for the others."""
        cfg, total = self.config.stage2, len(self.labels)
        if not cfg.trains:
            return {}
        if cfg.bn_update:
            self.move_batch_norms(step, exponent=1.0 if cfg.balanced else None)
        draw = self.balanced_features if cfg.balanced else self.natural_features
        return {"head_loss": self.train_head(step, draw(step, total, cfg.batch_size), total, self._head_loss())}

    def natural_features(self, step: int, n: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`n` training features (B, D) with their labels, each image once an epoch, in batches, for stage 2."""
        order = torch.from_numpy(self.step_order(2, step, n)).to(self.device)
        for index in torch.split(order, batch_size):
            yield self.training_features()[index], self.labels[index]

    def _batches(self, step: int) -> tuple[batches.Indices, int, int]:
        """A step's images in order, its batch size, and how many at the end of each batch are for the metric alone."""
        cfg = self.config.stage1
        images = cfg.images_per_epoch or len(self.labels)
        own = min(cfg.classes_per_batch, int(self.present.sum())) * cfg.images_per_class
        if cfg.mode == "metric_only" or cfg.loaders == "one":
            return self._class_batches(step, math.ceil(images / own)).ravel(), own, 0
        natural = self.step_order(1, step, cfg.images_per_epoch)
        if cfg.metric == "none":
            return natural, cfg.batch_size, 0
        parts = np.split(natural, range(cfg.batch_size, images, cfg.batch_size))
        rows = self._class_batches(step, len(parts))
        order = np.concatenate([both for pair in zip(parts, rows, strict=True) for both in pair])
        return order, cfg.batch_size + own, own

    def _class_batches(self, step: int, n: int) -> batches.Indices:
        """`n` batches of P classes x S images, (n, P * S)."""
        cfg = self.config.stage1
        draws = generator("cpu", self.inputs.seed, 1, step, "class batches")
        return class_batches(self.labels, n, cfg.classes_per_batch, cfg.images_per_class, draws).numpy()

    def _classification(self, logits: Tensor, targets: Tensor) -> Tensor:
        cfg = self.config.stage1
        if cfg.loaders == "one":
            return logit_adjusted(logits, targets, self.counts, tau=-1.0)
        weights = class_balanced_weights(self.counts, cfg.class_beta) if cfg.class_weights == "effective" else None
        return cross_entropy(logits, targets, weights)

    def _metric(
        self, e: Tensor, index: Tensor, centres: Tensor | None, mining: torch.Generator, seen: _BatchMeans
    ) -> Tensor:
        """L_metric of embeddings (B, d) of the images `index` (B,)."""
        cfg, labels = self.config.stage1, self.labels[index]
        pairs = Pairs.of(labels, index)
        match cfg.metric:
            case "triplet":
                found: Mined | Tensor = triplet(e, pairs, cfg.margin, cfg.selector, mining)
            case "triplet_center":
                assert centres is not None
                found = triplet_centre(e, labels, centres, self.present, cfg.center_margin, cfg.center_negatives)
            case "contrastive":
                found = contrastive(e, pairs, cfg.contrastive_margin)
            case "npair":
                found = n_pair(e, pairs, mining)
            case _:
                found = supervised_contrastive(e, pairs, cfg.temperature)
        measured = {"negative_distance": mean_negative_distance(e, pairs)}
        if isinstance(found, Mined):
            measured["active"] = found.active
            found = found.loss
        seen.add({"metric_loss": found.detach(), **measured})
        return found

    @torch.no_grad()
    def _centres(self) -> Tensor:
        """Mean embeddings (K, d) of the classes over all training images in evaluation mode, float32."""
        sums = GroupSums(1, self.inputs.n_classes, self.model.embedding_dim, diagonal=True, device=self.device)
        for index, features in self.extract(self.inputs.images):
            sums.add_multi_class(self.model.embedding_of(features), self.labels[index])
        return moments(sums).mean[0].float()

    def _head_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Stage 2's loss as a function of logits and targets."""
        cfg = self.config.stage2
        if cfg.method == "reweight":
            weights = class_balanced_weights(self.counts, cfg.beta)
            return lambda logits, targets: cross_entropy(logits, targets, weights)
        if cfg.method == "balsoft":
            return lambda logits, targets: logit_adjusted(logits, targets, self.counts)
        return cross_entropy


class _BatchMeans:
    """Means over batches of scalars by name, read from the device once."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._batches = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """The scalars of one batch."""
        self._batches += 1
        for name, value in values.items():
            self._totals[name] = self._totals[name] + value if name in self._totals else value

    def means(self) -> dict[str, float]:
        """The mean of each scalar."""
        return {name: total.item() / self._batches for name, total in self._totals.items()}
