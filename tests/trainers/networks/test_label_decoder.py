from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainers.networks.label_decoder import EncoderLayer, GroupWiseLinear, LabelDecoder, PooledFeatures, sine_positions

CHANNELS, C, D, M = 6, 3, 8, 2


def decoder(prompt: Tensor | None = None, **overrides: object) -> LabelDecoder:
    torch.manual_seed(0)
    options: dict[str, object] = {"dim": D, "layers": 2, "heads": 2, "ffn": 16, "dropout": 0.0, "positions": True}
    return LabelDecoder(CHANNELS, C, prompt=prompt, **{**options, **overrides}).eval()  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _global_generator() -> object:
    with torch.random.fork_rng():
        yield


def torch_layer(layer: EncoderLayer) -> nn.TransformerEncoderLayer:
    """PyTorch's own post-norm layer with the weights of ours."""
    reference = nn.TransformerEncoderLayer(D, 2, 16, 0.0, batch_first=True, norm_first=False).eval()
    attention = reference.self_attn
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat((layer.query.weight, layer.key_value.weight)))
        attention.in_proj_bias.copy_(torch.cat((layer.query.bias, layer.key_value.bias)))
    attention.out_proj.load_state_dict(layer.out.state_dict())
    reference.linear1.load_state_dict(layer.ffn1.state_dict())
    reference.linear2.load_state_dict(layer.ffn2.state_dict())
    reference.norm1.load_state_dict(layer.norm1.state_dict())
    reference.norm2.load_state_dict(layer.norm2.state_dict())
    return reference


def test_encoder_layer_is_pytorchs_transformer_layer() -> None:
    torch.manual_seed(1)
    layer = EncoderLayer(D, 2, 16, 0.0).eval()
    x = torch.randn(4, 7, D)
    expected = torch_layer(layer)(x)
    torch.testing.assert_close(layer(x, slice(None)), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x, slice(2, 5)), expected[:, 2:5], rtol=1e-4, atol=1e-5)


def test_positions_are_their_formula() -> None:
    height, width, dim = 2, 3, 12
    found = sine_positions(height, width, dim)
    assert found.shape == (6, 12)
    for row in range(height):
        for column in range(width):
            expected = []
            for place, n in ((row, height), (column, width)):
                for i in range(dim // 2):
                    angle = (place + 1) / n * 2 * math.pi / 10_000 ** (2 * (i // 2) / (dim // 2))
                    expected.append(math.cos(angle) if i % 2 else math.sin(angle))
            np.testing.assert_allclose(found[row * width + column], expected, atol=1e-5)


@pytest.mark.parametrize("with_prompt", [False, True])
def test_queries_are_equation_2(with_prompt: bool) -> None:
    tokens = torch.randn(M, 5) if with_prompt else None
    module = decoder(tokens)
    rows = []
    if tokens is not None:
        first, _, second = module.prompt_mlp
        hidden = (tokens @ first.weight.T + first.bias).clamp(min=0)  # type: ignore[operator]
        rows = [w + module.word_type[0] for w in hidden @ second.weight.T + second.bias]  # type: ignore[operator]
    rows += [label + module.label_type[0] for label in module.labels]
    expected = torch.stack([row + p for row, p in zip(rows, module.query_positions, strict=True)])
    torch.testing.assert_close(module.queries(), expected)


@pytest.mark.parametrize("with_prompt", [False, True])
@pytest.mark.parametrize("positions", [False, True])
def test_features_are_the_label_tokens_of_the_joint_encoder(with_prompt: bool, positions: bool) -> None:
    tokens = torch.randn(M, 5) if with_prompt else None
    module = decoder(tokens, positions=positions)
    feature_map = torch.randn(4, CHANNELS, 2, 3)

    assert isinstance(module.project, nn.Conv2d)
    assert module.project.bias is not None
    image = torch.einsum("bchw,dc->bhwd", feature_map, module.project.weight[:, :, 0, 0]) + module.project.bias
    image = image.reshape(4, 6, D)
    if positions:
        image = image + sine_positions(2, 3, D)
    joint = torch.cat((module.queries().expand(4, -1, -1), image), 1)
    for layer in module.encoder:
        assert isinstance(layer, EncoderLayer)
        joint = torch_layer(layer)(joint)
    start = M if with_prompt else 0
    expected = joint[:, start : start + C]

    found = module(feature_map)
    assert found.shape == (4, C, D)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_without_projection_the_backbones_width_is_kept() -> None:
    module = LabelDecoder(8, C, dim=None, layers=1, heads=2, ffn=16, dropout=0.0, positions=True)
    assert module.dim == 8
    assert module(torch.randn(2, 8, 2, 2)).shape == (2, C, 8)


def test_dropout_is_active_in_training_only() -> None:
    module = decoder(dropout=0.5)
    x = torch.randn(2, CHANNELS, 2, 2)
    assert torch.equal(module(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))


def test_prompt_tokens_are_kept_with_the_weights_and_not_trained() -> None:
    tokens = torch.randn(M, 5)
    module = decoder(tokens)
    assert torch.equal(module.state_dict()["tokens"], tokens)
    assert "tokens" not in dict(module.named_parameters())


@pytest.mark.parametrize(
    ("dim", "heads", "message"), [(10, 4, "width 10 is not a multiple of heads = 4"), (6, 2, "not a multiple of 4")]
)
def test_widths_that_do_not_split_are_refused(dim: int, heads: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder(dim=dim, heads=heads)


def test_pooled_features_are_the_average_shared_by_all_classes() -> None:
    module = PooledFeatures(CHANNELS, C, dim=None)
    x = torch.randn(2, CHANNELS, 3, 3)
    features = module(x)
    assert features.shape == (2, C, CHANNELS)
    for c in range(C):
        np.testing.assert_allclose(features[:, c], x.numpy().mean((2, 3)), rtol=1e-5, atol=1e-6)
    head = GroupWiseLinear(C, CHANNELS)
    plain = nn.Linear(CHANNELS, C)
    with torch.no_grad():
        plain.weight.copy_(head.weight)
        plain.bias.copy_(head.bias)
    torch.testing.assert_close(head(features), plain(x.mean((2, 3))))
    assert PooledFeatures(CHANNELS, C, dim=4)(x).shape == (2, C, 4)


def test_group_wise_head_has_a_vector_and_bias_per_class() -> None:
    head = GroupWiseLinear(C, D)
    x = torch.randn(5, C, D)
    logits = head(x).detach()
    for c in range(C):
        w, b = head.weight[c].detach().numpy(), head.bias[c].item()
        np.testing.assert_allclose(logits[:, c], x[:, c].numpy() @ w + b, rtol=1e-4, atol=1e-5)
    bound = 1 / math.sqrt(D)
    assert head.weight.abs().max() <= bound
    assert head.weight.abs().max() > bound / 2
