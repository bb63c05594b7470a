"""Text encoders of the real architectures, tiny and with random weights, saved as their owners save them."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

WIDTH = 16
_LETTERS = [*string.ascii_lowercase, ",", ".", "-", "_"]
_SIZES = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_clip(folder: Path, *, seed: int = 0, with_images: bool = False) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """CLIP's text transformer of 77 positions, every letter a token; `with_images` saves the whole of CLIP."""
    words = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[])
    tokenizer.save_pretrained(folder)
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = CLIPTextConfig(vocab_size=len(words), max_position_embeddings=77, **_SIZES, **ends)
    torch.manual_seed(seed)
    text = CLIPTextModel(config).eval()
    if with_images:
        vision = {**_SIZES, "image_size": 8, "patch_size": 4}
        whole = CLIPModel(CLIPConfig(text_config=config.to_dict(), vision_config=vision, projection_dim=8))
        whole.text_model.load_state_dict(text.state_dict())
        whole.save_pretrained(folder)
    else:
        text.save_pretrained(folder)
    return text, tokenizer


def save_bert(folder: Path, *, seed: int = 0, **config: Any) -> tuple[BertModel, BertTokenizer]:
    """BERT, as PubMedBERT and BlueBERT are; every letter is a piece of a word."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces))
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    model = BertModel(BertConfig(vocab_size=len(pieces), max_position_embeddings=128, **{**_SIZES, **config})).eval()
    model.save_pretrained(folder)
    return model, tokenizer


def change_config(folder: Path, **values: Any) -> None:
    """Writes other values into a saved config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
