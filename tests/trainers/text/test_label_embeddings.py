from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainers.base import Resource
from trainers.hashing import hash_tensors
from trainers.resources import ResourceUnavailable
from trainers.text.label_embeddings import LabelEmbeddings
from trainers.text.resolve import resolve_text

LABELS = ("Mass", "Ödem", "Nodule")
TENSORS = {"tokens": torch.arange(20.0).view(5, 4), "embeddings": -torch.arange(12.0).view(3, 4)}


def made(path: Path) -> Path:
    text = LabelEmbeddings("tiny/bert", "abc", "mean", LABELS, TENSORS["tokens"], TENSORS["embeddings"], "id")
    save_file(text.tensors(), path, text.metadata())
    return path


def prompt(path: Path) -> Resource:
    return Resource("prompt", "tokens", str(path))


def embeddings(path: Path) -> Resource:
    return Resource("label_embeddings", "embeddings", str(path))


def test_a_file_names_its_model_and_labels(tmp_path: Path) -> None:
    with safe_open(made(tmp_path / "text.safetensors"), "pt") as file:
        metadata = file.metadata()
    assert (metadata["model"], metadata["revision"], metadata["pooling"]) == ("tiny/bert", "abc", "mean")
    assert json.loads(metadata["labels"]) == list(LABELS)
    assert metadata["checksum"]


def test_each_resource_takes_its_tensor_from_one_file(tmp_path: Path) -> None:
    path = made(tmp_path / "text.safetensors")
    for resource in (prompt(path), embeddings(path)):
        found, digest, note = resolve_text(resource, LABELS)
        assert found.keys() == {resource.name}
        assert torch.equal(found[resource.name], TENSORS[resource.name])
        assert digest == hash_tensors(found)
        assert str(path) in note


@pytest.mark.parametrize(
    ("labels", "difference"),
    [
        (("Mass", "Hernia", "Nodule"), "only in the file: Ödem; only in the data: Hernia"),
        (("Mass", "Ödem", "Nodule", "Hernia"), "not the data's: only in the data: Hernia"),
        (
            ("Mass", "Nodule", "Ödem"),
            "the same names in another order: Ödem in place of Nodule, Nodule in place of Ödem",
        ),
    ],
)
def test_a_file_of_other_labels_is_refused_with_the_differences(
    tmp_path: Path, labels: tuple[str, ...], difference: str
) -> None:
    path = made(tmp_path / "text.safetensors")
    for resource in (prompt(path), embeddings(path)):
        with pytest.raises(ResourceUnavailable, match=difference) as error:
            resolve_text(resource, labels)
        assert "embed-labels" in error.value.fix


@pytest.mark.parametrize("changed", ["tensor", "labels", "no list"])
def test_a_file_that_was_changed_after_it_was_written_is_refused(tmp_path: Path, changed: str) -> None:
    path = made(tmp_path / "text.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    if changed == "tensor":
        tensors["embeddings"][1, 2] += 1
    else:
        metadata["labels"] = json.dumps(["Mass", "Hernia", "Nodule"]) if changed == "labels" else "Mass"
    save_file(tensors, path, metadata)
    with pytest.raises(ResourceUnavailable, match=r"checksum is wrong|labels cannot be read"):
        resolve_text(prompt(path), ("Mass", "Hernia", "Nodule"))


def test_embeddings_that_name_no_labels_must_be_as_many_as_the_labels(tmp_path: Path) -> None:
    torch.save(TENSORS["embeddings"], tmp_path / "e.pt")
    found, _, _ = resolve_text(embeddings(tmp_path / "e.pt"), LABELS)
    assert torch.equal(found["embeddings"], TENSORS["embeddings"])
    with pytest.raises(ResourceUnavailable, match="3 label embeddings, but the data has 2 labels"):
        resolve_text(embeddings(tmp_path / "e.pt"), LABELS[:2])
