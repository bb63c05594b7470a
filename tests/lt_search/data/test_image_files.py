import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lt_search.data.image_files import read_header, read_image
from lt_search.data.table import ImageHeader, UnreadableImageError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp"])
def test_8_bit_grey_is_read_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(RAMP).save(path)
    assert read_header(path) == ImageHeader("L", 16, 16)
    np.testing.assert_array_equal(read_image(path, 1), RAMP[None])
    np.testing.assert_array_equal(read_image(path, 3), np.stack([RAMP] * 3))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("high", [255 * 257, 4095, 700])
def test_16_bit_grey_is_stretched_over_its_own_range(tmp_path: Path, suffix: str, high: int) -> None:
    low = 100
    path = tmp_path / f"deep.{suffix}"
    deep = np.linspace(low, high, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(deep).save(path)
    expected = np.rint((deep.astype(float) - low) * 255 / (high - low)).astype(np.uint8)
    np.testing.assert_array_equal(read_image(path, 1), expected[None])
    assert expected.min() == 0 and expected.max() == 255


def test_constant_16_bit_grey_is_black(tmp_path: Path) -> None:
    path = tmp_path / "flat.png"
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(path)
    assert not read_image(path, 1).any()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_colour_is_read_as_planes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"colour.{suffix}"
    Image.fromarray(COLOURS).save(path)
    np.testing.assert_array_equal(read_image(path, 3), COLOURS.transpose(2, 0, 1))


def test_jpeg_is_read_close_to_what_was_saved(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(COLOURS).resize((64, 64), Image.Resampling.BICUBIC))
    path = tmp_path / "photo.jpg"
    Image.fromarray(smooth).save(path, quality=95)
    found = read_image(path, 3).transpose(1, 2, 0).astype(int)
    assert np.abs(found - smooth).mean() < 8


def test_transparent_pixels_are_composited_over_black(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    pixels = np.full((2, 2, 4), 200, np.uint8)
    pixels[:, 0, 3], pixels[:, 1, 3] = 0, 255
    Image.fromarray(pixels, "RGBA").save(path)
    found = read_image(path, 3)
    assert (found[:, :, 0] == 0).all() and (found[:, :, 1] == 200).all()


def test_opaque_grey_with_alpha_is_grey(tmp_path: Path) -> None:
    path = tmp_path / "la.png"
    Image.merge("LA", [Image.fromarray(RAMP), Image.new("L", (16, 16), 255)]).save(path)
    assert read_header(path).mode == "LA"
    np.testing.assert_array_equal(read_image(path, 1), RAMP[None])


def test_palette_colours_are_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "palette.png"
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(path)
    assert read_header(path).mode == "P"
    np.testing.assert_array_equal(read_image(path, 3)[:, 0, 0], [10, 20, 30])
    np.testing.assert_array_equal(read_image(path, 3)[:, 0, 1], [200, 100, 50])


def test_transparent_palette_entry_becomes_black(tmp_path: Path) -> None:
    path = tmp_path / "palette.png"
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(path, transparency=0)
    np.testing.assert_array_equal(read_image(path, 3)[:, 0, 0], [0, 0, 0])


def test_bilevel_images_become_black_and_white(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(RAMP > 127).save(path)
    np.testing.assert_array_equal(read_image(path, 1)[0], np.where(RAMP > 127, 255, 0))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after turning clockwise
    Image.fromarray(RAMP[:8]).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path, 1)[0], np.rot90(RAMP[:8], -1))


def test_resize_makes_a_square_and_averages_what_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "checks.png"
    checks = (np.indices((64, 128)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(path)
    found = read_image(path, 1, 8)
    assert found.shape == (1, 8, 8)
    assert np.abs(found[0, 1:-1, 1:-1].astype(int) - 127).max() <= 3  # without antialiasing: 0 or 255


def test_reduced_jpeg_decoding_hardly_changes_pixels(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (24, 24), dtype=np.uint8)).resize((900, 900)).save(path, quality=90)
    reduced = read_image(path, 1, 64)[0].astype(int)
    whole = np.asarray(Image.open(path).resize((64, 64), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(reduced - whole).mean() < 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, {"png": "PNG", "jpg": "JPEG", "tiff": "TIFF"}[suffix])
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(UnreadableImageError):
        read_image(path, 1, 32)


@pytest.mark.parametrize(("content", "reason"), [(b"", "not an image"), (b"no image at all", "not an image")])
def test_other_files_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "text.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=reason):
        read_header(path)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="no such file"):
        read_image(tmp_path / "absent.png", 1)


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "float.tiff"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    with pytest.raises(UnreadableImageError, match="32-bit float"):
        read_header(path)
