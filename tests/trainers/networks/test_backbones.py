from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from trainers.networks.backbones import KNOWN, Conv4, UnknownBackbone, build, check_name, list_backbones, load_trunk


@pytest.fixture(autouse=True)
def _global_generator() -> object:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def torchvision_map(name: str, network: nn.Module, x: Tensor) -> Tensor:
    """What the network itself hands to its pooling, its own forward pass being run whole."""
    captured: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        captured.append(args[0])

    if name.startswith("densenet"):  # pools in its forward pass, by a function
        features = network.features(x)  # type: ignore[operator]
        return torch.relu(features)
    if name.startswith("shufflenet"):  # likewise
        hook = network.conv5.register_forward_hook(lambda module, args, out: captured.append(out))  # type: ignore[union-attr]
    elif name.startswith("mobilenet_v2"):
        hook = network.features.register_forward_hook(lambda module, args, out: captured.append(out))  # type: ignore[union-attr]
    else:
        hook = network.avgpool.register_forward_pre_hook(keep)  # type: ignore[union-attr]
    network(x)
    hook.remove()
    return captured[0]


CHEAP = [
    "resnet18", "densenet121", "efficientnet_b0", "mobilenet_v3_small", "mobilenet_v2", "regnet_y_400mf",
    "shufflenet_v2_x0_5", "convnext_tiny", "swin_t", "googlenet",
]  # fmt: skip


@pytest.mark.parametrize("name", CHEAP)
def test_trunk_gives_the_map_that_torchvision_pools(name: str) -> None:
    kwargs = {"init_weights": False} if name == "googlenet" else {}
    network = models.get_model(name, weights=None, **kwargs).eval()
    if name == "googlenet":
        network.transform_input = True  # as with its published weights
    trunk, channels = build(name)
    trunk.eval()
    load_trunk(trunk, network.state_dict(), name)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = trunk(x), torchvision_map(name, network, x)
    assert found.shape[1] == channels
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("side", "map_side"), [(28, 7), (32, 8), (64, 16)])
def test_conv4_makes_a_map_of_a_quarter_of_the_side(side: int, map_side: int) -> None:
    trunk, channels = build("conv4")
    assert isinstance(trunk, Conv4)
    assert trunk(torch.randn(2, 3, side, side)).shape == (2, channels, map_side, map_side)
    assert channels == 32
    convolutions = [m for m in trunk.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [32] * 4


@pytest.mark.parametrize("name", ["conv4", "resnet18"])
def test_the_maps_of_several_views_lie_side_by_side(name: str) -> None:
    trunk = build(name)[0].eval()
    left, right = torch.randn(2, 2, 3, 64, 64).unbind(0)
    with torch.no_grad():
        both = trunk(torch.cat((left, right), 1))
        torch.testing.assert_close(both, torch.cat((trunk(left), trunk(right)), -1))


def test_conv4_and_known_names_need_no_torchvision() -> None:
    code = (
        "import sys; from trainers.networks.backbones import build, check_name;"
        "from trainers.registry import find_trainer;"
        "build('conv4'); check_name('resnet50');"
        "find_trainer('ldrnet').config_type(); assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_known_names_are_those_of_torchvision() -> None:
    listed = list_backbones()
    assert listed[0] == "conv4"
    assert set(KNOWN) == set(listed[1:])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet55", "did you mean resnet50"),
        ("vit_b_16", "fixed image size.*supported: conv4,.*resnet50"),
        ("maxvit_t", "fixed image size"),
        ("something", "supported: conv4"),
    ],
)
def test_unknown_names_are_refused_with_what_there_is(name: str, message: str) -> None:
    with pytest.raises(UnknownBackbone, match=message):
        check_name(name)


def test_classifier_keys_are_dropped() -> None:
    network = models.resnet18(weights=None, num_classes=3)
    trunk, _ = build("resnet18")
    load_trunk(trunk, network.state_dict(), "resnet18")
    assert torch.equal(trunk.state_dict()["layer1.0.conv1.weight"], network.state_dict()["layer1.0.conv1.weight"])
    assert not any(key.startswith("fc") for key in trunk.state_dict())


def test_old_densenet_names_are_understood() -> None:
    new = models.densenet121(weights=None).state_dict()
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in key else key: value
        for key, value in new.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    trunk, _ = build("densenet121")
    load_trunk(trunk, old, "densenet121")
    key = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(trunk.state_dict()[key], new[key])


def test_weights_that_do_not_fit_are_refused_by_key() -> None:
    trunk, _ = build("conv4")
    weights = Conv4(16).state_dict()
    del weights["layers.3.weight"]
    with pytest.raises(ValueError, match=r"the weights do not fit conv4: layers\.3\.weight is missing.*and 1. more"):
        load_trunk(trunk, weights, "conv4")
    with pytest.raises(ValueError, match=r"layers.0.weight is \(16, 3, 3, 3\), not \(32, 3, 3, 3\)"):
        load_trunk(trunk, {**trunk.state_dict(), "layers.0.weight": weights["layers.0.weight"]}, "conv4")


def test_refused_weights_leave_the_trunk_as_it_is() -> None:
    trunk, _ = build("conv4")
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    wrong = {key: value + 1 for key, value in before.items()}
    wrong.pop("layers.9.weight")
    with pytest.raises(ValueError, match=r"layers\.9\.weight is missing"):
        load_trunk(trunk, wrong, "conv4")
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())
