"""Exponential moving average of a network's weights, such as a teacher's of its student."""

from __future__ import annotations

import torch
from torch import nn


def ema_decay(updates: int, limit: float) -> float:
    """a = min(1 - 1 / (t + 1), limit) after t earlier updates: a plain average at first, so the start is forgotten."""
    return min(1 - 1 / (updates + 1), limit)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """theta' <- decay * theta' + (1 - decay) * theta for all parameters; buffers stay the teacher's own."""
    for follower, leader in zip(teacher.parameters(), student.parameters(), strict=True):
        follower.lerp_(leader, 1 - decay)


@torch.no_grad()
def copy_buffers(teacher: nn.Module, student: nn.Module) -> None:
    """The teacher's buffers, such as the statistics of batch norms, become the student's."""
    for follower, leader in zip(teacher.buffers(), student.buffers(), strict=True):
        follower.copy_(leader)
