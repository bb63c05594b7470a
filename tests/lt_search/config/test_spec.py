from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

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


@pytest.mark.parametrize(
    ("field", "value"), [("metric", "macro_f1"), ("seed", 1), ("prune", False), ("sampler", "tpe")]
)
def test_a_spec_that_disagrees_with_its_options_is_refused(tiny_spec: RunSpec, field: str, value: object) -> None:
    content = tiny_spec.model_dump(mode="json")
    content["options"]["metric"] = "mAP"
    RunSpec.model_validate(content)
    with pytest.raises(ValidationError, match=f"{field} is .* was started with"):
        RunSpec.model_validate({**content, field: value})


def test_a_kept_range_that_cannot_be_read_is_refused(tiny_spec: RunSpec) -> None:
    content = tiny_spec.model_dump(mode="json")
    content["search"]["stage1.lr"]["range"] = "uniform(1"
    with pytest.raises(ValidationError, match="is not a range"):
        RunSpec.model_validate(content)
