"""Encoding of label names by a text encoder from the Hugging Face hub or a folder. Needs the extra `text`.

Prompt tokens are LDRNet's (Huang et al., ACM MM 2024, section 3.2): the states of a frozen text transformer for one
sentence with all labels. Label embeddings are those of Hong et al., arXiv 2308.08853: one vector a label name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.hashing import content_hash, hash_tensors
from trainers.resources import TIMEOUT_S, PublishedUnavailable, ResourceUnavailable, one_line
from trainers.text.label_embeddings import LabelEmbeddings, Pooling

ALL_LABELS = "The Categories of the image are {}"
"""LDRNet's prompt."""
ONE_LABEL = "The Category of the image is {}"
"""Its form for one label, where all of them are too long for the encoder."""

LOCAL = "local"
"""The revision of a folder."""

_FILES = ("*.json", "*.txt", "*.model")
_SAFE_WEIGHTS, _WEIGHTS = "model*.safetensors", "pytorch_model*.bin"


@lru_cache(maxsize=4)  # A comparison asks again for each of its rows.
def encode_labels(source: str, labels: tuple[str, ...], pooling: Pooling | None = None) -> LabelEmbeddings:
    """Prompt tokens and label embeddings of a text encoder.

    Args:
        source: a folder as `save_pretrained` writes it, or a name on the hub: `NAME` or `NAME@REVISION`, a branch, tag
            or commit.
        labels: (C,) names; an underscore is read as a space.
        pooling: what embeds a label: its `cls` token, its `eos` token, or the `mean` of all its tokens; None: `eos` for
            CLIP, `cls` for encoders that have such a token, else `mean`.

    Raises:
        PublishedUnavailable: the hub is unreachable, and the model is not in its cache on this machine.
        ResourceUnavailable: the encoder is unknown or unusable, or a label is too long.
    """
    name, folder, revision = _find(source)
    with _quiet():
        encoder = _load(name, folder)
        names = [label.replace("_", " ") for label in labels]
        whole, single = ALL_LABELS.format(", ".join(names)), [ONE_LABEL.format(name) for name in names]
        tokens = encoder.prompt(whole, single)
        pooling = pooling or encoder.default_pooling()
        embeddings = torch.stack([encoder.pooled(text, pooling) for text in names])
        read = [encoder.ids(text) for text in (whole, *single, *names)]
        identity = content_hash(hash_tensors(encoder.model.state_dict()), encoder.config, read, pooling)
    return LabelEmbeddings(name, revision, pooling, labels, tokens, embeddings, identity)


@dataclass(frozen=True)
class _Encoder:
    name: str
    model: Any
    tokenizer: Any
    config: str
    """The text of config.json."""
    limit: float
    """Most tokens of a text, special ones included."""

    def prompt(self, whole: str, single: Sequence[str]) -> Tensor:
        """(M, D'): the tokens of the whole sentence; where it is too long the mean token of each single one."""
        if len(self.ids(whole)) <= self.limit:
            return self._states(whole)
        return torch.stack([self.pooled(text, "mean") for text in single])

    def pooled(self, text: str, pooling: Pooling) -> Tensor:
        """(D',) of a text. Texts are encoded one by one: no padding, so that no other label moves the result."""
        states, ids = self._states(text), self.ids(text)
        if pooling == "mean":
            return states.mean(0)
        place = 0 if pooling == "cls" else -1
        if ids[place] != getattr(self.tokenizer, f"{pooling}_token_id"):
            raise ResourceUnavailable(f"{self.name}: its texts have no {pooling} token to pool by", "use mean pooling")
        return states[place]

    def default_pooling(self) -> Pooling:
        """What the encoder was trained with, where that is known."""
        if self.model.config.model_type == "clip_text_model":
            return "eos"
        return "mean" if self.tokenizer.cls_token_id is None else "cls"

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, special ones included."""
        return list(self.tokenizer(text)["input_ids"])

    def _states(self, text: str) -> Tensor:
        """(T, D') float32 last hidden states of a text's T tokens."""
        ids = self.ids(text)
        if len(ids) > self.limit:
            raise ResourceUnavailable(f"{self.name}: {text!r} takes {len(ids)} tokens, and it reads {self.limit}")
        try:
            with torch.no_grad():
                states: Tensor = self.model(**self.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        except Exception as error:  # Models that are not encoders fail in various ways.
            raise ResourceUnavailable(f"{self.name}: cannot encode a text: {one_line(error)}") from error
        return states.float().contiguous()


def _find(source: str) -> tuple[str, Path, str]:
    """Name, folder and revision of an encoder; what the hub has is downloaded into its own cache."""
    try:
        import huggingface_hub  # noqa: F401
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        fix = "install it: pip install 'lt-search[text]'"
        raise ResourceUnavailable(f"{source}: text encoders need the package {error.name}", fix) from error
    if Path(source).is_dir():
        return source, Path(source), LOCAL
    folder = _download(source)
    return source.partition("@")[0], folder, folder.name


def _download(source: str) -> Path:
    """The folder of a model in the hub's cache, named by its commit; only of files that a text encoder needs."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    name, _, revision = source.partition("@")
    silence: Exception | None = None
    try:
        # The download waits without a limit for a hub that does not answer this.
        HfApi().model_info(name, revision=revision or None, timeout=TIMEOUT_S)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        fix = "check the name, or give a folder or an embedding file"
        raise ResourceUnavailable(f"{source}: the hub has no such model, or keeps it private", fix) from error
    except Exception as error:  # The hub's HTTP client has errors of its own, and has been replaced before.
        silence = error

    def fetch(*patterns: str) -> Path:
        found = snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*"],
            local_files_only=silence is not None,
        )
        return Path(found)

    try:
        folder = fetch(*_FILES, _SAFE_WEIGHTS)
        return folder if any(folder.glob(_SAFE_WEIGHTS)) else fetch(*_FILES, _WEIGHTS)
    except Exception as error:
        raise PublishedUnavailable(
            f"the text encoder {source} is not on this machine, and the hub is out of reach: "
            f"{one_line(silence or error)}"
        ) from error


def _load(name: str, folder: Path) -> _Encoder:
    from transformers import (
        MODEL_FOR_TEXT_ENCODING_MAPPING,
        AutoConfig,
        AutoModel,
        AutoModelForTextEncoding,
        AutoTokenizer,
    )

    # Code that comes with a model is not run, and pickled objects are not loaded: of .bin files only tensors are read.
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        config = AutoConfig.from_pretrained(folder, **local)
        config = getattr(config, "text_config", config)  # of a model of images and texts, such as CLIP
        auto = AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
        model, loaded = auto.from_pretrained(
            folder, config=config, dtype=torch.float32, weights_only=True, output_loading_info=True, **local
        )
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        text = (folder / "config.json").read_text()
    except Exception as error:  # Damaged and unknown files raise whatever their parser trips over.
        raise ResourceUnavailable(f"{name}: cannot be loaded as a text encoder: {one_line(error)}") from error
    # What is missing was drawn at random; BERT's pooler often is, and is not used.
    random = sorted(key for key in loaded["missing_keys"] if not key.startswith("pooler."))
    if random or loaded["mismatched_keys"]:
        what = f"{len(random)} are missing, {len(loaded['mismatched_keys'])} have another shape"
        raise ResourceUnavailable(f"{name}: its weights are not those of the text encoder: {what}")
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    return _Encoder(name, model.eval(), tokenizer, text, min(longest, tokenizer.model_max_length))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report on weights that a text encoder does not need, such as CLIP's for images."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
