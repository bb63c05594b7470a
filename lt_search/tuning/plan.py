"""What a search is expected to take, from one measured trial."""

from __future__ import annotations

import time
from statistics import mean
from typing import TYPE_CHECKING

import torch

from lt_search.config.durations import show_duration
from lt_search.config.spec import RunSpec
from lt_search.errors import UserError
from lt_search.storage.addresses import compute_kind
from lt_search.storage.records import read_reports
from lt_search.storage.run_folder import open_run, run_names
from lt_search.storage.stage_store import split_features
from lt_search.tuning.simulation import NOTHING, TURNAROUND, Begun, Expected, StageCosts

if TYPE_CHECKING:
    from collections.abc import Callable

    from lt_search.storage.files import FolderStore
    from lt_search.training.inputs import LoadedInputs
    from trainers.base import Images, State

MEASURED_SECONDS = 20.0
"""A stage is measured for this long, and for two steps at least; a shorter one is trained to its end."""


def earlier_seconds(spec: RunSpec, storage: FolderStore, compute: str) -> dict[int, float]:
    """Mean seconds per step of each stage in earlier runs that trained what this one would.

    Those are runs of the same trainer, config and search on the same data and image size, and of them the steps that
    were computed on the same kind of device: anything else can take a hundred times as long.

    Args:
        spec: the run.
        storage: where the earlier runs are.
        compute: on what trials are to be computed, see `lt_search.storage.addresses.compute_kind`.
    """
    times: dict[int, list[float]] = {1: [], 2: []}
    for name in run_names(storage):
        try:
            store, other = open_run(storage, name)
        except UserError:
            continue
        if _decides_time(other) != _decides_time(spec):
            continue
        for number in (folder.rsplit("/", 1)[-1] for folder in store.list("trials")):
            for report in read_reports(store, int(number)) if number.isdigit() else ():
                if report.reused_from is None and compute_kind(report.device, report.threads) == compute:
                    times[report.stage].append(report.seconds)
    return {stage: mean(seconds) for stage, seconds in times.items() if seconds}


def _decides_time(spec: RunSpec) -> tuple[object, ...]:
    data = spec.data.fingerprint, spec.data.image_size, [extra.fingerprint for extra in spec.data.extra]
    return data, spec.trainer, spec.config, spec.search


def measure(spec: RunSpec, loaded: LoadedInputs, storage: FolderStore) -> StageCosts:
    """What a trial takes: its size, and its time in earlier runs that trained the same.

    Where there were none, the first trial is trained for a while; nothing of it is kept.
    """
    trainer = loaded.build_trainer(spec.config)
    seconds = earlier_seconds(spec, storage, compute_kind(loaded.device.type, torch.get_num_threads()))
    origin = "earlier runs"
    measured = set(seconds) != {1, 2}
    sizes = []
    for stage, train in ((1, trainer.stage1_step), (2, trainer.stage2_step)):
        if stage == 2:
            trainer.begin_stage2()
        if measured:
            seconds[stage], steps = _time_steps(train, loaded, trainer.predict_logits, spec.stage_lengths[stage - 1])
            origin = f"{origin}, " if stage == 2 else ""
            origin += f"{steps} {'step' if steps == 1 else 'steps'} of stage {stage}"
        sizes.append(_bytes(trainer.state()))
        if stage == 1:
            trainer.probe_logits(loaded.val_images)
            kept = ((split, trainer.kept_features(images)) for split, images in loaded.splits.items())
            artefact = _bytes(trainer.finished_stage1()) + _bytes(split_features(kept))
    origin = f"{origin} of the first trial, trained now" if measured else origin
    # An optimiser that has not stepped yet has no moments; Adam keeps two for each weight.
    model = _bytes(trainer.state()["model"])
    return StageCosts(seconds, origin, max(*sizes, 3 * model), artefact)


def _time_steps(
    train: Callable[[int], object],
    loaded: LoadedInputs,
    predict: Callable[[Images], torch.Tensor],
    length: int,
) -> tuple[float, int]:
    """Seconds of a step, and how many were trained. The first one, which warms caches up, counts only if alone."""
    times: list[float] = []
    while len(times) < length and (len(times) < 2 or sum(times) < MEASURED_SECONDS):
        started = time.monotonic()
        train(len(times))
        loaded.evaluate(predict(loaded.val_images))
        times.append(time.monotonic() - started)
    return mean(times[1:] or times), len(times)


def _bytes(state: State | object) -> int:
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(_bytes(value) for value in state.values())
    if isinstance(state, list | tuple):
        return sum(_bytes(value) for value in state)
    return 0


def elapsed_seconds(spec: RunSpec, trials: int, expected: Expected, costs: StageCosts, concurrent: int) -> float:
    """Seconds from the start of a search to its end.

    A stage 1 is trained by one trial while those that share it wait, so that no more trials than there are stage 1s
    train at first; nor does a search end before one whole trial has.
    """
    work = _work(expected, trials, costs)
    shared_out = work[1] / max(1, min(concurrent, expected.stage1s)) + work[2] / min(concurrent, trials)
    one_trial = (costs.of(1, spec) if expected.stage1s else 0.0) + costs.of(2, spec) + TURNAROUND
    return max(shared_out, one_trial)


def _work(expected: Expected, trials: int, costs: StageCosts) -> dict[int, float]:
    """Seconds of both stages over all trials; handing trials out counts as stage 2."""
    work = {stage: expected.steps[stage] * costs.seconds[stage] for stage in (1, 2)}
    return {**work, 2: work[2] + trials * TURNAROUND}


def _trial_lines(trials: int, concurrent: int, begun: Begun) -> list[str]:
    if not begun.trials:
        return [
            f"  trials      {trials}, {concurrent} at a time; the first one has the defaults, which are the paper's",
            "              but for what the budget fixes",
        ]
    ended = len(begun.ended)
    return [
        f"  trials      {trials} to go, {concurrent} at a time; {ended} of {trials + ended} have ended, and those that",
        "              were interrupted count in full",
    ]


def _who_goes_on(spec: RunSpec) -> str:
    if not spec.prune:
        return "all go on (--no-prune)"
    return f"the best 1/{spec.eta} go on"


def render_plan(
    spec: RunSpec,
    trials: int,
    expected: Expected,
    costs: StageCosts,
    *,
    concurrent: int,
    keep_gb: float,
    device: str,
    begun: Begun = NOTHING,
) -> str:
    """The plan as text: trials, stage-1 trainings, rungs, device-hours, time and disk.

    Args:
        spec: the run.
        trials: trials to train.
        expected: what they are expected to train.
        costs: what a trial takes.
        concurrent: trials at a time.
        keep_gb: disk for models of finished trials.
        device: what a trial is trained on, such as `CPU core`.
        begun: what was there before.
    """
    s1, s2 = spec.stage_lengths
    reuse = "each is trained once and shared" if spec.reuse else "--no-reuse: one a trial"
    lines = [
        f"plan for {spec.options['space']} on {spec.data.name} (no search is started)",
        *_trial_lines(trials, concurrent, begun),
        f"  searched    {', '.join(spec.search) or 'nothing'}",
        f"  stages      {s1} steps of stage 1, {s2} of stage 2",
        f"  stage 1     about {expected.stage1s} stage-1 trainings for {trials} trials ({reuse})",
    ]
    for rung, count in expected.arrivals.items():
        what = "stage 1s" if rung.stage == 1 else "trials"
        lines.append(f"  rung        {rung}: about {count} {what} come, {_who_goes_on(spec)}")
    steps = expected.steps
    images = steps[1] * (spec.config["stage1"]["images_per_epoch"] or spec.data.training_images)
    lines.append(f"  training    about {steps[1]} stage-1 steps ({images:,} images) and {steps[2]} stage-2 steps")
    total = sum(_work(expected, trials, costs).values())
    each = ", ".join(f"stage {stage} {costs.seconds[stage]:.2g} s a step" for stage in (1, 2))
    lines.append(f"  measured    {each} ({costs.origin})")
    lines.append(f"  work        about {show_duration(total)}: {total / 3600:.2g} device-hours of one {device}")
    seconds = elapsed_seconds(spec, trials, expected, costs, concurrent)
    lines.append(f"  time        about {show_duration(seconds)}, {concurrent} trials at a time")
    stage1s = (
        f"{expected.finished_stage1s * costs.artefact_bytes / 2**20:.1f} MiB of shared stage 1s, " if spec.reuse else ""
    )
    lines.append(
        f"  disk        {stage1s}{costs.checkpoint_bytes / 2**20:.1f} MiB a checkpoint: at most {keep_gb:g} GB of "
        f"finished ones are kept, beside {concurrent} running"
    )
    return "\n".join(lines)
