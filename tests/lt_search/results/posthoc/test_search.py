from __future__ import annotations

from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch
from sklearn.metrics import average_precision_score, recall_score

from lt_search.results.posthoc.ensemble import MIN_POSITIVES
from lt_search.results.posthoc.pipeline import Predictions
from lt_search.results.posthoc.search import FOLDS, CannotHoldOutError, Evidence, _Search, choices_of, folds, tune
from lt_search.results.posthoc.settings import Settings, propose
from trainers.networks.heads import LinearHead
from trainers.task import Task

N, C = 300, 4


def several_labels(models: int = 3, signal: float = 1.0, seed: int = 0) -> Evidence:
    """Models that see the labels through noise of their own; with no signal they say nothing at all."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((N, C)) < (0.6, 0.5, 0.4, 0.3)).astype(np.uint8)
    given = []
    for _ in range(models):
        shared = signal * labels + rng.normal(size=(N, C))
        views = torch.from_numpy(shared + rng.normal(scale=0.5, size=(8, N, C)) - 2.0).float()
        given.append(Predictions(views[0], views, None))
    groups = [f"p{i // 2}" for i in range(N)]
    return Evidence(Task.MULTI_LABEL, "mAP", labels, groups, torch.zeros(C), given)


def one_label(seed: int = 0) -> Evidence:
    """A model that knows the classes and is biased to the frequent ones by the log of their training share."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, N)
    prior = torch.tensor([0.85, 0.1, 0.04, 0.01]).log()
    logits = 2.0 * np.eye(C)[labels] + rng.normal(size=(N, C)) + prior.numpy()
    own = torch.from_numpy(logits).float()
    return Evidence(
        Task.MULTI_CLASS, "BACC", labels, [str(i) for i in range(N)], prior, [Predictions(own, own[None], None)]
    )


def test_parts_hold_whole_patients_and_every_image_once() -> None:
    groups = several_labels().groups
    parts = folds(groups, 0)
    assert sorted(np.concatenate(parts)) == list(range(N))
    held = [{groups[row] for row in part} for part in parts]
    assert sum(map(len, held)) == len(set(groups)) == len(set.union(*held))


def test_a_split_of_one_patient_is_refused() -> None:
    evidence = several_labels()
    with pytest.raises(CannotHoldOutError, match="fewer than two validation patients"):
        tune(replace(evidence, groups=["p"] * N), 5, 0)


def test_members_and_thresholds_come_from_other_patients() -> None:
    """Labels of the held-out part, turned around, change nothing of what that part is given."""
    evidence = several_labels()
    parts = folds(evidence.groups, 0)
    settings = [Settings(ensemble="class_wise", members=1, thresholds=True)] * len(parts)
    turned = evidence.labels.copy()
    turned[parts[0]] = 1 - turned[parts[0]]
    before, after = (_Search(replace(evidence, labels=y), 0).cross_fitted(settings) for y in (evidence.labels, turned))
    assert torch.equal(before[parts[0]], after[parts[0]])
    assert not torch.equal(before[parts[1]], after[parts[1]])


def test_merging_views_and_models_of_independent_noise_is_found_and_adopted() -> None:
    evidence = several_labels()
    found = tune(evidence, 1000, 0)
    assert found.settings.views > 1
    assert found.settings.ensemble != "none"
    assert found.adopted
    assert found.gain.interval.low > 0
    own = average_precision_score(evidence.labels, evidence.models[0].own.numpy())
    assert found.own == pytest.approx(own)
    assert average_precision_score(evidence.labels, found.logits.numpy()) > own


def test_all_settings_of_several_labels_are_tried_once() -> None:
    # 3 numbers of views with 3 merges and the plain one, times none, 2 means and 3 class-wise sizes
    assert tune(several_labels(), 1000, 0).tried == (3 * 3 + 1) * (1 + 2 + 3)


def test_the_objective_without_a_part_is_that_of_the_other_images() -> None:
    evidence = several_labels()
    search = _Search(evidence, 0)
    own = evidence.models[0].own.double()
    scores = search._scores(own)
    assert scores[0] == pytest.approx(evidence.score("mAP", own))
    for part, found in zip(folds(evidence.groups, 0), scores[1:], strict=True):
        others = np.setdiff1d(np.arange(N), part)
        assert found == pytest.approx(average_precision_score(evidence.labels[others], own[others].numpy()))


def test_members_by_class_are_chosen_by_their_average_precision_on_other_patients() -> None:
    evidence = several_labels()
    search = _Search(evidence, 0)
    quality = search._quality(Settings())
    others = np.setdiff1d(np.arange(N), folds(evidence.groups, 0)[2])
    for model, found in zip(evidence.models, quality[:, 3], strict=True):
        expected = average_precision_score(evidence.labels[others], model.own[others].numpy(), average=None)
        np.testing.assert_allclose(found, expected)


def test_what_a_model_does_itself_is_not_given_up_without_a_gain() -> None:
    """The models' own way to predict is far better than any number of plain views, as with views of their own."""
    evidence = several_labels(models=2)
    better = [replace(m, own=m.own + 3 * torch.from_numpy(evidence.labels).float()) for m in evidence.models]
    found = tune(replace(evidence, models=better), 1000, 0)
    assert found.settings.views == found.best.views == 0
    assert found.crossed >= found.own


def test_a_class_whose_positives_are_one_patient_s_alone_is_refused_where_nothing_else_counts() -> None:
    evidence = several_labels(models=1)
    labels = np.zeros_like(evidence.labels)
    labels[:2] = 1
    with pytest.raises(CannotHoldOutError, match="no class can be scored"):
        tune(replace(evidence, labels=labels), 10, 0)


def test_luck_is_not_taken_for_a_gain() -> None:
    """Models that say nothing: one of the settings always looks good, and is seldom so on other patients."""
    honest, lucky, kept = [], [], 0
    for seed in range(20):
        evidence = several_labels(models=1, signal=0.0, seed=seed)
        found, search = tune(evidence, 1000, seed), _Search(evidence, seed)
        honest.append(found.gain.difference)
        lucky.append(search._scores(search.cross_fitted([found.best] * 5))[0] - found.own)
        kept += replace(found.settings, thresholds=False) == Settings()
    assert abs(np.mean(honest)) < np.mean(lucky) / 2
    assert kept >= 18


def test_thresholds_that_are_right_already_are_seldom_changed() -> None:
    """At logit 0 the probability is one half, and a label that is as frequent as that is decided best there."""
    adopted = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = (rng.random((N, C)) < 0.5).astype(np.uint8)
        own = torch.from_numpy(1.5 * (2.0 * labels - 1) + rng.normal(size=(N, C)) * 1.2).float()
        groups = [str(i) for i in range(N)]
        evidence = Evidence(
            Task.MULTI_LABEL, "mAP", labels, groups, torch.zeros(C), [Predictions(own, own[None], None)]
        )
        adopted += tune(evidence, 10, seed).adopted
    assert adopted <= 5


def test_thresholds_are_taken_where_they_help_decisions_and_the_objective_is_a_ranking() -> None:
    found = tune(several_labels(models=1), 50, 0)
    assert found.settings.thresholds  # logits are 2 too low, so that nearly nothing is predicted
    assert found.macro_f1[1] > found.macro_f1[0]
    assert tune(replace(several_labels(models=1), metric="macro_f1"), 50, 0).settings.thresholds


def test_the_prior_of_a_biased_model_is_taken_out() -> None:
    evidence = one_label()
    found = tune(evidence, 60, 0)
    assert found.settings.prior_tau == pytest.approx(1.0, abs=0.5)
    own = evidence.models[0].own.argmax(1)
    assert found.own == pytest.approx(recall_score(evidence.labels, own, average="macro"))
    assert recall_score(evidence.labels, found.logits.argmax(1), average="macro") > found.own + 0.1


def test_the_same_seed_finds_the_same() -> None:
    one, two = (tune(one_label(), 40, 3) for _ in range(2))
    assert one.settings == two.settings
    assert one.crossed == two.crossed


def biased_by_norms(*, cosine: bool) -> Evidence:
    """A model that knows the classes and is biased to those of large weights; another one may have a cosine head."""
    evidence, rng = one_label(), np.random.default_rng(1)
    norms = np.array([4.0, 2.0, 1.5, 1.0])
    logits = norms * (1.0 + 2.0 * np.eye(C)[evidence.labels] + 0.5 * rng.normal(size=(N, C)))
    own, head = torch.from_numpy(logits).float(), LinearHead(torch.from_numpy(norms).float(), torch.zeros(C))
    noise = torch.from_numpy(rng.normal(size=(N, C))).float()
    models = [Predictions(own, own[None], head), *([Predictions(noise, noise[None], None)] if cosine else [])]
    return replace(evidence, log_prior=torch.zeros(C), models=models)


@pytest.mark.parametrize("cosine", [False, True])
def test_the_norms_of_a_linear_head_are_taken_out(cosine: bool) -> None:
    evidence = biased_by_norms(cosine=cosine)
    assert choices_of(evidence).linear
    found = tune(evidence, 60, 0)
    assert found.settings.head_tau > 0.3
    assert found.crossed > found.own + 0.1


def test_tau_is_not_offered_where_no_head_is_linear() -> None:
    assert not choices_of(one_label()).linear
    settings = [propose(trial, choices_of(one_label())) for trial in some_trials(20)]
    assert all(each.head_tau == 0 for each in settings)


def some_trials(count: int) -> list[optuna.Trial]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [study.ask() for _ in range(count)]


def test_a_class_with_enough_positives_in_all_parts_but_not_without_one_has_no_threshold_of_its_own() -> None:
    evidence = several_labels(models=1)
    labels = evidence.labels.copy()
    few = np.flatnonzero(labels[:, 3])
    labels[few[22:], 3] = 0  # 22 of the 20 that a threshold needs; a part of the five has at least 5 of them
    found = tune(replace(evidence, labels=labels), 20, 0)
    assert found.settings.thresholds
    assert found.learned.thresholds[3] == 0
    assert (found.learned.thresholds[:3] != 0).all()


def test_a_class_has_members_of_its_own_in_every_part_or_in_none() -> None:
    evidence = several_labels()
    labels = evidence.labels.copy()
    few = np.flatnonzero(labels[:, 3])
    labels[few[36:], 3] = 0
    search = _Search(replace(evidence, labels=labels), 0)
    learned_from = [labels[others, 3].sum() for others in search._others]
    assert min(learned_from) < MIN_POSITIVES <= max(learned_from)
    settings = Settings(ensemble="class_wise")
    final = search.cross_fitted([settings] * FOLDS)
    everyone = search.cross_fitted([Settings(ensemble="mean", members=3)] * FOLDS)
    np.testing.assert_allclose(final[:, 3], everyone[:, 3])
    assert not torch.allclose(final[:, 0], everyone[:, 0])
