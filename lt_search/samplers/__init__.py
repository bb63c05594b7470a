"""Optuna samplers for two-stage trials. Usable without the rest of lt-search, and without Ray."""

from lt_search.samplers.history import REUSE_COST, STAGE1_COST, STAGE2_COST, STOPPED_IN_STAGE1
from lt_search.samplers.reseeded import STARTUP_TRIALS, ReseededSampler
from lt_search.samplers.staged import NeverSeenWarning, StagedSampler

__all__ = [
    "REUSE_COST",
    "STAGE1_COST",
    "STAGE2_COST",
    "STARTUP_TRIALS",
    "STOPPED_IN_STAGE1",
    "NeverSeenWarning",
    "ReseededSampler",
    "StagedSampler",
]
