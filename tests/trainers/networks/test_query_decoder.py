from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.networks.label_decoder import sine_positions
from trainers.networks.query_decoder import LabelQueryDecoder, SharedLinear

CHANNELS, C, D, WIDTH = 6, 3, 8, 5


@pytest.fixture(autouse=True)
def _global_generator() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def decoder(embeddings: Tensor | None = None, **overrides: object) -> LabelQueryDecoder:
    options: dict[str, object] = {"dim": D, "layers": 2, "heads": 2, "ffn": 16, "dropout": 0.3, "positions": False}
    module = LabelQueryDecoder(CHANNELS, C, embeddings=embeddings, **{**options, **overrides}).eval()  # type: ignore[arg-type]
    with torch.no_grad():  # initial biases and norms are 0 and 1, which would hide what is left out
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * layer.weight + layer.bias


def attend(x: Tensor, memory: Tensor, layer: torch.nn.MultiheadAttention) -> Tensor:
    """Multi-head attention of one image, head by head: (T, D), (T', D) to (T, D)."""
    assert layer.in_proj_weight is not None
    heads = []
    w, b, size = layer.in_proj_weight, layer.in_proj_bias, D // 2
    for h in range(2):
        rows = slice(h * size, (h + 1) * size)
        q, k, v = (
            source @ w[part * D : (part + 1) * D][rows].T + b[part * D : (part + 1) * D][rows]
            for part, source in enumerate((x, memory, memory))
        )
        heads.append((q @ k.T / math.sqrt(size)).softmax(-1) @ v)
    return torch.cat(heads, -1) @ layer.out_proj.weight.T + layer.out_proj.bias


def by_hand(module: LabelQueryDecoder, feature_map: Tensor) -> Tensor:
    """The decoder of one map (channels, H, W), written out."""
    first, _, second = module.memory
    tokens = feature_map.flatten(1).T
    tokens = second((tokens @ first.weight.T + first.bias).clamp(min=0))  # type: ignore[operator]
    if module.positions:
        tokens = tokens + sine_positions(*feature_map.shape[1:], D)
    tokens = norm(tokens, module.memory_norm)
    if module.embeddings is None:
        queries = module.labels
    else:
        one, _, two = module.text
        hidden = one(module.embeddings)
        queries = two(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))  # GELU
    x = norm(queries, module.query_norm)
    for layer in module.layers:
        assert isinstance(layer, torch.nn.TransformerDecoderLayer)
        inner = norm(x, layer.norm1)
        x = x + attend(inner, inner, layer.self_attn)
        x = x + attend(norm(x, layer.norm2), tokens, layer.multihead_attn)
        x = x + layer.linear2(layer.linear1(norm(x, layer.norm3)).clamp(min=0))
    return norm(x, module.norm)


@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.parametrize("positions", [False, True])
def test_features_are_the_decoder_written_out(with_text: bool, positions: bool) -> None:
    module = decoder(torch.randn(C, WIDTH) if with_text else None, positions=positions)
    maps = torch.randn(4, CHANNELS, 2, 3)
    found = module(maps)
    assert found.shape == (4, C, D)
    for image, feature_map in zip(found, maps, strict=True):
        torch.testing.assert_close(image, by_hand(module, feature_map), rtol=1e-4, atol=1e-5)


def test_layers_start_from_different_weights_that_keep_the_size_of_signals() -> None:
    module = LabelQueryDecoder(
        64, 20, dim=64, layers=2, heads=2, ffn=128, dropout=0, positions=False, embeddings=torch.randn(20, 32)
    )
    one, two = (layer.linear1.weight for layer in module.layers)  # type: ignore[union-attr]
    assert not torch.equal(one, two)  # type: ignore[arg-type]
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(parameter.shape[1] ** -0.5, rel=0.1), name


def test_embeddings_are_kept_and_not_trained() -> None:
    embeddings = torch.randn(C, WIDTH)
    module = decoder(embeddings)
    assert torch.equal(module.state_dict()["embeddings"], embeddings)
    assert "embeddings" not in dict(module.named_parameters())


def test_embeddings_of_another_number_of_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="embeddings of 2 labels, but the data has 3"):
        decoder(torch.randn(2, WIDTH))


@pytest.mark.parametrize(
    ("override", "message"),
    [({"heads": 3}, "not a multiple of heads"), ({"dim": 6, "positions": True}, "multiple of 4")],
)
def test_a_width_that_does_not_split_is_refused(override: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder(**override)


def test_dropout_acts_in_training_only() -> None:
    module, maps = decoder(), torch.randn(2, CHANNELS, 2, 3)
    assert torch.equal(module(maps), module(maps))
    module.train()
    assert not torch.equal(module(maps), module(maps))


def test_a_shared_classifier_scores_all_labels_alike() -> None:
    head, x = SharedLinear(D), torch.randn(4, C, D)
    weight, bias = head.linear.weight[0].detach().numpy(), head.linear.bias.item()
    np.testing.assert_allclose(head(x).detach(), x.numpy() @ weight + bias, rtol=1e-5, atol=1e-6)
    assert sum(parameter.numel() for parameter in head.parameters()) == D + 1
