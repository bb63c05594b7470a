import itertools
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn import metrics as sk

from lt_search.errors import UserError
from lt_search.metrics.class_groups import class_groups
from lt_search.metrics.evaluate import METRICS, Evaluation, check_metric, counted_classes, evaluate, metrics_for
from trainers.task import Task

Array = npt.NDArray[Any]
PER_CLASS = [(task, metric.name) for task in Task for metric in metrics_for(task) if not metric.pooled]
POOLED = [metric.name for metric in metrics_for(Task.MULTI_CLASS) if metric.pooled]


def calibration_error(outcomes: Array, probabilities: Array, weights: Array) -> float:
    """The expected calibration error, bin by bin."""
    edges = np.linspace(0, 1, 16)
    error = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (probabilities > low) & (probabilities <= high) | ((low == 0) & (probabilities == 0))
        share = weights[inside].sum()
        if share > 0:
            gap = np.average(outcomes[inside], weights=weights[inside]) - np.average(
                probabilities[inside], weights=weights[inside]
            )
            error += share / weights.sum() * abs(gap)
    return error


def pooled_reference(name: str, labels: Array, logits: Array, weights: Array) -> float:
    """The value of a pooled metric by scikit-learn or `calibration_error`; NaN where it is not defined."""
    predicted, classes = logits.argmax(axis=1), np.arange(logits.shape[1])
    if name not in ("accuracy", "ECE") and len(set(labels[weights > 0])) < 2:
        return math.nan
    if name == "ECE":
        confidence = np.round(softmax(logits, axis=1).max(axis=1), 14)
        return calibration_error(labels == predicted, confidence, weights)
    functions: dict[str, Callable[[], float]] = {
        "accuracy": lambda: sk.accuracy_score(labels, predicted, sample_weight=weights),
        "MCC": lambda: sk.matthews_corrcoef(labels, predicted, sample_weight=weights),
        "kappa": lambda: sk.cohen_kappa_score(labels, predicted, labels=classes, sample_weight=weights),
        "quadratic_kappa": lambda: sk.cohen_kappa_score(
            labels, predicted, labels=classes, weights="quadratic", sample_weight=weights
        ),
    }
    return float(functions[name]())


def reference(name: str, task: Task, labels: Array, logits: Array, weights: Array) -> list[float]:
    """scikit-learn's value per class, NaN for a class without what the metric needs."""
    if task is Task.MULTI_LABEL:
        truth, scores, predicted = labels > 0, logits, expit(logits) > 0.5
    else:
        classes = np.arange(logits.shape[1])
        truth = labels[:, None] == classes
        # Rounded, since equal probabilities of two images may differ in their last bit.
        scores = np.round(softmax(logits, axis=1), 12)
        predicted = logits.argmax(axis=1)[:, None] == classes
    functions: dict[str, Callable[[Array, Array, Array], float]] = {
        "mAP": lambda t, s, p: sk.average_precision_score(t, s, sample_weight=weights),
        "macro_auc": lambda t, s, p: sk.roc_auc_score(t, s, sample_weight=weights),
        "mACC": lambda t, s, p: sk.accuracy_score(t, p, sample_weight=weights),
        "macro_f1": lambda t, s, p: sk.f1_score(t, p, sample_weight=weights, zero_division=0),
        "BACC": lambda t, s, p: sk.recall_score(t, p, sample_weight=weights),
        "macro_kappa": lambda t, s, p: sk.cohen_kappa_score(t, p, labels=[False, True], sample_weight=weights),
        "macro_mcc": lambda t, s, p: sk.matthews_corrcoef(t, p, sample_weight=weights),
        "macro_ece": lambda t, s, p: calibration_error(t, expit(s), weights),
    }
    values = []
    for index in range(logits.shape[1]):
        positive, negative = weights @ truth[:, index], weights @ ~truth[:, index]
        both = positive * negative
        needs = {"macro_auc": both, "macro_kappa": both, "macro_mcc": both, "mACC": 1.0, "macro_ece": 1.0}
        defined = needs.get(name, positive) > 0
        args = truth[:, index], scores[:, index], predicted[:, index]
        values.append(float(functions[name](*args)) if defined else math.nan)
    return values


def ours(name: str, task: Task, labels: Array, logits: Array, weights: Array) -> Array:
    truth = labels > 0 if task is Task.MULTI_LABEL else labels[:, None] == np.arange(logits.shape[1])
    return METRICS[name].prepare(truth, logits.astype(float), task)(weights)


def sample(task: Task, seed: int, n: int, n_classes: int, ties: bool) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    share = np.exp(-0.7 * np.arange(n_classes))
    logits = rng.normal(size=(n, n_classes))
    if task is Task.MULTI_LABEL:
        labels = (rng.random((n, n_classes)) < 0.6 * share).astype(np.float32)
        logits += labels
    else:
        labels = rng.choice(n_classes, size=n, p=share / share.sum())
        logits[np.arange(n), labels] += 1.0
    return labels, np.round(logits) if ties else logits


@pytest.mark.parametrize(("task", "name"), PER_CLASS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighting", ["ones", "counts", "fractions"])
def test_per_class_values_are_those_of_scikit_learn(task: Task, name: str, ties: bool, weighting: str) -> None:
    labels, logits = sample(task, seed=1, n=150, n_classes=5, ties=ties)
    rng = np.random.default_rng(2)
    weights = {
        "ones": np.ones((1, 150)),
        "counts": rng.poisson(1.0, (4, 150)).astype(float),
        "fractions": rng.random((4, 150)),
    }[weighting]
    expected = [reference(name, task, labels, logits, row) for row in weights]
    np.testing.assert_allclose(ours(name, task, labels, logits, weights), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighting", ["ones", "counts", "fractions"])
def test_pooled_values_are_those_of_scikit_learn(name: str, ties: bool, weighting: str) -> None:
    labels, logits = sample(Task.MULTI_CLASS, seed=7, n=150, n_classes=5, ties=ties)
    rng = np.random.default_rng(8)
    weights = {
        "ones": np.ones((1, 150)),
        "counts": rng.poisson(1.0, (4, 150)).astype(float),
        "fractions": rng.random((4, 150)),
    }[weighting]
    expected = [pooled_reference(name, labels, logits, row) for row in weights]
    assert len(set(expected)) == len(expected)
    np.testing.assert_allclose(ours(name, Task.MULTI_CLASS, labels, logits, weights), expected, rtol=1e-12, atol=1e-14)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), n=st.integers(2, 25), n_classes=st.integers(2, 4))
def test_every_pooled_metric_is_that_of_scikit_learn_on_random_data(
    data: st.DataObject, n: int, n_classes: int
) -> None:
    name = data.draw(st.sampled_from(POOLED))

    def draw(values: st.SearchStrategy[int], size: int) -> Array:
        return np.array(data.draw(st.lists(values, min_size=size, max_size=size)))

    logits = draw(st.integers(-3, 3), n * n_classes).reshape(n, n_classes).astype(float)
    labels = draw(st.integers(0, n_classes - 1), n)
    weights = draw(st.integers(0, 3), 2 * n).reshape(2, n).astype(float)
    weights[:, 0] += 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [pooled_reference(name, labels, logits, row) for row in weights]
    np.testing.assert_allclose(ours(name, Task.MULTI_CLASS, labels, logits, weights), expected, atol=1e-12)


def test_agreement_is_undefined_with_one_true_class_and_correlation_0_with_one_predicted_class() -> None:
    one_class = evaluate(Task.MULTI_CLASS, np.array([1, 1]), np.eye(3)[:2], class_groups([1, 1, 1])).scalars
    assert all(math.isnan(one_class[name]) for name in ("kappa", "quadratic_kappa", "MCC"))
    constant = evaluate(Task.MULTI_CLASS, np.array([0, 1, 2]), np.eye(3)[[1, 1, 1]], class_groups([1, 1, 1])).scalars
    assert constant["MCC"] == constant["kappa"] == constant["quadratic_kappa"] == 0


def test_quadratic_kappa_counts_how_far_off_a_prediction_is_in_the_order_of_the_classes() -> None:
    labels = np.array([0, 1, 2, 3])
    near, far = (np.eye(4)[[0, 1, 2, wrong]] for wrong in (2, 0))
    scores = [evaluate(Task.MULTI_CLASS, labels, one, class_groups([1] * 4)).scalars for one in (near, far)]
    assert scores[0]["quadratic_kappa"] > scores[1]["quadratic_kappa"]
    assert scores[0]["kappa"] == pytest.approx(scores[1]["kappa"])


def test_calibration_errors_of_known_probabilities() -> None:
    logits = np.log([[0.8, 0.2]] * 4)
    result = evaluate(Task.MULTI_CLASS, np.array([0, 0, 0, 1]), logits, class_groups([2, 1]))
    assert result.scalars["ECE"] == pytest.approx(0.05)
    # One label at probability 0.9 that is always there, one at 0.1 that is there in every second image.
    logits = np.log([[9.0, 1 / 9]] * 4)
    labels = np.array([[1, 1], [1, 0], [1, 1], [1, 0]])
    result = evaluate(Task.MULTI_LABEL, labels, logits, class_groups([2, 1]))
    assert result.per_class["macro_ece"] == pytest.approx((0.1, 0.4))
    assert result.scalars["macro_ece"] == pytest.approx(0.25)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), n=st.integers(2, 25), n_classes=st.integers(2, 4))
def test_every_metric_is_that_of_scikit_learn_on_random_data(data: st.DataObject, n: int, n_classes: int) -> None:
    task, name = data.draw(st.sampled_from(PER_CLASS))
    grid = st.integers(-3, 3)  # coarse, so that scores tie and classes go missing

    def draw(values: st.SearchStrategy[int], size: int) -> Array:
        return np.array(data.draw(st.lists(values, min_size=size, max_size=size)))

    logits = draw(grid, n * n_classes).reshape(n, n_classes).astype(float)
    if task is Task.MULTI_LABEL:
        labels = draw(st.integers(0, 1), n * n_classes).reshape(n, n_classes)
    else:
        labels = draw(st.integers(0, n_classes - 1), n)
    weights = draw(st.integers(0, 3), 2 * n).reshape(2, n).astype(float)
    weights[:, 0] += 1  # scikit-learn needs some weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [reference(name, task, labels, logits, row) for row in weights]
    np.testing.assert_allclose(ours(name, task, labels, logits, weights), expected, atol=1e-12)


def test_macro_values_of_scikit_learn_multi_class() -> None:
    labels, logits = sample(Task.MULTI_CLASS, seed=3, n=300, n_classes=4, ties=False)
    scalars = evaluate(Task.MULTI_CLASS, labels, logits, class_groups([4, 3, 2, 1])).scalars
    probabilities, predicted = softmax(logits, axis=1), logits.argmax(axis=1)
    expected = {
        "BACC": sk.balanced_accuracy_score(labels, predicted),
        "accuracy": sk.accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "macro_auc": sk.roc_auc_score(labels, probabilities, multi_class="ovr"),
        "mAP": sk.average_precision_score(labels[:, None] == np.arange(4), probabilities, average="macro"),
    }
    assert {name: scalars[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_macro_values_of_scikit_learn_multi_label() -> None:
    labels, logits = sample(Task.MULTI_LABEL, seed=4, n=300, n_classes=4, ties=True)
    scalars = evaluate(Task.MULTI_LABEL, labels, logits, class_groups([4, 3, 2, 1])).scalars
    truth, predicted = labels > 0, logits > 0
    expected = {
        "mAP": sk.average_precision_score(truth, logits, average="macro"),
        "macro_auc": sk.roc_auc_score(truth, logits, average="macro"),
        "macro_f1": sk.f1_score(truth, predicted, average="macro"),
        "mACC": (truth == predicted).mean(),
    }
    assert {name: scalars[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_confident_softmax_does_not_tie() -> None:
    # In float64 both probabilities of class 0 round to 1, and both of class 2 to 0.
    logits = np.array([[60.0, 0.0, -900.0], [40.0, 0.0, -800.0]])
    result = evaluate(Task.MULTI_CLASS, np.array([0, 2]), logits, class_groups([1, 1, 1]))
    assert result.per_class["macro_auc"] == pytest.approx((1.0, math.nan, 1.0), nan_ok=True)


def test_classes_missing_in_a_split_are_not_counted() -> None:
    labels = np.array([[1, 0, 1, 1], [0, 0, 1, 1], [1, 0, 1, 0]])
    assert counted_classes("mAP", labels, 4) == (0, 2, 3)
    assert counted_classes("macro_f1", labels, 4) == (0, 2, 3)
    assert counted_classes("macro_auc", labels, 4) == (0, 3)
    assert counted_classes("mACC", labels, 4) == (0, 1, 2, 3)
    assert counted_classes("BACC", np.array([0, 2, 2]), 4) == (0, 2)
    assert counted_classes("mACC", np.empty((0, 4)), 4) == ()

    logits = np.array([[3.0, 1.0, -1.0, 2.0], [1.0, 2.0, 1.0, 1.0], [2.0, 1.0, 1.0, 0.5]])
    result = evaluate(Task.MULTI_LABEL, labels, logits, class_groups([9, 5, 4, 2]))
    assert result.per_class["macro_f1"] == pytest.approx((0.8, math.nan, 0.8, 0.8), nan_ok=True)
    assert result.scalars["macro_f1"] == pytest.approx(0.8)
    assert result.scalars["macro_auc"] == 1.0  # of classes 0 and 3
    assert result.scalars["mAP_medium"] == 1.0  # of class 2; class 1 has no image


def test_a_group_without_counted_classes_has_no_scalar() -> None:
    result = evaluate(Task.MULTI_CLASS, np.array([0, 1]), np.eye(3)[:2], class_groups([9, 5, 1]))
    assert result.scalars["BACC_head"] == result.scalars["BACC"] == 1.0
    assert "BACC_tail" not in result.scalars


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_makes_every_value_nan(task: Task, broken: float) -> None:
    labels, logits = sample(task, seed=5, n=60, n_classes=3, ties=False)
    logits[7, 2] = broken
    result = evaluate(task, labels, logits, class_groups([3, 2, 1]))
    assert set(result.scalars) > {metric.name for metric in metrics_for(task)}
    assert all(math.isnan(value) for value in result.scalars.values())
    assert all(math.isnan(value) for values in result.per_class.values() for value in values)


def test_group_means() -> None:
    labels, logits = sample(Task.MULTI_CLASS, seed=6, n=200, n_classes=4, ties=False)
    result = evaluate(Task.MULTI_CLASS, labels, logits, class_groups([40, 30, 20, 10]))
    recall = result.per_class["BACC"]
    assert result.scalars["BACC_head"] == recall[0]
    assert result.scalars["BACC_medium"] == pytest.approx((recall[1] + recall[2]) / 2)
    assert result.scalars["BACC_tail"] == recall[3]
    assert "accuracy" in result.scalars and "accuracy" not in result.per_class


def test_json_round_trip() -> None:
    labels = np.array([[1, 0], [0, 0]])
    result = evaluate(Task.MULTI_LABEL, labels, np.array([[1.0, 0.0], [0.0, 1.0]]), class_groups([2, 1]))
    text = json.dumps(result.to_json(), allow_nan=False)
    assert json.loads(text)["per_class"]["mAP"] == [1.0, None]
    back = Evaluation.from_json(json.loads(text))
    assert back.scalars == result.scalars
    assert math.isnan(back.per_class["mAP"][1]) and back.to_json() == result.to_json()


@pytest.mark.parametrize(
    ("labels", "logits", "n_groups", "message"),
    [
        (np.zeros(3, int), np.zeros((4, 2)), 2, "3 labels for 4 rows"),
        (np.zeros(3, int), np.zeros(3), 2, "expected"),
        (np.zeros((3, 3)), np.zeros((3, 2)), 2, "labels of shape"),
        (np.array([0, 2]), np.zeros((2, 2)), 2, "class indices 0 to 2 for 2 classes"),
        (np.array([0, -1]), np.zeros((2, 2)), 2, "class indices -1 to 0"),
        (np.zeros(3, int), np.zeros((3, 2)), 3, "groups of 3 classes for logits of 2"),
    ],
)
def test_shapes_that_do_not_agree_are_refused(labels: Array, logits: Array, n_groups: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(Task.MULTI_CLASS, labels, logits, class_groups([1] * n_groups))


def test_main_metric_comes_first() -> None:
    assert [metric.name for metric in metrics_for(Task.MULTI_LABEL)] == [
        "mAP",
        "macro_auc",
        "mACC",
        "macro_f1",
        "macro_kappa",
        "macro_mcc",
        "pooled_kappa",
        "pooled_auc",
        "odir_score",
        "macro_ece",
    ]
    assert [metric.name for metric in metrics_for(Task.MULTI_CLASS)] == [
        "BACC",
        "mAP",
        "macro_auc",
        "macro_f1",
        "accuracy",
        "kappa",
        "quadratic_kappa",
        "MCC",
        "ECE",
    ]


@pytest.mark.parametrize(
    ("name", "task", "parts"),
    [
        ("map", Task.MULTI_LABEL, ["unknown metric 'map'", "did you mean mAP?"]),
        ("macro-auc", Task.MULTI_CLASS, ["did you mean macro_auc?"]),
        ("BACC", Task.MULTI_LABEL, ["'BACC' does not apply to multi-label data", "mAP, macro_auc"]),
        ("kappa", Task.MULTI_LABEL, ["'kappa' does not apply to multi-label data", "did you mean macro_kappa?"]),
        ("ECE", Task.MULTI_CLASS, ["'ECE' is better when smaller", "metrics for multi-class data: BACC, mAP"]),
        ("macro_ece", Task.MULTI_LABEL, ["'macro_ece' is better when smaller", "it is logged for every trial"]),
        ("xyzzy", Task.MULTI_CLASS, ["unknown metric 'xyzzy'", "metrics for multi-class data: BACC, mAP"]),
    ],
)
def test_an_unknown_metric_names_the_valid_ones(name: str, task: Task, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check_metric(name, task, place="metric")
    (problem,) = caught.value.problems
    assert problem.place == "metric"
    assert all(part in str(problem) for part in parts)
    assert name != "xyzzy" or "did you mean" not in str(problem)
    assert "ECE" not in problem.fix and "macro_ece" not in problem.fix


def test_a_known_metric_passes() -> None:
    assert check_metric("mAP", Task.MULTI_CLASS).name == "mAP"
    assert all(METRICS[name].name == name for name in METRICS)


def test_metrics_do_not_import_torch() -> None:
    code = "import sys, lt_search.metrics.bootstrap, lt_search.metrics.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
