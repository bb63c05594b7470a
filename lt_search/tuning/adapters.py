"""Ray Tune's view of a search: a searcher that hands out trials, a scheduler that stops them, and when to end.

Why not Ray's own: `OptunaSearch` records a pruned trial as finished, `ASHAScheduler` writes late values into early
rungs and loses all rungs when its process dies.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from lt_search.pruning.rungs import Decision
from lt_search.storage.records import StepReport

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

    from lt_search.tuning.controller import Controller
    from lt_search.tuning.tune_loop import SearchLoop

REPORT = "report"
"""Key of a Ray result under which a trial's `StepReport` travels, as JSON."""

JOB = "job"
"""Key of a Ray config under which a `TrialJob` travels, as plain values."""


class _NotPickled:
    """Pickles to nothing: Tuner pickles what it is given when it is built, and ours hold open files."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TrialSearcher(_NotPickled, Searcher):
    """Hands out the trials of a search loop.

    Ray's `max_concurrent_trials` is fixed when a search starts; the loop's limit is asked for each time.
    """

    def __init__(self, loop: SearchLoop) -> None:
        super().__init__(metric=None, mode=None)
        self._loop = loop
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a str
        """The next trial's job as a Ray config; None while the limit is reached."""
        job = self._loop.next_job(running=len(self._numbers))
        if job is None or isinstance(job, str):
            return job
        self._numbers[trial_id] = job.number
        return {JOB: asdict(job)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Records the end of a trial: finished, stopped by the scheduler, or lost with its worker."""
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        if result is not None and REPORT in result:
            self._loop.controller.observe(StepReport.from_json(result[REPORT]))
        elif error:
            self._loop.controller.fail(number, "the worker process died, also when it was started again")

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: the journal is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing: the journal is the state."""


class RungScheduler(_NotPickled, FIFOScheduler):
    """Runs trials in order, and stops those that the controller stops."""

    def __init__(self, controller: Controller) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._controller = controller

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Records a step, and returns whether the trial goes on."""
        decision = self._controller.observe(StepReport.from_json(result[REPORT]))
        return str(TrialScheduler.STOP if decision is Decision.STOP else TrialScheduler.CONTINUE)


class StopWithLoop(_NotPickled, Stopper):
    """Ends the whole search when its loop is to stop."""

    def __init__(self, loop: SearchLoop) -> None:
        self._loop = loop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stops a single trial: the scheduler does."""
        return False

    def stop_all(self) -> bool:
        """Whether to end now."""
        return self._loop.should_stop()


class LoopCallback(_NotPickled, Callback):
    """Passes the iterations of Ray's loop on, and logs the deaths of worker processes."""

    def __init__(self, loop: SearchLoop) -> None:
        self._loop = loop

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ray's hook."""
        self._loop.on_loop_end()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Trial, **info: Any) -> None:
        """Ray's hook for a trial that is handed to a new worker, because its own died."""
        self._loop.log.write(f"trial {trial.config[JOB]['number']}: its worker process died; restarted on a new worker")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Trial, **info: Any) -> None:
        """Ray's hook for a trial that is given up, because its workers died again and again."""
        self._loop.log.write(f"trial {trial.config[JOB]['number']}: its worker process died; no restarts left")
