from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.trainers import TINY, C, labels_for, pictures
from trainers.base import Resource, Task, TrainerInputs
from trainers.methods.ldrnet import LDRNetConfig, LDRNetTrainer
from trainers.networks.backbones import build as build_backbone
from trainers.resources import resolve

N = 41


def config(stage1: dict[str, Any] | None = None, stage2: dict[str, Any] | None = None) -> LDRNetConfig:
    tiny = TINY["ldrnet"]
    return LDRNetConfig.model_validate(
        {"stage1": {**tiny["stage1"], **(stage1 or {})}, "stage2": {**tiny["stage2"], **(stage2 or {})}}
    )


def trainer(
    stage1: dict[str, Any] | None = None,
    stage2: dict[str, Any] | None = None,
    resources: dict[str, Any] | None = None,
) -> LDRNetTrainer:
    labels = labels_for(Task.MULTI_LABEL)
    inputs = TrainerInputs(Task.MULTI_LABEL, C, pictures(N), labels, torch.device("cpu"), 0, resources or {})
    return LDRNetTrainer(config(stage1, stage2), inputs)


def in_stage2(stage2: dict[str, Any] | None = None, stage1: dict[str, Any] | None = None) -> LDRNetTrainer:
    built = trainer(stage1, stage2)
    built.stage1_step(0)
    built.begin_stage2()
    return built


def weights(of: LDRNetTrainer) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in of.model.state_dict().items()}


def changed(of: LDRNetTrainer, before: dict[str, Tensor]) -> set[str]:
    """Which of backbone, decoder and head have moved."""
    return {key.split(".")[0] for key, value in of.model.state_dict().items() if not torch.equal(value, before[key])}


# --- config


def test_defaults_are_those_of_the_paper() -> None:
    one, two = LDRNetConfig().stage1, LDRNetConfig().stage2
    assert (one.backbone, one.weights, one.d_model) == ("resnet50", "imagenet", "backbone")
    assert (one.lr, one.weight_decay, one.batch_size, one.crop, one.epochs) == (1e-4, 1e-5, 32, 448 / 512, 30)
    assert (one.layers, one.heads, one.ffn, one.dropout, one.positions) == (1, 8, 2048, 0.1, True)
    assert (two.alpha, two.q, two.gce_form, two.sampling, two.rounds) == (0.9, 0.8, "valid", "reverse", 10)
    assert (two.shrinkage, two.m_lr, two.e_lr, two.head_init) == (0.1, 1e-4, 1e-5, "continue")
    assert (two.e_step_weight, two.reweight_power, two.mean_positives, two.e_step_start) == (1, 0, 1, 0)


@pytest.mark.parametrize(
    ("stage", "field", "value", "message"),
    [
        ("stage1", "heads", 3, "feature width 16 is not a multiple of heads = 3"),
        ("stage1", "d_model", 18, "not a multiple of 4"),
        ("stage1", "d_model", "wide", "backbone"),
        ("stage1", "backbone", "resnet55", "did you mean resnet50"),
        ("stage1", "weights", "imagenet", "conv4 has no published weights; set weights to none"),
        ("stage1", "crop", 0, "greater than 0"),
        ("stage1", "typo", 1, "Extra inputs"),
        ("stage2", "alpha", -0.1, "greater than or equal to 0"),
        ("stage2", "q", 0, "greater than 0"),
        ("stage2", "q", 1.1, "less than or equal to 1"),
        ("stage2", "virtual_images", 0, "greater than or equal to 1"),
        ("stage2", "gce_form", "printed", "'valid', 'signfix' or 'bce'"),
    ],
)
def test_wrong_values_are_refused(stage: str, field: str, value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**{stage: {field: value}})


def test_prompt_without_decoupling_is_refused() -> None:
    with pytest.raises(ValidationError, match="set prompt to none or decoupling on"):
        config({"decoupling": False, "prompt": "tokens.pt"})


def test_resources_are_what_the_config_names() -> None:
    assert config().resources() == ()
    assert LDRNetConfig().resources() == (Resource("backbone", "resnet50", "imagenet"),)
    named = config({"weights": "w.pt", "prompt": "t.pt"}).resources()
    assert named == (Resource("backbone", "conv4", "w.pt"), Resource("prompt", "tokens", "t.pt"))


@pytest.mark.parametrize(
    ("stage2", "expected"),
    [({}, 0), ({"e_step_start": 3}, 3), ({"e_step_start": 3, "update_encoder": False}, 0),
     ({"e_step_start": 3, "reconstruction": False}, 0)],
)  # fmt: skip
def test_stage_two_is_whole_from_its_first_e_step(stage2: dict[str, Any], expected: int) -> None:
    assert config(stage2=stage2).losses_active_from() == {1: 0, 2: expected}


# --- inputs


def test_multi_class_data_is_refused() -> None:
    inputs = TrainerInputs(Task.MULTI_CLASS, C, pictures(N), torch.zeros(N).long(), torch.device("cpu"), 0)
    with pytest.raises(ValueError, match="multi-label data, not on multi-class"):
        LDRNetTrainer(config(), inputs)


def test_resources_that_were_not_handed_over_are_named() -> None:
    with pytest.raises(ValueError, match=r"backbone:conv4:w\.pt, prompt:tokens:t\.pt"):
        trainer({"weights": "w.pt", "prompt": "t.pt"})


def test_local_weights_and_prompt_tokens_are_used(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        backbone, _ = build_backbone("conv4")
        tokens = torch.randn(3, 5)
    torch.save(backbone.state_dict(), tmp_path / "w.pt")
    torch.save(tokens, tmp_path / "t.pt")
    stage1 = {"weights": str(tmp_path / "w.pt"), "prompt": str(tmp_path / "t.pt")}
    loaded = {resource.key: resolve(resource) for resource in config(stage1).resources()}
    built = trainer(stage1, resources=loaded)
    assert all(torch.equal(built.model.backbone.state_dict()[k], v) for k, v in backbone.state_dict().items())
    assert built.features(pictures(2)).shape == (2, C, 16)
    plain = trainer()
    assert not torch.equal(built.predict_logits(pictures(2)), plain.predict_logits(pictures(2)))

    exported = LDRNetTrainer.from_model(built.config, plain.inputs, built.state()["model"])
    assert torch.equal(exported.predict_logits(pictures(2)), built.predict_logits(pictures(2)))


def test_a_torchvision_backbone_keeps_its_width_by_default() -> None:
    built = trainer({"backbone": "resnet18", "d_model": "backbone", "heads": 8})
    assert built.features(pictures(2)).shape == (2, C, 512)


# --- stage 1


def test_stage_one_learns_what_is_plain_to_see() -> None:
    labels = torch.zeros(64, 2)
    labels[::2, 0] = labels[::4, 1] = 1
    images = np.random.default_rng(0).integers(0, 60, (64, 1, 16, 16), dtype=np.uint8)
    images[::2, :, 2:6, :] += 150
    images[::4, :, :, 9:13] += 40
    inputs = TrainerInputs(Task.MULTI_LABEL, 2, images, labels, torch.device("cpu"), 0)
    stage1 = {"images_per_epoch": None, "augmentation": "none", "brightness": 0, "lr": 3e-3}
    built = LDRNetTrainer(config(stage1), inputs)
    losses = [built.stage1_step(step)["loss"] for step in range(12)]
    assert losses[-1] < 0.3 * losses[0]
    correct = (built.predict_logits(images) > 0) == (labels > 0.5)
    assert correct.float().mean() > 0.95
    probed = (built.probe_logits(images) > 0) == (labels > 0.5)
    assert probed.float().mean() > 0.95


def test_without_decoupling_all_classes_share_pooled_features() -> None:
    built = trainer({"decoupling": False})
    features = built.features(pictures(3))
    assert features.shape == (3, C, 16)
    assert torch.equal(features[:, 0], features[:, 1])
    assert built.stage1_step(0)["loss"] > 0
    built.begin_stage2()
    assert built.stage2_step(0)["m_loss"] > 0


def test_probe_statistics_do_not_depend_on_stage_two() -> None:
    one, two = trainer(), trainer(stage2={"cov_type": "diag", "shrinkage": 0.9})
    two.load_state(one.state())
    assert torch.equal(one.probe_logits(pictures(5)), two.probe_logits(pictures(5)))


# --- stage 2


def test_m_step_moves_the_head_alone() -> None:
    built = in_stage2({"update_encoder": False})
    before = weights(built)
    losses = built.stage2_step(0)
    assert changed(built, before) == {"head"}
    assert set(losses) == {"m_loss"}


def test_e_step_moves_backbone_and_decoder_and_keeps_head_and_batch_norm() -> None:
    built = in_stage2({"m_lr": 1e-30})
    before = weights(built)
    losses = built.stage2_step(0)
    assert set(losses) == {"m_loss", "e_loss"}
    assert changed(built, before) == {"backbone", "decoder"}
    for key, value in built.model.state_dict().items():
        if "running" in key or "num_batches" in key:
            assert torch.equal(value, before[key]), key
    assert all(parameter.requires_grad for parameter in built.model.head.parameters())


def test_e_step_waits_for_its_start() -> None:
    built = in_stage2({"e_step_start": 2})
    before = weights(built)
    assert [set(built.stage2_step(r)) for r in range(2)] == [{"m_loss"}] * 2
    assert changed(built, before) == {"head"}
    assert set(built.stage2_step(2)) == {"m_loss", "e_loss"}


def test_without_reconstruction_rounds_change_nothing() -> None:
    built = in_stage2({"reconstruction": False})
    before = weights(built)
    assert built.stage2_step(0) == {}
    assert changed(built, before) == set()
    other = trainer(stage2={"reconstruction": False})
    other.load_state(built.state())
    assert torch.equal(other.predict_logits(pictures(3)), built.predict_logits(pictures(3)))


def test_head_starts_anew_where_asked() -> None:
    continued, fresh = in_stage2(), in_stage2({"head_init": "reinit"})
    assert torch.equal(continued.model.backbone.layers[0].weight, fresh.model.backbone.layers[0].weight)  # type: ignore[index, union-attr]
    assert not torch.equal(continued.model.head.weight, fresh.model.head.weight)


def head_after(**stage2: Any) -> Tensor:
    built = in_stage2({"update_encoder": False, **stage2})
    built.stage2_step(0)
    return built.model.head.weight.detach()


@pytest.mark.parametrize(
    "switch",
    [
        {"alpha": 0.3},
        {"sampling": "uniform"},
        {"mean_positives": 2.0},
        {"virtual_images": 100},
        {"cov_type": "diag"},
        {"shrinkage": 0.7},
        {"shrink_towards": "pooled"},
        {"shrinkage_count": 20.0},
        {"reweight_power": 1.0},
        {"weight_decay": 0.1},
        {"m_lr": 1e-3},
    ],
)
def test_every_switch_of_the_m_step_matters(switch: dict[str, Any]) -> None:
    # Few positives: diagonal is what `auto` would choose, so the comparison starts from full covariances.
    assert not torch.equal(head_after(cov_type="full"), head_after(**{"cov_type": "full", **switch}))


def test_uniform_sampling_is_alpha_zero() -> None:
    assert torch.equal(head_after(sampling="uniform"), head_after(alpha=0.0))


@pytest.mark.parametrize(
    "switch",
    [
        {"gce_form": "signfix"},
        {"gce_form": "bce"},
        {"q": 0.2},
        {"e_step_weight": 0.5},
        {"e_step_images": None},
        {"e_lr": 1e-3},
    ],
)
def test_every_switch_of_the_e_step_matters(switch: dict[str, Any]) -> None:
    plain, other = in_stage2(), in_stage2(switch)
    for built in (plain, other):
        built.stage2_step(0)
    assert "backbone" in changed(other, weights(plain))


def test_weight_zero_of_the_gce_is_bce() -> None:
    mixed, control = in_stage2({"e_step_weight": 0.0}), in_stage2({"gce_form": "bce"})
    for built in (mixed, control):
        built.stage2_step(0)
    torch.testing.assert_close(weights(mixed), weights(control))


def test_statistics_follow_the_encoder_or_stay() -> None:
    once, fresh = in_stage2({"statistics": "once", "e_lr": 1e-2}), in_stage2({"e_lr": 1e-2})
    assert once.stage2_step(0) == fresh.stage2_step(0)
    first = once._fitted().mean.clone()
    assert once.stage2_step(1)["m_loss"] != fresh.stage2_step(1)["m_loss"]
    assert torch.equal(once._fitted().mean, first)
    assert not torch.equal(fresh._fitted().mean, first)


@pytest.mark.parametrize("statistics", ["once", "every_round"])
def test_either_kind_of_statistics_resumes_bit_for_bit(statistics: str) -> None:
    whole = in_stage2({"statistics": statistics})
    whole.stage2_step(0)
    resumed = trainer(stage2={"statistics": statistics})
    resumed.load_state(whole.state())
    assert whole.stage2_step(1) == resumed.stage2_step(1)
    assert torch.equal(whole.predict_logits(pictures(5)), resumed.predict_logits(pictures(5)))


def test_gaussians_are_those_of_the_training_features() -> None:
    built = in_stage2({"cov_type": "full", "shrinkage": 0.0})
    features, labels = built.features(built.inputs.images).double().numpy(), built.inputs.labels.numpy()
    gaussians = built._fitted()
    rows = features[labels[:, 0] == 1, 0]
    np.testing.assert_allclose(gaussians.mean[0, 1], rows.mean(0), rtol=1e-4, atol=1e-5)
    factor = gaussians.factor[0, 0].double().numpy()
    rows = features[labels[:, 0] == 0, 0]
    np.testing.assert_allclose(factor @ factor.T, np.cov(rows.T), rtol=1e-3, atol=1e-5)


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the most elements that any operation's result had."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def test_no_tensor_grows_with_the_number_of_virtual_images() -> None:
    largest = []
    for virtual_images in (64, 5000):
        built = in_stage2({"virtual_images": virtual_images, "update_encoder": False})
        with LargestTensor() as seen:
            built.stage2_step(0)
        largest.append(seen.largest)
    assert largest[0] == largest[1]
    assert largest[1] < 5000 * C * 16


def test_the_last_virtual_batch_may_be_partial() -> None:
    assert np.isfinite(in_stage2({"virtual_images": 65, "update_encoder": False}).stage2_step(0)["m_loss"])
