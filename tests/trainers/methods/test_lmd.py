"""What LMD's two stages do, beyond what every trainer promises."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from tests.helpers.trainers import TINY, build, labels_for, pictures, train
from trainers.base import Task, TrainerInputs
from trainers.features.gaussians import Gaussians
from trainers.features.virtual import BLOCK
from trainers.images.augment import centre_crop
from trainers.images.views import strong_view, weak_view
from trainers.losses.relation import channel_relation, probability_consistency, sample_relation
from trainers.methods.lmd import LMDConfig, LMDTrainer


def lmd(stage1: dict[str, Any] | None = None, **stage2: Any) -> LMDTrainer:
    config = {"stage1": TINY["lmd"]["stage1"] | (stage1 or {}), "stage2": TINY["lmd"]["stage2"] | stage2}
    inputs = TrainerInputs(Task.MULTI_CLASS, 4, pictures(41), labels_for(Task.MULTI_CLASS), torch.device("cpu"), 0)
    return LMDTrainer(LMDConfig.model_validate(config), inputs)


def begun(stage1: dict[str, Any] | None = None, **stage2: Any) -> LMDTrainer:
    trainer = lmd(stage1, **stage2)
    train(trainer, 1, range(1))
    trainer.begin_stage2()
    return trainer


def weights(trainer: LMDTrainer, part: str) -> torch.Tensor:
    state = trainer.state()["model"]
    return torch.cat([v.flatten() for k, v in state.items() if k.startswith(part) and v.is_floating_point()])


def parameters(trainer: LMDTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.encoder_parameters()])


def test_consistency_starts_at_its_fraction_of_stage_one() -> None:
    plain, consistent = lmd({"use_mrc": False}), lmd({"consistency_start": 0.5})
    losses = [train(trainer, 1, range(4)) for trainer in (plain, consistent)]
    assert losses[0][:2] == losses[1][:2]
    assert losses[0][2] != losses[1][2]


@pytest.mark.parametrize("ce_view", ["released", "paper"])
def test_the_logged_loss_is_the_weighted_sum_of_all_terms_against_the_teacher_on_the_weak_view(ce_view: str) -> None:
    trainer = lmd({
        "consistency_start": 0.0, "images_per_epoch": 41, "batch_size": 41, "ce_view": ce_view, "crop": 0.75,
        "classification_weight": 2.0, "probability_weight": 3.0, "sample_weight": 5.0, "channel_weight": 7.0,
    })  # fmt: skip
    assert trainer.teacher is not None
    with torch.no_grad():
        for parameter in trainer.teacher.parameters():
            parameter.mul_(1.0 + 0.3 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(5)))
    student, teacher = copy.deepcopy(trainer.model).train(), copy.deepcopy(trainer.teacher).train()
    order = trainer.step_order(1, 0, None)
    images = centre_crop(torch.from_numpy(trainer.inputs.images[order]), 0.75)
    strong = strong_view(images, "both", 1.0, trainer.draws(1, 0, "strong view"))
    weak = weak_view(images, "both", trainer.draws(1, 0, "weak view"))
    with torch.no_grad():
        z, reference = student.features(strong), teacher.features(weak)
        seen = z if ce_view == "released" else student.features(weak)
        expected = (
            2 * F.cross_entropy(student.head(seen), trainer.labels[order])
            + 3 * probability_consistency(student.head(z), teacher.head(reference))
            + 5 * sample_relation(z, reference)
            + 7 * channel_relation(z, reference)
        )
    assert trainer.stage1_step(0)["loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"ce_view": "paper", "consistency_start": 0.75}, ["weak"]),
        ({"ce_view": "released", "consistency_start": 0.75}, ["strong"]),
        ({"ce_view": "released", "use_mrc": False}, ["strong"]),
        ({"ce_view": "paper", "consistency_start": 0.0}, ["strong", "weak"]),
        ({"ce_view": "released", "consistency_start": 0.0}, ["strong", "weak"]),
    ],
    ids=str,
)
def test_only_views_that_a_loss_needs_are_made(
    settings: dict[str, Any], seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: set[str] = set()
    for name, view in (("strong", strong_view), ("weak", weak_view)):

        def recorded(*args: Any, name: str = name, view: Any = view) -> torch.Tensor:
            made.add(name)
            return view(*args)  # type: ignore[no-any-return]

        monkeypatch.setattr(f"trainers.methods.lmd.{name}_view", recorded)
    lmd(settings).stage1_step(0)
    assert sorted(made) == seen


def test_paper_defaults_start_consistency_at_epoch_21_of_100() -> None:
    config = LMDConfig()
    assert config.stage1.consistency_from == 21
    assert config.losses_active_from() == {1: 21, 2: 0}
    assert LMDConfig.model_validate({"stage1": {"use_mrc": False}}).losses_active_from() == {1: 0, 2: 0}


def test_the_first_update_makes_the_teacher_the_student_and_later_ones_average() -> None:
    trainer = lmd({"images_per_epoch": 8, "ema_decay": 0.999})
    seen = []
    for step in range(3):
        trainer.stage1_step(step)
        seen.append(parameters(trainer))
        assert trainer.teacher is not None
        teacher = torch.cat([p.flatten() for p in trainer.teacher.encoder_parameters()])
        torch.testing.assert_close(teacher, torch.stack(seen).mean(0))


def test_stage_two_goes_on_from_the_student_or_the_teacher_with_a_new_classifier() -> None:
    for start in ("student", "teacher"):
        trainer = lmd(start_from=start)
        train(trainer, 1, range(3))
        assert trainer.teacher is not None
        network = trainer.model if start == "student" else trainer.teacher
        expected = {key: value.clone() for key, value in network.state_dict().items()}
        trainer.begin_stage2()
        for key, value in trainer.model.state_dict().items():
            assert torch.equal(value, expected[key]) is (not key.startswith("head"))


def test_without_e_step_the_encoder_stays_and_the_classifier_learns() -> None:
    trainer = begun(update_encoder=False, virtual_size=1000, classifier_lr=0.1)
    before, head = weights(trainer, "backbone"), weights(trainer, "head")
    losses = train(trainer, 2, range(3))
    assert torch.equal(before, weights(trainer, "backbone"))
    assert not torch.equal(head, weights(trainer, "head"))
    assert set(losses[0]) == {"m_loss"}
    assert losses[2]["m_loss"] < losses[0]["m_loss"]


def test_the_m_step_separates_gaussians_as_well_as_their_bayes_classifier() -> None:
    trainer = begun(update_encoder=False, virtual_size=2000, classifier_lr=0.1, shrinkage=0.3)
    losses = train(trainer, 2, range(8))
    features = trainer.features(trainer.inputs.images).double()
    log_likelihood = []
    for k in range(4):
        own = features[trainer.labels == k]
        cov = torch.cov(own.T) if len(own) > 1 else torch.eye(features.shape[1])
        cov = 0.7 * cov + 0.3 * cov.diagonal().mean() * torch.eye(len(cov)) + 0.01 * torch.eye(len(cov))
        log_likelihood.append((torch.distributions.MultivariateNormal(own.mean(0), cov), own))
    draws = torch.cat([gaussian.sample((500,)) for gaussian, _ in log_likelihood])
    truth = torch.arange(4).repeat_interleave(500)
    bayes = torch.stack([gaussian.log_prob(draws) for gaussian, _ in log_likelihood], 1)
    best = F.cross_entropy(bayes, truth).item()
    assert best * 0.9 < losses[-1]["m_loss"] < best + 0.35


@pytest.mark.parametrize(
    ("settings", "moves"),
    [
        ({"use_fdc": False}, True),
        ({"fdc_weight": 0.0}, True),
        # So light a compensation rounds away, which leaves the loss on labels.
        ({"label_gradient": "released", "fdc_weight": 1e-30, "weight_decay": 0.0}, False),
        ({"label_gradient": "released", "fdc_weight": 1e-3, "weight_decay": 0.0}, True),
    ],
)
def test_the_label_loss_reaches_the_encoder_unless_released_says_otherwise(
    settings: dict[str, Any], moves: bool
) -> None:
    trainer = begun(**settings)
    before, head = parameters(trainer), weights(trainer, "head")
    trainer._e_step(0) if "use_fdc" in settings else trainer.stage2_step(0)
    assert torch.equal(before, parameters(trainer)) is not moves
    if "use_fdc" in settings:
        assert torch.equal(head, weights(trainer, "head"))


def test_batch_norms_keep_their_statistics_in_the_e_step_unless_told_to_move() -> None:
    for mode, same in (("eval", True), ("train", False)):
        trainer = begun(bn_mode_e=mode)
        buffers = {k: v.clone() for k, v in trainer.model.named_buffers()}
        trainer.stage2_step(0)
        assert all(torch.equal(v, buffers[k]) for k, v in trainer.model.named_buffers()) is same


def test_running_gaussians_are_the_plain_average_of_all_rounds() -> None:
    trainer = begun(backbone_lr=1e-2)
    seen = []
    for step in range(3):
        features = trainer.features(trainer.inputs.images)
        seen.append(torch.stack([features[trainer.labels == k].mean(0) for k in range(4)]).double())
        trainer.stage2_step(step)
    assert not torch.allclose(seen[0], seen[2], atol=1e-4)
    torch.testing.assert_close(trainer.state()["running"][0][0], torch.stack(seen).mean(0), rtol=1e-5, atol=1e-5)


def test_the_m_step_draws_from_this_rounds_gaussians_and_the_e_step_measures_by_the_running_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = begun(backbone_lr=1e-2)
    drawn_from: list[Gaussians] = []
    measured_by: list[Gaussians] = []
    drawn, measured = trainer.virtual_features, trainer._fdc
    monkeypatch.setattr(
        trainer, "virtual_features", lambda step, given, *rest: drawn_from.append(given) or drawn(step, given, *rest)
    )
    monkeypatch.setattr(trainer, "_fdc", lambda given, *rest: measured_by.append(given) or measured(given, *rest))
    for step in range(3):
        features = trainer.features(trainer.inputs.images)
        means = torch.stack([features[trainer.labels == k].mean(0) for k in range(4)])
        trainer.stage2_step(step)
        torch.testing.assert_close(drawn_from[step].mean[0], means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(measured_by[-1].mean, trainer.state()["running"][0].float())
    assert not torch.allclose(measured_by[-1].mean[0], means, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "fits"),
    [({"update_encoder": False}, 1), ({"update_encoder": False, "statistics": "released"}, 3), ({}, 3)],
    ids=str,
)
def test_gaussians_are_measured_again_only_where_something_has_changed(
    settings: dict[str, Any], fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = begun(**settings)
    rounds: list[int] = []
    measured = trainer._measured
    monkeypatch.setattr(trainer, "_measured", lambda step: rounds.append(step) or measured(step))
    train(trainer, 2, range(3))
    assert len(rounds) == fits


def test_a_loaded_state_is_not_moved_with_the_running_gaussians() -> None:
    trainer, other = begun(backbone_lr=1e-2), begun(backbone_lr=1e-2)
    trainer.stage2_step(0)
    state = trainer.state()
    before = [part.clone() for part in state["running"]]
    other.load_state(state)
    other.stage2_step(1)
    assert all(torch.equal(one, two) for one, two in zip(before, state["running"], strict=True))


def test_released_statistics_come_from_a_balanced_sample_instead_of_every_image_once() -> None:
    once, balanced = begun(), begun(statistics="released")
    assert once._statistics(0).count[0].tolist() == [23, 10, 5, 3]
    assert balanced._statistics(0).count[0].tolist() == [11] * 4
    assert not torch.equal(balanced._statistics(0).total, balanced._statistics(1).total)


@pytest.mark.parametrize("positives", [(20, 10, 5, 1), (20, 10, 5, 0)])
def test_released_statistics_of_a_class_with_one_or_no_image_take_the_pooled_covariance(
    positives: tuple[int, ...],
) -> None:
    labels = labels_for(Task.MULTI_CLASS, positives)
    trainer = build(("lmd", Task.MULTI_CLASS), labels=labels, statistics="released", cov_eps=0.0)
    assert isinstance(trainer, LMDTrainer)
    trainer.begin_stage2()
    features = trainer.features(trainer.inputs.images).double()
    sums = trainer._statistics(0)
    if positives[3]:
        torch.testing.assert_close(sums.total[0, 3] / sums.count[0, 3], features[labels == 3][0])
    else:
        assert sums.count[0, 3] == 0
    cov = trainer._moments(0)[1][0]
    torch.testing.assert_close(cov[3], cov[:3].mean(0))
    assert np.isfinite(trainer.stage2_step(0)["m_loss"])


def test_released_statistics_leave_classes_below_the_floor_without_a_covariance_of_their_own() -> None:
    trainer = begun(statistics="released", min_cov_samples=6)
    cov = trainer._moments(0)[1][0]
    assert torch.equal(cov[2], cov[3])
    assert not torch.equal(cov[1], cov[2])


def test_the_resampled_m_step_draws_as_many_as_the_virtual_one_in_whole_batches() -> None:
    sizes = [len(targets) for _, targets in begun().balanced_features(0, 2 * BLOCK + 5, 100)]
    assert sum(sizes) == 2 * BLOCK + 5
    assert set(sizes[:-1]) == {100}


def test_the_resampled_m_step_sees_real_features_class_balanced() -> None:
    trainer = begun(use_vfc=False)
    features = trainer.features(trainer.inputs.images)
    drawn = list(trainer.balanced_features(0, 4000, 32))
    targets = torch.cat([targets for _, targets in drawn])
    assert torch.bincount(targets).float().div(4000).sub(0.25).abs().max() < 0.03
    first, labels = drawn[0]
    for vector, label in zip(first[:10], labels[:10], strict=True):
        same = (features == vector).all(1)
        assert same.any()
        assert trainer.labels[same.nonzero()[0, 0]] == label


@pytest.mark.parametrize(
    "settings",
    [
        {"fdc_mode": "hinge", "fdc_margin": 0.0}, {"fdc_mode": "softmax", "fdc_per_dimension": True},
        {"fdc_sign": "released"},
        {"cov_type": "diag"}, {"label_loss": "gce", "q": 0.7}, {"balanced_e": True}, {"use_vfc": False},
        {"statistics": "released"}, {"use_fdc": False}, {"distribution_decay": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_every_switch_of_stage_two_changes_what_is_learned(settings: dict[str, Any]) -> None:
    usual, other = begun(fdc_weight=1e-2, backbone_lr=1e-2), begun(fdc_weight=1e-2, backbone_lr=1e-2, **settings)
    for trainer in (usual, other):
        losses = train(trainer, 2, range(2))
        assert all(np.isfinite(value) for step in losses for value in step.values())
    images = pictures(5, seed=3)
    assert not torch.equal(usual.predict_logits(images), other.predict_logits(images))


@pytest.mark.parametrize(
    ("field", "value", "beside"),
    [
        ("cov_eps", 0.5, {}),
        ("min_cov_samples", 6, {}),
        ("shrinkage", 0.5, {}),
        ("fdc_weight", 0.1, {}),
        ("fdc_per_dimension", True, {}),
        ("fdc_temperature", 4.0, {"fdc_mode": "softmax", "fdc_per_dimension": True}),
        ("fdc_margin", 0.0, {"fdc_mode": "hinge"}),
        ("q", 0.5, {"label_loss": "gce"}),
    ],
)
def test_every_number_of_stage_two_changes_what_is_learned_by_itself(
    field: str, value: float, beside: dict[str, Any]
) -> None:
    common = {"fdc_weight": 1e-2, "backbone_lr": 1e-2, "fdc_margin": 1e6, **beside}
    usual, other = begun(**common), begun(**common | {field: value})
    for trainer in (usual, other):
        train(trainer, 2, range(1))
    assert not torch.equal(parameters(usual), parameters(other))


@pytest.mark.parametrize("settings", [{"gram_form": "paper"}, {"ce_view": "paper"}, {"flips": "none"}, {"strength": 0}])
def test_every_switch_of_stage_one_changes_what_is_learned(settings: dict[str, Any]) -> None:
    usual, other = lmd({"consistency_start": 0.0}), lmd({"consistency_start": 0.0} | settings)
    assert train(usual, 1, range(2)) != train(other, 1, range(2))


def test_settings_that_leave_the_encoder_without_a_gradient_are_refused() -> None:
    with pytest.raises(ValidationError, match="no gradient"):
        LMDConfig.model_validate({"stage2": {"label_gradient": "released", "use_fdc": False}})
    with pytest.raises(ValidationError, match="no gradient"):
        LMDConfig.model_validate({"stage2": {"label_gradient": "released", "fdc_weight": 0.0}})
    LMDConfig.model_validate({"stage2": {"label_gradient": "released", "fdc_weight": 0.0, "update_encoder": False}})
    with pytest.raises(ValidationError, match="start_from"):
        LMDConfig.model_validate({"stage1": {"use_mrc": False}, "stage2": {"start_from": "teacher"}})


@pytest.mark.parametrize("field", ["augmentation", "shift", "scale", "brightness", "contrast", "colour"])
def test_augmentations_that_the_views_replace_are_no_fields(field: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        LMDConfig.model_validate({"stage1": {field: "none" if field == "augmentation" else 0.0}})


def test_multi_label_data_is_refused() -> None:
    inputs = TrainerInputs(Task.MULTI_LABEL, 4, pictures(41), labels_for(Task.MULTI_LABEL), torch.device("cpu"), 0)
    with pytest.raises(ValueError, match="not on multi-label data"):
        LMDTrainer(LMDConfig.model_validate(TINY["lmd"]), inputs)


def test_a_class_without_images_is_never_drawn_nor_repelled() -> None:
    labels = labels_for(Task.MULTI_CLASS, (20, 10, 5, 0))
    trainer = build(("lmd", Task.MULTI_CLASS), labels=labels, classifier_lr=0.5, virtual_size=500)
    train(trainer, 1, range(1))
    trainer.begin_stage2()
    train(trainer, 2, range(2))
    assert (trainer.predict_logits(pictures(30)).argmax(1) != 3).all()
