"""What every registered trainer promises the harness."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lt_search.data.joined import JoinedImages
from tests.helpers.trainers import ROWS, TINY, C, N, Trainer, build, labels_for, pictures, train
from trainers.base import State, Task
from trainers.images.tta import VIEWS
from trainers.registry import BUILT_IN, find_trainer
from trainers.state import pack, unpack

OTHER_STAGE2: dict[str, dict[str, Any]] = {
    "cxr": {"n_hard": 0, "lr": 1e-4, "rounds": 2, "tta_views": 1},
    "decoupled": {"method": "none", "rounds": 2},
    "decoupled/bce": {"method": "crt"},
    "decoupled/asymmetric": {"method": "crt"},
    "decoupled/ldam": {"method": "ncm"},
    "ldrnet": {"cov_type": "diag", "statistics": "once", "update_encoder": False},
    "lmd": {"cov_type": "diag", "statistics": "released", "update_encoder": False},
    "metric": {"method": "ncm", "rounds": 2},
    "metric/center+ncm": {"method": "crt"},
}
"""Another stage 2 by trainer, or by trainer/row."""


CASES = [(name, task) for name in BUILT_IN for task in sorted(find_trainer(name).tasks)]
CASES += [(f"{name}/{row}", task) for (name, task), rows in ROWS.items() for row in rows]


def through_file(state: State, folder: Path) -> State:
    tensors, text = pack(state)
    save_file(tensors, str(folder / "s.safetensors"), metadata={"state": text})
    with safe_open(str(folder / "s.safetensors"), framework="pt") as file:
        return unpack({key: file.get_tensor(key) for key in file.keys()}, file.metadata()["state"])  # noqa: SIM118


def assert_same(one: Trainer, two: Trainer) -> None:
    """Same predictions, bit for bit, and the same state."""
    images = pictures(9, seed=2)
    assert torch.equal(one.predict_logits(images), two.predict_logits(images))
    assert torch.equal(one.probe_logits(images), two.probe_logits(images))
    tensors, text = pack(one.state())
    others, other_text = pack(two.state())
    assert text == other_text
    assert all(torch.equal(tensors[key], others[key]) for key in tensors)


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, Task]:
    found: tuple[str, Task] = request.param
    return found


def test_every_built_in_trainer_is_tested_here() -> None:
    assert set(TINY) == set(BUILT_IN)


def test_stage_one_continues_bit_for_bit_from_a_file(case: tuple[str, Task], tmp_path: Path) -> None:
    whole, first, second = build(case), build(case), build(case)
    train(first, 1, range(2))
    second.load_state(through_file(first.state(), tmp_path))
    losses = train(second, 1, range(2, 4))
    assert train(whole, 1, range(4))[2:] == losses
    assert_same(whole, second)


def test_stage_two_continues_bit_for_bit_from_a_file(case: tuple[str, Task], tmp_path: Path) -> None:
    whole, first, second = build(case), build(case), build(case)
    for trainer in (whole, first):
        train(trainer, 1, range(2))
        trainer.begin_stage2()
    train(first, 2, range(2))
    second.load_state(through_file(first.state(), tmp_path))
    losses = train(second, 2, range(2, 4))
    assert train(whole, 2, range(4))[2:] == losses
    assert_same(whole, second)


def test_stage_two_of_a_stored_stage_one_equals_that_of_a_fresh_one(case: tuple[str, Task], tmp_path: Path) -> None:
    fresh, stored = build(case), build(case)
    train(fresh, 1, range(2))
    stored.load_state(through_file(fresh.state(), tmp_path))
    fresh.probe_logits(pictures(3))  # a probe, taken or not, changes nothing
    for trainer in (fresh, stored):
        trainer.begin_stage2()
    assert train(fresh, 2, range(2)) == train(stored, 2, range(2))
    assert_same(fresh, stored)


def test_what_is_kept_of_a_finished_stage_one_is_enough_for_stage_two(case: tuple[str, Task], tmp_path: Path) -> None:
    fresh, stored = build(case), build(case)
    train(fresh, 1, range(2))
    val = pictures(9, seed=3)
    before = [fresh.probe_logits(val), fresh.predict_logits(val)]
    kept = {"state": fresh.finished_stage1(), "train": fresh.kept_features(fresh.inputs.images)}
    kept["val"] = fresh.kept_features(val)
    kept = through_file(kept, tmp_path)
    stored.load_state(kept["state"])
    stored.keep_features(stored.inputs.images, kept["train"])
    stored.keep_features(val, kept["val"])
    assert torch.equal(stored.probe_logits(val), before[0])
    assert torch.equal(stored.predict_logits(val), before[1])
    for trainer in (fresh, stored):
        trainer.begin_stage2()
    assert train(fresh, 2, range(2)) == train(stored, 2, range(2))
    assert_same(fresh, stored)


FROZEN = {
    "decoupled": {},
    "ldrnet": {"update_encoder": False},
    "lmd": {"update_encoder": False},
    "metric": {},
}
"""A stage 2 that leaves the encoder alone, by trainer that has one."""


@pytest.mark.parametrize("name", FROZEN)
def test_with_a_frozen_encoder_stage_two_touches_no_image(name: str) -> None:
    class Untouchable(np.ndarray):  # type: ignore[type-arg]
        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("an image was touched")

    case = (name, min(find_trainer(name).tasks))
    trained, stored = build(case, **FROZEN[name]), build(case, **FROZEN[name])
    val = pictures(9, seed=3)
    train(trained, 1, range(1))
    trained.probe_logits(val)
    stored.load_state(trained.finished_stage1())
    images = stored.inputs.images.view(Untouchable)
    stored.inputs = replace(stored.inputs, images=images)
    hidden = val.view(Untouchable)
    for own, others in ((images, trained.inputs.images), (hidden, val)):
        features = trained.kept_features(others)
        assert features is not None
        stored.keep_features(own, features)
    stored.begin_stage2()
    train(stored, 2, range(2))
    assert stored.predict_logits(hidden).shape == (9, C)


def test_a_stage_one_serves_trials_of_another_stage_two(case: tuple[str, Task], tmp_path: Path) -> None:
    name = case[0]
    other = build(case, **OTHER_STAGE2.get(name, OTHER_STAGE2[name.partition("/")[0]]))
    fresh, stored = build(case), build(case)
    train(other, 1, range(2))
    train(fresh, 1, range(2))
    other.probe_logits(pictures(3))
    stored.load_state(through_file(other.state(), tmp_path))
    for trainer in (fresh, stored):
        trainer.begin_stage2()
    assert train(fresh, 2, range(2)) == train(stored, 2, range(2))
    assert_same(fresh, stored)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_both_views_of_an_image_are_trained_on_and_predicted_from(name: str) -> None:
    trainer = build((name, sorted(find_trainer(name).tasks)[-1]), channels=6)
    train(trainer, 1, range(3))
    trainer.begin_stage2()
    train(trainer, 2, range(1))
    images = pictures(9, seed=2, channels=6)
    logits, probe = trainer.predict_logits(images), trainer.probe_logits(images)
    assert logits.shape == probe.shape == (9, C) and logits.isfinite().all() and probe.isfinite().all()
    for view in (slice(3), slice(3, 6)):
        changed = images.copy()
        changed[:, view] = 255 - changed[:, view]
        assert not torch.equal(trainer.predict_logits(changed), logits)


def test_evaluation_changes_nothing(case: tuple[str, Task]) -> None:
    quiet, watched = build(case), build(case)
    for step in range(2):
        quiet.stage1_step(step)
        watched.stage1_step(step)
        watched.predict_logits(pictures(3))
        watched.probe_logits(pictures(3))
        watched.features(pictures(3))
    for trainer in (quiet, watched):
        trainer.begin_stage2()
    for step in range(2):
        quiet.stage2_step(step)
        watched.stage2_step(step)
        watched.probe_logits(pictures(3))
    assert_same(quiet, watched)


def test_the_same_seed_gives_the_same_trainer_and_another_gives_another(case: tuple[str, Task]) -> None:
    trainers = [build(case), build(case), build(case, seed=1)]
    for trainer in trainers:
        train(trainer, 1, range(1))
        trainer.begin_stage2()
        train(trainer, 2, range(1))
    assert_same(trainers[0], trainers[1])
    images = pictures(5)
    assert not torch.equal(trainers[0].predict_logits(images), trainers[2].predict_logits(images))


def test_a_returned_state_does_not_change_with_further_training(case: tuple[str, Task]) -> None:
    trainer = build(case)
    train(trainer, 1, range(1))
    state = trainer.state()
    before, text = pack(state)
    train(trainer, 1, range(1, 2))
    trainer.begin_stage2()
    train(trainer, 2, range(1))
    other = build(case)
    other.load_state(state)
    train(other, 1, range(1, 2))
    after, other_text = pack(state)
    assert text == other_text
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_trainer_of_an_exported_model_predicts_the_same(case: tuple[str, Task], tmp_path: Path) -> None:
    trainer = build(case)
    train(trainer, 1, range(1))
    trainer.begin_stage2()
    train(trainer, 2, range(1))
    model = through_file({"model": trainer.state()["model"]}, tmp_path)["model"]
    exported = type(trainer).from_model(trainer.config, trainer.inputs, model)
    assert torch.equal(exported.predict_logits(pictures(5)), trainer.predict_logits(pictures(5)))


def test_predictions_have_a_row_per_image_and_a_column_per_class(case: tuple[str, Task]) -> None:
    trainer = build(case)
    train(trainer, 1, range(1))
    for logits in (trainer.predict_logits(pictures(7)), trainer.probe_logits(pictures(7))):
        assert logits.shape == (7, C)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()
        assert not logits.requires_grad
    features = trainer.features(pictures(7))
    assert features.shape[0] == 7
    assert features.dim() in (2, 3)
    assert features.dtype == torch.float32


def test_the_first_view_is_the_image_itself_and_the_second_is_not(case: tuple[str, Task]) -> None:
    trainer, images = build(case), pictures(9, seed=3)
    train(trainer, 1, range(1))
    assert trainer.n_views == len(VIEWS)
    first, second = (trainer.view_logits(images, view) for view in VIEWS[:2])
    torch.testing.assert_close(first, trainer.predict_logits(images))
    assert second.shape == first.shape
    assert not torch.allclose(first, second)


def test_a_head_of_one_vector_an_image_tells_its_norms(case: tuple[str, Task]) -> None:
    trainer = build(case)
    head = trainer.linear_head()
    if trainer.class_aware or getattr(trainer.model.head, "cosine", False):
        assert head is None
    else:
        assert head is not None
        torch.testing.assert_close(head.norms, trainer.model.head.weight.detach().norm(dim=1))


def test_colour_and_grey_images_are_both_taken(case: tuple[str, Task]) -> None:
    trainer = build(case)
    rgb = np.repeat(pictures(5), 3, axis=1)
    torch.testing.assert_close(trainer.predict_logits(rgb), trainer.predict_logits(pictures(5)))


def test_process_wide_settings_are_left_alone(case: tuple[str, Task]) -> None:
    before = _globals()
    trainer = build(case)
    train(trainer, 1, range(2))
    trainer.probe_logits(pictures(3))
    trainer.begin_stage2()
    train(trainer, 2, range(2))
    trainer.predict_logits(pictures(3))
    trainer.load_state(trainer.state())
    assert _globals() == before


def _globals() -> dict[str, Any]:
    return {
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": repr(np.random.get_state()),
        "python generator": random.getstate(),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "default type": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "precision": torch.get_float32_matmul_precision(),
    }


@pytest.mark.parametrize("positives", [1, 0])
def test_a_class_of_one_or_no_positive_image_trains_on(case: tuple[str, Task], positives: int) -> None:
    trainer = build(case, labels=labels_for(case[1], (20, 10, 5, positives)))
    losses = train(trainer, 1, range(1))
    assert trainer.probe_logits(pictures(4)).isfinite().all()
    trainer.begin_stage2()
    losses += train(trainer, 2, range(2))
    assert all(np.isfinite(value) for step in losses for value in step.values())
    assert trainer.predict_logits(pictures(4)).isfinite().all()


MULTI_LABEL = [case for case in CASES if case[1] == Task.MULTI_LABEL]


def finite_in_both_stages(trainer: Trainer) -> bool:
    """Whether every loss, probe and prediction of some steps is finite."""
    losses = train(trainer, 1, range(2))
    logits = [trainer.probe_logits(pictures(4))]
    trainer.begin_stage2()
    losses += train(trainer, 2, range(2))
    logits.append(trainer.predict_logits(pictures(4)))
    values = [value for step in losses for value in step.values()]
    return bool(np.isfinite(values).all()) and all(bool(found.isfinite().all()) for found in logits)


@pytest.mark.parametrize("of", MULTI_LABEL, ids="-".join)
def test_images_without_any_label_are_trained_on(of: tuple[str, Task]) -> None:
    labels = torch.zeros(N, C)
    labels[:6, :2] = torch.eye(2).repeat(3, 1)
    labels[:2, 2:] = 1
    trainer = build(of, labels=labels)
    assert finite_in_both_stages(trainer), "most batches have no label at all"


TAKES_UNKNOWN = [case for case in MULTI_LABEL if find_trainer(case[0].partition("/")[0]).takes_unknown_labels]


def test_some_trainer_takes_unknown_labels() -> None:
    assert {name.partition("/")[0] for name, _ in TAKES_UNKNOWN} == {"cxr"}


@pytest.mark.parametrize("of", TAKES_UNKNOWN, ids="-".join)
def test_images_of_several_arrays_with_unknown_labels_are_trained_on(of: tuple[str, Task]) -> None:
    labels = labels_for(Task.MULTI_LABEL)
    labels[N // 2 :, 1:3] = torch.nan
    labels[0, 0] = -1
    trainer = build(of, labels=labels)
    trainer.inputs = replace(trainer.inputs, images=JoinedImages(np.split(trainer.inputs.images, [20, 30])))
    whole = build(of, labels=labels)
    assert finite_in_both_stages(trainer) and finite_in_both_stages(whole)
    assert_same(trainer, whole)


def test_a_divergence_shows_as_nan_in_losses_and_predictions(case: tuple[str, Task]) -> None:
    trainer = build(case)
    state = trainer.state()
    state["model"] = {
        key: torch.full_like(value, torch.nan) if value.is_floating_point() else value
        for key, value in state["model"].items()
    }
    trainer.load_state(state)
    assert any(np.isnan(value) for value in trainer.stage1_step(0).values())
    assert trainer.probe_logits(pictures(3)).isnan().any()
    trainer.begin_stage2()
    losses = trainer.stage2_step(0).values()
    assert not losses or any(np.isnan(value) for value in losses)
    assert trainer.predict_logits(pictures(3)).isnan().any()


def test_fields_are_documented_and_the_default_config_is_valid() -> None:
    for name in BUILT_IN:
        config = find_trainer(name).config_type()
        for stage in (config.stage1, config.stage2):
            for field, info in type(stage).model_fields.items():
                assert info.description, f"{name}: {field} has no docstring"
