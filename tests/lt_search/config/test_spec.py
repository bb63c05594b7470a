from __future__ import annotations

import yaml

from lt_search.config.spec import RunSpec
from lt_search.pruning.rungs import Rung


def test_the_first_trial_has_the_defaults(tiny_spec: RunSpec) -> None:
    assert tiny_spec.first_values() == {
        "stage1.lr": 0.5,
        "stage1.optimiser": "sgd",
        "stage1.momentum": 0.5,
        "stage2.bias": 0.0,
    }
    assert tiny_spec.stage_lengths == (4, 2)
    assert tiny_spec.rung_list == (Rung(1, 1), Rung(1, 3), Rung(2, 1))


def test_a_trials_config_is_the_base_with_its_values(tiny_spec: RunSpec) -> None:
    drawn = tiny_spec.resolve({"stage1.lr": 0.125, "stage2.bias": 1.0})
    assert (drawn["stage1"]["lr"], drawn["stage2"]["bias"]) == (0.125, 1.0)
    drawn["stage1"]["lr"], drawn["stage2"]["bias"] = 0.5, 0.0
    assert drawn == tiny_spec.config


def test_spec_survives_yaml(tiny_spec: RunSpec) -> None:
    assert RunSpec.model_validate(yaml.safe_load(yaml.safe_dump(tiny_spec.model_dump(mode="json")))) == tiny_spec
