from __future__ import annotations

import pytest
import torch
from torch import nn

from trainers.networks.ema import copy_buffers, ema_decay, ema_update


def test_the_average_is_plain_until_the_limit_binds() -> None:
    values, average = [4.0, 1.0, 7.0, 2.0], 0.0
    for t, value in enumerate(values):
        decay = ema_decay(t, 0.999)
        average = decay * average + (1 - decay) * value
        assert average == pytest.approx(sum(values[: t + 1]) / (t + 1))
    assert ema_decay(10_000, 0.999) == 0.999


def test_parameters_follow_and_buffers_do_not() -> None:
    student, teacher = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    nn.init.constant_(student.weight, 5.0)
    student.running_mean += 2.0  # type: ignore[operator]
    ema_update(teacher, student, 0.75)
    torch.testing.assert_close(teacher.weight.detach(), torch.full((3,), 0.75 * 1 + 0.25 * 5))
    torch.testing.assert_close(teacher.running_mean, torch.zeros(3))


def test_copied_buffers_are_the_students_and_parameters_stay() -> None:
    student, teacher = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    nn.init.constant_(student.weight, 5.0)
    student(torch.arange(6.0).reshape(2, 3))
    copy_buffers(teacher, student)
    assert int(teacher.num_batches_tracked) == 1  # type: ignore[arg-type]
    torch.testing.assert_close(teacher.running_mean, torch.tensor([0.15, 0.25, 0.35]))
    torch.testing.assert_close(teacher.weight.detach(), torch.ones(3))
