from __future__ import annotations

import numpy as np
import pytest

from lt_search.data.joined import JoinedImages

RNG = np.random.default_rng(0)
ARRAYS = [RNG.integers(0, 256, (count, 1, 3, 3), dtype=np.uint8) for count in (4, 1, 6)]
WHOLE = np.concatenate(ARRAYS)


@pytest.mark.parametrize(
    "index",
    [
        np.array([10, 0, 4, 4, 3, 5]),
        np.array([], dtype=np.int64),
        np.array([-1, -11]),
        np.array([[0, 5], [4, 10]]),
        slice(2, 9, 3),
        slice(None, None, -1),
        7,
        -7,
    ],
    ids=str,
)
def test_indexing_gives_what_it_gives_of_one_array(index: int | slice | np.ndarray) -> None:
    found = JoinedImages(ARRAYS)[index]
    assert type(found) is np.ndarray and found.dtype == np.uint8
    np.testing.assert_array_equal(found, WHOLE[index])


def test_it_has_the_shape_and_the_content_of_one_array() -> None:
    joined = JoinedImages(ARRAYS)
    assert (len(joined), joined.shape, joined.ndim, joined.dtype) == (11, WHOLE.shape, 4, WHOLE.dtype)
    np.testing.assert_array_equal(np.asarray(joined), WHOLE)
    np.testing.assert_array_equal(np.array(joined, np.float32), WHOLE.astype(np.float32))


@pytest.mark.parametrize("index", [11, -12, np.array([0, 11])], ids=str)
def test_an_image_that_is_not_there_is_an_error(index: int | np.ndarray) -> None:
    with pytest.raises(IndexError):
        JoinedImages(ARRAYS)[index]


def test_images_of_different_shapes_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="one shape"):
        JoinedImages([ARRAYS[0], np.zeros((2, 3, 3, 3), np.uint8)])
    with pytest.raises(ValueError, match="one shape"):
        JoinedImages([])
