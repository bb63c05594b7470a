"""What tables of methods compute themselves."""

import numpy as np
import pytest

from benchmarks.tables import centred_interval
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
