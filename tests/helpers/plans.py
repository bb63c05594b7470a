"""Plans of tiny searches: costs, trials that have ended, and what random proposals would train."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from lt_search.config.spec import RunSpec
from lt_search.pruning.rungs import Rung
from lt_search.samplers import ReseededSampler
from lt_search.storage.schema import rung_attribute
from lt_search.tuning.simulation import Expected, StageCosts, expect

COSTS = StageCosts({1: 3.0, 2: 10.0}, "a test", checkpoint_bytes=2**20, artefact_bytes=2**21)


def expected_at_random(
    spec: RunSpec, trials: int, started: Sequence[FrozenTrial] = (), stored: bool = False
) -> Expected:
    """With random proposals, which have a stage 1 each where a number of it is searched."""
    return expect(spec, trials, COSTS, ReseededSampler(0, "random"), lambda address: stored, started=started)


def ended_trial(number: int, rungs: list[Rung], state: TrialState = TrialState.COMPLETE, **more: object) -> FrozenTrial:
    """A trial of its own stage 1 that has a value at some rungs."""
    entry = {"key": str(number), "value": 9.0, "standard_error": 0.0, "counts": True, "decision": "continue"}
    entry |= {"peers": 0, "cut": None} | more
    entries = {rung_attribute(rung): entry for rung in rungs}
    return optuna.trial.create_trial(
        state=state, value=0.5 if state == TrialState.COMPLETE else None, user_attrs=entries
    )
