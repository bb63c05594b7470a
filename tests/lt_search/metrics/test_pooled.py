import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit
from sklearn import metrics as sk

from lt_search.metrics.bootstrap import Bootstrap
from lt_search.metrics.class_groups import class_groups
from lt_search.metrics.evaluate import METRICS, check_metric, evaluate
from trainers.task import Task

Array = npt.NDArray[Any]
NAMES = ("pooled_kappa", "pooled_auc", "odir_score")


def challenge_scores(truth: Array, logits: Array, weights: Array | None = None) -> dict[str, float]:
    """The scores of the challenge's script, by scikit-learn on flattened arrays."""
    flat, probability = truth.ravel().astype(int), expit(logits).ravel()
    each = None if weights is None else np.repeat(weights, truth.shape[1])
    kappa = sk.cohen_kappa_score(flat, probability > 0.5, sample_weight=each)
    f1 = sk.f1_score(flat, probability > 0.5, average="micro", sample_weight=each)
    auc = sk.roc_auc_score(flat, logits.ravel(), sample_weight=each)
    return {"pooled_kappa": kappa, "pooled_auc": auc, "f1": f1, "odir_score": (kappa + f1 + auc) / 3}


def sample(seed: int, ties: bool) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    truth = rng.random((60, 8)) < np.linspace(0.4, 0.05, 8)
    logits = rng.normal(size=(60, 8)) + 1.5 * truth - 1
    return truth, np.round(logits) if ties else logits


@pytest.mark.parametrize("ties", [False, True])
def test_scores_are_those_of_the_challenge_script(ties: bool) -> None:
    truth, logits = sample(1, ties)
    found = evaluate(Task.MULTI_LABEL, truth.astype(np.uint8), logits, class_groups([1] * 8)).scalars
    expected = challenge_scores(truth, logits)
    assert {name: found[name] for name in NAMES} == pytest.approx({name: expected[name] for name in NAMES})
    assert found["mACC"] == pytest.approx(expected["f1"])


@pytest.mark.parametrize("name", NAMES)
def test_weighted_scores_are_those_of_weighted_patients(name: str) -> None:
    truth, logits = sample(2, ties=True)
    weights = np.random.default_rng(3).poisson(1.0, (4, 60)).astype(float)
    found = METRICS[name].prepare(truth, logits, Task.MULTI_LABEL)(weights)
    np.testing.assert_allclose(found, [challenge_scores(truth, logits, row)[name] for row in weights], rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_undefined_without_a_positive_label_or_with_infinite_logits(name: str) -> None:
    truth, logits = sample(4, ties=False)
    groups = class_groups([1] * 8)
    assert math.isnan(evaluate(Task.MULTI_LABEL, np.zeros((60, 8)), logits, groups).scalars[name])
    metric = METRICS[name].prepare(np.eye(8, dtype=bool), np.eye(8), Task.MULTI_LABEL)
    assert math.isnan(metric(np.zeros((1, 8)))[0])
    logits[3, 4] = np.inf
    assert math.isnan(evaluate(Task.MULTI_LABEL, truth, logits, groups).scalars[name])


def test_the_score_of_the_challenge_can_be_searched_for() -> None:
    truth, logits = sample(5, ties=False)
    assert check_metric("odir_score", Task.MULTI_LABEL).direction == "maximize"
    bootstrap = Bootstrap("odir_score", Task.MULTI_LABEL, truth, [str(index) for index in range(60)])
    assert 0 < bootstrap.standard_error(logits) < 0.1
    worst = METRICS["odir_score"].prepare(truth, np.where(truth, -1.0, 1.0), Task.MULTI_LABEL)(np.ones((1, 60)))
    assert METRICS["odir_score"].lowest <= worst[0] < 0
