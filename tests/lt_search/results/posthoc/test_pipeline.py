from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import average_precision_score

from lt_search.results.posthoc.pipeline import Learned, Predictions, combined, learn, model_logits
from lt_search.results.posthoc.settings import Settings
from trainers.networks.heads import LinearHead
from trainers.task import Task

N, C, V = 80, 3, 8
PRIOR = np.log([0.6, 0.3, 0.1])


def predictions(head: bool = False) -> Predictions:
    views = torch.from_numpy(np.random.default_rng(0).normal(size=(V, N, C))).float()
    return Predictions(
        views[0], views, LinearHead(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 0.0, -1.0])) if head else None
    )


def models(count: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (M, N, C) of models that know one class each better than the others, and the labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((N, C)) < 0.5).astype(float)
    strength = np.ones((count, 1, C)) * 0.5
    for model in range(count):
        strength[model, 0, model % C] = 3.0
    logits = rng.normal(size=(count, N, C)) + strength * labels
    return torch.from_numpy(logits), torch.from_numpy(labels).long()


def test_plain_settings_keep_what_the_model_predicts_itself() -> None:
    given = replace(predictions(), own=predictions().own + 1)
    for settings, expected in ((Settings(), given.own), (Settings(views=1), given.views[0])):
        assert torch.equal(model_logits(given, settings, Task.MULTI_LABEL, torch.zeros(C)), expected.double())


def test_tau_and_prior_are_applied_to_every_view_before_they_are_merged() -> None:
    settings = Settings(views=2, merge="arithmetic", head_tau=0.5, prior_tau=1.5)
    given = predictions(head=True)
    found = model_logits(given, settings, Task.MULTI_CLASS, torch.from_numpy(PRIOR).float())
    z = (given.views[:2].numpy() - [0.5, 0.0, -1.0]) / np.sqrt([1.0, 2.0, 4.0]) - 1.5 * PRIOR
    expected = np.log(softmax(z, -1).mean(0))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_tau_and_prior_do_nothing_to_several_labels() -> None:
    changed = Settings(head_tau=1.0, prior_tau=1.0)
    found = model_logits(predictions(head=True), changed, Task.MULTI_LABEL, torch.from_numpy(PRIOR))
    assert torch.equal(found, predictions().own.double())


def test_an_ensemble_of_several_labels_is_the_mean_probability() -> None:
    logits, labels = models()
    learned = learn(Settings(ensemble="mean", members=3), logits, labels, Task.MULTI_LABEL)
    found = combined(logits, learned, Task.MULTI_LABEL)
    np.testing.assert_allclose(expit(found.numpy()), expit(logits[:3].numpy()).mean(0), rtol=1e-9)


def test_an_ensemble_of_one_label_is_the_mean_softmax() -> None:
    logits, labels = models()
    learned = learn(Settings(ensemble="mean", members=2), logits, labels.argmax(1), Task.MULTI_CLASS)
    found = combined(logits, learned, Task.MULTI_CLASS)
    expected = softmax(logits[:2].numpy(), -1).mean(0)
    np.testing.assert_allclose(log_softmax(found, -1), np.log(expected), rtol=1e-9)


def test_each_class_is_spoken_for_by_the_models_that_rank_it_best() -> None:
    logits, labels = models(3)
    learned = learn(Settings(ensemble="class_wise", members=1), logits, labels, Task.MULTI_LABEL)
    assert torch.equal(learned.members, torch.eye(3, dtype=torch.bool))
    quality = np.array([[average_precision_score(labels[:, c], m[:, c]) for c in range(C)] for m in logits.numpy()])
    assert (quality.argmax(0) == [0, 1, 2]).all()


def test_a_class_qualifies_by_the_positives_that_are_given() -> None:
    logits, labels = models(3)
    settings = Settings(ensemble="class_wise", members=1, thresholds=True)
    learned = learn(settings, logits, labels, Task.MULTI_LABEL, positives=torch.tensor([30, 29, 19]))
    assert learned.members.sum(0).tolist() == [1, 3, 3]
    assert (learned.thresholds != 0).tolist() == [True, True, False]


def test_saturated_logits_stay_finite_and_in_order() -> None:
    logits = torch.tensor([[[-900.0], [30.0], [35.0]], [[-900.0], [31.0], [36.0]]], dtype=torch.float64)
    found = combined(logits, Learned(torch.ones(2, 1, dtype=torch.bool), torch.zeros(1)), Task.MULTI_LABEL)
    assert found.isfinite().all()
    assert (found.diff(dim=0) > 0).all()


@pytest.mark.parametrize("ensemble", ["none", "mean", "class_wise"])
def test_thresholds_leave_every_ranking_as_it_is(ensemble: str) -> None:
    logits, labels = models()
    plain, shifted = (
        combined(logits, learn(settings, logits, labels, Task.MULTI_LABEL), Task.MULTI_LABEL)
        for settings in (
            Settings(ensemble=ensemble, members=2),  # type: ignore[arg-type]
            Settings(ensemble=ensemble, members=2, thresholds=True),  # type: ignore[arg-type]
        )
    )
    assert torch.equal(plain.argsort(0), shifted.argsort(0))
    assert not torch.equal(plain > 0, shifted > 0)
