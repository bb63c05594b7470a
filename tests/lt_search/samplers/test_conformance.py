"""Optuna's own conformance suite (`optuna.testing.pytest_samplers`), over every sampler of the package."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

from lt_search.samplers import ReseededSampler, StagedSampler

MakeSampler = Callable[[], BaseSampler]

# The suite's parameters are x and y, in some cases others. Where a study has those of one stage only, the sampler is
# plain TPE and warns.
STAGE1 = {
    "all of stage 1": ("a", "b", "c", "category", "d", "e", "f", "x", "y", "z"),
    "all of stage 2": (),
    "x of stage 1": ("x",),
}

pytestmark = pytest.mark.filterwarnings(
    "ignore:no trial has:UserWarning", "ignore::optuna.exceptions.ExperimentalWarning"
)


@pytest.fixture(params=list(STAGE1))
def stage1(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return STAGE1[request.param]


class TestStagedSampler(BasicSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self, stage1: tuple[str, ...]) -> MakeSampler:
        return lambda: StagedSampler(stage1, seed=0)


class TestRelativeStagedSampler(RelativeSamplerTestCase):
    """These cases have one finished trial, so that joint proposals must begin at once."""

    @pytest.fixture
    def sampler(self, stage1: tuple[str, ...]) -> MakeSampler:
        return lambda: StagedSampler(stage1, seed=0, startup_trials=0)


class TestReseededTPE(MultiObjectiveSamplerTestCase):
    """The other cases are those of a `StagedSampler` with parameters of one stage, which delegates to it."""

    @pytest.fixture
    def sampler(self) -> MakeSampler:
        return lambda: ReseededSampler(0)


class TestReseededRandom(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> MakeSampler:
        return lambda: ReseededSampler(0, "random")
