"""What a search is expected to take, before anything is run."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING

from lt_search.durations import show_duration
from lt_search.errors import UserError
from lt_search.referee import read_reports
from lt_search.resources import dry_build
from lt_search.run_folder import open_run, run_names
from lt_search.rungs import Rung
from lt_search.spec import RunSpec, parse_config, trainer_type

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lt_search.store import FolderStore
    from trainers.base import Weights


def going_on(trials: int, eta: int) -> int:
    """Trials expected to pass a rung that `trials` come to.

    The first `eta` of them are never stopped there, since the rung has too few peers to decide; the one standard error
    of grace lets more through than this.
    """
    return min(trials, max(eta, round(trials / eta)))


def arrivals(spec: RunSpec, trials: int) -> dict[Rung, int]:
    """Trials expected at each rung of a search of `trials` trials."""
    expected, there = {}, trials
    for rung in spec.rung_list:
        expected[rung] = there
        there = going_on(there, spec.eta) if spec.prune else there
    return expected


def expected_steps(spec: RunSpec, trials: int) -> dict[int, int]:
    """Steps of each stage that a search of `trials` trials is expected to train, over all its trials."""
    rungs, there = set(spec.rung_list), trials
    steps = {1: 0, 2: 0}
    for stage, length in zip((1, 2), spec.stage_lengths, strict=True):
        for step in range(1, length + 1):
            steps[stage] += there
            if spec.prune and Rung(stage, step) in rungs:
                there = going_on(there, spec.eta)
    return steps


def measured_seconds(spec: RunSpec, storage: FolderStore) -> dict[int, float]:
    """Mean seconds per step of each stage in earlier runs of this trainer on this data and image size."""
    times: dict[int, list[float]] = {1: [], 2: []}
    for name in run_names(storage):
        try:
            store, other = open_run(storage, name)
        except UserError:
            continue
        same_data = (other.data.fingerprint, other.data.image_size) == (spec.data.fingerprint, spec.data.image_size)
        if other.trainer != spec.trainer or not same_data:
            continue
        for number in (folder.rsplit("/", 1)[-1] for folder in store.list("trials")):
            for report in read_reports(store, int(number)) if number.isdigit() else ():
                times[report.stage].append(report.seconds)
    return {stage: mean(seconds) for stage, seconds in times.items() if seconds}


def checkpoint_bytes(spec: RunSpec, weights: Mapping[str, Weights]) -> int:
    """Bytes of a checkpoint of the first trial: its weights and two Adam moments for each."""
    config = parse_config(trainer_type(spec.trainer).config_type, spec.config)
    return 3 * _bytes(dry_build(spec, config, weights).state())


def _bytes(state: object) -> int:
    import torch

    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(_bytes(value) for value in state.values())
    if isinstance(state, list | tuple):
        return sum(_bytes(value) for value in state)
    return 0


def render_plan(
    spec: RunSpec, trials: int, concurrent: int, keep_gb: float, storage: FolderStore, weights: Mapping[str, Weights]
) -> str:
    """The plan as text: trials, rungs, steps, time where it was measured before, disk."""
    steps = expected_steps(spec, trials)
    s1, s2 = spec.stage_lengths
    lines = [
        f"plan for {spec.options['space']} on {spec.data.name} (nothing is run)",
        f"  trials      {trials}, {concurrent} at a time; the first one has the defaults, which are the paper's",
        "              but for what the budget fixes",
        f"  searched    {', '.join(spec.search) or 'nothing'}",
        f"  stages      {s1} steps of stage 1, {s2} of stage 2",
    ]
    for rung, count in arrivals(spec, trials).items():
        lines.append(f"  rung        {rung}: about {count} trials come, the best 1/{spec.eta} go on")
    images = steps[1] * (spec.config["stage1"]["images_per_epoch"] or spec.data.images["train"])
    lines.append(f"  training    about {steps[1]} stage-1 steps ({images:,} images) and {steps[2]} stage-2 steps")
    lines.append(f"  time        {_time(spec, steps, concurrent, storage)}")
    size = checkpoint_bytes(spec, weights)
    lines.append(
        f"  disk        {size / 2**20:.1f} MiB a checkpoint; at most {keep_gb:g} GB of finished ones are kept, "
        f"beside {concurrent} running"
    )
    return "\n".join(lines)


def _time(spec: RunSpec, steps: dict[int, int], concurrent: int, storage: FolderStore) -> str:
    seconds = measured_seconds(spec, storage)
    if set(seconds) != {1, 2}:
        return "not known: no earlier run of this trainer on this data to measure from"
    total = sum(steps[stage] * seconds[stage] for stage in (1, 2))
    each = ", ".join(f"stage {stage} {seconds[stage]:.1f} s a step" for stage in (1, 2))
    return f"about {show_duration(total / concurrent)} ({show_duration(total)} of work; earlier runs: {each})"
