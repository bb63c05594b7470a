"""LDRNet: label decoupling, then label distribution reconstruction, for long-tailed multi-label images.

Huang et al., ACM Multimedia 2024, doi 10.1145/3664647.3680606. Stage 1 learns one feature vector per image and label
(Eq 1-7). Stage 2 describes those vectors by two Gaussians per label, present and absent (Eq 9-10), and alternates:

- M-step: the classifier learns from virtual features of reverse-sampled labels (Eq 12-14), the encoder is frozen;
- E-step: backbone and encoder learn from real images with a generalised cross-entropy (Eq 16), the classifier is
  frozen.

What the paper leaves open is marked [R] below: our recommendation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainers.base import Resource, Stage2Config, State, Task, TrainerConfig, TrainerInputs, Weights
from trainers.features.gaussians import CovType, Gaussians, GroupSums, Target, fit
from trainers.features.sampling import reverse_probabilities
from trainers.image_config import NONE, AugmentedStage1, ImageTrainerConfig
from trainers.image_trainer import ImageTrainer, fused
from trainers.images.augment import training_images
from trainers.losses.sigmoid import GceForm, bce, gce, reweight
from trainers.networks.backbones import build, load_trunk
from trainers.networks.label_decoder import GroupWiseLinear, LabelDecoder, PooledFeatures, check_width
from trainers.networks.network import Network


class LDRNetStage1(AugmentedStage1):
    """Label decoupling. Defaults are the paper's values, or [R]."""

    backbone: str = "resnet50"
    """Network whose feature map is used: `conv4` (small images), or any torchvision classification network that gives
    a feature map. Paper 4.3: resnet50 or densenet121."""
    decoupling: bool = True
    """Class-aware features from the label transformer; off: one globally average-pooled vector shared by all classes
    (paper, Table 4)."""
    d_model: Annotated[int, Field(ge=4, le=8192)] | Literal["backbone"] = "backbone"
    """Width D of features: a number projects the backbone's channels to it by a 1 x 1 convolution; `backbone` keeps
    the channels (paper). [R] 512 for wide backbones: stage 2 estimates D x D covariances from few positives."""
    layers: int = Field(1, ge=1, le=12)
    """Transformer encoder layers [R]."""
    heads: int = Field(8, ge=1, le=64)
    """Attention heads; a divisor of D [R]."""
    ffn: int = Field(2048, ge=1, le=32_768)
    """Hidden width of the encoder's feed-forward nets [R]."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout in the encoder [R]."""
    prompt: str = NONE
    """Text tokens put before the label queries: a text encoder that encodes the label names, by its name on the Hugging
    Face hub or its folder; a .safetensors or .pt file of tokens (M, D'); or `none`. Paper, Table 5: CLIP's text
    transformer, as in `openai/clip-vit-base-patch32`."""
    positions: bool = True
    """2-D sine position encoding on the image tokens, as in Query2Label; the paper's equations have none [R]."""
    lr: float = Field(1e-4, gt=0, le=1)
    """Adam's learning rate (paper 4.3)."""
    weight_decay: float = Field(1e-5, ge=0, le=1)
    """Adam's L2 penalty (paper 4.3)."""

    @model_validator(mode="after")
    def _consistent(self) -> LDRNetStage1:
        if self.decoupling and self.d_model != "backbone":
            check_width(self.d_model, self.heads, positions=self.positions)
        if self.prompt != NONE and not self.decoupling:
            raise ValueError(
                "prompt tokens are read by the label transformer only; set prompt to none or decoupling on"
            )
        return self


class LDRNetStage2(Stage2Config):
    """Label distribution reconstruction. Defaults are the paper's values, or [R]."""

    reconstruction: bool = True
    """Off: rounds change nothing, stage 1's head stays (paper, Table 4)."""
    alpha: float = Field(0.9, ge=0, le=4)
    """Exponent of reverse sampling (Eq 12; paper 3.4 and Fig 3a); 0 is uniform, larger favours rare labels."""
    sampling: Literal["reverse", "uniform"] = "reverse"
    """How labels of virtual images are drawn; `uniform` ignores alpha (paper, Table 6)."""
    mean_positives: float = Field(1.0, gt=0, le=100)
    """Factor on the label probabilities: expected positives in a virtual image; what it raises stops at 0.5. 1 = paper
    [R]."""
    virtual_images: int = Field(50_000, ge=1, le=100_000_000)
    """R, virtual images per round, drawn anew in each [R: the paper gives none]."""
    cov_type: CovType = "auto"
    """Covariances: `full`; `diag`; or `auto`: diagonal for groups of fewer than 2 D images, and where D > 1024 [R]."""
    shrinkage: float = Field(0.1, ge=0, le=1)
    """g in (1 - g) S + g T [R]."""
    shrink_towards: Target = "identity"
    """T: `identity`, tr(S) / D * I, or `pooled`, the label's covariance within both its groups [R]."""
    shrinkage_count: float = Field(0.0, ge=0, le=1e6)
    """n0 images: a group of n is shrunk with g = 1 - (1 - shrinkage) n / (n + n0), rare ones more [not in the paper,
    0 = off]."""
    statistics: Literal["every_round", "once"] = "every_round"
    """When means and covariances are taken: before each round whose encoder has changed, or once before the first
    [R]."""
    head_init: Literal["continue", "reinit"] = "continue"
    """Stage 2 starts from stage 1's head (paper 3.4, fine-tuning), or from a new one."""
    m_lr: float = Field(1e-4, gt=0, le=1)
    """Adam's learning rate of the head in the M-step [R]."""
    m_batch_size: int = Field(128, ge=1, le=65_536)
    """Virtual images in a batch [R]."""
    reweight_power: float = Field(0.0, ge=0, le=4)
    """Weight of label c's positives in the M-step's BCE, (n_max / n_c)^power normalised to mean 1 [not in the paper,
    0 = off]. Only of positives: Adam undoes a factor on all of a label's terms, since each label has its own head."""
    update_encoder: bool = True
    """E-step on or off; off trains the head only, on the same statistics in every round."""
    e_lr: float = Field(1e-5, gt=0, le=1)
    """Adam's learning rate of backbone and encoder in the E-step [R]."""
    e_batch_size: int = Field(32, ge=2, le=65_536)
    """Real images in an E-step batch [R: stage 1's]."""
    e_step_images: int | None = Field(None, ge=1)
    """Real images in one E-step; None: all training images [R]."""
    e_step_start: int = Field(0, ge=0, le=10_000)
    """First round (from 0) that has an E-step [not in the paper, 0 = off]."""
    e_step_weight: float = Field(1.0, ge=0, le=1)
    """w in the E-step's loss w * GCE + (1 - w) * BCE; 1 = paper. A mixture, because Adam undoes a mere factor."""
    gce_form: GceForm = "valid"
    """The E-step's loss, see `trainers.losses.sigmoid.gce`; as printed (Eq 16) it is NaN for positives [R]."""
    q: float = Field(0.8, gt=0, le=1)
    """Exponent of the generalised cross-entropy (paper 3.4, Fig 3b): towards 0 it is BCE, 1 is the absolute error."""
    weight_decay: float = Field(1e-5, ge=0, le=1)
    """Adam's L2 penalty in both steps (paper 4.3)."""

    @property
    def has_e_step(self) -> bool:
        """Whether any round may train the encoder."""
        return self.reconstruction and self.update_encoder


class LDRNetConfig(ImageTrainerConfig):
    """All of LDRNet's parameters."""

    stage1: LDRNetStage1 = Field(default_factory=LDRNetStage1)
    stage2: LDRNetStage2 = Field(default_factory=LDRNetStage2)

    def resources(self) -> tuple[Resource, ...]:
        """Backbone weights and prompt tokens, where they are not `none`."""
        prompt = self.stage1.prompt
        return super().resources() + ((Resource("prompt", "tokens", prompt),) if prompt != NONE else ())

    def losses_active_from(self) -> dict[int, int]:
        """All losses of stage 2 are active after its first E-step."""
        return {1: 0, 2: self.stage2.e_step_start if self.stage2.has_e_step else 0}


class LDRNet(Network):
    """Backbone, label decoder and group-wise head. Initial weights come from torch's global generator."""

    def __init__(self, config: LDRNetStage1, n_classes: int, resources: dict[str, Weights]) -> None:
        super().__init__()
        self.backbone, channels = build(config.backbone)
        dim = None if config.d_model == "backbone" else config.d_model
        if "backbone" in resources:
            load_trunk(self.backbone, resources["backbone"], config.backbone)
        prompt = resources["prompt"]["tokens"] if "prompt" in resources else None
        self.decoder: LabelDecoder | PooledFeatures
        if config.decoupling:
            self.decoder = LabelDecoder(
                channels,
                n_classes,
                dim=dim,
                layers=config.layers,
                heads=config.heads,
                ffn=config.ffn,
                dropout=config.dropout,
                positions=config.positions,
                prompt=prompt,
            )
        else:
            self.decoder = PooledFeatures(channels, n_classes, dim=dim)
        self.dim = self.decoder.dim
        self.head = GroupWiseLinear(n_classes, self.dim)

    def features(self, images: Tensor) -> Tensor:
        """Class-aware features (B, C, D) of normalised images (B, 3, S, S)."""
        features: Tensor = self.decoder(self.backbone(images))
        return features


class LDRNetTrainer(ImageTrainer[LDRNetConfig]):
    """Trains LDRNet, see the module's docstring."""

    name: ClassVar[str] = "ldrnet"
    config_type: ClassVar[type[TrainerConfig]] = LDRNetConfig
    tasks: ClassVar[frozenset[Task]] = frozenset({Task.MULTI_LABEL})
    code_version: ClassVar[int] = 1
    class_aware: ClassVar[bool] = True

    def __init__(self, config: LDRNetConfig, inputs: TrainerInputs) -> None:
        super().__init__(config, inputs)
        self._first_sums: GroupSums | None = None

    def build_network(self, resources: dict[str, Weights]) -> LDRNet:
        """LDRNet with the backbone's weights and the prompt tokens, where there are any."""
        return LDRNet(self.config.stage1, self.inputs.n_classes, resources)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One Adam in stage 1; in stage 2 one for the M-step and, where the encoder is updated, one for the E-step."""
        one, two = self.config.stage1, self.config.stage2
        if self.stage == 1:
            return {"stage1": self._adam(self.model.parameters(), one.lr, one.weight_decay)}
        if not two.reconstruction:
            return {}
        optimizers = {"m_step": self._adam(self.model.head.parameters(), two.m_lr, two.weight_decay)}
        if two.update_encoder:
            optimizers["e_step"] = self._adam(self.model.encoder_parameters(), two.e_lr, two.weight_decay)
        return optimizers

    def stage1_step(self, step: int) -> dict[str, float]:
        """An epoch, or the next `images_per_epoch` images, of BCE on real images (Eq 7); logs `loss`."""
        cfg = self.config.stage1
        self.model.train()
        draws = self.draws(1, step, "augmentation")
        loss = self.train_on_images(
            1,
            step,
            order=self.step_order(1, step, cfg.images_per_epoch),
            batch_size=cfg.batch_size,
            loss_of=lambda index, raw: bce(self._augmented_logits(raw, draws), self.labels[index]),
            optimizer=self.optimizers["stage1"],
        )
        return {"loss": loss}

    def begin_stage2(self) -> None:
        """Replaces the optimiser by those of the M- and the E-step, and takes the first statistics."""
        cfg = self.config.stage2
        self.enter_stage(2)
        if cfg.reconstruction and cfg.head_init == "reinit":
            self.fresh_head(lambda: GroupWiseLinear(self.inputs.n_classes, self.model.dim))
        self.optimizers = self.build_optimizers()
        if cfg.reconstruction and cfg.statistics == "once":
            self._first_sums = self.current_sums(cfg.cov_type)

    def stage2_step(self, step: int) -> dict[str, float]:
        """A round: M-step, then E-step; logs `m_loss` and, where there is an E-step, `e_loss`."""
        cfg = self.config.stage2
        if not cfg.reconstruction:
            return {}
        losses = {"m_loss": self._m_step(step)}
        if cfg.update_encoder and step >= cfg.e_step_start:
            losses["e_loss"] = self._e_step(step)
        return losses

    def own_state(self) -> State:
        """The statistics that are taken once."""
        return {"first_sums": self._first_sums.state() if self._first_sums else None}

    def load_own_state(self, state: State) -> None:
        """Takes back the statistics that are taken once."""
        first = state["first_sums"]
        self._first_sums = GroupSums.from_state(first, self.device) if first else None

    @classmethod
    def from_model(cls, config: LDRNetConfig, inputs: TrainerInputs, model: State) -> Self:
        """A trainer that predicts with exported weights; the prompt tokens are among them."""
        prompts = [resource for resource in config.resources() if resource.kind == "prompt"]
        tokens = {resource.key: {"tokens": model["decoder.tokens"]} for resource in prompts}
        return super().from_model(config, replace(inputs, resources=tokens), model)

    def _adam(self, parameters: Iterator[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay, **fused(self.device))

    def _augmented_logits(self, raw: Tensor, draws: torch.Generator) -> Tensor:
        """Logits (B, C) of augmented training images."""
        logits: Tensor = self.model.head(self.forward(training_images(raw, self.config.stage1.augmentations, draws)))
        return logits

    def _m_step(self, step: int) -> float:
        """Trains the head on R virtual images (Eq 12-14) with BCE; returns the mean loss."""
        positive_weights = reweight(self.counts, self.config.stage2.reweight_power)
        return self.train_on_features(
            self._virtual_images(step),
            loss_of=lambda logits, y: bce(logits, y, 1 + y * (positive_weights - 1)),
            optimizer=self.optimizers["m_step"],
        )

    def _virtual_images(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """R virtual images in batches: features (B, C, D) and labels (B, C)."""
        cfg = self.config.stage2
        gaussians = self.kept_gaussians(self._fitted)
        alpha = cfg.alpha if cfg.sampling == "reverse" else 0.0
        p = reverse_probabilities(self.counts, alpha, cfg.mean_positives).float()
        label_draws = self.draws(2, step, "virtual labels")
        feature_draws = self.draws(2, step, "virtual features")
        for start in range(0, cfg.virtual_images, cfg.m_batch_size):
            size = min(cfg.m_batch_size, cfg.virtual_images - start)
            # `<` where Eq 13 has `<=`: the same but for p = 0, which is then never drawn.
            present = torch.rand((size, len(p)), generator=label_draws, device=self.device) < p
            yield gaussians.sample(present.long(), feature_draws), present.float()

    def _e_step(self, step: int) -> float:
        """Trains backbone and encoder on real images with the GCE, the head frozen; returns the mean loss."""
        cfg = self.config.stage2
        draws = self.draws(2, step, "augmentation")

        def loss(index: Tensor, raw: Tensor) -> Tensor:
            logits, targets = self._augmented_logits(raw, draws), self.labels[index]
            robust = gce(logits, targets, cfg.q, cfg.gce_form)
            if cfg.e_step_weight == 1:
                return robust
            return cfg.e_step_weight * robust + (1 - cfg.e_step_weight) * bce(logits, targets)

        order = self.step_order(2, step, cfg.e_step_images)
        return self.train_encoder(step, order=order, batch_size=cfg.e_batch_size, loss_of=loss)

    def _fitted(self) -> Gaussians:
        cfg = self.config.stage2
        return fit(
            self._first_sums or self.current_sums(cfg.cov_type),
            cov_type=cfg.cov_type,
            shrinkage=cfg.shrinkage,
            towards=cfg.shrink_towards,
            shrinkage_count=cfg.shrinkage_count,
        )
