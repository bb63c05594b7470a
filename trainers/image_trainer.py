"""Base class of trainers with an encoder and a head on images: network, passes over images, state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from trainers.base import Images, State, Task, TrainerInputs, TwoStageTrainer, Weights
from trainers.features.cache import FeatureCache
from trainers.features.gaussians import MAX_FULL_DIM, CovType, Gaussians, GroupSums
from trainers.features.probes import lda, lda_per_label
from trainers.features.sampling import class_balanced_order
from trainers.features.virtual import BLOCK, balanced_virtual_batches
from trainers.image_config import NONE, ImageTrainerConfig
from trainers.images import batches
from trainers.images.augment import evaluation_images
from trainers.images.tta import VIEWS, View, view_images
from trainers.networks.heads import LinearHead, linear_head
from trainers.networks.network import Network
from trainers.seeding import generator, seeded
from trainers.state import clone

EVAL_BATCH = 128
"""Images in one forward pass without gradients."""


ImageConfigT = TypeVar("ImageConfigT", bound=ImageTrainerConfig)


class ImageTrainer(TwoStageTrainer[ImageConfigT]):
    """A two-stage trainer of one `Network`. In bfloat16 and channels-last on CUDA; statistics in float64.

    Sub-classes give the network and its optimisers, and train. `state` and `load_state` carry what the sub-class
    names in `own_state` and takes back in `load_own_state`.
    """

    model: Network
    class_aware: ClassVar[bool] = False
    """Whether features are (N, C, D), one vector per image and label, instead of (N, D)."""
    n_views: ClassVar[int] = len(VIEWS)

    def __init__(self, config: ImageConfigT, inputs: TrainerInputs) -> None:
        """Builds the network; raises `ValueError` for another task, missing resources or weights that do not fit."""
        super().__init__(config, inputs)
        if inputs.task not in self.tasks:
            raise ValueError(f"{self.name} trains on {' or '.join(sorted(self.tasks))} data, not on {inputs.task} data")
        needed = config.resources()
        missing = [resource.key for resource in needed if resource.key not in inputs.resources]
        if missing:
            raise ValueError(f"not among the trainer's inputs: {', '.join(missing)}")
        loaded: dict[str, Weights] = {resource.kind: inputs.resources[resource.key] for resource in needed}

        self.device = inputs.device
        multi_label = inputs.task == Task.MULTI_LABEL
        self.labels = inputs.labels.to(self.device, torch.float32 if multi_label else torch.int64)
        self.counts = self.labels.nansum(0) if multi_label else torch.bincount(self.labels, minlength=inputs.n_classes)
        with seeded(torch.device("cpu"), inputs.seed, "init"):
            network = self.build_network(loaded)
        self.model = self.place(network)
        self.enter_stage(1)
        self.optimizers = self.build_optimizers()
        self._sums: GroupSums | None = None
        self._features = FeatureCache()
        self._gaussians: Gaussians | None = None

    @abstractmethod
    def build_network(self, resources: dict[str, Weights]) -> Network:
        """The network before stage 1, on CPU; initial weights come from torch's global generator."""

    @abstractmethod
    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Fresh optimisers, by name, of the stage that `self.stage` says."""

    def enter_stage(self, stage: int) -> None:
        """Makes the trainer one of this stage, before optimisers are built or a state is loaded."""
        self.stage = stage

    def own_state(self) -> State:
        """Further entries of `state()`, all copies; none by default."""
        return {}

    def load_own_state(self, state: State) -> None:
        """Takes back what `own_state` gave."""

    def predict_logits(self, images: Images) -> Tensor:
        """Logits (N, C), float32 on CPU, of the current head in evaluation mode."""
        self.model.eval()
        with torch.no_grad():
            return torch.cat([self.model.head(x).cpu() for _, x in self.extract(images)])

    def view_logits(self, images: Images, view: View) -> Tensor:
        """Logits (N, C), float32 on CPU, of the current head on a view of each image, see `trainers.images.tta`."""
        self.model.eval()
        crop, in_order = self.config.stage1.crop, batches.in_order(len(images), EVAL_BATCH)
        with torch.no_grad():
            return torch.cat(
                [
                    self.model.head(self.forward(view_images(raw, crop, view))).cpu()
                    for _, raw in batches.load(images, in_order, self.device)
                ]
            )

    def linear_head(self) -> LinearHead | None:
        """The norms and biases of the current head where it is linear, as of methods with one vector an image."""
        return linear_head(self.model.head)

    def probe_logits(self, images: Images) -> Tensor:
        """Logits (N, C), float32 on CPU, of a linear discriminant on the class Gaussians (`features.probes`)."""
        sums = self.current_sums()
        if self.class_aware:
            weight, bias = (part.float() for part in lda_per_label(sums))
            with torch.no_grad():
                return torch.cat([((x * weight).sum(-1) + bias).cpu() for _, x in self.extract(images)])
        weight, bias = (part.float() for part in self._pooled_discriminants(sums))
        with torch.no_grad():
            return torch.cat([(x @ weight.mT + bias).cpu() for _, x in self.extract(images)])

    def features(self, images: Images) -> Tensor:
        """Features (N, D) or (N, C, D), float32 on CPU, in evaluation mode."""
        return torch.cat([x.cpu() for _, x in self.extract(images)])

    def state(self) -> State:
        """Weights, optimisers, and the class statistics where they were computed; all copies."""
        return {
            "stage": self.stage,
            "model": clone(self.model.state_dict()),
            "optimizers": {key: clone(optimizer.state_dict()) for key, optimizer in self.optimizers.items()},
            "sums": self._sums.state() if self._sums else None,
            **self.own_state(),
        }

    def load_state(self, state: State) -> None:
        """Takes over a state given by `state()`; for one of stage 1, only the stage-1 config need be the same."""
        self.enter_stage(state["stage"])
        self.model.load_state_dict(state["model"])
        self.optimizers = self.build_optimizers()
        if state["optimizers"] is not None:
            for key, optimizer in self.optimizers.items():
                optimizer.load_state_dict(clone(state["optimizers"][key]))
        self.encoder_changed()
        self._sums = GroupSums.from_state(state["sums"], self.device) if state["sums"] else None
        self.load_own_state(state)

    def finished_stage1(self) -> State:
        """The state without stage 1's optimiser, which is as large as the network or twice that."""
        return {**self.state(), "optimizers": None}

    def kept_features(self, images: Images) -> Tensor | None:
        """The features of the last pass over `images` by the current encoder, float32 on CPU, where they were kept."""
        kept = self._features.get(images)
        return None if kept is None else kept.cpu()

    def keep_features(self, images: Images, features: Tensor) -> None:
        """Takes over features that this very encoder gave for `images`."""
        # A copy, because the last bits of a product depend on how its factors are aligned in memory, and those of a
        # file are not aligned as torch's own tensors are.
        self._features.put(images, features.to(self.device, copy=True))

    @classmethod
    def from_model(cls, config: ImageConfigT, inputs: TrainerInputs, model: State) -> Self:
        """A trainer that predicts with weights exported at the end of stage 2."""
        stage1 = config.stage1.model_copy(update={"weights": NONE})
        trainer = cls(config.model_copy(update={"stage1": stage1}), inputs)
        trainer.enter_stage(2)
        trainer.model.load_state_dict(model)
        return trainer

    def place(self, network: Network) -> Network:
        """The network on the trainer's device, in the layout that is fast there."""
        layout = torch.channels_last if self.device.type == "cuda" else torch.preserve_format
        return network.to(self.device, memory_format=layout)  # type: ignore[call-overload,no-any-return]

    def fresh_head(self, build: Callable[[], nn.Module]) -> None:
        """Stage 2's new head: weights of the module that `build` makes, drawn from torch's global generator."""
        with seeded(torch.device("cpu"), self.inputs.seed, 2, "head"):
            fresh = build()
        self.model.head.load_state_dict(fresh.state_dict())

    def sgd(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """SGD in one kernel where the device has one."""
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, **fused(self.device))

    def train_on_images(
        self,
        stage: int,
        step: int,
        *,
        order: batches.Indices,
        batch_size: int,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        before_batch: Callable[[], None] = lambda: None,
        after_batch: Callable[[], None] = lambda: None,
    ) -> float:
        """One pass over real images in `order`; returns the mean loss over images.

        `loss_of` gets a batch's indices (B,) and its raw images, uint8 (B, channels, S, S), both on the device.
        """
        self.encoder_changed()
        total = torch.zeros((), device=self.device)
        with seeded(self.device, self.inputs.seed, stage, step, "dropout"):
            for index, raw in batches.load(self.inputs.images, batches.split(order, batch_size), self.device):
                before_batch()
                loss = loss_of(index, raw)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                after_batch()
                total += loss.detach() * len(index)
        optimizer.zero_grad()  # gradients are as large as the network, and what comes next needs none
        return total.item() / len(order)

    def train_encoder(
        self,
        step: int,
        *,
        order: batches.Indices,
        batch_size: int,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        batch_norm_moves: bool = False,
    ) -> float:
        """An E-step with the optimiser `e_step`: as `train_on_images`, the head frozen; batch norms too, by default."""
        self.model.train()
        if not batch_norm_moves:
            fix_batch_norm(self.model)
        optimizer = self.optimizers["e_step"]
        with frozen(self.model.head):
            return self.train_on_images(
                2, step, order=order, batch_size=batch_size, loss_of=loss_of, optimizer=optimizer
            )

    def train_on_features(
        self,
        drawn: Iterable[tuple[Tensor, Tensor]],
        *,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        before_batch: Callable[[], None] = lambda: None,
    ) -> float:
        """One pass over batches of features (B, ..., D) and their targets; returns the mean loss over vectors.

        `loss_of` gets the head's logits and the targets; the encoder is not touched.
        """
        total, seen = torch.zeros((), device=self.device), 0
        for features, targets in drawn:
            before_batch()
            loss = loss_of(self.model.head(features), targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach() * len(targets)
            seen += len(targets)
        return total.item() / seen

    def step_order(
        self, stage: int, step: int, per_step: int | None, *, exponent: float | None = None
    ) -> batches.Indices:
        """Indices of the training images of a step: each once an epoch, see `batches.step_order`.

        With an `exponent` instead drawn with replacement, see `class_balanced_order`. `per_step` None: as many as there
        are training images.
        """
        if exponent is None:
            return batches.step_order(len(self.labels), per_step, self.inputs.seed, stage, step)
        draws = generator("cpu", self.inputs.seed, stage, step, "order")
        return class_balanced_order(self.labels, per_step or len(self.labels), exponent, draws).numpy()

    def balanced_features(self, step: int, n: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`n` training features (B, D) with their labels, class-balanced with replacement, in batches, for stage 2.

        Drawn block by block, so that memory does not grow with `n`.
        """
        draws = generator("cpu", self.inputs.seed, 2, step, "features")
        block = batch_size * max(1, BLOCK // batch_size)
        for start in range(0, n, block):
            order = class_balanced_order(self.labels, min(block, n - start), 1.0, draws).to(self.device)
            for index in torch.split(order, batch_size):
                yield self.training_features()[index], self.labels[index]

    def virtual_features(
        self, step: int, gaussians: Gaussians, per_class: int, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`per_class` virtual features of every class that has images, in batches, for stage 2 of one-label data."""
        classes = (self.counts > 0).nonzero().squeeze(1)
        draws = self.draws(2, step, "virtual features")
        return balanced_virtual_batches(gaussians, classes, per_class, batch_size, draws)

    def draws(self, stage: int, step: int, purpose: str) -> torch.Generator:
        """A generator on the device for one purpose within one step."""
        return generator(self.device, self.inputs.seed, stage, step, purpose)

    def forward(self, images: Tensor, model: Network | None = None) -> Tensor:
        """Features, float32, of normalised images by `model`, or the trainer's own network."""
        cuda = self.device.type == "cuda"
        if cuda:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=cuda):
            return (model or self.model).features(images).float()

    def evaluation_view(self, raw: Tensor) -> Tensor:
        """Normalised images as evaluation sees them."""
        return evaluation_images(raw, self.config.stage1.crop)

    def extract(self, images: Images) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (indices, features) of all images in order, in evaluation mode, without gradients.

        Images that the current encoder has seen before are not touched, where their features were kept.
        """
        self.model.eval()
        in_order = batches.in_order(len(images), EVAL_BATCH)
        kept = self._features.get(images)
        if kept is not None:
            for batch in in_order:
                index = torch.from_numpy(batch).to(self.device)
                yield index, kept[batch[0] : batch[-1] + 1]
            return
        seen: list[Tensor] = []
        for index, raw in batches.load(images, in_order, self.device):
            with torch.no_grad():
                features = self.forward(self.evaluation_view(raw))
            if self._features.has_room(images, features):
                seen.append(features)
            yield index, features
        if seen:
            self._features.put(images, torch.cat(seen))

    def encoder_changed(self) -> None:
        """Drops what the encoder computed before it changed."""
        self._sums = self._gaussians = None
        self._features.clear()

    def kept_gaussians(self, fit: Callable[[], Gaussians]) -> Gaussians:
        """Stage 2's Gaussians of the current encoder, as `fit` makes them; kept until it changes."""
        if self._gaussians is None:
            self._gaussians = fit()
        return self._gaussians

    def training_features(self) -> Tensor:
        """Features of all training images, on the device; kept until the encoder changes, whatever their size."""
        kept = self._features.get(self.inputs.images)
        if kept is None:
            kept = torch.cat([features for _, features in self.extract(self.inputs.images)])
            self._features.put(self.inputs.images, kept)
        return kept

    def current_sums(self, cov_type: CovType = "auto") -> GroupSums:
        """Class statistics of the current encoder; kept until it changes.

        Outer products up to the width for which `auto` keeps them, or where `cov_type` is `full`. Stage 2's config
        does not decide what a probe sees: a stage-1 artefact may be shared by trials with different stage-2 values.
        """
        diagonal = self.model.dim > MAX_FULL_DIM and cov_type != "full"
        if self._sums is None or (self._sums.diagonal and not diagonal):
            self._sums = self._accumulate(diagonal=diagonal)
        return self._sums

    def _accumulate(self, *, diagonal: bool) -> GroupSums:
        n_classes, dim = self.inputs.n_classes, self.model.dim
        multi_label = self.inputs.task == Task.MULTI_LABEL
        shape = (n_classes, 2) if multi_label else (1, n_classes)
        sums = GroupSums(*shape, dim, diagonal=diagonal, device=self.device)
        for index, x in self.extract(self.inputs.images):
            if multi_label:
                per_label = x if self.class_aware else x.unsqueeze(1).expand(-1, n_classes, -1)
                sums.add_multi_label(per_label, self.labels[index])
            else:
                sums.add_multi_class(x, self.labels[index])
        return sums

    def _pooled_discriminants(self, sums: GroupSums) -> tuple[Tensor, Tensor]:
        """Weights (C, D) and biases (C,) of the probe on features that all classes share."""
        if self.inputs.task == Task.MULTI_LABEL:
            return lda_per_label(sums)
        weight, bias = lda(sums)
        return weight[0], bias[0]


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Keeps a module's parameters from gradients inside the block; gradients still flow through it."""
    before = [parameter.requires_grad for parameter in module.parameters()]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in zip(module.parameters(), before, strict=True):
            parameter.requires_grad_(required)


def fix_batch_norm(module: nn.Module) -> None:
    """Puts batch norms into evaluation mode: they use, and keep, their running statistics."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


def fused(device: torch.device) -> dict[str, Any]:
    """Keyword arguments that make torch's optimisers run in one kernel where the device has one."""
    return {"fused": device.type in ("cpu", "cuda")}
