from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score
from torch import Tensor

from tests.helpers.trainers import TINY, C, labels_for, pictures
from trainers.base import Resource, Task, TrainerInputs
from trainers.images import batches
from trainers.images.tta import VIEWS
from trainers.losses.sigmoid import bce
from trainers.methods.cxr import CXRConfig, CXRTrainer, Loss, known_loss, mixed_loss, weighted_loss
from trainers.resources import resolve
from trainers.state import clone

N = 120


def config(stage1: dict[str, Any] | None = None, stage2: dict[str, Any] | None = None) -> CXRConfig:
    tiny = TINY["cxr"]
    return CXRConfig.model_validate(
        {"stage1": {**tiny["stage1"], **(stage1 or {})}, "stage2": {**tiny["stage2"], **(stage2 or {})}}
    )


def some_labels(n: int = N) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).random((n, C)) < (0.4, 0.3, 0.2, 0.1)).float()


def trainer(
    stage1: dict[str, Any] | None = None,
    stage2: dict[str, Any] | None = None,
    *,
    labels: Tensor | None = None,
    groups: Sequence[str] | None = None,
    resources: dict[str, Any] | None = None,
) -> CXRTrainer:
    labels = some_labels() if labels is None else labels
    inputs = TrainerInputs(
        Task.MULTI_LABEL, C, pictures(len(labels)), labels, torch.device("cpu"), 0, resources or {}, groups
    )
    return CXRTrainer(config(stage1, stage2), inputs)


def in_stage2(stage1: dict[str, Any] | None = None, stage2: dict[str, Any] | None = None, **inputs: Any) -> CXRTrainer:
    built = trainer(stage1, stage2, **inputs)
    built.stage1_step(0)
    built.begin_stage2()
    return built


def weights(of: CXRTrainer) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in of.model.state_dict().items()}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Indices of the training images that are read, in order."""
    seen: list[int] = []
    load = batches.load

    def watched(images: Any, order: list[batches.Indices], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        seen.extend(int(i) for batch in order for i in batch)
        yield from load(images, order, device)

    monkeypatch.setattr(batches, "load", watched)
    return seen


# --- config


def test_defaults_are_those_of_the_report_or_of_its_authors_code() -> None:
    one, two = CXRConfig().stage1, CXRConfig().stage2
    assert (one.backbone, one.weights, one.classifier, one.missing_labels) == (
        "resnet50", "imagenet", "separate", "zero",
    )  # fmt: skip
    assert (two.n_hard, two.w_mid, two.w_hi, two.tta_merge) == (9, 2, 3, "geometric")
    assert (one.d_model, one.layers, one.heads, one.ffn, one.dropout) == (768, 4, 4, 1024, 0.1)
    assert (one.lr, one.weight_decay, one.batch_size, one.warmup, one.min_lr) == (5e-5, 0.02, 64, 0.2, 1e-6)
    assert (one.gamma_pos, one.gamma_neg, one.asl_margin, one.mixup_alpha, two.tta_views) == (1, 4, 0.05, 0.2, 2)


@pytest.mark.parametrize(
    ("stage", "field", "value", "message"),
    [
        ("stage1", "heads", 3, "feature width 16 is not a multiple of heads = 3"),
        ("stage1", "weights", "imagenet", "conv4 has no published weights"),
        ("stage1", "loss", "focal", "'bce', 'asl', 'wbce_exp', 'ral' or 'db'"),
        ("stage1", "inner_fraction", 0.6, "less than or equal to 0.5"),
        ("stage1", "missing_labels", "guess", "'zero' or 'mask'"),
        ("stage2", "tta_views", 3, "1, 2, 5 or 8"),
        ("stage2", "n_hard", -1, "greater than or equal to 0"),
        ("stage2", "typo", 1, "Extra inputs"),
    ],
)
def test_wrong_values_are_refused(stage: str, field: str, value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**{stage: {field: value}})


def test_resources_are_what_the_config_names() -> None:
    assert config().resources() == ()
    named = config({"weights": "w.pt", "label_embeddings": "l.safetensors"}).resources()
    assert named == (
        Resource("backbone", "conv4", "w.pt"),
        Resource("label_embeddings", "embeddings", "l.safetensors"),
    )
    assert [resource.field for resource in named] == ["stage1.weights", "stage1.label_embeddings"]


# --- inputs


def test_multi_class_data_is_refused() -> None:
    inputs = TrainerInputs(Task.MULTI_CLASS, C, pictures(9), torch.zeros(9).long(), torch.device("cpu"), 0)
    with pytest.raises(ValueError, match="multi-label data, not on multi-class"):
        CXRTrainer(config(), inputs)


def test_groups_that_are_not_one_per_image_are_refused() -> None:
    with pytest.raises(ValueError, match="2 groups for 120 training images"):
        trainer(groups=["a", "b"])


def test_embeddings_of_the_labels_are_the_queries_and_are_exported(tmp_path: Path) -> None:
    path = tmp_path / "labels.safetensors"
    embeddings = torch.from_numpy(np.random.default_rng(0).normal(size=(C, 5))).float()
    save_file({"embeddings": embeddings}, str(path))
    stage1 = {"label_embeddings": str(path)}
    loaded = {resource.key: resolve(resource) for resource in config(stage1).resources()}
    built = trainer(stage1, resources=loaded)
    assert torch.equal(built.model.decoder.embeddings, embeddings)  # type: ignore[union-attr, arg-type]
    built.stage1_step(0)
    built.begin_stage2()
    built.stage2_step(0)
    assert torch.equal(built.model.decoder.embeddings, embeddings)  # type: ignore[union-attr, arg-type]
    exported = CXRTrainer.from_model(built.config, trainer().inputs, built.state()["model"])
    assert torch.equal(exported.predict_logits(pictures(4)), built.predict_logits(pictures(4)))


def test_embeddings_of_another_number_of_labels_are_refused() -> None:
    stage1 = {"label_embeddings": "l.safetensors"}
    given = {config(stage1).resources()[0].key: {"embeddings": torch.zeros(C + 2, 5)}}
    with pytest.raises(ValueError, match="embeddings of 6 labels, but the data has 4"):
        trainer(stage1, resources=given)


# --- stage 1


def test_stage_one_learns_what_is_plain_to_see() -> None:
    labels = torch.zeros(64, C)
    labels[::2, 0] = labels[::4, 1] = 1
    images = np.random.default_rng(0).integers(0, 60, (64, 1, 16, 16), dtype=np.uint8)
    images[::2, :, 2:6, :] += 150
    images[::4, :, :, 9:13] += 40
    stage1 = {
        "images_per_epoch": None, "epochs": 25, "augmentation": "none", "brightness": 0, "contrast": 0, "shift": 0,
        "scale": 0, "mixup_alpha": 0, "lr": 1e-2,
    }  # fmt: skip
    inputs = TrainerInputs(Task.MULTI_LABEL, C, images, labels, torch.device("cpu"), 0)
    built = CXRTrainer(config(stage1), inputs)
    losses = [built.stage1_step(step)["loss"] for step in range(25)]
    assert losses[-1] < 0.3 * losses[0]
    assert ((built.predict_logits(images) > 0) == (labels > 0.5)).float().mean() > 0.95


def test_an_epoch_of_stage_one_sees_every_image_but_the_inner_part_once(read: list[int]) -> None:
    built = trainer({"images_per_epoch": None})
    inner = set(built.inner_images.tolist())
    assert 0.15 * N < len(inner) < 0.25 * N
    built.stage1_step(0)
    built.stage1_step(1)
    assert sorted(read) == sorted([i for i in range(N) if i not in inner] * 2)


def test_no_patient_of_stage_one_is_in_the_inner_part(read: list[int]) -> None:
    groups = [f"p{i // 4}" for i in range(N)]
    built = trainer({"images_per_epoch": None}, groups=groups)
    built.stage1_step(0)
    assert len(built.inner_images) > 0
    assert not {groups[i] for i in read} & {groups[i] for i in built.inner_images}


def test_without_an_inner_part_stage_one_sees_all_images(read: list[int]) -> None:
    built = trainer({"images_per_epoch": None, "inner_fraction": 0})
    built.stage1_step(0)
    assert sorted(read) == list(range(N))


def test_learning_rates_of_both_stages_follow_their_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    built = trainer({"epochs": 2, "warmup": 0.5, "min_lr": 0, "images_per_epoch": 32}, {"rounds": 2})
    seen: list[float] = []
    for stage, epochs in ((1, built.stage1_step), (2, built.stage2_step)):
        optimizer = built.optimizers["fit"]
        step = optimizer.step
        monkeypatch.setattr(optimizer, "step", lambda o=optimizer, s=step: (seen.append(o.param_groups[0]["lr"]), s()))
        epochs(0)
        epochs(1)
        if stage == 1:
            np.testing.assert_allclose(
                seen, 1e-3 * np.concatenate((np.arange(4) / 4, (1 + np.cos(np.pi * np.arange(4) / 4)) / 2)), atol=1e-12
            )
            seen.clear()
            built.begin_stage2()
    np.testing.assert_allclose(seen, 1e-3 * (1 + np.cos(np.pi * np.arange(30) / 30)) / 2, atol=1e-12)


@pytest.mark.parametrize(
    "switch",
    [
        {"classifier": "shared"},
        {"positions": True},
        {"mixup_alpha": 0},
        {"mixup_alpha": 1.0},
        {"inner_fraction": 0.4},
        {"schedule": "constant"},
        {"warmup": 0.5},
        {"weight_decay": 0.5},
        {"ema_decay": 0.9},
        *({"loss": name} for name in get_args(Loss) if name != "bce"),
    ],
)
def test_every_switch_of_stage_one_matters(switch: dict[str, Any]) -> None:
    plain, other = trainer(), trainer(switch)
    for built in (plain, other):
        built.stage1_step(0)
        built.stage1_step(1)
    assert not torch.equal(plain.predict_logits(pictures(3)), other.predict_logits(pictures(3)))


# --- stage 2


def test_hard_classes_are_those_of_the_lowest_precision_on_the_inner_part() -> None:
    built = trainer(stage2={"n_hard": 2, "w_mid": 2, "w_hi": 5, "high_share": 0.5})
    built.stage1_step(0)
    inner = built.inner_images
    scores, labels = built.predict_logits(built.inputs.images[inner]), some_labels()[inner]
    ranked = np.argsort([average_precision_score(labels[:, c], scores[:, c]) for c in range(C)])
    built.begin_stage2()
    expected = torch.ones(C)
    expected[int(ranked[0])], expected[int(ranked[1])] = 5, 2
    assert torch.equal(built.state()["class_weights"], expected)


def test_choosing_hard_classes_reads_the_inner_part_alone(read: list[int]) -> None:
    built = trainer()
    built.stage1_step(0)
    read.clear()
    built.begin_stage2()
    assert read == built.inner_images.tolist()


def test_labels_of_the_images_that_stage_one_saw_do_not_choose_hard_classes() -> None:
    one, two = trainer(stage2={"n_hard": 1}), trainer(stage2={"n_hard": 1})
    one.stage1_step(0)
    two.load_state(one.state())
    fit = np.setdiff1d(np.arange(N), one.inner_images)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(fit)))
    two.labels[fit] = two.labels[fit][order]
    one.begin_stage2()
    two.begin_stage2()
    assert torch.equal(one.state()["class_weights"], two.state()["class_weights"])
    assert one.state()["class_weights"].max() > 1


def test_a_round_sees_all_training_images_once(read: list[int]) -> None:
    built = in_stage2()
    read.clear()
    built.stage2_step(0)
    assert sorted(read) == list(range(N))
    read.clear()
    in_stage2(stage2={"images_per_round": 50}).stage2_step(0)
    assert len(read[-50:]) == len(set(read[-50:])) == 50


def test_weights_of_hard_classes_are_kept_with_the_state_and_change_the_fit() -> None:
    heavy, plain = in_stage2(stage2={"n_hard": 2}), in_stage2(stage2={"n_hard": 0})
    assert plain.state()["class_weights"].tolist() == [1] * C
    resumed = trainer(stage2={"n_hard": 2})
    resumed.load_state(heavy.state())
    assert heavy.stage2_step(0) == resumed.stage2_step(0) != plain.stage2_step(0)
    assert not torch.equal(weights(heavy)["head.weight"], weights(plain)["head.weight"])


def test_a_finished_stage_one_needs_no_optimiser_and_gives_the_same_stage_two() -> None:
    whole, stored = trainer(), trainer()
    whole.stage1_step(0)
    state = whole.finished_stage1()
    assert state["optimizers"] is None
    stored.load_state(state)
    for built in (whole, stored):
        built.begin_stage2()
    assert whole.stage2_step(0) == stored.stage2_step(0)


# --- averaged weights


def trained(built: CXRTrainer) -> list[Tensor]:
    """Weights of the network that the optimiser changes."""
    return [parameter.detach().clone() for parameter in built.optimizers["fit"].param_groups[0]["params"]]


def test_averaged_weights_predict_and_the_network_in_training_is_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, averaged = trainer(), trainer({"ema_decay": 0.999})
    optimizer, seen = averaged.optimizers["fit"], list[list[Tensor]]()
    step = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda: (step(), seen.append(trained(averaged))))
    assert averaged.stage1_step(0) == plain.stage1_step(0)
    for ours, theirs in zip(trained(averaged), trained(plain), strict=True):
        assert torch.equal(ours, theirs)
    # Fewer steps than 1 / (1 - decay): their plain mean.
    for mean, *steps in zip(averaged.model.parameters(), *seen, strict=True):
        torch.testing.assert_close(mean.detach(), torch.stack(steps).mean(0))
    assert not torch.equal(averaged.predict_logits(pictures(3)), plain.predict_logits(pictures(3)))


def test_averaging_goes_on_bit_for_bit_through_both_stages_and_is_exported() -> None:
    stage1 = {"ema_decay": 0.9}
    whole, resumed = trainer(stage1), trainer(stage1)
    whole.stage1_step(0)
    resumed.load_state(clone(whole.state()))
    assert whole.stage1_step(1) == resumed.stage1_step(1)
    from_stage1 = trainer(stage1)
    from_stage1.load_state(clone(whole.finished_stage1()))
    for built in (whole, resumed, from_stage1):
        built.begin_stage2()
        built.stage2_step(0)
    exported = CXRTrainer.from_model(whole.config, whole.inputs, whole.state()["model"])
    for built in (resumed, from_stage1, exported):
        assert torch.equal(built.predict_logits(pictures(3)), whole.predict_logits(pictures(3)))


# --- views


def test_stage_two_predicts_the_geometric_mean_of_its_views() -> None:
    built = in_stage2(stage2={"tta_views": 5})
    images = pictures(6)
    logits = torch.stack([built.view_logits(images, view) for view in VIEWS[:5]])
    p = torch.sigmoid(logits.double()).log().mean(0).exp()
    torch.testing.assert_close(torch.sigmoid(built.predict_logits(images).double()), p, rtol=1e-5, atol=1e-7)
    single = CXRTrainer.from_model(config(stage2={"tta_views": 1}), built.inputs, built.state()["model"])
    torch.testing.assert_close(single.predict_logits(images), logits[0])
    other = CXRTrainer.from_model(
        config(stage2={"tta_views": 2, "tta_merge": "arithmetic"}), built.inputs, built.state()["model"]
    )
    torch.testing.assert_close(torch.sigmoid(other.predict_logits(images)), torch.sigmoid(logits[:2]).mean(0))


def test_stage_one_predicts_from_the_image_itself() -> None:
    built = trainer(stage2={"tta_views": 8})
    images = pictures(6)
    assert torch.equal(built.predict_logits(images), built.view_logits(images, VIEWS[0]))


# --- unknown labels


def with_unknown(value: float) -> Tensor:
    labels = some_labels()
    labels[60:, 2] = labels[90:, 3] = value
    return labels


@pytest.mark.parametrize("value", [torch.nan, -1.0])
def test_zero_takes_unknown_labels_for_absent(value: float) -> None:
    unknown, absent = trainer({"inner_fraction": 0}, labels=with_unknown(value)), trainer(
        {"inner_fraction": 0}, labels=with_unknown(0)
    )  # fmt: skip
    assert unknown.stage1_step(0) == absent.stage1_step(0)
    assert torch.equal(unknown.probe_logits(pictures(4)), absent.probe_logits(pictures(4)))


@pytest.mark.parametrize("loss", get_args(Loss))
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_mask_trains_on_with_every_loss(loss: str, mixup: float) -> None:
    stage1 = {"missing_labels": "mask", "loss": loss, "mixup_alpha": mixup}
    masked = trainer(stage1, labels=with_unknown(torch.nan))
    losses = masked.stage1_step(0)
    assert masked.probe_logits(pictures(4)).isfinite().all()
    masked.begin_stage2()
    assert np.isfinite([losses["loss"], masked.stage2_step(0)["loss"]]).all()
    assert masked.predict_logits(pictures(4)).isfinite().all()
    zero = trainer({**stage1, "missing_labels": "zero"}, labels=with_unknown(torch.nan))
    assert zero.stage1_step(0) != losses


def test_images_of_unknown_labels_are_never_in_the_inner_part() -> None:
    built = trainer(labels=with_unknown(-1.0))
    assert 0 < len(built.inner_images) < 0.25 * 60
    assert built.inner_images.max() < 60


def test_images_of_unknown_labels_are_not_fitted_where_their_patient_is_in_the_inner_part(read: list[int]) -> None:
    groups = [f"p{i % 60}" for i in range(N)]
    built = trainer({"images_per_epoch": None}, labels=with_unknown(torch.nan), groups=groups)
    built.stage1_step(0)
    inner = built.inner_images.tolist()
    assert 0 < len(inner) < 0.25 * 60 and max(inner) < 60
    assert sorted(read) == sorted([i for i in range(N) if i % 60 not in inner])


def test_an_inner_part_that_is_empty_is_said(caplog: pytest.LogCaptureFixture) -> None:
    labels = some_labels()
    labels[:, 2] = torch.nan
    in_stage2({"inner_fraction": 0}, labels=labels)
    assert not caplog.text
    in_stage2(labels=labels)
    assert "the inner part is empty" in caplog.text


def test_counts_of_labels_do_not_see_unknown_ones() -> None:
    masked = trainer({"missing_labels": "mask"}, labels=with_unknown(torch.nan))
    assert masked.counts.tolist() == with_unknown(0).sum(0).tolist()


def test_images_without_any_label_train_on() -> None:
    labels = labels_for(Task.MULTI_LABEL)
    assert (labels.sum(1) == 0).any()
    built = in_stage2(labels=torch.zeros_like(labels))
    assert np.isfinite(built.stage2_step(0)["loss"])
    assert built.state()["class_weights"].tolist() == [1] * C


# --- the loss


LOGITS = torch.tensor(np.random.default_rng(2).normal(0, 2, (6, C)), dtype=torch.float32)
TARGETS = torch.tensor(np.random.default_rng(3).random((6, C)) < 0.4, dtype=torch.float32)
WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 1.0])


def entries(z: Tensor, y: Tensor) -> np.ndarray[Any, Any]:
    p = 1 / (1 + np.exp(-z.double().numpy()))
    return np.asarray(-y.double().numpy() * np.log(p) - (1 - y.double().numpy()) * np.log(1 - p))


def test_loss_is_the_mean_of_weighted_entries() -> None:
    expected = (WEIGHTS.numpy() * entries(LOGITS, TARGETS)).sum() / LOGITS.numel()
    assert known_loss(bce, LOGITS, TARGETS, WEIGHTS).item() == pytest.approx(expected, rel=1e-6)


def test_unknown_entries_are_out_of_the_mean() -> None:
    targets = TARGETS.clone()
    targets[1:4, 2] = targets[0, 0] = torch.nan
    known = ~targets.isnan().numpy()
    expected = (WEIGHTS.numpy() * entries(LOGITS, targets.nan_to_num()))[known].sum() / known.sum()
    assert known_loss(bce, LOGITS, targets, WEIGHTS).item() == pytest.approx(expected, rel=1e-6)
    z = LOGITS.clone().requires_grad_()
    known_loss(bce, z, targets, WEIGHTS).backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert ((z.grad != 0).numpy() == known).all()
    assert known_loss(bce, LOGITS, torch.full_like(TARGETS, torch.nan), WEIGHTS).item() == 0


@pytest.mark.parametrize("loss", ["bce", "asl", "wbce_exp", "ral"])
def test_mixup_of_a_linear_loss_is_the_loss_of_the_mixed_target(loss: str) -> None:
    found = weighted_loss(config({"loss": loss}).stage1, torch.tensor([3, 2, 2, 1]), 6)
    others = TARGETS.flip(0)
    mixed = mixed_loss(found, LOGITS, TARGETS, others, 0.3, WEIGHTS)
    torch.testing.assert_close(mixed, known_loss(found, LOGITS, 0.3 * TARGETS + 0.7 * others, WEIGHTS))


def test_a_mixture_with_an_unknown_label_is_left_out() -> None:
    one, two = TARGETS.clone(), TARGETS.flip(0)
    one[0, 0] = two[3, 1] = torch.nan
    known = torch.ones_like(TARGETS, dtype=torch.bool)
    known[0, 0] = known[3, 1] = False
    soft = 0.3 * TARGETS + 0.7 * TARGETS.flip(0)
    expected = (WEIGHTS.numpy() * entries(LOGITS, soft))[known.numpy()].mean()
    assert mixed_loss(bce, LOGITS, one, two, 0.3, WEIGHTS).item() == pytest.approx(expected, rel=1e-6)


def test_no_loss_warns_or_fails_on_a_batch_without_positives() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in get_args(Loss):
            loss = weighted_loss(config({"loss": name}).stage1, torch.zeros(C), 6)
            assert loss(LOGITS, torch.zeros_like(TARGETS), WEIGHTS).isfinite()
