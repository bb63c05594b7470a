from __future__ import annotations

import pytest
import torch

from trainers.seeding import generator, seeded
from trainers.seeds import derive_seed


def test_seeds_are_a_pure_function_of_all_their_parts() -> None:
    assert derive_seed(0, 1, 2, "x") == derive_seed(0, 1, 2, "x")
    seeds = {derive_seed(*parts) for parts in [(0, 1, 2), (0, 12), (0, "1", 2), (0, 1, 2, "x"), (0, 2, 1)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_of_one_place_draw_the_same() -> None:
    draws = [torch.rand(5, generator=generator("cpu", 3, 1, 4, "order")) for _ in range(2)]
    assert torch.equal(*draws)


def test_seeded_block_is_repeatable_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with seeded(torch.device("cpu"), 7, "dropout"):
            draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RuntimeError), seeded(torch.device("cpu"), 7):
        torch.rand(3)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_block_on_the_cpu_draws_as_a_manual_seed_and_touches_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = torch.rand(3, generator=torch.Generator().manual_seed(derive_seed(7, "dropout")))
    touched: list[str] = []
    for name in ("manual_seed", "manual_seed_all", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, lambda *_args, name=name: touched.append(name))
    with seeded(torch.device("cpu"), 7, "dropout"):
        assert torch.equal(torch.rand(3), expected)
    assert not touched


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_seeded_block_on_a_gpu_is_repeatable_and_leaves_its_generator_alone() -> None:
    for device in (torch.device("cuda"), torch.device("cuda", 0)):
        before = torch.cuda.get_rng_state(device)
        draws = []
        for _ in range(2):
            with seeded(device, 7, "dropout"):
                draws.append(torch.rand(3, device=device))
        assert torch.equal(*draws)
        assert torch.equal(torch.cuda.get_rng_state(device), before)
