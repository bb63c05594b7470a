"""Decoding of image files to 8-bit grey or RGB pixels: any grey, RGB, RGBA or palette file that Pillow reads.

The rules, the same for every file:

- 16-bit (and 32-bit integer) grey is stretched linearly from the image's own minimum and maximum to 0-255, as
  MIMIC-CXR-JPG does with its 12 to 16-bit radiographs: files state no bit depth below 16, and dividing 12-bit data
  by 256 would leave it black. An image of one single value becomes 0.
- Transparent pixels are composited over black.
- The EXIF orientation of photographs is applied: an image is decoded as a viewer shows it.
- Of a file with several frames the first is read.
- The resize is to a square, without keeping the aspect ratio and without padding, as is usual for chest X-rays
  and dermoscopy, by Lanczos with antialiasing. Large JPEG files are first reduced by their decoder to not less than
  twice the size asked for, which changes pixels by less than one grey level on average and is much faster.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from lt_search.data.table import ImageHeader, UnreadableImageError

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"})
"""Pillow's modes without colour."""

_DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_UNSUPPORTED_MODES = frozenset({"F"})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})

# What Pillow's decoders are known to raise on damaged files; anything else is our own mistake and must surface.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_header(path: Path) -> ImageHeader:
    """Mode and size of an image file, without decoding it.

    Raises:
        UnreadableImageError: the file is missing, not an image, or of an unsupported pixel format.
    """
    with _open(path) as image:
        return ImageHeader(image.mode, image.width, image.height)


def read_image(path: Path, channels: int, size: int | None = None) -> npt.NDArray[np.uint8]:
    """Decodes an image file by the rules of this module.

    Args:
        path: the file.
        channels: 1 for grey, 3 for RGB.
        size: side of the square to resize to; None keeps the image as it is.

    Returns:
        (channels, height, width) uint8.

    Raises:
        UnreadableImageError: the file is missing, not an image, truncated, or of an unsupported pixel format.
    """
    with _open(path) as opened:
        try:
            if size is not None:
                opened.draft(opened.mode, (2 * size, 2 * size))
            opened.load()
            image = _to_8_bit(ImageOps.exif_transpose(opened), "L" if channels == 1 else "RGB")
        except _DECODER_ERRORS as error:
            raise UnreadableImageError(_one_line(error)) from error
    return to_planes(image if size is None else resize(image, size))


def resize(image: Image.Image, size: int) -> Image.Image:
    """The image as a (size, size) square; antialiased Lanczos, aspect ratio not kept."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)


def to_planes(image: Image.Image) -> npt.NDArray[np.uint8]:
    """An `L` or `RGB` image as (1 or 3, height, width) uint8."""
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
    except FileNotFoundError as error:
        raise UnreadableImageError("no such file") from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image") from error
    except _DECODER_ERRORS as error:
        raise UnreadableImageError(_one_line(error)) from error
    if image.mode in _UNSUPPORTED_MODES:
        image.close()
        raise UnreadableImageError(f"pixel format {image.mode!r} (32-bit float) is not supported")
    return image


def _to_8_bit(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in _DEEP_MODES:
        return _stretch(image).convert(mode)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert(mode)
    return image.convert(mode)


def _stretch(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.float64)
    low, high = pixels.min(), pixels.max()
    scaled = (pixels - low) * (255.0 / (high - low)) if high > low else np.zeros_like(pixels)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
