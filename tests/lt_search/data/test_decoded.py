import logging
import multiprocessing
import resource
import signal
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from lt_search.data import decoded, load_dataset, open_images
from lt_search.data.csv_cells import LISTED
from lt_search.data.table import Part
from lt_search.errors import UserError
from tests.helpers.pictures import make_table, multi_class_rows
from tests.helpers.sources import PlainImages, plain_part

SPAWN = multiprocessing.get_context("spawn")
SIZE = 64
PER_BLOCK = decoded.BLOCK_BYTES // SIZE**2
MANY = 2 * PER_BLOCK + 10
"""Images in three blocks."""


@pytest.fixture
def source(tmp_path: Path) -> PlainImages:
    return PlainImages(tmp_path / "log")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def files_in(cache: Path) -> list[str]:
    return sorted(path.suffix for path in (cache / "decoded").iterdir())


def array_file(cache: Path) -> Path:
    (path,) = (cache / "decoded").glob("*.npy")
    return path


def expected(n: int, size: int = SIZE) -> npt.NDArray[np.uint8]:
    return np.broadcast_to((np.arange(n) % 256).astype(np.uint8)[:, None, None, None], (n, 1, size, size))


def test_images_are_decoded_once_and_mapped_read_only(source: PlainImages, cache: Path) -> None:
    part = plain_part(source, MANY)
    first = open_images(part, SIZE, cache_dir=cache)
    again = open_images(part, SIZE, cache_dir=cache)
    assert source.decoded == MANY
    for images in (first, again):
        assert isinstance(images, np.memmap) and images.dtype == np.uint8
        np.testing.assert_array_equal(images, expected(MANY))
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0
    assert files_in(cache) == [".json", ".lock", ".npy"]


def test_sizes_and_pixels_have_arrays_of_their_own(source: PlainImages, cache: Path, tmp_path: Path) -> None:
    part = plain_part(source, 5)
    assert open_images(part, 8, cache_dir=cache).shape == (5, 1, 8, 8)
    assert open_images(part, 9, cache_dir=cache).shape == (5, 1, 9, 9)
    other = plain_part(PlainImages(tmp_path / "log", key="changed"), 5)
    open_images(other, 8, cache_dir=cache)
    assert source.decoded == 15


def test_the_same_images_with_other_labels_share_an_array(source: PlainImages, cache: Path) -> None:
    part = plain_part(source, 5)
    relabelled = Part("train", part.ids, 1 - part.labels, part.groups, source, "another fingerprint")
    open_images(part, 8, cache_dir=cache)
    open_images(relabelled, 8, cache_dir=cache)
    assert source.decoded == 5


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_does_not_matter(source: PlainImages, cache: Path, workers: int) -> None:
    images = open_images(plain_part(source, MANY), SIZE, cache_dir=cache, workers=workers)
    np.testing.assert_array_equal(images, expected(MANY))


def test_the_cache_folder_follows_the_environment(
    source: PlainImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LT_SEARCH_CACHE", raising=False)
    assert decoded.cache_folder() == tmp_path / "home" / ".cache" / "lt-search"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert decoded.cache_folder() == tmp_path / "xdg" / "lt-search"
    monkeypatch.setenv("LT_SEARCH_CACHE", str(tmp_path / "mine"))
    open_images(plain_part(source, 3), 8)
    assert files_in(tmp_path / "mine") == [".json", ".lock", ".npy"]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_header(path: Path) -> None:
    path.write_bytes(b"x" + path.read_bytes()[1:])


def damage_sidecar(path: Path) -> None:
    cut(path.with_suffix(".json"))


def foreign_sidecar(path: Path) -> None:
    path.with_suffix(".json").write_text('{"shape": [1, 1, 1, 1], "block_images": 1, "crc32": [0]}')


def pickled_content(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    "damage",
    [flip_a_byte, cut, lengthen, empty, damage_header, damage_sidecar, foreign_sidecar, pickled_content],
)
def test_damage_is_reported_and_the_array_decoded_again(
    source: PlainImages, cache: Path, caplog: pytest.LogCaptureFixture, damage: "object"
) -> None:
    part = plain_part(source, MANY)
    open_images(part, SIZE, cache_dir=cache)
    assert callable(damage)
    damage(array_file(cache))
    with caplog.at_level(logging.WARNING):
        images = open_images(part, SIZE, cache_dir=cache)
    np.testing.assert_array_equal(images, expected(MANY))
    assert source.decoded == 2 * MANY
    assert "damaged" in caplog.text and array_file(cache).name in caplog.text


def test_an_array_without_its_sidecar_does_not_count(source: PlainImages, cache: Path) -> None:
    part = plain_part(source, 5)
    open_images(part, 8, cache_dir=cache)
    array_file(cache).with_suffix(".json").unlink()
    np.testing.assert_array_equal(open_images(part, 8, cache_dir=cache), expected(5, 8))
    assert source.decoded == 10


def test_of_a_large_array_a_sample_with_both_ends_is_verified(
    source: PlainImages, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoded, "VERIFIED_BYTES", 2 * decoded.BLOCK_BYTES)
    part = plain_part(source, MANY)
    open_images(part, SIZE, cache_dir=cache)
    with array_file(cache).open("r+b") as file:
        file.seek(128 + PER_BLOCK * SIZE**2)  # in the second of three blocks
        file.write(b"\xff\xff")
    open_images(part, SIZE, cache_dir=cache)
    assert source.decoded == MANY
    flip_a_byte(array_file(cache))  # in the last block
    open_images(part, SIZE, cache_dir=cache)
    assert source.decoded == 2 * MANY


def open_together(part: Part, cache: Path, barrier: Barrier) -> None:
    barrier.wait()
    np.testing.assert_array_equal(open_images(part, SIZE, cache_dir=cache), expected(len(part)))


def test_two_processes_at_once_decode_once(source: PlainImages, cache: Path) -> None:
    barrier = SPAWN.Barrier(2)
    arguments = (plain_part(source, MANY), cache, barrier)
    processes = [SPAWN.Process(target=open_together, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert source.decoded == MANY


def test_a_killed_build_leaves_nothing_that_counts(source: PlainImages, cache: Path) -> None:
    fatal = plain_part(PlainImages(source.log, fatal=MANY - 1), MANY)
    process = SPAWN.Process(target=open_images, args=(fatal, SIZE), kwargs={"cache_dir": cache, "workers": 1})
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert ".npy" not in files_in(cache) and ".json" not in files_in(cache)
    images = open_images(plain_part(source, MANY), SIZE, cache_dir=cache)
    np.testing.assert_array_equal(images, expected(MANY))
    assert files_in(cache) == [".json", ".lock", ".npy"]


def test_unreadable_images_are_listed_up_to_a_limit_with_their_number(tmp_path: Path, cache: Path) -> None:
    broken = tuple(range(3, 3 + LISTED + 2))
    part = plain_part(PlainImages(tmp_path / "log", unreadable=broken), 40)
    with pytest.raises(UserError) as caught:
        open_images(part, 8, cache_dir=cache)
    message = str(caught.value)
    assert f"{LISTED + 2} of 40 cannot be decoded: i3 (broken), i4 (broken)" in message
    assert "and 2 more" in message
    assert files_in(cache) == [".lock"]


def test_truncated_files_of_a_table_are_named(tmp_path: Path, cache: Path) -> None:
    table = make_table(tmp_path, multi_class_rows({"a": 20, "b": 20}))
    dataset = load_dataset(str(table))
    victim = tmp_path / dataset.train.ids[4]
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError) as caught:
        open_images(load_dataset(str(table)).train, 8, cache_dir=cache)
    assert f"1 of 28 cannot be decoded: {dataset.train.ids[4]} (" in str(caught.value)


def test_a_cache_that_cannot_be_written_names_its_place_and_the_way_out(source: PlainImages, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError) as caught:
        open_images(plain_part(source, 3), 8, cache_dir=tmp_path / "file")
    message = str(caught.value)
    assert str(tmp_path / "file") in message and "LT_SEARCH_CACHE" in message


def fill_the_disk(part: Part, cache: Path, said: Path) -> None:
    """Files cannot grow beyond a block, which a writer sees as it sees a full disk: by an error of `write`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (decoded.BLOCK_BYTES, decoded.BLOCK_BYTES))
    try:
        open_images(part, SIZE, cache_dir=cache)
    except UserError as error:
        said.write_text(str(error))


def test_a_full_disk_is_an_error_that_leaves_nothing_half_written(
    source: PlainImages, cache: Path, tmp_path: Path
) -> None:
    arguments = (plain_part(source, MANY), cache, tmp_path / "said")
    process = SPAWN.Process(target=fill_the_disk, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0
    message = (tmp_path / "said").read_text()
    assert str(cache) in message and "make room for" in message and "LT_SEARCH_CACHE" in message
    assert files_in(cache) == [".lock"]


def test_a_data_set_larger_than_the_disk_is_refused_before_decoding(
    source: PlainImages, cache: Path, tmp_path: Path
) -> None:
    part = plain_part(source, 2)
    with pytest.raises(UserError, match="GB are free"):
        open_images(part, 30_000_000, cache_dir=cache)
    assert source.decoded == 0


@pytest.mark.parametrize("size", [0, -3])
def test_sizes_below_one_are_refused(source: PlainImages, cache: Path, size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        open_images(plain_part(source, 3), size, cache_dir=cache)
