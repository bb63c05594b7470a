"""Built-in trainers small enough for tests, and images and labels for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.base import Images, Task, TrainerInputs, TwoStageTrainer
from trainers.registry import find_trainer

N, C, SIDE = 41, 4, 16


TINY: dict[str, dict[str, Any]] = {
    "cxr": {
        "stage1": {
            "epochs": 4, "images_per_epoch": 30, "backbone": "conv4", "weights": "none", "d_model": 16, "layers": 1,
            "heads": 2, "ffn": 32, "lr": 1e-3, "batch_size": 8,
        },
        "stage2": {"rounds": 4, "n_hard": 2, "lr": 1e-3},
    },
    "decoupled": {
        "stage1": {
            "epochs": 4, "images_per_epoch": 30, "backbone": "conv4", "weights": "none", "lr": 1e-2, "batch_size": 8,
        },
        "stage2": {"rounds": 4, "method": "crt", "batch_size": 16},
    },
    "ldrnet": {
        "stage1": {
            "epochs": 4, "images_per_epoch": 30, "backbone": "conv4", "weights": "none", "d_model": 16, "heads": 2,
            "ffn": 32, "lr": 1e-3, "batch_size": 8, "augmentation": "crop+flip+rotate", "brightness": 0.2,
        },
        "stage2": {
            "rounds": 4, "virtual_images": 200, "m_batch_size": 64, "m_lr": 1e-2, "e_batch_size": 8, "e_lr": 1e-4,
            "e_step_images": 20,
        },
    },
    "lmd": {
        "stage1": {
            "epochs": 4, "images_per_epoch": 30, "backbone": "conv4", "weights": "none", "lr": 1e-2, "batch_size": 8,
            "consistency_start": 0.25,
        },
        "stage2": {
            "rounds": 4, "virtual_size": 50, "m_batch_size": 32, "classifier_lr": 1e-2, "e_batch_size": 8,
            "backbone_lr": 1e-4, "e_step_images": 20,
        },
    },
    "metric": {
        "stage1": {
            "epochs": 4, "images_per_epoch": 17, "backbone": "conv4", "weights": "none", "lr": 1e-3, "batch_size": 8,
            "embedding_dim": 8, "classes_per_batch": 3, "images_per_class": 4,
        },
        "stage2": {"rounds": 4, "batch_size": 16},
    },
}  # fmt: skip
"""A config of each built-in trainer that runs in a moment."""


ROWS: dict[tuple[str, Task], dict[str, dict[str, Any]]] = {
    ("decoupled", Task.MULTI_CLASS): {
        "ldam": {"stage1": {"loss": "ldam_drw", "drw_start": 0.5}, "stage2": {"method": "none"}},
        "ldam+lws": {"stage1": {"loss": "ldam_drw"}, "stage2": {"method": "lws"}},
        "mixup+tau_norm": {"stage1": {"loss": "mixup"}, "stage2": {"method": "tau_norm"}},
        "ncm": {"stage2": {"method": "ncm"}},
        "vfc": {"stage2": {"method": "vfc", "virtual_size": 50}},
        "mislas": {"stage1": {"loss": "mixup"}, "stage2": {"method": "mislas"}},
        "gcl": {"stage1": {"loss": "gcl"}, "stage2": {"method": "lws"}},
        "balanced_mixup": {"stage1": {"loss": "balanced_mixup"}},
    },
    ("cxr", Task.MULTI_LABEL): {
        "shared+asl": {"stage1": {"classifier": "shared", "loss": "asl", "schedule": "onecycle", "positions": True}},
        "wbce": {"stage1": {"loss": "wbce_exp", "inner_fraction": 0.0}, "stage2": {"tta_views": 8}},
    },
    ("decoupled", Task.MULTI_LABEL): {
        "bce": {"stage2": {"method": "none"}},
        "asymmetric": {"stage1": {"loss": "asymmetric", "optimizer": "adamw"}, "stage2": {"method": "none"}},
        "db": {"stage1": {"loss": "distribution_balanced"}},
    },
    ("metric", Task.MULTI_CLASS): {
        "center+ncm": {"stage1": {"metric": "triplet_center", "warm_up": 0.5}, "stage2": {"method": "ncm"}},
        "npair+bn": {"stage1": {"metric": "npair", "optimizer": "sgd"}, "stage2": {"bn_update": True}},
        "supcon+balsoft": {
            "stage1": {"metric": "supcon", "mode": "metric_only", "head_input": "e"},
            "stage2": {"method": "balsoft"},
        },
        "none+lws": {"stage1": {"metric": "none", "loaders": "one"}, "stage2": {"method": "lws"}},
    },
}
"""Further methods of a trainer that is several: what each changes in the trainer's config of `TINY`."""


Trainer = TwoStageTrainer[Any]


def pictures(n: int, seed: int = 0, channels: int = 1) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, SIDE, SIDE), dtype=np.uint8)


def labels_for(task: Task, positives: tuple[int, ...] = (20, 10, 5, 3)) -> Tensor:
    """The first `positives[c]` of a class-specific shuffle have label c."""
    rng = np.random.default_rng(1)
    if task == Task.MULTI_CLASS:
        rest = [0] * (N - sum(positives))
        return torch.tensor(rng.permutation(rest + [c for c, n in enumerate(positives) for _ in range(n)]))
    labels = torch.zeros(N, C)
    for c, n in enumerate(positives):
        labels[rng.permutation(N)[:n], c] = 1
    return labels


def build(
    case: tuple[str, Task], *, labels: Tensor | None = None, seed: int = 0, channels: int = 1, **stage2: Any
) -> Trainer:
    """The trainer of a case: the name of one, or trainer/row, and its task."""
    (name, _, row), task = case[0].partition("/"), case[1]
    trainer = find_trainer(name)
    changes = ROWS[name, task][row] if row else {}
    config = {stage: TINY[name][stage] | changes.get(stage, {}) for stage in ("stage1", "stage2")}
    config["stage2"] |= stage2
    inputs = TrainerInputs(
        task=task,
        n_classes=C,
        images=pictures(N, channels=channels),
        labels=labels_for(task) if labels is None else labels,
        device=torch.device("cpu"),
        seed=seed,
    )
    return trainer(trainer.config_type.model_validate(config), inputs)


def train(trainer: Trainer, stage: int, steps: range) -> list[dict[str, float]]:
    step = trainer.stage1_step if stage == 1 else trainer.stage2_step
    return [step(i) for i in steps]
