from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from trainers.base import Resource
from trainers.resources import ResourceUnavailable, resolve

TENSORS = {"layers.0.weight": torch.arange(6.0).view(2, 3), "counter": torch.tensor(3)}


class Evil:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (str(Path("unpickled")),)


def backbone(path: Path) -> Resource:
    return Resource("backbone", "conv4", str(path))


def prompt(path: Path) -> Resource:
    return Resource("prompt", "tokens", str(path))


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_local_pt_files_are_read(tmp_path: Path, wrapper: str | None) -> None:
    torch.save({wrapper: TENSORS, "epoch": 3} if wrapper else TENSORS, tmp_path / "w.pt")
    found = resolve(backbone(tmp_path / "w.pt"))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[key], TENSORS[key]) for key in TENSORS)


def test_local_safetensors_files_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, str(tmp_path / "w.safetensors"))
    found = resolve(backbone(tmp_path / "w.safetensors"))
    assert all(torch.equal(found[key], TENSORS[key]) for key in TENSORS)


def test_prompt_tokens_are_one_matrix_whatever_their_name(tmp_path: Path) -> None:
    tokens = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    save_file({"clip": tokens}, str(tmp_path / "t.safetensors"))
    torch.save(tokens.half(), tmp_path / "t.pt")
    assert torch.equal(resolve(prompt(tmp_path / "t.safetensors"))["tokens"], tokens)
    found = resolve(prompt(tmp_path / "t.pt"))["tokens"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, tokens, atol=1e-2, rtol=1e-2)


def test_text_is_found_by_name_where_a_file_has_several_tensors(tmp_path: Path) -> None:
    tensors = {"tokens": torch.zeros(5, 8), "embeddings": torch.ones(3, 8)}
    save_file(tensors, str(tmp_path / "t.safetensors"))
    for kind, name in (("prompt", "tokens"), ("label_embeddings", "embeddings")):
        found = resolve(Resource(kind, name, str(tmp_path / "t.safetensors")))
        assert found.keys() == {name}
        assert torch.equal(found[name], tensors[name])


def test_names_on_the_hub_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "clip").mkdir(parents=True)
    published = ("openai/clip-vit-base-patch32", "bert-base-uncased", "a/b.v1@refs/pr/3")
    local = ("mine/clip", "/a/b", "./a", "a/b/c", "tokens.safetensors", "a/b.pt", "b.npy", "~/a", "none here")
    assert all(Resource("prompt", "tokens", source).published for source in published)
    assert not any(Resource("prompt", "tokens", source).published for source in local)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (TENSORS, "one tensor, but the file has 2"),
        ({"t": torch.zeros(3)}, r"\(3,\)"),
        ({"t": torch.zeros(3, 2, dtype=torch.int64)}, "int64"),
        ({"t": torch.zeros(0, 2)}, r"\(0, 2\)"),
    ],
)
def test_other_files_are_no_prompt_tokens(tmp_path: Path, content: object, reason: str) -> None:
    torch.save(content, tmp_path / "t.pt")
    with pytest.raises(ResourceUnavailable, match=reason):
        resolve(prompt(tmp_path / "t.pt"))


def test_missing_files_and_other_kinds_are_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceUnavailable, match=r"gone.pt: no such file"):
        resolve(backbone(tmp_path / "gone.pt"))
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises(ResourceUnavailable, match=r"w.bin: tensor files are .safetensors, .pt or .pth"):
        resolve(backbone(tmp_path / "w.bin"))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00garbage" * 10)
    with pytest.raises(ResourceUnavailable, match="cannot be read as tensors") as error:
        resolve(backbone(tmp_path / name))
    assert "\n" not in str(error.value)


def test_pickled_objects_are_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"layers.0.weight": Evil()}, tmp_path / "w.pt")
    with pytest.raises(ResourceUnavailable, match="cannot be read as tensors"):
        resolve(backbone(tmp_path / "w.pt"))
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("content", [{}, {"a": 3}, [torch.zeros(1)]])
def test_files_without_named_tensors_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ResourceUnavailable, match="does not hold named tensors"):
        resolve(backbone(tmp_path / "w.pt"))


def test_conv4_has_no_published_weights() -> None:
    with pytest.raises(ResourceUnavailable, match="no published weights for backbone 'conv4'"):
        resolve(Resource("backbone", "conv4", "imagenet"))


def test_published_weights_out_of_reach_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there, wherever this runs
    with pytest.raises(ResourceUnavailable, match="published weights of resnet18 cannot be loaded from") as error:
        resolve(Resource("backbone", "resnet18", "imagenet"))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.pth"))


def test_published_weights_come_from_the_cache_and_a_wrong_file_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = models.get_model_weights("squeezenet1_1").DEFAULT
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    cached = folder / Path(weights.url).name
    state = {"features.0.weight": torch.ones(2)}
    torch.save(state, cached)
    assert torch.equal(resolve(Resource("backbone", "squeezenet1_1", "imagenet"))["features.0.weight"], torch.ones(2))
    cached.write_bytes(hashlib.sha256(b"x").digest())
    with pytest.raises(ResourceUnavailable, match="squeezenet1_1 cannot be loaded"):
        resolve(Resource("backbone", "squeezenet1_1", "imagenet"))
