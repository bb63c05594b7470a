"""Config fields of every trainer that learns a network from images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trainers.base import Resource, Stage1Config, TrainerConfig
from trainers.images.augment import Augmentation
from trainers.networks.backbones import CONV4, UnknownBackbone, check_name
from trainers.resources import PUBLISHED

NONE = "none"
"""Value of a field that names a file or published weights, where there are none."""


class ImageStage1(Stage1Config):
    """Backbone, batches and the crop that evaluation sees."""

    backbone: str = "resnet18"
    """Network whose feature map is used: `conv4` (small images), or any torchvision classification network that gives
    a feature map."""
    weights: str = "imagenet"
    """Initial backbone weights: `imagenet` (torchvision's published ones), the path of a .safetensors or .pt file, or
    `none` for random ones."""
    batch_size: int = Field(32, ge=2, le=65_536)
    """Images in a training batch."""
    crop: float = Field(0.875, gt=0, le=1)
    """Side of the cropped image as a fraction of the image's (448 / 512 and 224 / 256). Evaluation takes the centre."""

    @model_validator(mode="after")
    def _backbone_and_weights(self) -> ImageStage1:
        try:
            check_name(self.backbone)
        except UnknownBackbone as error:
            raise ValueError(str(error)) from error
        if self.backbone == CONV4 and self.weights == PUBLISHED:
            raise ValueError("backbone conv4 has no published weights; set weights to none or to a file")
        return self


class AugmentedStage1(ImageStage1):
    """A stage 1 on augmented images. Augmentations that are off by default are in no paper here."""

    augmentation: Literal["none", "crop", "crop+flip", "crop+flip+rotate"] = "crop+flip"
    """Random place of the crop, horizontal flip, rotation by up to 15 degrees; `none`: always the centre crop."""
    shift: float = Field(0.0, ge=0, le=0.5)
    """Further random shift in both directions, a fraction of the image's side; 0 = off."""
    scale: float = Field(0.0, ge=0, le=1)
    """Random zoom, log-uniform in [1 / (1 + scale), 1 + scale]; 0 = off."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Random factor on values, uniform in 1 +- brightness; 0 = off."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Random factor on the distance from the image's mean grey, 1 +- contrast; 0 = off."""
    colour: float = Field(0.0, ge=0, le=1)
    """Random factor on saturation, 1 +- colour; nothing for grey images; 0 = off."""

    @property
    def augmentations(self) -> Augmentation:
        """The augmentation fields as one value."""
        words = self.augmentation.split("+")
        return Augmentation(
            crop=self.crop,
            random_crop="crop" in words,
            flip="flip" in words,
            rotate="rotate" in words,
            shift=self.shift,
            scale=self.scale,
            brightness=self.brightness,
            contrast=self.contrast,
            colour=self.colour,
        )


class ImageTrainerConfig(TrainerConfig):
    """The configuration of a trainer on images; sub-classes narrow `stage1` further."""

    stage1: ImageStage1 = Field(default_factory=ImageStage1)

    def resources(self) -> tuple[Resource, ...]:
        """The backbone's weights, where they are not `none`."""
        if self.stage1.weights == NONE:
            return ()
        return (Resource("backbone", self.stage1.backbone, self.stage1.weights),)
