from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.networks.heads import ClassHead, linear_head, tau_normalise, to_nearest_mean


@pytest.fixture
def head() -> ClassHead:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ClassHead(5, 3)


def vectors(n: int = 4) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(n, 5))).float()


def test_a_new_head_is_a_linear_layer(head: ClassHead) -> None:
    x = vectors()
    torch.testing.assert_close(head(x), x @ head.weight.T + head.bias)


def test_scales_multiply_the_whole_logit_and_offsets_come_after(head: ClassHead) -> None:
    x = vectors()
    before = head(x)
    torch.nn.init.constant_(head.scale, 3.0)
    head.offset += torch.tensor([1.0, 0.0, -1.0])
    torch.testing.assert_close(head(x), 3 * before + torch.tensor([1.0, 0.0, -1.0]))


def test_cosine_logits_do_not_see_the_length_of_features_or_weights(head: ClassHead) -> None:
    head.cosine = True
    x = vectors()
    expected = (x / x.norm(dim=1, keepdim=True)) @ (head.weight / head.weight.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head(7 * x), expected)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_tau_norm_divides_weights_by_a_power_of_their_norm_and_drops_the_bias(head: ClassHead, tau: float) -> None:
    weight = head.weight.detach().numpy().copy()
    tau_normalise(head, tau)
    norms = np.linalg.norm(weight, axis=1, keepdims=True)
    np.testing.assert_allclose(head.weight.detach().numpy(), weight / norms**tau, rtol=1e-5)
    assert (head.bias == 0).all()
    if tau == 1:
        torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(3))


def test_nearest_mean_gives_a_mean_its_own_class(head: ClassHead) -> None:
    means = vectors(3)
    to_nearest_mean(head, means)
    assert head(means * 4).argmax(1).tolist() == [0, 1, 2]
    torch.testing.assert_close(head(means).diagonal(), torch.ones(3))


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_logits_are_tau_normalised_as_the_head_would_be(head: ClassHead, tau: float) -> None:
    x = vectors()
    found = linear_head(head)
    assert found is not None
    after = found.tau_normalised(head(x).detach(), tau)
    tau_normalise(head, tau)
    torch.testing.assert_close(after, head(x).detach())


def test_a_plain_linear_layer_is_a_linear_head() -> None:
    layer, x = torch.nn.Linear(5, 3), vectors()
    found = linear_head(layer)
    assert found is not None
    expected = (x @ layer.weight.T) / layer.weight.norm(dim=1) ** 0.5
    torch.testing.assert_close(found.tau_normalised(layer(x), 0.5).detach(), expected.detach())


def test_a_cosine_head_is_not_linear(head: ClassHead) -> None:
    head.cosine = True
    assert linear_head(head) is None
    assert linear_head(torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU())) is None


def test_a_linear_layer_without_bias_has_biases_of_zero() -> None:
    found = linear_head(torch.nn.Linear(5, 3, bias=False))
    assert found is not None
    assert (found.biases == 0).all()
