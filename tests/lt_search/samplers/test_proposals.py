from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from lt_search.samplers.history import Axes, History
from lt_search.samplers.proposals import Proposer

AXES1 = Axes({"a": FloatDistribution(0, 1)})
AXES2 = Axes({"head": CategoricalDistribution(["linear", "cosine"]), "scale": CategoricalDistribution([8, 16, 32])})
STAGE2: list[dict[str, Any]] = [{"head": "linear"}, *({"head": "cosine", "scale": scale} for scale in (8, 16, 32))]


class _Counting(np.random.Generator):
    draws = 0

    def random(self, *given: Any, **named: Any) -> Any:
        self.draws += 1
        return super().random(*given, **named)


def _trial(values: dict[str, Any]) -> FrozenTrial:
    space = {**AXES1.space, **AXES2.space}
    distributions = {name: space[name] for name in values}
    return optuna.trial.create_trial(value=values["a"], params=values, distributions=distributions)


def test_exhausted_stage_1_configurations_cost_no_draws_where_some_parameter_was_inactive() -> None:
    """The last one was new and has one of four stage-2 configurations, so it is reused; all others have all four."""

    def proposal(others: int) -> tuple[dict[str, Any], int]:
        met = [(number / 50, stage2) for number in range(others) for stage2 in STAGE2] + [(0.005, STAGE2[1])]
        history = History.of([_trial({"a": a, **stage2}) for a, stage2 in met], 1, AXES1, AXES2)
        rng = _Counting(np.random.PCG64(0))
        return Proposer(history, AXES1, AXES2, 6, rng).draw({}, 50.0), rng.draws

    (few, draws_few), (many, draws_many) = proposal(10), proposal(50)
    assert few["a"] == many["a"] == 0.005
    assert (few["head"], few["scale"]) != ("cosine", 8)
    assert draws_many <= draws_few + 20
