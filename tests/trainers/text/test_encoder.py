from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartModel

from tests.helpers.tiny_encoders import WIDTH, change_config, save_bert, save_clip
from tests.helpers.tiny_hub import COMMIT, serve
from trainers.resources import PublishedUnavailable, ResourceUnavailable
from trainers.text.encoder import encode_labels

LABELS = ("Mass", "Edema", "Pleural_Thickening")


class Evil:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (str(Path("unpickled")),)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    encode_labels.cache_clear()
    yield
    encode_labels.cache_clear()


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "hub"


def padded(model, tokenizer, texts) -> tuple[np.ndarray, np.ndarray, object]:
    """States (B, T, D') and mask (B, T) of texts in one padded batch."""
    batch = tokenizer([text.replace("_", " ") for text in texts], padding=True, return_tensors="pt")
    assert batch["attention_mask"].min() == 0, "texts of one length would not test the mask"
    with torch.no_grad():
        output = model(**batch)
    return output.last_hidden_state.numpy(), batch["attention_mask"].numpy(), output


@pytest.mark.parametrize("with_images", [False, True])
def test_clip_prompt_tokens_are_the_states_of_one_sentence_with_all_labels(tmp_path: Path, with_images: bool) -> None:
    model, tokenizer = save_clip(tmp_path, with_images=with_images)
    made = encode_labels(str(tmp_path), LABELS)
    sentence = tokenizer("The Categories of the image are Mass, Edema, Pleural Thickening", return_tensors="pt")
    with torch.no_grad():
        expected = model(**sentence).last_hidden_state[0]
    assert made.tokens.shape == (sentence["input_ids"].shape[1], WIDTH)
    assert len(made.tokens) <= 77
    torch.testing.assert_close(made.tokens, expected)
    assert not made.tokens.requires_grad and made.tokens.dtype == torch.float32


def test_more_labels_than_77_tokens_hold_give_the_mean_token_of_one_sentence_each(tmp_path: Path) -> None:
    model, tokenizer = save_clip(tmp_path)
    labels = tuple(f"finding {letter * (n + 1)}" for n, letter in enumerate("abcdefgh"))
    made = encode_labels(str(tmp_path), labels)
    states, mask, _ = padded(model, tokenizer, [f"The Category of the image is {label}" for label in labels])
    expected = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    np.testing.assert_allclose(made.tokens.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_label_that_alone_is_too_long_is_refused(tmp_path: Path) -> None:
    save_clip(tmp_path)
    with pytest.raises(ResourceUnavailable, match=r"takes 1.. tokens, and it reads 77"):
        encode_labels(str(tmp_path), ("a", "b" * 100))


def test_mean_pooling_leaves_padding_out_and_cls_pooling_takes_the_first_token(tmp_path: Path) -> None:
    model, tokenizer = save_bert(tmp_path)
    states, mask, _ = padded(model, tokenizer, LABELS)
    mean = encode_labels(str(tmp_path), LABELS, "mean").embeddings.numpy()
    np.testing.assert_allclose(mean, (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True), atol=1e-5)
    assert np.abs(mean - states.mean(1)).max() > 1e-2, "the mask makes no difference here"
    default = encode_labels(str(tmp_path), LABELS)
    assert default.pooling == "cls"
    np.testing.assert_allclose(default.embeddings.numpy(), states[:, 0], atol=1e-5)


def test_clip_pools_by_its_end_token_as_its_own_pooler_does(tmp_path: Path) -> None:
    model, tokenizer = save_clip(tmp_path)
    _, _, output = padded(model, tokenizer, LABELS)
    made = encode_labels(str(tmp_path), LABELS)
    assert made.pooling == "eos"
    torch.testing.assert_close(made.embeddings, output.pooler_output)


def test_of_an_encoder_and_decoder_the_encoder_reads_the_labels(tmp_path: Path) -> None:
    _, tokenizer = save_bert(tmp_path)
    halves = {f"{half}_{name}": 2 for half in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    torch.manual_seed(0)
    model = BartModel(BartConfig(vocab_size=len(tokenizer), d_model=WIDTH, **halves)).eval()
    model.save_pretrained(tmp_path)
    tokenized = tokenizer("Mass", return_tensors="pt")
    with torch.no_grad():
        expected = model.encoder(tokenized["input_ids"]).last_hidden_state[0].mean(0)
    torch.testing.assert_close(encode_labels(str(tmp_path), LABELS, "mean").embeddings[0], expected)


def test_pooling_by_a_token_that_an_encoder_lacks_is_refused(tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    save_bert(tmp_path / "bert")
    with pytest.raises(ResourceUnavailable, match="no cls token"):
        encode_labels(str(tmp_path / "clip"), LABELS, "cls")
    with pytest.raises(ResourceUnavailable, match="no eos token"):
        encode_labels(str(tmp_path / "bert"), LABELS, "eos")


def test_a_label_is_encoded_alike_whatever_the_others_are(tmp_path: Path) -> None:
    save_bert(tmp_path)
    alone = encode_labels(str(tmp_path), ("Mass", "Edema")).embeddings[0]
    assert torch.equal(alone, encode_labels(str(tmp_path), LABELS).embeddings[0])


def test_identity_is_that_of_weights_labels_and_pooling_not_of_the_folder(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_bert(tmp_path / name, seed=seed)
    same = {encode_labels(str(tmp_path / name), LABELS).identity for name in "ab"}
    assert len(same) == 1
    others = {
        encode_labels(str(tmp_path / "c"), LABELS).identity,
        encode_labels(str(tmp_path / "a"), LABELS[::-1]).identity,
        encode_labels(str(tmp_path / "a"), LABELS, "mean").identity,
    }
    assert len(same | others) == 4


def test_missing_weights_are_never_drawn_at_random(tmp_path: Path) -> None:
    save_bert(tmp_path)
    change_config(tmp_path, num_hidden_layers=3)
    with pytest.raises(ResourceUnavailable, match="16 are missing"):
        encode_labels(str(tmp_path), LABELS)


def test_a_folder_that_holds_no_text_encoder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ResourceUnavailable, match="cannot be loaded as a text encoder") as error:
        encode_labels(str(tmp_path), LABELS)
    assert "\n" not in str(error.value)


def test_bin_files_are_read_as_tensors_and_pickled_objects_are_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bert"
    model, _ = save_bert(folder)
    expected = encode_labels(str(folder), LABELS)
    encode_labels.cache_clear()
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert torch.equal(encode_labels(str(folder), LABELS).embeddings, expected.embeddings)
    encode_labels.cache_clear()
    torch.save({**model.state_dict(), "evil": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ResourceUnavailable, match="cannot be loaded as a text encoder"):
        encode_labels(str(folder), LABELS)
    assert not (tmp_path / "unpickled").exists()


def test_a_model_is_downloaded_once_with_its_commit_and_then_found_without_the_hub(
    tmp_path: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bert"
    save_bert(folder)
    (folder / "flax_model.msgpack").write_bytes(b"x")
    expected = encode_labels(str(folder), LABELS)
    with serve({"tiny/bert": folder}) as (address, asked):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        files = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        made = encode_labels("tiny/bert@v1", LABELS)
        assert not [path for path in asked if path.endswith("msgpack")]
        assert {path for path in asked if "/revision/" in path} == {"/api/models/tiny/bert/revision/v1"}
        with pytest.raises(ResourceUnavailable, match="no such model") as error:
            encode_labels("tiny/brt", LABELS)
        assert not isinstance(error.value, PublishedUnavailable), "a wrong name is the user's mistake"
    assert (made.model, made.revision, made.identity) == ("tiny/bert", COMMIT, expected.identity)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    encode_labels.cache_clear()
    again = encode_labels("tiny/bert@v1", LABELS)
    assert again.revision == COMMIT
    assert torch.equal(again.embeddings, expected.embeddings)


def test_a_hub_out_of_reach_is_one_clear_line(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(PublishedUnavailable, match="tiny/clip is not on this machine, and the hub is out") as error:
        encode_labels("tiny/clip", LABELS)
    assert "\n" not in str(error.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PublishedUnavailable, match="offline mode is enabled"):
        encode_labels("tiny/clip", LABELS)


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ResourceUnavailable, match="transformers") as error:
        encode_labels("tiny/clip", LABELS)
    assert "lt-search[text]" in error.value.fix
