"""The rows of a comparison: each loss and each stage 2 does what its equation says, and nothing else."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional as F

from tests.trainers.test_contract import TINY, labels_for, pictures, train
from trainers.base import Task, TrainerInputs
from trainers.decoupled import (
    ONE_LABEL_LOSSES,
    SEVERAL_LABEL_LOSSES,
    SEVERAL_LABEL_METHODS,
    DecoupledConfig,
    DecoupledTrainer,
    Loss,
    Method,
)

IMAGES = pictures(9, seed=4)


def decoupled(
    loss: str = "plain", method: str = "none", task: Task = Task.MULTI_CLASS, **fields: dict[str, Any]
) -> DecoupledTrainer:
    stage1 = TINY["decoupled"]["stage1"] | {"loss": loss} | fields.get("stage1", {})
    stage2 = TINY["decoupled"]["stage2"] | {"method": method} | fields.get("stage2", {})
    inputs = TrainerInputs(task, 4, pictures(41), labels_for(task), torch.device("cpu"), 0)
    return DecoupledTrainer(DecoupledConfig.model_validate({"stage1": stage1, "stage2": stage2}), inputs)


def trained(
    loss: str = "plain", method: str = "none", task: Task = Task.MULTI_CLASS, **fields: Any
) -> DecoupledTrainer:
    trainer = decoupled(loss, method, task, **fields)
    train(trainer, 1, range(2))
    return trainer


def features_of(trainer: DecoupledTrainer) -> torch.Tensor:
    return trainer.features(trainer.inputs.images)


ROWS = [
    (task, loss)
    for task, others in ((Task.MULTI_CLASS, SEVERAL_LABEL_LOSSES), (Task.MULTI_LABEL, ONE_LABEL_LOSSES))
    for loss in get_args(Loss)
    if loss not in others
]


@pytest.mark.parametrize(("task", "loss"), ROWS)
def test_every_loss_learns_and_is_a_loss_of_its_own(task: Task, loss: str) -> None:
    plain, row = trained("plain", task=task), trained(loss, task=task, stage1={"drw_start": 0.0, "tau": 0.5})
    assert torch.equal(plain.predict_logits(IMAGES), row.predict_logits(IMAGES)) is (loss == "plain")
    first, *_, last = train(decoupled(loss, task=task, stage1={"images_per_epoch": 41, "lr": 0.02}), 1, range(4))
    assert np.isfinite(last["loss"])
    if loss not in ("mixup", "ldam_drw", "balanced_sampling"):
        assert last["loss"] < first["loss"]


@pytest.mark.parametrize(("task", "loss", "method"), [
    (Task.MULTI_LABEL, "ldam_drw", "none"), (Task.MULTI_CLASS, "asymmetric", "none"),
    *((Task.MULTI_LABEL, "plain", method) for method in get_args(Method) if method not in SEVERAL_LABEL_METHODS),
])  # fmt: skip
def test_what_a_task_does_not_have_is_refused(task: Task, loss: str, method: str) -> None:
    with pytest.raises(ValueError, match=r"one label|several labels"):
        decoupled(loss, method, task)


def test_deferred_weights_start_at_their_fraction_with_a_smaller_rate() -> None:
    never, late = decoupled("ldam_drw", stage1={"drw_start": 1.0}), decoupled("ldam_drw", stage1={"drw_start": 0.5})
    losses = [train(trainer, 1, range(4)) for trainer in (never, late)]
    assert losses[0][:2] == losses[1][:2]
    assert losses[0][2] != losses[1][2]
    assert late.optimizers["stage1"].param_groups[0]["lr"] == pytest.approx(1e-3)


@pytest.mark.parametrize(("start", "epochs", "first"), [(0.55, 100, 55), (0.29, 100, 29), (0.8, 8, 6), (0.0, 5, 0)])
def test_trials_are_judged_only_after_the_first_reweighted_epoch(start: float, epochs: int, first: int) -> None:
    fields = {"stage1": {"drw_start": start, "epochs": epochs}}
    assert decoupled("ldam_drw", **fields).config.losses_active_from() == {1: first, 2: 0}
    assert decoupled("plain", **fields).config.losses_active_from() == {1: 0, 2: 0}


def test_ldam_logits_are_scaled_cosines() -> None:
    trainer = trained("ldam_drw")
    weight = trainer.state()["model"]["head.weight"]
    x = trainer.features(IMAGES)
    torch.testing.assert_close(trainer.predict_logits(IMAGES), 30 * F.normalize(x) @ F.normalize(weight).T)


def test_balanced_sampling_sees_every_class_equally_often() -> None:
    order = decoupled().step_order(1, 0, 4000, exponent=1.0)
    share = np.bincount(labels_for(Task.MULTI_CLASS).numpy()[order]) / 4000
    np.testing.assert_allclose(share, 0.25, atol=0.03)


@pytest.mark.parametrize("method", get_args(Method))
def test_stage_two_never_moves_the_encoder(method: str) -> None:
    trainer = trained(method=method)
    before = features_of(trainer)
    trainer.begin_stage2()
    train(trainer, 2, range(3))
    assert torch.equal(before, features_of(trainer))
    stage1 = trained()
    assert torch.equal(trainer.predict_logits(IMAGES), stage1.predict_logits(IMAGES)) is (method == "none")


def test_tau_norm_of_zero_keeps_weights_and_of_one_makes_unit_vectors() -> None:
    for tau in (0.0, 1.0):
        trainer = trained(method="tau_norm", stage2={"tau": tau})
        weight = trainer.state()["model"]["head.weight"]
        trainer.begin_stage2()
        expected = trainer.features(IMAGES) @ (weight / weight.norm(dim=1, keepdim=True) ** tau).T
        torch.testing.assert_close(trainer.predict_logits(IMAGES), expected)


@pytest.mark.parametrize("loss", ["plain", "ldam_drw"])
def test_post_hoc_adjustment_subtracts_the_log_prior(loss: str) -> None:
    trainer = trained(loss, "logit_adjustment", stage2={"tau": 1.5})
    before = trainer.predict_logits(IMAGES)
    trainer.begin_stage2()
    prior = torch.bincount(labels_for(Task.MULTI_CLASS)) / 41
    torch.testing.assert_close(trainer.predict_logits(IMAGES), before - 1.5 * prior.log())


def test_nearest_mean_predicts_by_cosine_to_class_means() -> None:
    trainer = trained(method="ncm")
    x, labels = features_of(trainer), trainer.labels
    means = torch.stack([x[labels == k].mean(0) for k in range(4)])
    trainer.begin_stage2()
    expected = F.normalize(trainer.features(IMAGES)) @ F.normalize(means).T
    torch.testing.assert_close(trainer.predict_logits(IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_a_retrained_classifier_nears_the_class_balanced_optimum() -> None:
    decay = 0.003
    stage2 = {"rounds": 1000, "lr": 20.0, "batch_size": 41, "weight_decay": decay}
    trainer = trained(method="crt", stage2=stage2)
    trainer.begin_stage2()
    train(trainer, 2, range(1000))
    x, y = features_of(trainer).double(), trainer.labels
    share = (1 / torch.bincount(y).double())[y] / 4

    def objective(flat: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        parameters = torch.tensor(flat, requires_grad=True)
        head = parameters.view(4, -1)
        logits = x @ head[:, :-1].T + head[:, -1]
        value = (share * F.cross_entropy(logits, y, reduction="none")).sum() + decay / 2 * parameters.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        assert parameters.grad is not None
        return value.item(), parameters.grad.numpy()

    best = minimize(objective, np.zeros(4 * (x.shape[1] + 1)), jac=True).x.reshape(4, -1)
    state = trainer.state()["model"]
    found = np.column_stack([state["head.weight"].numpy(), state["head.bias"].numpy()])
    assert np.abs(best).max() > 0.3
    assert np.corrcoef(found.ravel(), best.ravel())[0, 1] > 0.99
    np.testing.assert_allclose(found, best, atol=0.1 * np.abs(best).max())


def test_learned_scales_leave_weights_and_biases_alone() -> None:
    trainer = trained(method="lws")
    trainer.begin_stage2()
    before = trainer.state()["model"]
    train(trainer, 2, range(2))
    after = trainer.state()["model"]
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert changed == {"head.scale"}


def test_the_rate_falls_on_one_cosine_and_scales_with_the_batch() -> None:
    trainer = decoupled(method="crt", stage2={"lr": 0.2, "batch_size": 256, "rounds": 2})
    rates = [rate for step in range(2) for rate in trainer._cosine_rates(step, 4)]
    np.testing.assert_allclose(rates, [0.1 * (1 + np.cos(np.pi * i / 8)) / 2 for i in range(8)])


def test_mixup_mixes_labels_as_it_mixes_images(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = decoupled("mixup")
    seen: list[torch.Tensor] = []

    def identity(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return images.flatten(1)[:, : trainer.model.dim]

    monkeypatch.setattr(trainer, "forward", identity)
    one_hot = torch.eye(4)
    images = one_hot.repeat_interleave(12, 1).view(4, 3, 4, 4).contiguous()
    captured: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(
        "trainers.decoupled.cross_entropy", lambda logits, mixed: captured.setdefault("mixed", mixed).sum()
    )
    trainer._mixed_loss(images, torch.arange(4), torch.Generator().manual_seed(0), np.random.default_rng(3))
    torch.testing.assert_close(seen[0].flatten(1)[:, ::12], captured["mixed"])
    assert ((captured["mixed"] > 0) & (captured["mixed"] < 1)).any()
