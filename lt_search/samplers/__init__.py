"""Optuna samplers for two-stage trials; they need nothing else of lt-search."""

from lt_search.samplers.history import REUSE_COST, STAGE1_COST, STAGE2_COST, STOPPED_IN_STAGE1
from lt_search.samplers.reseeded import STARTUP_TRIALS, ReseededSampler
from lt_search.samplers.staged import StagedSampler, UnseenParameterWarning

__all__ = [
    "REUSE_COST",
    "STAGE1_COST",
    "STAGE2_COST",
    "STARTUP_TRIALS",
    "STOPPED_IN_STAGE1",
    "ReseededSampler",
    "StagedSampler",
    "UnseenParameterWarning",
]
