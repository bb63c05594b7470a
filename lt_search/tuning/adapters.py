"""Ray Tune's view of a search: a searcher that hands out trials, a scheduler that stops them, and when to end.

Why not Ray's own: `OptunaSearch` tells a pruned trial as finished, `ASHAScheduler` writes late values into early
rungs and forgets all rungs when its process dies.
"""

from __future__ import annotations

from collections.abc import Callable
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

    from lt_search.tuning.controller import Referee

REPORT = "report"
"""Key of a Ray result under which a trial's `StepReport` travels, as JSON."""


class _NotPickled:
    """Pickles to nothing: Tuner pickles what it is given when it is built, and ours hold open files."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class RefereeSearcher(_NotPickled, Searcher):
    """Hands out trials, at most `limit()` at a time.

    Ray's `max_concurrent_trials` is fixed when a search starts; this limit is asked for again each time, so that
    nodes which join a cluster get work.

    Args:
        referee: decides.
        limit: trials that may run now.
        done: whether no more trials are to be started.
        idle: called again and again while nothing runs and all that is left waits for another run's stage 1.
    """

    def __init__(
        self, referee: Referee, limit: Callable[[], int], done: Callable[[], bool], idle: Callable[[], None]
    ) -> None:
        super().__init__(metric=None, mode=None)
        self._referee = referee
        self._limit = limit
        self._done = done
        self._idle = idle
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is a str
        """The next trial's job as a Ray config; None while the limit is reached."""
        if self._done():
            return str(Searcher.FINISHED)
        free = self._limit() - len(self._numbers)
        if free <= 0:
            return None
        job = self._referee.offer(free)
        # Ray cannot wait with nothing to run: it blocks for minutes, hears no signal meanwhile, and fails in the end.
        while job is None and not self._numbers and not self._nothing_left():
            self._idle()
            job = self._referee.offer(free)
        if job is None:
            return str(Searcher.FINISHED) if self._nothing_left() else None
        self._numbers[trial_id] = job.number
        return {"job": asdict(job)}

    def _nothing_left(self) -> bool:
        return self._done() or self._referee.exhausted or self._referee.storage_failure is not None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Hears the end of a trial: finished, stopped by the scheduler, or lost with its worker."""
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        if result is not None and REPORT in result:
            self._referee.hear(StepReport.from_json(result[REPORT]))
        elif error:
            self._referee.fail(number, "the worker process died, also when it was started again")

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: the journal is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing: the journal is the state."""


class RefereeScheduler(_NotPickled, FIFOScheduler):
    """Runs trials in order, and stops those that the referee stops."""

    def __init__(self, referee: Referee) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._referee = referee

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Hears a step, and answers whether the trial goes on."""
        decision = self._referee.hear(StepReport.from_json(result[REPORT]))
        return str(TrialScheduler.STOP if decision is Decision.STOP else TrialScheduler.CONTINUE)


class WhenToStop(_NotPickled, Stopper):
    """Ends the whole search when `done` says so."""

    def __init__(self, done: Callable[[], bool]) -> None:
        self._done = done

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stops a single trial: that is the scheduler's."""
        return False

    def stop_all(self) -> bool:
        """Whether to end now."""
        return self._done()


class OnEveryStep(_NotPickled, Callback):
    """Calls `tick` in every turn of Ray's loop, some ten times a second."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Ray's hook."""
        self._tick()
