"""Backbones by name: networks from images to a feature map. torchvision is imported only where needed."""

from __future__ import annotations

import difflib
import re
from collections import OrderedDict

import torch
from torch import Tensor, nn

from trainers.types import Weights

CONV4 = "conv4"

# Known so that a config can be checked without importing torchvision, which takes seconds; a newer torchvision is
# asked for names that are not here.
KNOWN = (
    "alexnet",
    *("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *(f"efficientnet_b{i}" for i in range(8)),
    *("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"),
    *("googlenet", "inception_v3"),
    *("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
    *("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"),
    *(f"regnet_x_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")),
    *(f"regnet_y_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf", "128gf")),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    *("squeezenet1_0", "squeezenet1_1"),
    *("swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b"),
    *("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)
"""torchvision's classification networks that give a feature map of any input size."""

_FIXED_SIZE = ("vit_", "maxvit_")
_HEAD = frozenset({"avgpool", "flatten", "classifier", "fc", "head"})
_AUXILIARY = frozenset({"AuxLogits", "aux1", "aux2"})


class UnknownBackbone(LookupError):  # noqa: N818 - says what it is
    """Unknown backbone name; the message lists the known ones."""


def list_backbones() -> list[str]:
    """Names `build` takes: `conv4`, and those of the installed torchvision (imported by this call)."""
    from torchvision import models

    names = models.list_models(module=models)
    return [CONV4, *(name for name in names if not name.startswith(_FIXED_SIZE))]


def check_name(name: str) -> None:
    """Raises `UnknownBackbone` where `build` would; imports torchvision only for names it does not know."""
    if name == CONV4 or name in KNOWN:
        return
    if name.startswith(_FIXED_SIZE):
        raise UnknownBackbone(
            f"backbone {name!r} works at one fixed image size and gives no feature map; "
            f"supported: {', '.join((CONV4, *KNOWN))}"
        )
    try:
        names = list_backbones()
    except ImportError:
        names = [CONV4, *KNOWN]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"supported: {', '.join(names)}"
        raise UnknownBackbone(f"unknown backbone {name!r}; {hint}")


def build(name: str) -> tuple[nn.Module, int]:
    """A randomly initialised trunk, float (B, 3, S, S) to (B, D, H, W), and D. Raises `UnknownBackbone`.

    Images of V views, (B, 3 V, S, S), give the maps of the views side by side, (B, D, H, V W), see `Trunk`.

    A torchvision network keeps its parameters' names and loses its pooling and classifier; `conv4` is `Conv4`. Initial
    weights come from torch's global generator.
    """
    check_name(name)
    if name == CONV4:
        conv4 = Conv4()
        return conv4, conv4.channels
    trunk = _torchvision_trunk(name)
    return trunk, _channels(trunk)


class Trunk(nn.Sequential):
    """Layers that all views of an image share, such as both eyes of a patient.

    The map of a second view comes to the right of the first one's: flattened they are one sequence of tokens, pooled
    the mean of both, so that no method needs to know of views (LDRNet specification, section 6).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3 V, S, S) to (B, D, H, V W)."""
        views = torch.split(x, 3, 1)
        maps: Tensor = super().forward(torch.cat(views) if len(views) > 1 else x)  # type: ignore[no-untyped-call]
        return torch.cat(maps.chunk(len(views)), -1) if len(views) > 1 else maps


class Conv4(nn.Module):
    """Four 3 x 3 convolutions of D = `channels` with batch norm and ReLU, for images of 32 to 64 pixels.

    Strides 1, 2, 2, 1: a map of 8 x 8 for inputs of 29-32 pixels and of 16 x 16 for 61-64. Small things need the early
    layers at full size: on digit mosaics this order beat every one with a coarser map or an earlier stride.
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.channels = channels
        layers: list[nn.Module] = []
        for i, stride in enumerate((1, 2, 2, 1)):
            conv = nn.Conv2d(3 if i == 0 else channels, channels, 3, stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        self.layers = Trunk(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, D, ceil(S / 4), ceil(S / 4))."""
        out: Tensor = self.layers(x)
        return out


def load_trunk(trunk: nn.Module, weights: Weights, name: str) -> None:
    """Loads published or local `weights` of the network `name` into its trunk.

    Keys of classifiers and auxiliary heads are dropped. Raises `ValueError` naming the keys of the trunk that are
    missing or of another shape.
    """
    found = {_modern_key(key, name): value for key, value in weights.items()}
    own = trunk.state_dict()
    # Old files come without the batch counters, which evaluation never reads.
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    wrong = [
        f"{key} is {tuple(found[key].shape)}, not {tuple(value.shape)}"
        for key, value in own.items()
        if key in found and found[key].shape != value.shape
    ]
    if missing or wrong:
        problems = [f"{key} is missing" for key in missing] + wrong
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"the weights do not fit {name}: {shown}")
    trunk.load_state_dict({key: found[key] for key in own if key in found}, strict=False)


def _torchvision_trunk(name: str) -> nn.Module:
    from torchvision import models

    # Without this argument these two warn and initialise slowly.
    kwargs = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = models.get_model(name, weights=None, **kwargs)
    kept: OrderedDict[str, nn.Module] = OrderedDict()
    if name in ("googlenet", "inception_v3"):
        kept["input_range"] = _SymmetricRange()
    # Every torchvision classifier registers its parts in the order they run, with pooling and head last.
    for key, module in network.named_children():
        if key in _HEAD:
            break
        if key not in _AUXILIARY:
            kept[key] = module
    if name.startswith("densenet"):
        # Its forward pass has this activation between features and pooling.
        kept["relu"] = nn.ReLU(inplace=True)
    return Trunk(kept)


class _SymmetricRange(nn.Module):
    """From ImageNet's normalisation to (-1, 1), which Inception's published weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        std = x.new_tensor((0.229, 0.224, 0.225))[:, None, None]
        mean = x.new_tensor((0.485, 0.456, 0.406))[:, None, None]
        return (x * std + mean - 0.5) / 0.5


def _channels(trunk: nn.Module) -> int:
    training = trunk.training
    with torch.no_grad():
        channels = int(trunk.eval()(torch.zeros(1, 3, 96, 96)).shape[1])
    trunk.train(training)
    return channels


def _modern_key(key: str, name: str) -> str:
    """torchvision's published DenseNets predate its own names: `denselayer1.norm.1.weight` is `...norm1.weight` now."""
    if name.startswith("densenet"):
        return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key)
    return key
