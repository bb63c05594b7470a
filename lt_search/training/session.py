"""One trial's training, step by step: the two stages, their evaluation and their checkpoints; independent of Ray."""

from __future__ import annotations

import math
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lt_search.metrics.bootstrap import ScoreErrors
from lt_search.pruning.rungs import Rung
from lt_search.storage.addresses import compute_kind
from lt_search.storage.checkpoints import Checkpoint, load_checkpoint, save_checkpoint, trainer_of
from lt_search.storage.files import FolderStore
from lt_search.storage.provenance import machine
from lt_search.storage.records import StepReport
from lt_search.storage.stage_store import ArtefactError, StageOne, StageStore, split_features
from lt_search.training.inputs import LoadedInputs, TrialJob

CHECKPOINT_SECONDS = 10.0
"""Between rungs a checkpoint is written only when the last one is older than this."""

FAILURE_LINES = 12
"""Last lines of a traceback that are kept with a failed trial."""


class TrialSession:
    """Trains one trial from where its last checkpoint left it, or from a stage 1 that is in the stage store.

    The first `advance` after a checkpoint was found only returns that checkpoint's report again: the driver may have
    been killed before it received it, and a finished trial must not be trained past its end. After a stage-1 artefact
    was found, it returns the report of its end, with those of its earlier steps.
    """

    def __init__(self, job: TrialJob, loaded: LoadedInputs) -> None:
        self.job = job
        self.loaded = loaded
        self.store = FolderStore(Path(loaded.inputs.run_folder))
        self.stage, self.step = 1, 0
        self._last_checkpoint = time.monotonic()
        self._known: StepReport | None = None
        self._warning: str | None = None
        self._stage1: list[StepReport] = []
        """Reports of the stage-1 steps that are done, while stage 1 is trained."""
        self._stages = loaded.stages if job.address else None
        self._reuse_error: Exception | None = None
        """Why this trial could not start from the stored artefact of its stage 1."""
        if self._stages is not None and not loaded.has_code_of_driver:
            self._stages = None
            self._warning = (
                f"the code of {loaded.inputs.trainer} has changed since the search began, and a worker that started "
                "later has the new one: it shares no stage 1; end the search and begin another one"
            )
        self.trainer = loaded.build_trainer(job.config)
        checkpoint = load_checkpoint(self.store, job.number, job.config)
        past_stage1 = checkpoint is not None and checkpoint.report.rung >= Rung(1, loaded.inputs.stage_lengths[0])
        if self._stages is not None and not past_stage1:
            self._load_stage1(self._stages)
        if checkpoint is not None and self._known is None:
            self._known = checkpoint.report
            self._stage1 = [*checkpoint.history, checkpoint.report]
            self.stage, self.step = checkpoint.report.stage, checkpoint.report.step
            self.trainer.load_state(checkpoint.state)

    def advance(self) -> StepReport:
        """Does one step and reports it. Errors of the trainer become a failed report, never an exception."""
        if self._known is not None:
            known, self._known = self._known, None
            return known
        try:
            report = self._train_step()
        except Exception as error:  # any error of a method's code is this trial's failure, not the search's
            report = failed_report(self.job, self.stage, self.step, error)
        warning, self._warning = self._warning, None
        return replace(report, warning=warning)

    def _train_step(self) -> StepReport:
        started = time.monotonic()
        inputs = self.loaded.inputs
        if self.stage == 1 and self.step == inputs.stage_lengths[0]:
            self.trainer.begin_stage2()
            self.stage, self.step = 2, 0
        train = self.trainer.stage1_step if self.stage == 1 else self.trainer.stage2_step
        losses = train(self.step)
        self.step += 1
        report, evaluated = self._evaluate(losses, started)
        if self.stage == 1 and report.failure is None:
            self._stage1.append(report)
            if self.step == inputs.stage_lengths[0]:
                self._share_stage1()
        if report.failure is None and (evaluated or time.monotonic() - self._last_checkpoint > CHECKPOINT_SECONDS):
            try:
                earlier = tuple(self._stage1[:-1]) if self.stage == 1 else ()
                checkpoint = Checkpoint(report, self.trainer.state(), earlier)
                save_checkpoint(self.store, self.job.number, self.job.attempt, self.job.config, checkpoint)
            except OSError as error:
                return replace(report, final=False, storage_failure=f"{self.store.root}: {error}")
            self._last_checkpoint = time.monotonic()
        return report

    def _load_stage1(self, stages: StageStore) -> None:
        """Starts at stage 2 where this trial's stage 1 is stored and can be used; trains its own otherwise.

        Nothing that goes wrong here removes an artefact: the store removes those whose digest does not match.
        """
        started = time.monotonic()
        address = self.job.address
        try:
            stored = stages.load(address)
            if stored is not None:
                self._known = replace(self._continue_from(stored), seconds=time.monotonic() - started)
            elif self.job.stage1_stored:
                self._warning = f"stage 1 {address} was removed; training it again"
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # a state of another version, say, or an error of the device
            self._reuse_error = error
            self._warning = f"stage 1 {address} cannot be reused; training it again: {_in_one_line(error)}"
            self.trainer = self.loaded.build_trainer(self.job.config)  # a part of the state may have been loaded

    def _continue_from(self, stored: StageOne) -> StepReport:
        """Puts the trainer at the end of a stored stage 1, and gives the report of it."""
        *earlier, end = (self._as_own(report, stored) for report in stored.history)
        length = self.loaded.inputs.stage_lengths[0]
        if end.step != length:
            raise ValueError(f"it ends at step {end.step} of {length}")
        self.trainer.load_state(stored.state)
        for split, features in stored.features.items():
            self.trainer.keep_features(self.loaded.splits[split], features)
        self.stage, self.step = 1, length
        history = [report for report in earlier if report.value is not None]
        return replace(end, stage1_seconds=stored.seconds, history=history)

    def _as_own(self, report: StepReport, stored: StageOne) -> StepReport:
        """A step of a stored stage 1 as this trial reports it: without cost, scored by this run's objective.

        The probe's value is known where the run that trained it had a rung, and its error for that run's objective: a
        rung that only this run has makes no decision on it.
        """
        inputs = self.loaded.inputs
        same = stored.metric == inputs.metric
        return replace(
            report,
            number=self.job.number,
            attempt=self.job.attempt,
            value=report.scalars.get(f"probe_{inputs.metric}") if self._is_evaluated_step(1, report.step) else None,
            standard_error=report.standard_error if same else None,
            seconds=0.0,
            reused_from=stored.trained_by,
        )

    def _share_stage1(self) -> None:
        """Puts the finished stage 1 into the store; where that cannot be written, it stays this trial's own."""
        stages, inputs = self._stages, self.loaded.inputs
        kinds = {compute_kind(report.device, report.threads) for report in self._stage1}
        if stages is None or kinds != {self.job.compute}:  # a part of it may be of an earlier process
            return
        kept = ((split, self.trainer.kept_features(images)) for split, images in self.loaded.splits.items())
        stage = StageOne(
            state=self.trainer.finished_stage1(),
            features=split_features(kept),
            history=tuple(self._stage1),
            metric=inputs.metric,
            trained_by=trainer_of(self.store, self.job.number),
            trainer=self.trainer.name,
            trained_on=machine(self.loaded.device.type),
        )
        try:
            if stages.publish(self.job.address, stage) or self._reuse_error is None:
                return
            error = self._reuse_error
            problem = stages.fault(self.job.address) if isinstance(error, ArtefactError) else _in_one_line(error)
        except (OSError, SafetensorError) as failed:
            problem = str(failed)
        if problem is not None:
            self._warning = f"stage 1 {self.job.address} could not be stored for other trials: {problem}"

    def _is_evaluated_step(self, stage: int, step: int) -> bool:
        """Whether a step is at a rung or at the end of its stage."""
        inputs = self.loaded.inputs
        return step == inputs.stage_lengths[stage - 1] or Rung(stage, step) in inputs.rungs

    def _evaluate(self, losses: dict[str, float], started: float) -> tuple[StepReport, bool]:
        """The report of a step, and whether it is at a rung or at the end of its stage."""
        inputs = self.loaded.inputs
        evaluated = self._is_evaluated_step(self.stage, self.step)
        logits = self.trainer.predict_logits(self.loaded.val_images)
        evaluation = self.loaded.evaluate(logits)
        scalars = {**losses, **evaluation.scalars}
        value: float | None = evaluation.scalars[inputs.metric]
        if self.stage == 1:
            value = None
            if evaluated:
                logits = self.trainer.probe_logits(self.loaded.val_images)
                # All metrics, because a run with another objective may reuse this stage 1.
                probe = self.loaded.evaluate(logits).scalars
                scalars |= {f"probe_{name}": score for name, score in probe.items()}
                value = probe[inputs.metric]
        final = self.stage == 2 and self.step == inputs.stage_lengths[1]
        errors = self.loaded.score_errors(logits) if evaluated else None
        report = StepReport(
            number=self.job.number,
            attempt=self.job.attempt,
            stage=self.stage,
            step=self.step,
            final=final,
            value=value,
            standard_error=_known(errors.overall) if errors else None,
            score_errors=_plain(errors) if errors and final else {},
            seconds=time.monotonic() - started,
            scalars=scalars,
            per_class=evaluation.to_json()["per_class"],
            device=self.loaded.device.type,
            threads=torch.get_num_threads(),
            failure=self._not_finite(losses, value),
        )
        return report, evaluated

    def _not_finite(self, losses: dict[str, float], value: float | None) -> str | None:
        where = f"at stage {self.stage} step {self.step}"
        for name, loss in losses.items():
            if not math.isfinite(loss):
                return f"{name} is {loss} {where}"
        if value is not None and not math.isfinite(value):
            return f"the objective {self.loaded.inputs.metric} is {value} {where}"
        return None


def _known(error: float) -> float | None:
    """A standard error, or None where it is not known (fewer than two patients or groups)."""
    return error if math.isfinite(error) else None


def _in_one_line(error: BaseException) -> str:
    """The kind of an error, unless it is one of our own, and the first line of what it says."""
    text = (str(error).splitlines() or [""])[0]
    return text if isinstance(error, ArtefactError) else f"{type(error).__name__}: {text}"


def _plain(errors: ScoreErrors) -> dict[str, Any]:
    groups = {name: _known(error) for name, error in errors.groups.items()}
    return {"groups": groups, "per_class": [_known(error) for error in errors.per_class]}


def failed_report(job: TrialJob, stage: int, step: int, error: BaseException) -> StepReport:
    """The report of a trial that raised: what it was in one line, then the last lines of the traceback."""
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()[-FAILURE_LINES:]
    reason = "out of memory on the device: " if isinstance(error, torch.cuda.OutOfMemoryError) else ""
    summary = f"{reason}{_in_one_line(error)}"
    return StepReport(job.number, job.attempt, stage, step, failure="\n".join([summary, *lines]))
