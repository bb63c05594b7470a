from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from lt_search.results.posthoc.thresholds import f1_thresholds


def data(n: int = 60, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, classes)) < (0.5, 0.3, 0.2, 0.4)[:classes]).astype(int)
    logits = rng.normal(size=(n, classes)) + 1.5 * labels - np.arange(classes)
    return logits, labels


@pytest.mark.parametrize("rounded", [False, True])
def test_no_threshold_gives_a_better_f1(rounded: bool) -> None:
    logits, labels = data()
    logits = logits.round() if rounded else logits  # rounded, many images are equal
    found = f1_thresholds(torch.from_numpy(logits), torch.from_numpy(labels), min_positives=1).numpy()
    for c in range(logits.shape[1]):
        tried = [logits[:, c].min() - 1, *np.unique(logits[:, c])]
        best = max(f1_score(labels[:, c], logits[:, c] > t) for t in tried)
        assert f1_score(labels[:, c], logits[:, c] > found[c]) == pytest.approx(best)


def test_a_label_of_few_positives_keeps_probability_one_half() -> None:
    logits, labels = data()
    labels[:, 2] = 0
    labels[:4, 2] = 1
    found = f1_thresholds(torch.from_numpy(logits), torch.from_numpy(labels), min_positives=5)
    assert found[2] == 0
    assert (found[[0, 1, 3]] != 0).all()


def test_where_every_image_is_best_predicted_positive_the_threshold_is_below_all() -> None:
    logits = torch.tensor([[2.0], [1.0], [0.0]])
    assert f1_thresholds(logits, torch.tensor([[0], [0], [1]]), min_positives=1).item() < 0
