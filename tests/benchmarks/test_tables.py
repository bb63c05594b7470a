"""What tables of methods compute themselves."""

import numpy as np
import pytest

from benchmarks.tables import Data, Row, centred_interval
from lt_search.bootstrap import paired_difference, replicates
from trainers.task import Task


def test_the_interval_of_one_seed_is_that_of_the_paired_difference() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 3)) < 0.3).astype(np.uint8)
    a, b = (rng.normal(size=(60, 3)) + shift * labels for shift in (1.0, 0.5))
    units = [str(index // 2) for index in range(60)]
    found = paired_difference("mAP", Task.MULTI_LABEL, labels, a, b, units=units)
    drawn = [replicates("mAP", Task.MULTI_LABEL, labels, x, units, n_replicates=1000) for x in (a, b)]
    assert centred_interval(drawn[0] - drawn[1], found.difference) == pytest.approx(found.interval, abs=1e-12)


def test_a_row_is_searched_as_the_table_says() -> None:
    options = Data("sperm", "labels.csv", image_size=48).options(Row("asl", "baselines-ml", "asymmetric"), 2)
    asked = (options.space, options.row, options.dataset, options.image_size, options.seed, options.extra_data)
    assert asked == ("baselines-ml", "asymmetric", "labels.csv", 48, 2, ())
