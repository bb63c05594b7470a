"""Bundled data sets: scikit-learn's handwritten digits, made long-tailed.

Training, validation and test images are drawn from disjoint pools of digits, so a digit seen in training is never
scored. `split_seed` decides which digits are in which pool, and nothing else: counts, labels, positions and
noise are fixed by `VERSION`. Images are 32 x 32 and grey.

- `digits-lt[:F]`, multi-class: one digit per image, `train_count` training images of each class, the rarest having
  1 / F of the most frequent (default F = 20). Every digit of a pool is used at most once.
- `digits-ml[:N]`, multi-label: 2 x 2 cells that hold one to three different digits; N training mosaics (default
  2000), of which a share falling as rank^-1.8 has each label. A digit of a pool appears in many mosaics.

Digit d is class d and has rank d + 1. Validation and test are balanced: every class is equally frequent. Digits are
shifted and drawn in varying strength on noise, just so strong that a small network has room to improve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from lt_search.data.image_files import resize, to_planes
from lt_search.data.table import (
    PART_NAMES,
    Dataset,
    ImageHeader,
    Labels,
    Part,
    PartName,
    digest,
    digest_rows,
    digest_split,
    scarcity_warnings,
)
from lt_search.errors import Problem, UserError
from trainers.task import Task

VERSION = 1
"""Raised whenever images or labels change; seeds everything that is drawn."""

N_CLASSES = 10
CLASSES = tuple(str(digit) for digit in range(N_CLASSES))
SIDE = 32
"""Height and width of every image, in pixels."""

POOL_SIZES: dict[PartName, int] = {"train": 90, "val": 40, "test": 44}
"""Digits of each class in each pool; 174 in all, as many as the rarest digit has."""

DEFAULT_FACTOR = 20.0
DEFAULT_MOSAICS = 2000
MOSAICS: dict[PartName, int] = {"val": 600, "test": 1500}
"""Mosaics that are scored: enough for a standard error of the mAP below 0.01."""

MOST_FREQUENT = 0.9
"""Share of training mosaics that hold the most frequent digit."""
EXPONENT = 1.8
"""Training label frequency falls as rank to the minus this."""

_MIN_MOSAICS, _MAX_MOSAICS = 100, 1_000_000
_MOST_DIGITS = 3
_BALANCED_DIGITS = (3, 3, 2, 1, 1)
_CELL = SIDE // 2
_SOURCE_SIDE = 8
_FULL_INK = 16
"""The largest value in scikit-learn's digits."""

Kind = Literal["lt", "ml"]
Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Look:
    """How digits are drawn."""

    digit: int
    """Side of a drawn digit in pixels; what is left of its box is the room for random shifts."""
    noise: float
    """Standard deviation of the noise of every pixel, in units of full ink."""
    strength: tuple[float, float] = (0.8, 1.0)
    """Range of a digit's ink."""
    paper: int = 40
    """Grey value without ink."""
    ink: int = 150
    """Added to it at full ink; leaves room for noise on both sides."""


# Chosen so that there is something to learn for both stages. Measured with four layers of 32 channels: `digits-ml`,
# LDRNet, 16 epochs: val mAP 0.88, tail 0.66-0.69, after a tuned stage 2 0.89 and 0.70-0.71; `digits-lt:50`, plain
# cross-entropy: val tail recall 0.50-0.53, or 0.38-0.44 with average pooling. More noise lowers all classes, more
# shift the rare ones most.
_LOOKS: dict[Kind, _Look] = {"lt": _Look(digit=31, noise=0.05), "ml": _Look(digit=15, noise=0.1)}


@dataclass(frozen=True)
class DigitImages:
    """Images that are drawn on first use in a process: the `ImageSource` of a bundled part."""

    kind: Kind
    part: PartName
    amount: float
    """The imbalance factor of `digits-lt`, the number of training mosaics of `digits-ml`."""
    split_seed: int

    def channels(self) -> int:
        """1: digits are grey."""
        return 1

    def header(self, index: int) -> ImageHeader:
        """The same for every image."""
        return ImageHeader("L", SIDE, SIDE)

    def decode(self, index: int, size: int) -> Images:
        """(1, size, size) uint8."""
        pixels, _, _ = _draw_part(self)
        return to_planes(resize(Image.fromarray(pixels[index]), size))

    def check(self, index: int) -> str | None:
        """None: a drawn image is always sound."""
        return None

    def pixels_key(self) -> str:
        """Hash of all pixels."""
        pixels, _, _ = _draw_part(self)
        return digest((pixels.tobytes(),))


def digits_lt(argument: str, split_seed: int) -> Dataset:
    """The multi-class set.

    Args:
        argument: the imbalance factor, at least 1 and at most the size of a training pool; empty for the default.
        split_seed: seed of the pools.

    Raises:
        UserError: the factor is not a number or out of range.
    """
    most = POOL_SIZES["train"]
    factor = _number(argument, float, DEFAULT_FACTOR, 1, most, "digits-lt", "an imbalance factor")
    return _dataset("digits-lt", Task.MULTI_CLASS, "lt", factor, split_seed)


def digits_ml(argument: str, split_seed: int) -> Dataset:
    """The multi-label set.

    Args:
        argument: the number of training mosaics; empty for the default.
        split_seed: seed of the pools.

    Raises:
        UserError: the number is not an integer or out of range.
    """
    count = _number(argument, int, DEFAULT_MOSAICS, _MIN_MOSAICS, _MAX_MOSAICS, "digits-ml", "a number of mosaics")
    return _dataset("digits-ml", Task.MULTI_LABEL, "ml", count, split_seed)


def train_count(rank: int, factor: float) -> int:
    """Training images of the class of this rank (1 to 10) in `digits-lt`: an exponential profile, rounded."""
    return round(POOL_SIZES["train"] * math.pow(factor, -(rank - 1) / (N_CLASSES - 1)))


def train_label_count(rank: int, mosaics: int) -> int:
    """Training mosaics with the label of this rank (1 to 10) in `digits-ml`: a power law, rounded."""
    return round(MOST_FREQUENT * mosaics * math.pow(rank, -EXPONENT))


def pools(split_seed: int) -> dict[PartName, npt.NDArray[np.int64]]:
    """For each part (10, POOL_SIZES[part]): the indices in scikit-learn's set of its digits, by class."""
    _, classes = _digits()
    generator = np.random.default_rng([VERSION, split_seed])
    shuffled = [generator.permutation(np.flatnonzero(classes == digit)) for digit in range(N_CLASSES)]
    found: dict[PartName, npt.NDArray[np.int64]] = {}
    start = 0
    for part in PART_NAMES:
        stop = start + POOL_SIZES[part]
        found[part] = np.stack([indices[start:stop] for indices in shuffled])
        start = stop
    return found


def _dataset(name: str, task: Task, kind: Kind, amount: float, split_seed: int) -> Dataset:
    sources = {part: DigitImages(kind, part, amount, split_seed) for part in PART_NAMES}

    def part_of(source: DigitImages) -> Part:
        images, labels, ids = _draw_part(source)
        contents = [digest((image.tobytes(),)) for image in images]
        return Part(source.part, ids, labels, ids, source, digest_rows(ids, labels, ids, contents))

    train, val, test = (part_of(sources[part]) for part in PART_NAMES)
    owners = {part: map(str, indices.ravel()) for part, indices in pools(split_seed).items()}
    return Dataset(
        name=name,
        task=task,
        classes=CLASSES,
        train=train,
        val=val,
        test=test,
        fingerprint=digest((name, *(part.fingerprint for part in (train, val, test)))),
        split_hash=digest_split(owners),
        split_origin=f"disjoint pools of digits, seed {split_seed}",
        warnings=scarcity_warnings(CLASSES, (train, val, test)),
    )


@lru_cache(maxsize=1)
def _digits() -> tuple[Floats, npt.NDArray[np.int64]]:
    """scikit-learn's digits: (1797, 8, 8) ink from 0 to 1 and (1797,) classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images / _FULL_INK, found.target.astype(np.int64)


@lru_cache(maxsize=4)
def _draw_part(source: DigitImages) -> tuple[Images, Labels, tuple[str, ...]]:
    """(N, SIDE, SIDE) images, their labels and ids."""
    number = PART_NAMES.index(source.part)
    generator = np.random.default_rng([VERSION, *source.kind.encode(), number])
    pool = pools(source.split_seed)[source.part]
    draw = _draw_single if source.kind == "lt" else _draw_mosaics
    return draw(source, pool, generator)


def _draw_single(
    source: DigitImages, pool: npt.NDArray[np.int64], generator: np.random.Generator
) -> tuple[Images, Labels, tuple[str, ...]]:
    train = source.part == "train"
    sizes = [train_count(rank, source.amount) if train else pool.shape[1] for rank in range(1, N_CLASSES + 1)]
    chosen = np.concatenate([pool[digit, :size] for digit, size in enumerate(sizes)])
    boxes = _place(chosen, SIDE, _LOOKS["lt"], generator)
    images = _develop(boxes, _LOOKS["lt"], generator)
    return images, np.repeat(np.arange(N_CLASSES), sizes), tuple(f"digit-{index:04d}" for index in chosen)


def _draw_mosaics(
    source: DigitImages, pool: npt.NDArray[np.int64], generator: np.random.Generator
) -> tuple[Images, Labels, tuple[str, ...]]:
    if source.part == "train":
        labels = _long_tailed_labels(int(source.amount), generator)
    else:
        labels = _balanced_labels(MOSAICS[source.part], generator)
    mosaic, digit = np.nonzero(labels)
    boxes = _place(pool[digit, generator.integers(0, pool.shape[1], len(digit))], _CELL, _LOOKS["ml"], generator)
    nth = np.arange(len(mosaic)) - np.searchsorted(mosaic, mosaic)
    cell = generator.random((len(labels), 4)).argsort(axis=1)[mosaic, nth]
    cells = np.zeros((len(labels), 2, _CELL, 2, _CELL))
    cells[mosaic, cell // 2, :, cell % 2, :] = boxes
    images = _develop(cells.reshape(-1, SIDE, SIDE), _LOOKS["ml"], generator)
    return images, labels, tuple(f"{source.part}-{index:06d}" for index in range(len(labels)))


def _long_tailed_labels(mosaics: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """(mosaics, 10) with `train_label_count` of each label and one to three labels per mosaic."""
    labels = np.zeros((mosaics, N_CLASSES), np.uint8)
    for rank in range(N_CLASSES, 1, -1):
        room = np.flatnonzero(labels.sum(axis=1) < _MOST_DIGITS)
        labels[generator.choice(room, train_label_count(rank, mosaics), replace=False), rank - 1] = 1
    # The most frequent label also fills the mosaics without any, which are fewer than it needs.
    empty = labels.sum(axis=1) == 0
    room = np.flatnonzero(~empty & (labels.sum(axis=1) < _MOST_DIGITS))
    others = train_label_count(1, mosaics) - int(empty.sum())
    labels[empty, 0] = 1
    labels[generator.choice(room, others, replace=False), 0] = 1
    return labels


def _balanced_labels(mosaics: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """(mosaics, 10) with every label equally often: each five mosaics share one shuffled set of the ten digits."""
    fives = mosaics // len(_BALANCED_DIGITS)
    shuffled = generator.random((fives, N_CLASSES)).argsort(axis=1).ravel()
    owner = np.repeat(np.arange(mosaics), _BALANCED_DIGITS * fives)
    labels = np.zeros((mosaics, N_CLASSES), np.uint8)
    labels[owner, shuffled] = 1
    return labels


def _place(indices: npt.NDArray[np.int64], box: int, look: _Look, generator: np.random.Generator) -> Floats:
    """(N, box, box) ink: each digit enlarged and shifted at random within its box."""
    ink, _ = _digits()
    enlarge = _bilinear(_SOURCE_SIDE, look.digit)
    drawn = enlarge @ ink[indices] @ enlarge.T * generator.uniform(*look.strength, (len(indices), 1, 1))
    boxes = np.zeros((len(indices), box, box))
    shifts = generator.integers(0, box - look.digit + 1, (len(indices), 2))
    for one, digit, (down, right) in zip(boxes, drawn, shifts, strict=True):
        one[down : down + look.digit, right : right + look.digit] = digit
    return boxes


def _develop(ink: Floats, look: _Look, generator: np.random.Generator) -> Images:
    """Ink with noise, as grey values; in slices, since noise takes eight times the memory of the images."""
    images = np.empty(ink.shape, np.uint8)
    for start in range(0, len(ink), 4096):
        piece = ink[start : start + 4096]
        noisy = piece + look.noise * generator.standard_normal(piece.shape)
        images[start : start + 4096] = np.clip(np.rint(look.paper + look.ink * noisy), 0, 255)
    return images


def _bilinear(source: int, target: int) -> Floats:
    """(target, source) matrix that enlarges by linear interpolation between pixel centres."""
    centres = (np.arange(target) + 0.5) * source / target - 0.5
    distances = np.abs(np.clip(centres, 0, source - 1)[:, None] - np.arange(source))
    return np.asarray(np.maximum(0, 1 - distances), np.float64)


def _number(
    argument: str,
    kind: type[int] | type[float],
    default: float,
    low: float,
    high: float,
    name: str,
    meaning: str,
) -> float:
    if not argument:
        return default
    try:
        value = kind(argument)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        what = f"{argument!r} after {name!r} is not {meaning} from {low:,} to {high:,}"
        raise UserError(Problem("--dataset", what, f"for example {name}:{default:g}"))
    return value
