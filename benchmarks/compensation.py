"""The FDC loss and its gradient: ours against one covariance per (sample, class) with a fresh factorisation.

    python -m benchmarks.compensation

A batch of B = 128, K = 23 classes, D = 512. The baseline is what the released code does: gather a covariance for every
(sample, class), factorise each and solve; it runs on fewer samples and its time and memory are scaled to 128, which is
exact, since it treats every sample alike. Ours factorises each class once and solves for the whole batch; its
factorisation is counted. Memory is what torch's profiler counts as allocated at the peak. Bars: 10x and 50x.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from trainers.features.gaussians import Gaussians
from trainers.losses.compensation import fdc

B, K, D = 128, 23, 512
FEW = 4
"""Samples the baseline is measured on: its covariances for 128 would take 3 GB, and their factors as much again."""


def ours(z: Tensor, y: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    gaussians = Gaussians.of(mean[None], cov[None])
    return fdc(gaussians.mahalanobis(z)[0].mT, y, torch.ones(K, dtype=torch.bool))


def per_sample(z: Tensor, y: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    away = z[:, None] - mean.float()
    gathered = cov.float()[None].expand(len(z), -1, -1, -1).clone()
    solved = torch.linalg.solve_triangular(torch.linalg.cholesky(gathered), away[..., None], upper=False)
    return fdc(solved.square().sum((-1, -2)), y, torch.ones(K, dtype=torch.bool))


def measure(loss: Callable[..., Tensor], samples: int, repeats: int) -> tuple[float, float, Tensor]:
    """Seconds and peak MB of a loss with its gradient, and that gradient."""
    draws = torch.Generator().manual_seed(0)
    z = torch.randn(B, D, generator=draws)[:samples].requires_grad_()
    y = torch.randint(0, K, (B,), generator=draws)[:samples]
    root = torch.randn(K, D, D, generator=draws, dtype=torch.float64) / D**0.5
    mean, cov = torch.randn(K, D, generator=draws, dtype=torch.float64), root @ root.mT + 0.1 * torch.eye(D)
    times = []
    for _ in range(repeats):
        z.grad = None
        started = time.perf_counter()
        loss(z, y, mean, cov).backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - started)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        loss(z, y, mean, cov).backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    return min(times), _peak(found) / 1e6, z.grad / 2


def _peak(found: profile) -> float:
    """Largest sum of live allocations, in bytes."""
    live = peak = 0.0
    assert found.profiler is not None
    assert found.profiler.kineto_results is not None
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()  # type: ignore[attr-defined]  # torch's stub lacks it
            peak = max(peak, live)
    return peak


def main() -> None:
    seconds, megabytes, gradient = measure(ours, B, 5)
    base_seconds, base_megabytes, base_gradient = measure(per_sample, FEW, 2)
    scale = B / FEW
    # Both losses are means over their batches.
    torch.testing.assert_close(gradient[:FEW] * B, base_gradient * FEW, rtol=1e-2, atol=1e-2)
    print(f"ours:       {seconds:.3f} s, {megabytes:,.0f} MB for a batch of {B}")
    print(f"per sample: {base_seconds * scale:.3f} s, {base_megabytes * scale:,.0f} MB (from {FEW} samples)")
    print(f"ratio: {base_seconds * scale / seconds:.0f}x in time (bar: 10x), "
          f"{base_megabytes * scale / megabytes:.0f}x in memory (bar: 50x)")  # fmt: skip


if __name__ == "__main__":
    main()
