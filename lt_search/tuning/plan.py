"""Plan of a search: expected trainings, time and disk, from one measured trial."""

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
from lt_search.tuning.simulation import TURNAROUND, Expected, StageCosts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna.trial import FrozenTrial

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

    Where there are none, the first trial is trained for a while; nothing of it is kept.
    """
    trainer = loaded.build_trainer(spec.config)
    seconds = earlier_seconds(spec, storage, compute_kind(loaded.device.type, torch.get_num_threads()))
    known = set(seconds) == {1, 2}
    measured, sizes = [], []
    for stage, train in ((1, trainer.stage1_step), (2, trainer.stage2_step)):
        if stage == 2:
            trainer.begin_stage2()
        if not known:
            times = _time_steps(train, loaded, trainer.predict_logits, spec.stage_lengths[stage - 1])
            seconds[stage] = mean(times[1:] or times)  # the first step warms caches up
            measured.append(f"{len(times)} step{'s' if len(times) > 1 else ''} of stage {stage}")
        sizes.append(_bytes(trainer.state()))
        if stage == 1:
            trainer.probe_logits(loaded.val_images)
            kept = ((split, trainer.kept_features(images)) for split, images in loaded.splits.items())
            artefact = _bytes(trainer.finished_stage1()) + _bytes(split_features(kept))
    origin = "earlier runs" if known else f"{', '.join(measured)} of the first trial, trained now"
    # An optimiser that has not stepped yet has no moments; Adam keeps two for each weight.
    return StageCosts(seconds, origin, max(*sizes, 3 * _bytes(trainer.state()["model"])), artefact)


def _time_steps(
    train: Callable[[int], object], loaded: LoadedInputs, predict: Callable[[Images], torch.Tensor], length: int
) -> list[float]:
    """Seconds of each step, evaluation included."""
    times: list[float] = []
    while len(times) < length and (len(times) < 2 or sum(times) < MEASURED_SECONDS):
        started = time.monotonic()
        train(len(times))
        loaded.evaluate(predict(loaded.val_images))
        times.append(time.monotonic() - started)
    return times


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

    A stage-1 run is trained by one trial while those that share it wait, so that no more trials than there are stage-1
    runs train at first; nor does a search end before one whole trial has.
    """
    stage1, stage2 = _work(expected, trials, costs)
    shared_out = stage1 / max(1, min(concurrent, expected.stage1_runs)) + stage2 / min(concurrent, trials)
    one_trial = (costs.of(1, spec) if expected.stage1_runs else 0.0) + costs.of(2, spec) + TURNAROUND
    return max(shared_out, one_trial)


def _work(expected: Expected, trials: int, costs: StageCosts) -> tuple[float, float]:
    """Seconds of both stages over all trials; handing trials out counts as stage 2."""
    stage1, stage2 = (expected.steps[stage] * costs.seconds[stage] for stage in (1, 2))
    return stage1, stage2 + trials * TURNAROUND


def render_plan(
    spec: RunSpec,
    trials: int,
    expected: Expected,
    costs: StageCosts,
    *,
    concurrent: int,
    keep_gb: float,
    device: str,
    started: Sequence[FrozenTrial] = (),
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
        started: trials of a run that is resumed.
    """
    s1, s2 = spec.stage_lengths
    steps = expected.steps
    images = steps[1] * (spec.config["stage1"]["images_per_epoch"] or spec.data.training_images)
    work = sum(_work(expected, trials, costs))
    seconds = elapsed_seconds(spec, trials, expected, costs, concurrent)
    shared = f"{expected.stage1_artefacts * costs.artefact_bytes / 2**20:.1f} MiB of shared stage-1 artefacts, "
    reuse = "each is trained once and shared" if spec.reuse else "--no-reuse: one per trial"
    go_on = f"the best 1/{spec.eta} continue" if spec.prune else "all continue (--no-prune)"
    ended = sum(trial.state.is_finished() for trial in started)
    arriving = {1: "stage-1 configurations", 2: "trials"}
    rungs = [
        f"{rung}: about {count} {arriving[rung.stage]} reach it, {go_on}" for rung, count in expected.arrivals.items()
    ]
    begins = "the first one has the defaults, which are the paper's\nexcept for what the budget fixes"
    if started:
        begins = f"{ended} of {trials + ended} have ended, and those that\nwere interrupted count in full"
    lines = [
        ("trials", f"{trials}{' to go' if started else ''}, {concurrent} at a time; {begins}"),
        ("searched", ", ".join(spec.search) or "nothing"),
        ("stages", f"{s1} steps of stage 1, {s2} of stage 2"),
        ("stage 1", f"about {expected.stage1_runs} stage-1 trainings for {trials} trials ({reuse})"),
        *(("rung", rung) for rung in rungs),
        ("training", f"about {steps[1]} stage-1 steps ({images:,} images) and {steps[2]} stage-2 steps"),
        (
            "measured",
            f"stage 1 {costs.seconds[1]:.2g} s a step, stage 2 {costs.seconds[2]:.2g} s a step ({costs.origin})",
        ),
        ("work", f"about {show_duration(work)}: {work / 3600:.2g} device-hours of one {device}"),
        ("time", f"about {show_duration(seconds)}, {concurrent} trials at a time"),
        (
            "disk",
            f"{shared if spec.reuse else ''}{costs.checkpoint_bytes / 2**20:.1f} MiB a checkpoint: at most "
            f"{keep_gb:g} GB of finished ones are kept, beside {concurrent} running",
        ),
    ]
    title = f"plan for {spec.options['space']} on {spec.data.name} (no search is started)"
    return "\n".join([title, *(f"  {name:<12}" + text.replace("\n", "\n" + 14 * " ") for name, text in lines)])
