"""The rows of a comparison: each loss and each stage 2 does what its equation says, and nothing else."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax
from sklearn.preprocessing import normalize
from torch.nn import functional as F

from tests.helpers.trainers import TINY, labels_for, pictures, train
from trainers.base import Task, TrainerInputs
from trainers.features.gaussians import Gaussians
from trainers.methods.decoupled import SEVERAL_LABEL_METHODS, DecoupledConfig, DecoupledTrainer, Method
from trainers.methods.long_tail import ONE_LABEL_LOSSES, SEVERAL_LABEL_LOSSES, Loss

Array = NDArray[Any]

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


PARAMETERS = {
    "focal_gamma": 1.5, "beta": 0.9, "ldam_scale": 4.0, "ldam_margin": 0.7, "tau": 1.6, "gamma_pos": 0.5,
    "gamma_neg": 2.5, "asl_margin": 0.1, "weight_power": 0.8, "smoothing": 0.2, "vs_gamma": 0.4, "seesaw_p": 0.6,
    "seesaw_q": 1.3, "gcl_scale": 5.0, "gcl_noise": 0.7, "ral_gamma_pos": 0.3, "ral_hill": 1.2, "ral_linear": 0.6,
    "ral_quadratic": -3.0, "db_centre": 0.3, "db_scale": 4.0, "db_kappa": 0.1,
}  # fmt: skip
"""Of all losses, away from their defaults."""


def weighted_mean(losses: Array, weights: Array) -> float:
    return float((losses * weights).sum() / weights.sum())


def one_label_reference(loss: str, z: Array, cosines: Array, y: Array, counts: Array, reweighted: bool) -> float:
    """The row's loss from its equation, of logits or cosines (B, K) and class indices (B,)."""
    rows, same = np.arange(len(y)), np.ones(len(y))
    effective = (1 - 0.9) / (1 - 0.9**counts)
    if loss == "focal":
        p = np.exp(log_softmax(z, 1)[rows, y])
        return float(np.mean(-((1 - p) ** 1.5) * np.log(p)))
    if loss == "class_balanced":
        return weighted_mean(-log_softmax(z, 1)[rows, y], effective[y])
    if loss == "ldam_drw":
        margins = counts**-0.25 / (counts**-0.25).max() * 0.7
        moved = cosines.copy()
        moved[rows, y] -= margins[y]
        return weighted_mean(-log_softmax(4 * moved, 1)[rows, y], effective[y] if reweighted else same)
    if loss == "gcl":
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(5)).double().numpy() / 3
        rarity = np.log(counts.max() / counts)
        moved = cosines - 0.7 * rarity / rarity.max() * np.abs(noise).clip(max=1)
        return float(np.mean(-log_softmax(5 * moved, 1)[rows, y]))
    if loss == "seesaw":
        p = np.exp(log_softmax(z, 1))
        own = p[rows, y, None]
        factors = np.minimum(1, counts / counts[y, None]) ** 0.6 * np.maximum(1, p / np.maximum(own, 0.01)) ** 1.3
        factors[rows, y] = 1
        return float(np.mean(np.log((factors * np.exp(z)).sum(1)) - z[rows, y]))
    smoothing = 0.2 if loss == "label_smoothing" else 0.0
    tau = {"balanced_softmax": 1.0, "logit_adjustment": 1.6, "vector_scaling": 1.6}.get(loss, 0.0)
    scaled = z * (counts / counts.max()) ** (0.4 if loss == "vector_scaling" else 0.0)
    losses = -log_softmax(scaled + tau * np.log(counts / counts.sum()), 1)
    return float(np.mean((1 - smoothing) * losses[rows, y] + smoothing * losses.mean(1)))


def several_label_reference(loss: str, z: Array, y: Array, counts: Array, images: int) -> float:
    """The row's loss from its equation, of logits and labels (B, C)."""
    p = expit(z)
    if loss == "focal":
        missed = np.where(y == 1, 1 - p, p)
        return float(np.mean(-(missed**1.5) * np.log(1 - missed)))
    if loss == "asymmetric":
        shifted = np.maximum(p - 0.1, 0)
        return float(-np.mean(y * (1 - p) ** 0.5 * np.log(p) + (1 - y) * shifted**2.5 * np.log(1 - shifted)))
    if loss == "robust_asymmetric":
        shifted = np.maximum(p - 0.1, 0)
        positive = (1 - p) ** 0.3 * (np.log(p) + 0.6 * (1 - p) - 1.5 * (1 - p) ** 2)
        negative = shifted**2.5 * np.log(1 - shifted) * (1.2 - p) * p**2 * (1.2 - (1 - shifted))
        return float(-np.mean(y * positive + (1 - y) * negative))
    if loss == "distribution_balanced":
        repeats = (y / counts).sum(1, keepdims=True)
        rho = np.where(repeats > 0, 1 / counts / np.where(repeats > 0, repeats, 1), 0)
        moved = z - 0.1 / 4 * np.log(images / counts - 1)
        right = np.where(y == 1, expit(moved), expit(-4 * moved))
        balance = (0.1 + expit(10 * (rho - 0.3))) / np.where(y == 1, 1, 4)
        return float(np.mean(-2 * balance * (1 - right) ** 1.5 * np.log(right)))
    weight = ((1 - counts / images) / (counts / images)) ** (0.8 if loss == "pos_weight" else 0.0)
    if loss == "class_balanced":
        weight = (1 - 0.9) / (1 - 0.9**counts)
        weight = weight / weight.mean()
    return float(-np.mean(weight * y * np.log(p) + (1 - y) * np.log(1 - p)))


@pytest.mark.parametrize("reweighted", [False, True])
@pytest.mark.parametrize(("task", "loss"), [row for row in ROWS if "mixup" not in row[1]])
def test_every_loss_is_its_equation_at_the_rows_own_parameters(task: Task, loss: str, reweighted: bool) -> None:
    trainer = decoupled(loss, task=task, stage1=PARAMETERS)
    features = 2 * torch.randn((41, trainer.model.dim), generator=torch.Generator().manual_seed(0))
    weight, bias = (trainer.state()["model"][f"head.{part}"].double().numpy() for part in ("weight", "bias"))
    x, y = features.double().numpy(), trainer.labels.numpy()
    z, cosines = x @ weight.T + bias, normalize(x) @ normalize(weight).T
    if task == Task.MULTI_LABEL:
        expected = several_label_reference(loss, z, y, y.sum(0), len(y))
    else:
        expected = one_label_reference(loss, z, cosines, y, np.bincount(y).astype(float), reweighted)
    draws = torch.Generator().manual_seed(5)
    found = trainer._loss(features, trainer.labels, draws, reweighted=reweighted)
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("task", "loss"), ROWS)
def test_every_loss_learns_and_is_a_loss_of_its_own(task: Task, loss: str) -> None:
    plain, row = trained("plain", task=task), trained(loss, task=task, stage1={"drw_start": 0.0, "tau": 0.5})
    assert torch.equal(plain.predict_logits(IMAGES), row.predict_logits(IMAGES)) is (loss == "plain")
    first, *_, last = train(decoupled(loss, task=task, stage1={"images_per_epoch": 41, "lr": 0.02}), 1, range(4))
    assert np.isfinite(last["loss"])
    if loss not in ("mixup", "balanced_mixup", "ldam_drw", "gcl", "balanced_sampling", "distribution_balanced"):
        assert last["loss"] < first["loss"]


@pytest.mark.parametrize(("task", "loss", "method"), [
    *((Task.MULTI_LABEL, loss, "none") for loss in sorted(ONE_LABEL_LOSSES)),
    *((Task.MULTI_CLASS, loss, "none") for loss in sorted(SEVERAL_LABEL_LOSSES)),
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


@pytest.mark.parametrize(("loss", "field"), [("ldam_drw", "ldam_scale"), ("gcl", "gcl_scale")])
def test_logits_of_a_cosine_loss_are_scaled_cosines_without_noise(loss: str, field: str) -> None:
    trainer = trained(loss, stage1={field: 20.0})
    weight = trainer.state()["model"]["head.weight"]
    x = trainer.features(IMAGES)
    torch.testing.assert_close(trainer.predict_logits(IMAGES), 20 * F.normalize(x) @ F.normalize(weight).T)


@pytest.mark.parametrize(("exponent", "shares"), [
    (1.0, [0.25, 0.25, 0.25, 0.25]), (0.5, np.sqrt([23, 10, 5, 3]) / np.sqrt([23, 10, 5, 3]).sum()),
])  # fmt: skip
def test_balanced_sampling_sees_classes_as_often_as_its_exponent_says(
    exponent: float, shares: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = decoupled("balanced_sampling", stage1={"images_per_epoch": 4000, "sampling_exponent": exponent})
    share = np.bincount(labels_for(Task.MULTI_CLASS).numpy()[order_of(trainer, monkeypatch)]) / 4000
    np.testing.assert_allclose(share, shares, atol=0.03)


def order_of(trainer: DecoupledTrainer, monkeypatch: pytest.MonkeyPatch) -> Array:
    """The indices of the images that the first step of stage 1 sees."""
    seen: list[Array] = []
    monkeypatch.setattr(trainer, "train_on_images", lambda *_args, order, **_named: seen.append(order) or 0.0)
    trainer.stage1_step(0)
    return seen[0]


def test_distribution_balanced_loss_sees_labels_equally_often_or_every_image_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = labels_for(Task.MULTI_LABEL).numpy()
    by_class = decoupled("distribution_balanced", task=Task.MULTI_LABEL, stage1={"images_per_epoch": 4000})
    drawn = np.bincount(order_of(by_class, monkeypatch), minlength=41)
    # An image comes for each of its labels, with one chance among the label's images.
    np.testing.assert_allclose(drawn / 4000, (labels / labels.sum(0)).sum(1) / 4, atol=0.02)
    fields = {"images_per_epoch": 41, "sampling_exponent": 0.0}
    plain = decoupled("distribution_balanced", task=Task.MULTI_LABEL, stage1=fields)
    assert sorted(order_of(plain, monkeypatch)) == list(range(41))


@pytest.mark.parametrize("task", [Task.MULTI_CLASS, Task.MULTI_LABEL])
def test_balanced_mixup_pairs_every_image_with_one_sampled_class_by_class(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = decoupled("balanced_mixup", task=task, stage1={"images_per_epoch": 41 * 100})
    order = order_of(trainer, monkeypatch)
    assert (np.bincount(order[:, 0]) == 100).all()
    y = trainer.labels.numpy() if task == Task.MULTI_LABEL else np.eye(4)[trainer.labels.numpy()]
    drawn = np.bincount(order[:, 1], minlength=41) / 4100
    np.testing.assert_allclose(drawn, (y / y.sum(0)).sum(1) / 4, atol=0.02)
    assert abs(np.corrcoef(order.T)[0, 1]) < 0.05


@pytest.mark.parametrize("method", [method for method in get_args(Method) if method != "mislas"])
def test_stage_two_never_moves_the_encoder(method: str) -> None:
    trainer = trained(method=method)
    before = features_of(trainer)
    trainer.begin_stage2()
    train(trainer, 2, range(3))
    assert torch.equal(before, features_of(trainer))
    stage1 = trained()
    assert torch.equal(trainer.predict_logits(IMAGES), stage1.predict_logits(IMAGES)) is (method == "none")


def test_mislas_moves_batch_norms_scales_and_slowly_the_head_but_no_weight_of_the_encoder() -> None:
    trainer = trained("mixup", "mislas", stage2={"lr": 2.0, "head_lr_factor": 0.05, "momentum": 0.0})
    trainer.begin_stage2()
    before = trainer.state()["model"]
    train(trainer, 2, range(1))
    after = trainer.state()["model"]
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert {"head.scale", "head.weight", "head.bias"} < changed
    assert all("running" in key or "num_batches" in key for key in changed if key.startswith("backbone"))
    rates = [group["lr"] for group in trainer.optimizers["head"].param_groups]
    assert rates[1] == pytest.approx(0.05 * rates[0])


def test_mislas_smooths_labels_by_class() -> None:
    trainer = decoupled("mixup", "mislas", stage2={"smooth_head": 0.4, "smooth_tail": 0.05})
    n = np.bincount(labels_for(Task.MULTI_CLASS))
    e = 0.05 + 0.35 * np.sin(np.pi * (n - n.min()) / (2 * (n.max() - n.min())))
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 4))).float()
    y = np.array([0, 1, 2, 3, 0, 3])
    losses = -F.log_softmax(logits, 1).numpy()
    expected = np.mean((1 - e[y]) * losses[np.arange(6), y] + e[y] * losses.mean(1))
    assert trainer._head_loss()(logits, torch.from_numpy(y)).item() == pytest.approx(expected, rel=1e-5)


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


def test_virtual_features_of_all_rounds_come_from_gaussians_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained(method="vfc")
    trainer.begin_stage2()
    fits: list[Gaussians] = []
    fitted = trainer._fitted
    monkeypatch.setattr(trainer, "_fitted", lambda: fits.append(fitted()) or fits[-1])
    train(trainer, 2, range(3))
    assert len(fits) == 1


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
    seen = watch_mixtures(trainer, monkeypatch)
    trainer._mixed_loss(one_hot_images(), torch.arange(4), torch.Generator().manual_seed(0), np.random.default_rng(3))
    images, labels = seen
    torch.testing.assert_close(images, labels)
    assert ((labels > 0) & (labels < 1)).any()


def test_balanced_mixup_gives_the_balanced_image_a_share_from_beta_alpha_one(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = decoupled("balanced_mixup", stage1={"mixup_alpha": 0.7})
    seen = watch_mixtures(trainer, monkeypatch)
    targets = torch.tensor([[0, 3], [1, 3], [2, 0], [3, 3]])
    balanced = one_hot_images()[targets[:, 1]]
    trainer._balanced_mixed_loss(one_hot_images(), balanced, targets, np.random.default_rng(3))
    images, labels = seen
    share = np.random.default_rng(3).beta(0.7, 1.0)
    expected = (1 - share) * np.eye(4)[targets[:, 0]] + share * np.eye(4)[targets[:, 1]]
    np.testing.assert_allclose(labels, expected, rtol=1e-6)
    torch.testing.assert_close(images, labels)


def one_hot_images() -> torch.Tensor:
    """Image k is 1 in the k-th quarter of its pixels and 0 elsewhere."""
    return torch.eye(4).repeat_interleave(12, 1).view(4, 3, 4, 4).contiguous()


def watch_mixtures(trainer: DecoupledTrainer, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Of the next mixture of `one_hot_images`, the quarters of its images and its labels, both (4, 4)."""
    seen: list[torch.Tensor] = []

    def identity(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.flatten(1)[:, ::12])
        return images.flatten(1)[:, : trainer.model.dim]

    monkeypatch.setattr(trainer, "forward", identity)
    monkeypatch.setattr("trainers.methods.decoupled.cross_entropy", lambda _logits, mixed: seen.append(mixed))
    return seen
